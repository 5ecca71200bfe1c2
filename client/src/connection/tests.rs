//! Connections over streams in memory: their promises when calls are dropped, peers vanish and code
//! panics.

use super::*;
use crate::guard::pipelines::{Pipelined, take_over};
use crate::http_capnp::byte_stream;
use crate::restorer_capnp::restorer;
use capnp::private::capability::{ClientHook, PipelineOp};
use capnp_rpc::rpc_capnp::message;
use std::cell::RefCell;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

/// `locate` answers with its question, at once or never; `restore` gives another `Echo`.
struct Echo {
    /// The number of calls that have begun.
    begun: Rc<Cell<u32>>,
}

impl restorer::Server for Echo {
    async fn restore(
        self: Rc<Self>,
        _: restorer::RestoreParams,
        mut results: restorer::RestoreResults,
    ) -> capnp::Result<()> {
        tokio::task::yield_now().await;
        let another: restorer::Client = capnp_rpc::new_client_from_rc(self);
        results.get().init_cap().set_as_capability(another.client.hook);
        Ok(())
    }

    async fn locate(
        self: Rc<Self>,
        params: restorer::LocateParams,
        mut results: restorer::LocateResults,
    ) -> capnp::Result<()> {
        self.begun.set(self.begun.get() + 1);
        let text = params.get()?.get_sturdy_ref()?.to_str()?;
        match text {
            "panic" => panic!("a handler may do that"),
            "never" => std::future::pending().await,
            "slow" => tokio::task::yield_now().await,
            _ => {}
        }
        results.get().set_address(text);
        Ok(())
    }
}

struct Pair {
    client: Connection,
    server: Connection,
    /// The state of the server's guard.
    guard: Rc<RefCell<GuardState<DuplexStream>>>,
    begun: Rc<Cell<u32>>,
}

fn pair() -> Pair {
    let (near, far) = duplex(64 << 10);
    let begun = Rc::new(Cell::new(0));
    let echo: restorer::Client = capnp_rpc::new_client(Echo { begun: begun.clone() });
    let guard = Rc::new(RefCell::new(GuardState::new(far, Limits::default(), Arc::default())));
    let server = Connection::over(guard.clone(), Side::Server, Some(echo.client)).unwrap();
    let client = Connection::new(near, Side::Client, None, Limits::default()).unwrap();
    Pair { client, server, guard, begun }
}

fn locate(
    on: &restorer::Client,
    text: &str,
) -> impl Future<Output = capnp::Result<String>> + use<> {
    let mut request = on.locate_request();
    request.get().set_sturdy_ref(text);
    let response = request.send().promise;
    async move { Ok(response.await?.get()?.get_address()?.to_str()?.to_owned()) }
}

#[tokio::test(flavor = "local")]
async fn calls_can_be_made_on_a_result_before_it_is_there() {
    let pair = pair();
    let restore = pair.client.bootstrap::<restorer::Client>().restore_request().send();
    let second = restorer::Client::new(restore.pipeline.get_cap().as_cap());
    assert_eq!(locate(&second, "hello").await.unwrap(), "hello");
}

#[tokio::test(flavor = "local")]
async fn messages_of_all_sizes_pass() {
    let pair = pair();
    let echo = pair.client.bootstrap();
    for length in [0, 1, 8_000, 33_000, 65_536, 1_000_000, 4 << 20] {
        let text = "x".repeat(length);
        assert_eq!(locate(&echo, &text).await.unwrap(), text);
    }
}

#[tokio::test(flavor = "local")]
async fn a_message_over_the_limit_ends_the_connection() {
    let (mut near, far) = duplex(64 << 10);
    let echo: restorer::Client = capnp_rpc::new_client(Echo { begun: Rc::default() });
    let server = Connection::new(far, Side::Server, Some(echo.client), Limits::default()).unwrap();
    let words = (9_u32 << 20) / 8;
    near.write_all(&[0_u32.to_le_bytes(), words.to_le_bytes()].concat()).await.unwrap();
    let error = server.closed().await;
    assert_eq!(error.kind, capnp::ErrorKind::Disconnected);
    assert!(error.extra.contains("the limit is 8388608"), "{error}");
}

/// A call that its caller drops leaves nothing behind, wherever its `Finish` and the `Return` meet.
#[tokio::test(flavor = "local")]
async fn tables_are_empty_after_20_000_calls_were_dropped_early() {
    let pair = pair();
    let echo = pair.client.bootstrap();
    let mut held_once = 0;
    for round in 0..200 {
        for _ in 0..100 {
            drop(locate(&echo, "slow"));
        }
        if round % 3 == 0 {
            tokio::task::yield_now().await;
        }
        held_once = held_once.max(pair.guard.borrow().counts().held);
    }
    assert_eq!(locate(&echo, "last").await.unwrap(), "last");
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(held_once > 0, "the case that is tested did not occur");
    assert_eq!(pair.begun.get(), 20_001);
    let counts = pair.guard.borrow().counts();
    assert_eq!((counts.answers, counts.held), (1, 0), "the bootstrap is left");
}

#[tokio::test(flavor = "local")]
async fn a_panic_ends_one_connection_and_its_calls_and_no_other() {
    let (bad, good) = (pair(), pair());
    let echo = bad.client.bootstrap();
    let waiting = locate(&echo, "never");
    let panicking = locate(&echo, "panic");
    for error in [waiting.await.unwrap_err(), panicking.await.unwrap_err()] {
        assert_eq!(error.kind, capnp::ErrorKind::Disconnected);
        assert!(error.extra.contains("the connection failed by a panic"), "{error}");
    }
    assert!(bad.server.closed().await.extra.contains("panic"));
    assert_eq!(locate(&good.client.bootstrap(), "hello").await.unwrap(), "hello");
}

#[tokio::test(flavor = "local")]
async fn calls_on_their_way_fail_when_either_side_disconnects() {
    for server_ends in [false, true] {
        let pair = pair();
        let echo = pair.client.bootstrap();
        assert_eq!(locate(&echo, "hello").await.unwrap(), "hello");
        let waiting = locate(&echo, "never");
        tokio::task::yield_now().await;
        let one = if server_ends { &pair.server } else { &pair.client };
        one.disconnect().await;
        assert_eq!(waiting.await.unwrap_err().kind, capnp::ErrorKind::Disconnected);
        let later = locate(&echo, "hello").await.unwrap_err();
        assert_eq!(later.kind, capnp::ErrorKind::Disconnected);
        pair.client.closed().await;
        pair.server.closed().await;
        assert!(pair.client.is_closed() && pair.server.is_closed());
    }
}

/// A peer can tell which of its calls were read: those have an answer each, and all others had no
/// effect.
#[tokio::test(flavor = "local")]
async fn an_end_with_a_reason_says_of_calls_that_were_never_read_that_they_never_began() {
    let pair = pair();
    let echo = pair.client.bootstrap();
    let under_way = locate(&echo, "never");
    while pair.begun.get() < 1 {
        tokio::task::yield_now().await;
    }
    pair.server.disconnect_because("it ends").await;
    let unknown = under_way.await.unwrap_err();
    assert_eq!(unknown.kind, capnp::ErrorKind::Disconnected);
    assert!(
        unknown.extra.ends_with("it ends") && !unknown.extra.contains("not-begun"),
        "{unknown}"
    );
    let late = locate(&echo, "late").await.unwrap_err();
    assert_eq!((late.kind, &*late.extra), (capnp::ErrorKind::Disconnected, "not-begun: it ends"));
    assert_eq!(pair.begun.get(), 1);
}

#[tokio::test(flavor = "local")]
async fn dropping_the_last_handle_ends_the_connection() {
    let Pair { client, server, .. } = pair();
    let echo = client.bootstrap();
    let waiting = locate(&echo, "never");
    drop(client);
    assert_eq!(waiting.await.unwrap_err().kind, capnp::ErrorKind::Disconnected);
    server.closed().await;
}

#[tokio::test]
async fn callers_are_told_when_the_tasks_are_dropped_with_their_set() {
    let set = tokio::task::LocalSet::new();
    let (near, _far) = duplex(1024);
    let inside = set.enter();
    let client = Connection::new(near, Side::Client, None, Limits::default()).unwrap();
    let waiting = locate(&client.bootstrap(), "never");
    drop(inside);
    drop(set);
    assert_eq!(waiting.await.unwrap_err().kind, capnp::ErrorKind::Disconnected);
}

/// Writes raw messages to a server; returns its reason for ending the connection.
async fn end_of(messages: &[fn(message::Builder)]) -> Error {
    let (mut near, far) = duplex(64 << 10);
    let echo: restorer::Client = capnp_rpc::new_client(Echo { begun: Rc::default() });
    let server = Connection::new(far, Side::Server, Some(echo.client), Limits::default()).unwrap();
    for write in messages {
        let mut builder = capnp::message::Builder::new_default();
        write(builder.init_root());
        near.write_all(&capnp::serialize::write_message_to_words(&builder)).await.unwrap();
    }
    near.shutdown().await.unwrap();
    server.closed().await
}

fn bootstrap(message: message::Builder) {
    message.init_bootstrap().set_question_id(0);
}

/// `locate("never")` on the answer to the bootstrap, with the number 1.
fn call(message: message::Builder) {
    let mut call = message.init_call();
    call.set_question_id(1);
    call.set_interface_id(<restorer::Client as capnp::traits::HasTypeId>::TYPE_ID);
    call.set_method_id(1);
    call.reborrow().init_target().init_promised_answer().set_question_id(0);
    let mut params: restorer::locate_params::Builder = call.init_params().init_content().init_as();
    params.set_sturdy_ref("never");
}

fn finish(message: message::Builder) {
    message.init_finish().set_question_id(1);
}

#[tokio::test(flavor = "local")]
async fn hostile_messages_end_the_connection_with_a_reason() {
    let check = async |messages: &[fn(message::Builder)], reason: &str| {
        let error = end_of(messages).await;
        assert!(error.extra.contains(reason), "{error}");
        assert_eq!(error.kind, capnp::ErrorKind::Disconnected);
    };
    let to_third_party = |mut message: message::Builder| {
        call(message.reborrow());
        let Ok(message::Call(Ok(call))) = message.which() else { panic!("it is a call") };
        call.init_send_results_to().init_third_party();
    };
    check(&[], "Peer disconnected").await;
    check(&[bootstrap, call], "Peer disconnected").await;
    check(&[bootstrap, to_third_party], "results that go to a third party").await;
    check(&[bootstrap, call, call], "a call has the number of an open one").await;
    check(&[bootstrap, call, finish, call], "a call has the number of an open one").await;
    check(&[bootstrap, call, finish, finish], "a call was finished twice").await;
}

#[tokio::test(flavor = "local")]
async fn bytes_that_are_no_messages_end_the_connection() {
    for (bytes, reason) in [
        (&[255; 8][..], "segments is refused"),
        (&[0, 0, 0, 0, 255, 255, 255, 255], "the limit is 8388608"),
        (&[0, 0, 0, 0, 1, 0, 0, 0, 0], "the stream ended within a message"),
        (&[0, 0, 0], "the stream ended within a message"),
    ] {
        let (mut near, far) = duplex(1024);
        let server = Connection::new(far, Side::Server, None, Limits::default()).unwrap();
        near.write_all(bytes).await.unwrap();
        near.shutdown().await.unwrap();
        let error = server.closed().await;
        assert!(error.extra.contains(reason), "{error}");
    }
}

#[tokio::test]
async fn outside_of_a_local_runtime_the_error_says_what_is_needed() {
    let (near, _far) = duplex(1024);
    let error = Connection::new(near, Side::Client, None, Limits::default()).unwrap_err();
    assert!(error.extra.contains("LocalSet"), "{error}");
}

/// Takes over the pipelines of its calls, each with a capability of the caller's that has no other
/// holder.
struct Holder;

struct Holding(byte_stream::substream_callback::Client);

impl Pipelined for Holding {
    fn pipelined(&self, _: &[PipelineOp]) -> Box<dyn ClientHook> {
        self.0.client.hook.add_ref()
    }

    fn abandoned(self: Rc<Self>) {}
}

impl byte_stream::Server for Holder {
    async fn get_substream(
        self: Rc<Self>,
        params: byte_stream::GetSubstreamParams,
        _: byte_stream::GetSubstreamResults,
    ) -> capnp::Result<()> {
        let (held, limit) = (params.get()?.get_callback()?, params.get()?.get_limit());
        take_over(&*params.hook, Rc::new(Holding(held))).expect("the call came by a connection");
        if limit == 0 { Err(Error::failed("nothing may be written".into())) } else { Ok(()) }
    }
}

impl byte_stream::substream_callback::Server for Holder {}

/// The answer drops the last holder of a capability, so a release is sent beside it.
#[tokio::test(flavor = "local")]
async fn an_answer_may_end_the_capabilities_that_its_pipeline_held() {
    let (near, far) = duplex(64 << 10);
    let holder: byte_stream::Client = capnp_rpc::new_client(Holder);
    let server =
        Connection::new(far, Side::Server, Some(holder.client), Limits::default()).unwrap();
    let client = Connection::new(near, Side::Client, None, Limits::default()).unwrap();
    let bootstrap = client.bootstrap::<byte_stream::Client>();
    // The RPC system sends errors by another path than results.
    for limit in [1, 0, 1, 0] {
        let mut request = bootstrap.get_substream_request();
        request.get().set_limit(limit);
        let given = Rc::new(Holder);
        request.get().set_callback(capnp_rpc::new_client_from_rc(given.clone()));
        let answer = request.send().promise.await;
        assert_eq!(
            answer.err().is_some_and(|error| error.extra.contains("nothing may be written")),
            limit == 0
        );
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(Rc::strong_count(&given), 1, "it was released");
    }
    assert!(!server.is_closed());
}
