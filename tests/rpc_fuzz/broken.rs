//! Messages that no honest peer sends. Each of these may end its connection, but nothing else.

use capnp::any_pointer;
use capnp_rpc::rpc_capnp::{call, message};

use super::messages::{Message, disembargo, finish, fresh, path, release, root};
use super::peer::{OBJECT, Peer, UNUSED, pick};
use super::support::raw;

/// The number of kinds.
const KINDS: u64 = 34;

/// The bytes of a broken message. The server may never read the messages after it.
pub(crate) fn broken(peer: &mut Peer) -> Vec<u8> {
    let kind = peer.random.below(KINDS);
    match kind {
        0..10 => raw::serialized(&calls(peer, kind)),
        10..20 => raw::serialized(&promises(peer, kind)),
        20..28 => raw::serialized(&kinds(peer, kind)),
        _ => frames(peer, kind),
    }
}

/// Calls and answers: with unknown numbers, sent twice, or out of place.
fn calls(peer: &mut Peer, kind: u64) -> Message {
    let import = pick(&mut peer.random, &peer.imports).unwrap_or(UNUSED);
    let mut message = fresh();
    match kind {
        0 => call(&mut message, UNUSED).init_target().set_imported_cap(UNUSED),
        1 => call(&mut message, OBJECT).init_target().set_imported_cap(import),
        2 => {
            let id = peer.open.last().map_or(OBJECT, |asked| asked.id);
            call(&mut message, id).init_target().set_imported_cap(import);
        }
        3 => return finish(OBJECT, true),
        4 => {
            let id = peer.open.last().map_or(UNUSED, |asked| asked.id);
            return finish(id, true);
        }
        5 => return peer.answer_to(UNUSED),
        6 => {
            // The call with the next number hasn't been made.
            let next = peer.theirs.iter().max().map_or(0, |id| id + 1);
            return peer.answer_to(next);
        }
        7 => {
            let id = peer.theirs.last().copied().unwrap_or(UNUSED);
            let mut answer = root(&mut message).init_return();
            answer.set_answer_id(id);
            match peer.random.below(4) {
                0 => answer.set_canceled(()),
                1 => answer.set_results_sent_elsewhere(()),
                2 => answer.set_take_from_other_question(OBJECT),
                _ => drop(answer.init_accept_from_third_party()),
            }
        }
        8 => {
            let mut call = call(&mut message, UNUSED);
            call.reborrow().init_target().set_imported_cap(import);
            match peer.random.below(2) {
                0 => call.init_send_results_to().set_yourself(()),
                _ => drop(call.init_send_results_to().init_third_party()),
            }
        }
        _ => {
            let target = call(&mut message, UNUSED).init_target().init_promised_answer();
            path(target, 33 + peer.random.below(1000) as u32);
        }
    }
    message
}

fn call(message: &mut Message, id: u32) -> call::Builder<'_> {
    let mut call = root(message).init_call();
    call.set_question_id(id);
    call.reborrow().get_send_results_to().set_caller(());
    call.reborrow().init_params();
    call
}

/// Promises and capabilities: in circles, unknown, too many, or released too often.
fn promises(peer: &mut Peer, kind: u64) -> Message {
    let promise = pick(&mut peer.random, &peer.promises).unwrap_or(UNUSED);
    let hosted = pick(&mut peer.random, &peer.hosted).unwrap_or(UNUSED);
    let import = pick(&mut peer.random, &peer.imports).unwrap_or(UNUSED);
    let mut message = fresh();
    match kind {
        10 => resolve(&mut message, promise).init_cap().set_sender_promise(promise),
        11 => resolve(&mut message, hosted).init_cap().set_sender_promise(promise),
        12 => resolve(&mut message, UNUSED).init_cap().set_sender_hosted(UNUSED),
        13 => resolve(&mut message, hosted).init_cap().set_sender_hosted(hosted),
        14 => resolve(&mut message, promise).init_cap().set_none(()),
        15 => resolve(&mut message, promise).init_cap().set_receiver_hosted(import + 1),
        16 => drop(resolve(&mut message, promise).init_cap().init_third_party_hosted()),
        17 => return release(import, 2 + peer.random.below(u64::from(u32::MAX - 2)) as u32),
        18 => return release(UNUSED, peer.random.below(2) as u32),
        _ => {
            let count = 65 + peer.random.below(100) as u32;
            let mut call = call(&mut message, UNUSED);
            call.reborrow().init_target().set_imported_cap(import);
            let mut table = call.init_params().init_cap_table(count);
            for at in 0..count {
                table.reborrow().get(at).set_sender_hosted(at);
            }
        }
    }
    message
}

fn resolve(message: &mut Message, id: u32) -> capnp_rpc::rpc_capnp::resolve::Builder<'_> {
    let mut resolve = root(message).init_resolve();
    resolve.set_promise_id(id);
    resolve
}

/// Kinds of messages that are not in use, and unexpected embargoes.
fn kinds(peer: &mut Peer, kind: u64) -> Message {
    let on = peer.any_question();
    let mut message = fresh();
    match kind {
        20 => drop(root(&mut message).init_provide()),
        21 => drop(root(&mut message).init_accept()),
        22 => drop(root(&mut message).init_join()),
        23 => drop(root(&mut message).init_obsolete_save()),
        24 => root(&mut message).init_abort().set_reason("enough"),
        25 => {
            let echo = root(&mut message).init_unimplemented();
            match peer.random.below(3) {
                0 => echo.init_call().set_question_id(on),
                1 => echo.init_resolve().init_cap().set_sender_promise(on),
                _ => drop(echo.init_return()),
            }
        }
        26 => return disembargo(on, |mut context| context.set_sender_loopback(7)),
        _ => {
            let kind = peer.random.below(3);
            return disembargo(on, |mut context| match kind {
                0 => context.set_receiver_loopback(UNUSED),
                1 => context.set_accept(()),
                _ => context.set_provide(on),
            });
        }
    }
    message
}

/// Bytes that are not a message, or a different one.
fn frames(peer: &mut Peer, kind: u64) -> Vec<u8> {
    let mut bytes = raw::serialized(&peer.plausible());
    match kind {
        28 => bytes.truncate(1 + peer.random.below(bytes.len() as u64 - 1) as usize),
        29 | 30 => {
            // The table of segments is unchanged, so that the bytes are still a message.
            for _ in 0..=peer.random.below(8) {
                let at = 8 + peer.random.below(bytes.len() as u64 - 8) as usize;
                bytes[at] ^= 1 << peer.random.below(8);
            }
        }
        31 => {
            let count = peer.random.below(600) as u32;
            bytes[..4].copy_from_slice(&count.to_le_bytes());
        }
        32 => {
            let words = 1_u32 << peer.random.below(32);
            bytes[4..8].copy_from_slice(&words.to_le_bytes());
        }
        _ => bytes = deep(peer),
    }
    bytes
}

/// A call with deeply nested structures, or with a large value.
fn deep(peer: &mut Peer) -> Vec<u8> {
    let mut message = fresh();
    let mut call = call(&mut message, UNUSED);
    call.set_interface_id(0x9296_3bfd_ad2b_eb6a);
    call.set_method_id(1);
    let mut target = call.reborrow().init_target().init_promised_answer();
    target.set_question_id(OBJECT);
    path(target, 1);
    let content = call.get_params().map(capnp_rpc::rpc_capnp::payload::Builder::get_content);
    let content = content.expect("it was made");
    if peer.random.below(2) == 0 {
        content.initn_as::<capnp::data::Builder>(1 << 20).fill(7);
    } else {
        nest(content, 20 + peer.random.below(80));
    }
    raw::serialized(&message)
}

fn nest(content: any_pointer::Builder, depth: u64) {
    let mut message = content.init_as::<message::Builder>();
    for _ in 1..depth {
        message = message.init_unimplemented();
    }
}
