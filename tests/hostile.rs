//! What a peer does that holds a reference and breaks the protocol: it loses its own connection.
//!
//! The messages are built by hand, because no RPC system sends them.
mod support;

use std::io::{Read, Write};
use std::rc::Rc;

use capnp::private::capability::ClientHook;
use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::message;
use capstead_client::http_capnp::{HttpMethod, http_service};

use support::calls::{self, connect, increment, run};
use support::raw::{COUNTER, Raw, bootstrap, by_name, call, restore, serialized};
use support::{Served, http, raw, scratch, serve};

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
        assert!(increment(&calls::by_name(&counters, "x")).await.is_ok());
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
    bytes.extend(serialized(&by_name("x")));
    bytes.extend(serialized(&request()));
    for (from, to) in resolutions {
        bytes.extend(serialized(&resolve(*from, *to)));
    }
    let mut stream = raw::dial(served);
    // The server may be gone before it has read all.
    let _ = stream.write_all(&bytes);
    let mut answers = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answers) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

fn request() -> Raw {
    struct Nobody;
    impl http_service::client_request_context::Server for Nobody {}

    let mut message = Raw::new_default();
    let method = (http_service::Client::TYPE_ID, 1);
    let mut payload = call(&mut message, 3, (COUNTER, Some(0)), method);
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

fn resolve(from: u32, to: u32) -> Raw {
    let mut message = Raw::new_default();
    let mut resolve = message.init_root::<message::Builder>().init_resolve();
    resolve.set_promise_id(from);
    resolve.init_cap().set_sender_promise(to);
    message
}
