//! An HTTP request over Cap'n Proto whose body never ends is dropped as soon as its caller leaves,
//! whichever host has the object; and not before.

use std::rc::Rc;
use std::time::Duration;

use crate::support::calls::{by_name, connect, read, run};
use crate::support::{Served, now, scratch, serve_with};
use capnp::capability::FromClientHook;
use capstead_client::Connection;
use capstead_client::http_capnp::{HttpMethod, byte_stream, http_service};

/// The number of objects; with this many names, every host has some.
const NAMES: u32 = 12;

/// Far less than the time for which an object waits for a body while its sender is there, and for
/// which a stop waits for calls.
const SOON: Duration = Duration::from_secs(5);

struct Nobody;

impl http_service::client_request_context::Server for Nobody {}

type Sent = capnp::capability::RemotePromise<http_service::request_results::Owned>;

/// Begins a request with a body on each object.
async fn begin(served: &Served) -> (Connection, Vec<(Sent, byte_stream::Client)>) {
    let (connection, counters) = connect(served).await;
    let begun = (0..NAMES).map(|number| {
        let counter: http_service::Client = by_name(&counters, &number.to_string()).cast_to();
        let mut call = counter.request_request();
        let mut request = call.get().init_request();
        request.set_method(HttpMethod::Post);
        request.set_url("/increment");
        request.get_body_size().set_unknown(());
        call.get().set_context(capstead_client::capability(Rc::new(Nobody)));
        let sent = call.send();
        let body = sent.pipeline.get_request_body();
        (sent, body)
    });
    (connection, begun.collect())
}

/// Writes to each body, and waits until all objects are at work.
async fn write_some(served: &Served, bodies: impl Iterator<Item = &byte_stream::Client>) {
    for body in bodies {
        let mut write = body.write_request();
        write.get().set_bytes(&[b'x'; 1000]);
        write.send().await.unwrap();
    }
    wait_for_awake(served, u64::from(NAMES)).await;
}

/// Waits for a number of awake objects: one with a call under way stays awake.
async fn wait_for_awake(served: &Served, count: u64) {
    let began = now();
    while served.metric("objects_awake") != count {
        assert!(began.elapsed() < SOON, "they are not {count}");
        // Lets the connection progress meanwhile.
        tokio::task::yield_now().await;
    }
}

fn each_number_of_hosts(check: impl Fn(Served)) {
    for hosts in ["1", "2", "4"] {
        let (_folder, data) = scratch();
        check(serve_with(&data, &["--hosts", hosts, "--warm", "100ms"]));
    }
}

#[test]
fn a_body_goes_with_its_connection() {
    each_number_of_hosts(|served| {
        run(async {
            let (connection, begun) = begin(&served).await;
            write_some(&served, begun.iter().map(|(_, body)| body)).await;
            connection.disconnect().await;
            wait_for_awake(&served, 0).await;
        });
    });
}

#[test]
fn a_body_goes_with_its_call_and_its_stream() {
    each_number_of_hosts(|served| {
        run(async {
            let (_connection, begun) = begin(&served).await;
            write_some(&served, begun.iter().map(|(_, body)| body)).await;
            drop(begun);
            wait_for_awake(&served, 0).await;
        });
    });
}

#[test]
fn a_body_that_ends_after_its_call_was_dropped_is_a_whole_one() {
    each_number_of_hosts(|served| {
        run(async {
            let (_connection, begun) = begin(&served).await;
            let bodies: Vec<_> = begun.into_iter().map(|(_, body)| body).collect();
            write_some(&served, bodies.iter()).await;
            for body in &bodies {
                body.end_request().send().promise.await.unwrap();
            }
            drop(bodies);
            let (_connection, counters) = connect(&served).await;
            for number in 0..NAMES {
                let counter = by_name(&counters, &number.to_string());
                while read(&counter).await.unwrap() == 0 {}
            }
        });
    });
}

#[test]
fn a_stop_does_not_wait_for_a_body_that_was_abandoned() {
    each_number_of_hosts(|served| {
        run(async {
            let (connection, begun) = begin(&served).await;
            write_some(&served, begun.iter().map(|(_, body)| body)).await;
            connection.disconnect().await;
        });
        let began = now();
        let (code, _, says) = served.stop();
        assert_eq!(code, Some(0), "{says}");
        assert!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
    });
}
