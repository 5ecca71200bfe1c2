//! Attacks that once ended the process, or blocked its thread for good, each by its name.
//!
//! Each attacks one object of one server. That process must serve other clients afterwards.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::Duration;

use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::cap_descriptor;
use capstead::http::http_service;

use super::messages::{Message, fresh, path, root};
use super::peer::OBJECT;
use super::server;
use super::support::{Served, raw, scratch};
use super::traffic::{asks, serves};

/// The peer's promise that is passed to the object, and the call that passes it.
const PROMISE: u32 = 5;
const CALL: u32 = 3;

/// The memory that a flood may cost: several times the amount that one connection may queue.
const GROWTH_MAX: u64 = 64 << 20;

#[test]
fn known_attacks_end_one_connection_at_most() {
    let (_folder, data) = scratch();
    let served = server::start(&data);
    let mut attacks = 0;
    let mut attack = |messages: Vec<Vec<u8>>| {
        let mut stream = begin(&served);
        for message in messages {
            // The server may end the connection before it has read everything.
            let _ = stream.write_all(&message);
        }
        let _ = stream.shutdown(std::net::Shutdown::Write);
        raw::reason_of_end(stream);
        attacks += 1;
        assert!(serves(&served, "x"), "after attack {attacks}");
    };
    let promised = || request(CALL, "/call", 0, |mut cap| cap.set_sender_promise(PROMISE));

    // A chain of promises, one that leads to itself, and two that lead to each other.
    let chain = (PROMISE..PROMISE + 40_000)
        .map(|id| resolve(id, move |mut cap| cap.set_sender_promise(id + 1)));
    attack([promised()].into_iter().chain(chain).collect());
    attack(vec![promised(), to_promise(PROMISE, PROMISE)]);
    let circle = [to_promise(PROMISE, 6), to_promise(6, PROMISE)].into_iter().cycle().take(40);
    attack([promised()].into_iter().chain(circle).collect());

    // A promise that becomes the answer that is the promise itself, directly and by way of ours.
    for url in ["/return", "/offer", "/promise", "/both"] {
        let given = request(CALL, url, 0, |mut cap| cap.set_sender_promise(PROMISE));
        let back = resolve(PROMISE, |cap| answer_of(cap, CALL));
        let again = request(CALL + 1, "/call", 0, |cap| answer_of(cap, CALL));
        attack(vec![given, back, again.clone()]);
        // A call that is given the answer of a later one, and the other way round.
        let first = request(CALL, url, 0, |cap| answer_of(cap, CALL + 1));
        let second = request(CALL + 1, url, 0, |cap| answer_of(cap, CALL));
        attack(vec![first, second, again]);
    }

    // An object keeps a capability that will never be resolved, since its connection has ended.
    let open = request(CALL, "/call", 0, |mut cap| cap.set_sender_promise(PROMISE));
    let kept = request(CALL + 1, "/keep", 0, |cap| answer_of(cap, CALL));
    attack(vec![open, kept]);

    // Pointers to missing capabilities.
    for index in [1, 100] {
        for url in server::URLS {
            attack(vec![request(CALL, url, index, |mut cap| cap.set_sender_hosted(PROMISE))]);
        }
    }
    attack(vec![endless_path()]);
    let (code, _, log) = served.stop();
    assert_eq!(code, Some(0), "it ends in order: {log}");
    super::check_log(&log);
}

/// The reply used to be written over the offered capabilities, which panicked. Then the object made
/// no more calls, because it waited for that reply to leave.
#[test]
fn a_reply_comes_after_its_capabilities_were_offered() {
    let (_folder, data) = scratch();
    let served = server::start(&data);
    for _ in 0..2 {
        assert!(asks(&served, "x", "/offer"));
        assert!(serves(&served, "x"));
    }
    let (_, _, log) = served.stop();
    assert!(!log.contains("panicked"), "{log}");
}

/// The server disconnects the peer at that many waiting calls, since the peer is to answer calls
/// itself; other clients are served.
#[test]
fn half_a_million_unanswered_calls_are_not_kept() {
    let (_folder, data) = scratch();
    let served = server::start(&data);
    let mut stream = begin(&served);
    stream.set_write_timeout(Some(Duration::from_secs(10))).expect("it isn't zero");
    let before = served.resident_bytes();
    let (mut next, mut most) = (CALL, 0);
    let error = loop {
        assert!(next < 500_000, "it takes {next} calls without an answer");
        let calls = (next..next + 1000).flat_map(|id| {
            request(id, "/call", 0, move |mut cap| cap.set_sender_hosted(id % 1000))
        });
        match stream.write_all(&calls.collect::<Vec<_>>()) {
            Ok(()) => next += 1000,
            Err(error) => break error,
        }
        most = most.max(served.resident_bytes().saturating_sub(before));
    };
    eprintln!("{next} calls were sent, {most} bytes more in memory");
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    assert!(most < GROWTH_MAX, "{most} bytes more for {next} calls");
    assert!(served.bites("calls") > 0 && served.bites("queued-bytes") > 0);
    assert!(serves(&served, "x"));
}

/// A connection on which the object "x" is the answer to [`OBJECT`].
fn begin(served: &Served) -> TcpStream {
    let mut stream = raw::dial(served);
    let reference = &served.announced.namespaces["Fuzzed"];
    raw::send(&mut stream, &[raw::bootstrap(), raw::restore(reference), raw::by_name("x")]);
    stream
}

/// Requests `url` from the object, with one capability and a pointer to the capability of that
/// index.
fn request(id: u32, url: &str, index: usize, cap: impl FnOnce(cap_descriptor::Builder)) -> Vec<u8> {
    request_of(OBJECT, id, url, index, cap)
}

/// As [`request`], on the first capability in an answer.
fn request_of(
    answer: u32,
    id: u32,
    url: &str,
    index: usize,
    cap: impl FnOnce(cap_descriptor::Builder),
) -> Vec<u8> {
    let mut message = fresh();
    let method = (http_service::Client::TYPE_ID, 1);
    let mut payload = raw::call(&mut message, id, (answer, Some(0)), method);
    cap(payload.reborrow().init_cap_table(1).get(0));
    let mut caps: Vec<_> = (0..index).map(|_| None).collect();
    let mut content = payload.reborrow().get_content();
    content.imbue_mut(&mut caps);
    let mut params = content.init_as::<http_service::request_params::Builder>();
    params.reborrow().init_request().set_url(url);
    let nobody = capnp_rpc::new_broken_cap(capnp::Error::failed("nobody".into()));
    params.set_context(capnp::capability::FromClientHook::new(nobody.hook));
    raw::serialized(&message)
}

fn answer_of(cap: cap_descriptor::Builder, call: u32) {
    let mut answer = cap.init_receiver_answer();
    answer.set_question_id(call);
    path(answer, 1);
}

fn resolve(promise: u32, cap: impl FnOnce(cap_descriptor::Builder)) -> Vec<u8> {
    let mut message = fresh();
    let mut resolve = root(&mut message).init_resolve();
    resolve.set_promise_id(promise);
    cap(resolve.init_cap());
    raw::serialized(&message)
}

fn to_promise(promise: u32, to: u32) -> Vec<u8> {
    resolve(promise, |mut cap| cap.set_sender_promise(to))
}

/// A call on a path of a million steps that take no bytes: the list declares elements without a
/// size.
fn endless_path() -> Vec<u8> {
    const STEPS: u32 = 1_000_000;
    let mut message: Message = fresh();
    let mut call = root(&mut message).init_call();
    call.set_question_id(CALL);
    call.reborrow().get_send_results_to().set_caller(());
    let mut target = call.init_target().init_promised_answer();
    target.set_question_id(OBJECT);
    // A list of structures begins with a word that holds their number and size.
    target.init_transform(1).get(0).set_get_pointer_field(0xabcd);
    let mut bytes = raw::serialized(&message);
    let at = bytes.windows(2).position(|two| two == [0xcd, 0xab]).expect("the step is there");
    let tag = at / 8 * 8 - 8;
    bytes[tag..tag + 4].copy_from_slice(&(STEPS << 2).to_le_bytes());
    bytes[tag + 4..tag + 8].fill(0);
    bytes
}

/// The peer resolves its promise to the object's answer, and the object's answer is that promise:
/// each leads to the other. The RPC system followed them without end, and blocked the thread.
#[test]
fn a_promise_that_leads_back_by_an_answer_fails() {
    let (_folder, data) = scratch();
    let served = server::start(&data);
    for url in ["/return", "/offer", "/promise", "/both", "/call", "/pipeline", "/pass"] {
        for (asked, is_late) in [(CALL, false), (CALL, true), (CALL + 1, false), (CALL + 1, true)] {
            let mut stream = begin(&served);
            let given = request(CALL, url, 0, |mut cap| cap.set_sender_promise(PROMISE));
            let back = resolve(PROMISE, |cap| answer_of(cap, asked));
            let again = request(CALL + 1, url, 0, |mut cap| cap.set_sender_promise(PROMISE));
            let loops = if is_late { [given, again, back] } else { [given, back, again] };
            let through =
                (2..5).map(|next| request(CALL + next, url, 0, |cap| answer_of(cap, CALL)));
            let answers = (0..5).map(|id| answer(id, |cap| answer_of(cap, CALL)));
            for message in loops.into_iter().chain(through).chain(answers) {
                let _ = stream.write_all(&message);
            }
            assert!(serves(&served, "x"), "{url}, {asked}, {is_late}");
        }
    }
}

/// The peer calls the capability that it got back, which is its own, and answers that call with the
/// result of the same call.
#[test]
fn an_answer_that_is_itself_fails() {
    let (_folder, data) = scratch();
    let served = server::start(&data);
    for is_promise in [false, true] {
        let mut stream = begin(&served);
        let own = |mut cap: cap_descriptor::Builder| {
            if is_promise {
                cap.set_sender_promise(PROMISE);
            } else {
                cap.set_sender_hosted(PROMISE);
            }
        };
        let given = request(CALL, "/return", 0, own);
        let settled = resolve(PROMISE, |mut cap| cap.set_sender_hosted(PROMISE + 1));
        let settled = is_promise.then_some(settled);
        let called = request_of(CALL, CALL + 1, "", 0, own);
        for message in [given].into_iter().chain(settled).chain([called]) {
            stream.write_all(&message).expect("it is read");
        }
        let passed_on = raw::wait_for_call(&mut stream);
        let answered = answer(passed_on, |cap| answer_of(cap, CALL + 1));
        let again = request_of(CALL + 1, CALL + 2, "", 0, own);
        for message in [answered, again] {
            stream.write_all(&message).expect("it is read");
        }
        // The call on the result has an answer, and so have all others.
        raw::wait_for_answer(&mut stream, CALL + 2);
        assert!(serves(&served, "x"), "promise: {is_promise}");
    }
}

/// The peer's answer to the call `id`: a capability.
fn answer(id: u32, cap: impl FnOnce(cap_descriptor::Builder)) -> Vec<u8> {
    let mut message = fresh();
    let mut answer = root(&mut message).init_return();
    answer.set_answer_id(id);
    let mut payload = answer.init_results();
    cap(payload.reborrow().init_cap_table(1).get(0));
    let mut caps = Vec::new();
    let mut content = payload.get_content();
    content.imbue_mut(&mut caps);
    let mut results = content.init_as::<http_service::request_results::Builder>();
    let nobody = capnp_rpc::new_broken_cap(capnp::Error::failed("nobody".into()));
    results.set_request_body(capnp::capability::FromClientHook::new(nobody.hook));
    raw::serialized(&message)
}
