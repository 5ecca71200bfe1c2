//! What a peer does that holds a reference and breaks the protocol: it loses its own connection.
//!
//! The messages are built by hand, because no RPC system sends them.
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::rc::Rc;

use capnp::message::{Builder, HeapAllocator};
use capnp::private::capability::ClientHook;
use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::message;
use capstead_client::http_capnp::{HttpMethod, http_service};
use capstead_client::restorer_capnp::{namespace, restorer};

use support::calls::{by_name, connect, increment, run};
use support::{DEADLINE, Served, http, scratch, serve};

type Raw = Builder<HeapAllocator>;

/// The peer's promise that the object is handed.
const PROMISE: u32 = 5;

/// A promise that the peer had resolved to itself was followed until the stack of the host, and with
/// it the whole server, was gone. A chain of many did the same when it was dropped.
#[test]
fn promises_that_never_end_end_one_connection_only() {
    let (_folder, data) = scratch();
    let served = serve(&data);
    assert_eq!(http::post(&served.announced.http, "/counter/y/increment").body, "1");

    // 1. Resolve the promise of a call that runs: to itself, in a circle, along a chain.
    attack(&served, &[(PROMISE, PROMISE)]);
    attack(&served, &[(PROMISE, 6), (6, PROMISE)].repeat(10));
    let chain: Vec<_> = (PROMISE..20_000).map(|id| (id, id + 1)).collect();
    attack(&served, &chain);

    // 2. Others are served as before, also the object that was attacked.
    assert_eq!(http::post(&served.announced.http, "/counter/y/increment").body, "2");
    run(async {
        let (_connection, counters) = connect(&served).await;
        assert!(increment(&by_name(&counters, "x")).await.is_ok());
    });

    // 3. The server ends in order.
    let (code, _, log) = served.stop();
    assert_eq!(code, Some(0), "{log}");
}

/// Calls `increment` of the counter "x" with a promise as the context, resolves promises, and waits
/// until the server ends the connection.
fn attack(served: &Served, resolutions: &[(u32, u32)]) {
    let mut bytes = serialized(&bootstrap());
    bytes.extend(serialized(&restore(served.counters())));
    bytes.extend(serialized(&name_x()));
    bytes.extend(serialized(&request()));
    for (from, to) in resolutions {
        bytes.extend(serialized(&resolve(*from, *to)));
    }
    let mut stream = TcpStream::connect(&served.announced.capnp).expect("it is reached");
    stream.set_read_timeout(Some(DEADLINE)).expect("it isn't zero");
    // The server may be gone before it has read all.
    let _ = stream.write_all(&bytes);
    let mut answers = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answers) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

fn serialized(message: &Raw) -> Vec<u8> {
    capnp::serialize::write_message_to_words(message)
}

fn bootstrap() -> Raw {
    let mut message = Raw::new_default();
    message.init_root::<message::Builder>().init_bootstrap().set_question_id(0);
    message
}

fn restore(text: &str) -> Raw {
    let mut message = Raw::new_default();
    let params = call(&mut message, 0, None, restorer::Client::TYPE_ID, 0);
    params.get_content().init_as::<restorer::restore_params::Builder>().set_sturdy_ref(text);
    message
}

fn name_x() -> Raw {
    let mut message = Raw::new_default();
    let params = call(&mut message, 1, Some(0), namespace::Client::TYPE_ID, 0);
    params.get_content().init_as::<namespace::by_name_params::Builder>().set_key("x");
    message
}

fn request() -> Raw {
    struct Nobody;
    impl http_service::client_request_context::Server for Nobody {}

    let mut message = Raw::new_default();
    let mut payload = call(&mut message, 2, Some(0), http_service::Client::TYPE_ID, 1);
    // Only the pointer to the first capability of the table is taken from this one.
    let mut caps: Vec<Option<Box<dyn ClientHook>>> = Vec::new();
    let mut content = payload.reborrow().get_content();
    content.imbue_mut(&mut caps);
    let mut params = content.init_as::<http_service::request_params::Builder>();
    params.set_context(capnp_rpc::new_client_from_rc(Rc::new(Nobody)));
    let mut request = params.init_request();
    request.set_method(HttpMethod::Post);
    request.set_url("/increment");
    request.get_body_size().set_fixed(0);
    payload.init_cap_table(1).get(0).set_sender_promise(PROMISE);
    message
}

/// A call on a field of the answer to the question `on`, whose own number is the next.
fn call(
    message: &mut Raw,
    on: u32,
    field: Option<u16>,
    interface: u64,
    method: u16,
) -> capnp_rpc::rpc_capnp::payload::Builder<'_> {
    let mut call = message.init_root::<message::Builder>().init_call();
    call.set_question_id(on + 1);
    call.set_interface_id(interface);
    call.set_method_id(method);
    call.reborrow().get_send_results_to().set_caller(());
    let mut target = call.reborrow().init_target().init_promised_answer();
    target.set_question_id(on);
    if let Some(field) = field {
        target.init_transform(1).get(0).set_get_pointer_field(field);
    }
    call.init_params()
}

fn resolve(from: u32, to: u32) -> Raw {
    let mut message = Raw::new_default();
    let mut resolve = message.init_root::<message::Builder>().init_resolve();
    resolve.set_promise_id(from);
    resolve.init_cap().set_sender_promise(to);
    message
}
