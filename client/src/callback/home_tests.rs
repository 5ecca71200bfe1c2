//! Callbacks that a client passes to a peer and gets back, over a real connection.

use super::tests::{Notes, locate, restore};
use super::*;
use crate::connection::Connection;
use crate::http_capnp::byte_stream;
use crate::limits::Limits;
use crate::restorer_capnp::restorer;
use capnp::capability::RemotePromise;
use capnp_rpc::rpc_twoparty_capnp::Side;
use tokio::io::duplex;
use tokio::sync::Notify;

/// Gives back the capability that it is given, once it is allowed to.
#[derive(Default)]
struct Mirror {
    go: Notify,
}

impl byte_stream::Server for Mirror {
    async fn get_substream(
        self: Rc<Self>,
        params: byte_stream::GetSubstreamParams,
        mut results: byte_stream::GetSubstreamResults,
    ) -> capnp::Result<()> {
        self.go.notified().await;
        let back = params.get()?.get_callback()?;
        results.get().set_substream(back.cast_to());
        Ok(())
    }
}

struct Pair {
    client: Connection,
    _server: Connection,
    mirror: Rc<Mirror>,
}

impl Pair {
    fn reflect(&self, callback: restorer::Client) -> Reflected {
        let mut request = self.client.bootstrap::<byte_stream::Client>().get_substream_request();
        request.get().set_callback(callback.cast_to());
        request.send()
    }
}

type Reflected = RemotePromise<byte_stream::get_substream_results::Owned>;

fn pair() -> Pair {
    let (near, far) = duplex(64 << 10);
    let mirror = Rc::<Mirror>::default();
    let offered: byte_stream::Client = capnp_rpc::new_client_from_rc(mirror.clone());
    let server = Connection::new(far, Side::Server, Some(offered.client), Limits::default());
    let client = Connection::new(near, Side::Client, None, Limits::default()).unwrap();
    Pair { client, _server: server.unwrap(), mirror }
}

/// Calls by way of the peer, then direct ones. The direct ones used to start in the order of polls.
#[tokio::test(flavor = "local")]
async fn calls_on_a_callback_that_came_home_start_in_the_order_made() {
    let (pair, notes) = (pair(), Rc::<Notes>::default());
    let sent = pair.reflect(capability(notes.clone()));
    let home: restorer::Client = sent.pipeline.get_substream().cast_to();

    let mut calls = vec![locate(&home, "0"), locate(&home, "1")];
    pair.mirror.go.notify_one();
    sent.promise.await.unwrap();
    // The answer is there, and earlier calls may still be on their way through the peer.
    calls.extend(["2", "3", "4"].map(|text| locate(&home, text)));
    let calls = futures::future::join_all(calls.into_iter().rev());
    let replies: Vec<String> = calls.await.into_iter().map(Result::unwrap).collect();
    assert_eq!(replies, ["4", "3", "2", "1", "0"]);
    notes.expect(&["0", "1", "2", "3", "4"]).await;

    // From here on every call is a direct one.
    drop(locate(&home, "5"));
    let unpolled = locate(&home, "6");
    let [first, second] = ["7", "8"].map(|text| locate(&home, text));
    second.await.unwrap();
    first.await.unwrap();
    notes.expect(&["0", "1", "2", "3", "4", "5", "6", "7", "8"]).await;
    drop(unpolled);
}

/// While calls are on their way through the peer, capnp-rpc holds back later ones of the same stub
/// until one of the first is polled. They start in order even then.
#[tokio::test(flavor = "local")]
async fn calls_that_wait_for_those_over_the_peer_start_when_one_of_them_is_polled() {
    let (pair, notes) = (pair(), Rc::<Notes>::default());
    let sent = pair.reflect(capability(notes.clone()));
    let home: restorer::Client = sent.pipeline.get_substream().cast_to();
    drop(locate(&home, "0"));
    pair.mirror.go.notify_one();
    sent.promise.await.unwrap();
    let unpolled = ["1", "2"].map(|text| locate(&home, text));
    assert_eq!(locate(&home, "3").await.unwrap(), "3");
    notes.expect(&["0", "1", "2", "3"]).await;
    drop(unpolled);
}

/// A response holds the callback itself, so calls start without a poll.
#[tokio::test(flavor = "local")]
async fn calls_on_a_callback_in_a_response_start_at_once() {
    let (pair, notes) = (pair(), Rc::<Notes>::default());
    let callback: restorer::Client = capability(notes.clone());
    let sent = pair.reflect(callback.clone());
    pair.mirror.go.notify_one();
    let response = sent.promise.await.unwrap();
    let home: restorer::Client = response.get().unwrap().get_substream().unwrap().cast_to();
    assert_eq!(home.client.hook.get_ptr(), callback.client.hook.get_ptr());
    let unpolled = locate(&home, "0");
    drop(locate(&callback, "1"));
    drop(locate(&home, "2"));
    notes.expect(&["0", "1", "2"]).await;
    drop(unpolled);
}

/// The peer is called back, pipelines on the result, and drops its first call: all of them start.
#[tokio::test(flavor = "local")]
async fn a_peers_calls_start_in_order_and_run_to_their_end() {
    let (near, far) = duplex(64 << 10);
    let notes = Rc::<Notes>::default();
    let callback: restorer::Client = capability(notes.clone());
    let server = Connection::new(far, Side::Server, Some(callback.client), Limits::default());
    let server = server.unwrap();
    let peer = Connection::new(near, Side::Client, None, Limits::default()).unwrap();
    let callback: restorer::Client = peer.bootstrap();
    drop(locate(&callback, "yield"));
    let early = restore(&callback, "early");
    assert_eq!(locate(&early.cap, "pipelined").await.unwrap(), "pipelined");
    let panicking = locate(&callback, "panic").await.unwrap_err();
    assert!(panicking.extra.contains("the callback panicked"), "{panicking}");
    notes.expect(&["yield", "wait", "pipelined", "panic"]).await;
    assert!(!server.is_closed());

    // The method runs to its end though its caller is gone.
    peer.disconnect().await;
    server.closed().await;
    let ended = notes.ended.get();
    notes.go.notify_one();
    notes.expect(&["yield", "wait", "pipelined", "panic", "early"]).await;
    assert_eq!(notes.ended.get(), ended + 2);
    assert!(early.done.await.is_err());
}
