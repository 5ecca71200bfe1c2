//! Writes the corpus anew: real messages, references and records, from which the fuzzer starts. It
//! is built as a target, so that it needs no build of its own, and tries nothing.
#![no_main]

use capnp::message::Builder;
use capnp::traits::HasTypeId;
use capnp_rpc::rpc_capnp::message;
use capstead_client::http_capnp::http_service;
use capstead_client::sturdyref::{
    Caveats, ClusterId, GrantId, KeyId, Method, NextSecret, Payload, Sturdyref, Target, TargetId,
};
use ed25519_dalek::{Signer, SigningKey};
use libfuzzer_sys::fuzz_target;
use std::fs;
use std::path::Path;

fuzz_target!(init: write_all().expect("the folder is there"), |_bytes: &[u8]| {});

fn write_all() -> std::io::Result<()> {
    for (index, bytes) in capstead::fuzzing::connection_samples().into_iter().enumerate() {
        write("http", index, &bytes)?;
    }
    for (index, bytes) in capstead::fuzzing::frame_samples().into_iter().enumerate() {
        write("frames", index, &bytes)?;
    }
    for (index, bytes) in conversations().into_iter().enumerate() {
        write("guard", index, &bytes)?;
    }
    for (index, bytes) in references().into_iter().enumerate() {
        write("sturdyref", index, &bytes)?;
    }
    for (index, bytes) in capstead::fuzzing::json_samples().into_iter().enumerate() {
        write("json", index, &bytes)?;
    }
    for (index, bytes) in capstead::fuzzing::route_samples().into_iter().enumerate() {
        write("routes", index, &bytes)?;
    }
    for (index, bytes) in capstead::fuzzing::samples().into_iter().enumerate() {
        write("stored_records", index, &bytes)?;
    }
    Ok(())
}

fn write(target: &str, index: usize, bytes: &[u8]) -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(format!("{index:02}")), bytes)
}

type Write = fn(message::Builder);

/// Each begins with the bootstrap and a call, and goes on in its own way.
fn conversations() -> Vec<Vec<u8>> {
    let ends: [&[Write]; 9] = [
        &[],
        &[|message| message.init_finish().set_question_id(1)],
        &[|message| {
            let mut answer = message.init_return();
            answer.set_answer_id(0);
            answer.init_results().init_cap_table(1).get(0).set_sender_promise(6);
        }],
        &[|message| {
            let mut answer = message.init_return();
            answer.set_answer_id(0);
            answer.init_exception().set_reason("none");
        }],
        &[|message| resolve(message, 5, 6), |message| resolve(message, 6, 7)],
        &[|message| {
            let mut resolve = message.init_resolve();
            resolve.set_promise_id(5);
            resolve.init_cap().set_receiver_hosted(0);
        }],
        &[|message| {
            let mut release = message.init_release();
            release.set_id(0);
            release.set_reference_count(1);
        }],
        &[|message| {
            let mut disembargo = message.init_disembargo();
            disembargo.reborrow().init_target().set_imported_cap(0);
            disembargo.init_context().set_sender_loopback(3);
        }],
        &[
            |message| message.init_unimplemented().init_resolve().set_promise_id(0),
            |message| {
                message.init_abort().set_reason("enough");
            },
        ],
    ];
    let begin: [Write; 2] = [|message| message.init_bootstrap().set_question_id(0), call];
    ends.iter()
        .map(|end| begin.iter().chain(*end).flat_map(|write| serialized(*write)).collect())
        .collect()
}

fn serialized(write: Write) -> Vec<u8> {
    let mut builder = Builder::new_default();
    write(builder.init_root());
    capnp::serialize::write_message_to_words(&builder)
}

fn resolve(message: message::Builder, from: u32, to: u32) {
    let mut resolve = message.init_resolve();
    resolve.set_promise_id(from);
    resolve.init_cap().set_sender_promise(to);
}

/// `request`, with the promise 5 as the context.
fn call(message: message::Builder) {
    use capnp::traits::ImbueMut;
    let mut call = message.init_call();
    call.set_question_id(1);
    call.set_interface_id(<http_service::Client as HasTypeId>::TYPE_ID);
    call.set_method_id(1);
    call.reborrow().get_send_results_to().set_caller(());
    call.reborrow().init_target().init_promised_answer().set_question_id(0);
    let mut payload = call.init_params();
    payload.reborrow().init_cap_table(1).get(0).set_sender_promise(5);
    let mut caps = Vec::new();
    let mut content = payload.reborrow().get_content();
    content.imbue_mut(&mut caps);
    let nobody = capnp_rpc::new_broken_cap(capnp::Error::failed("nobody".into()));
    let mut params = content.init_as::<http_service::request_params::Builder>();
    params.set_context(capnp::capability::FromClientHook::new(nobody.hook));
}

/// One reference: whole, narrowed in all ways and sealed, as bytes and as text; and the caveats
/// alone.
fn references() -> Vec<Vec<u8>> {
    let key = SigningKey::from_bytes(&[7; 32]);
    let next = NextSecret::from_seed([8; 32]);
    let payload = Payload {
        cluster: ClusterId::of(&key.verifying_key()),
        key: KeyId::of(&key.verifying_key()),
        target: Target::Object(TargetId::from_bytes([9; 16])),
        grant: GrantId::from_bytes([10; 16]),
        caveats: Caveats::none(),
        next: next.public(),
    };
    let signature = key.sign(&payload.signed_bytes()).to_bytes();
    let whole = Sturdyref::assemble(&payload, &signature, &next);
    let caveats =
        Caveats::not_after(1_000_000).with_methods([Method::new(1, 2), Method::new(3, 4)]);
    let caveats = caveats.and_then(|caveats| caveats.with_holder(key.verifying_key()));
    let caveats = caveats.expect("methods and holder are sound");
    let narrow = whole.narrow(&caveats).expect("it isn't sealed");
    let sealed = narrow.seal();
    let each = [whole, narrow, sealed];
    let bytes = each.iter().map(|reference| reference.expose_bytes().to_vec());
    let texts = each.iter().map(|reference| {
        reference.expose_text("127.0.0.1:4700").expect("the address is good").into_bytes()
    });
    bytes.chain(texts).chain([caveats.encode()]).collect()
}
