//! A peer that holds a reference and breaks the protocol: it loses its own connection.
//!
//! The messages are built by hand, because no RPC system sends them.

use std::io::Write;
use std::rc::Rc;

use capnp::private::capability::ClientHook;
use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::{exception, message};
use capstead_client::http_capnp::{HttpMethod, http_service};

use crate::support::calls::{self, connect, increment, run};
use crate::support::raw::{COUNTER, Raw, bootstrap, by_name, call, restore, serialized};
use crate::support::{Served, http, raw, scratch, serve};

/// The peer's promise that is passed to the object.
const PROMISE: u32 = 5;

/// The server used to follow a promise that the peer had resolved to itself until the stack of the
/// host overflowed, and the whole server ended. Dropping a long chain of promises did the same. Now
/// the server ignores these resolutions: it releases the capabilities in them, and calls continue.
#[test]
fn promises_that_never_end_are_the_peers_own_trouble() {
    let (_folder, data) = scratch();
    let served = serve(&data);
    assert_eq!(http::post(&served.announced.http, "/counter/y/increment").body, "1");

    // 1. Resolve the promise of a running call: to itself, in a circle, along a chain; to promises
    //    that are named as such, and to ones that are named as hosted capabilities.
    let circle = [(PROMISE, PROMISE + 1), (PROMISE + 1, PROMISE)].repeat(10);
    let chain: Vec<_> = (PROMISE..20_000).map(|id| (id, id + 1)).collect();
    for (links, name) in [
        (&[(PROMISE, PROMISE)][..], Name::Promise),
        (&circle, Name::Promise),
        (&chain, Name::Promise),
        (&[(PROMISE, PROMISE)], Name::Hosted),
    ] {
        let released = attack(&served, links, name);
        // One more is the promise itself, if the object no longer needed it by then.
        assert!([0, 1].contains(&(released - links.len())), "{name:?}: {released}");
    }

    // 2. Other clients are served as before, even by the object that was attacked.
    assert_eq!(http::post(&served.announced.http, "/counter/y/increment").body, "2");
    run(async {
        let (_connection, counters) = connect(&served).await;
        assert!(increment(&calls::by_name(&counters, "x")).await.is_ok());
    });

    // 3. The server ends in order.
    let (code, _, log) = served.stop();
    assert_eq!(code, Some(0), "{log}");
}

/// The kind of capability that a message names as the target of a resolution.
#[derive(Clone, Copy, Debug)]
enum Name {
    Promise,
    Hosted,
}

/// Calls `increment` of the counter "x" with a promise as the context, resolves promises, and then
/// makes a request on the same connection. Returns the number of capabilities that the server
/// releases before the answer.
fn attack(served: &Served, resolutions: &[(u32, u32)], name: Name) -> usize {
    const LAST: u32 = 9;
    let mut bytes = serialized(&bootstrap());
    bytes.extend(serialized(&restore(served.counters())));
    bytes.extend(serialized(&by_name("x")));
    bytes.extend(serialized(&request()));
    for (from, to) in resolutions {
        bytes.extend(serialized(&resolve(*from, *to, name)));
    }
    let mut last = Raw::new_default();
    last.init_root::<message::Builder>().init_bootstrap().set_question_id(LAST);
    bytes.extend(serialized(&last));
    let stream = raw::dial(served);
    let mut writes = stream.try_clone().expect("a second handle");
    // Answers come while much is still being written.
    let writer = std::thread::spawn(move || writes.write_all(&bytes));
    let mut reads = std::io::BufReader::new(stream);
    let mut released = 0;
    loop {
        let options = capnp::message::ReaderOptions::new();
        let said = capnp::serialize::read_message(&mut reads, options).expect("it goes on");
        match said.get_root::<message::Reader>().and_then(|root| Ok(root.which()?)) {
            Ok(message::Release(_)) => released += 1,
            Ok(message::Return(Ok(answer))) if answer.get_answer_id() == LAST => break,
            Ok(message::Abort(abort)) => panic!("{:?}", abort.map(exception::Reader::get_reason)),
            _ => {}
        }
    }
    writer.join().expect("it wrote").expect("it was read");
    released
}

fn request() -> Raw {
    struct Nobody;
    impl http_service::client_request_context::Server for Nobody {}

    let mut message = Raw::new_default();
    let method = (http_service::Client::TYPE_ID, 1);
    let mut payload = call(&mut message, 3, (COUNTER, Some(0)), method);
    // Only the pointer to the first capability of the table is taken from this client.
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

fn resolve(from: u32, to: u32, name: Name) -> Raw {
    let mut message = Raw::new_default();
    let mut resolve = message.init_root::<message::Builder>().init_resolve();
    resolve.set_promise_id(from);
    let mut cap = resolve.init_cap();
    match name {
        Name::Promise => cap.set_sender_promise(to),
        Name::Hosted => cap.set_sender_hosted(to),
    }
    message
}
