//! Streams, and calls that call their caller back before they end, at the limits: between two RPC
//! systems, and by raw messages where only these can be out of step.

use super::*;
use crate::connection::Connection;
use crate::http_capnp::byte_stream;
use crate::http_capnp::http_service::{self, client_request_context};
use capnp::message::Builder;
use capnp_rpc::rpc_capnp::{cap_descriptor, return_};
use capnp_rpc::rpc_twoparty_capnp::Side;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{DuplexStream, duplex};

type Context = client_request_context::Client;

/// Answers each request by a call on its context, and waits for the answer to that call.
#[derive(Default)]
struct Service {
    begun: Cell<u32>,
}

impl http_service::Server for Service {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        _: http_service::RequestResults,
    ) -> capnp::Result<()> {
        self.begun.set(self.begun.get() + 1);
        let context = params.get()?.get_context()?;
        context.start_response_request().send().promise.await.map(drop)
    }
}

/// Answers at once, or after a call to the service.
struct Caller {
    again: Option<http_service::Client>,
    answered: Cell<u32>,
}

impl client_request_context::Server for Caller {
    async fn start_response(
        self: Rc<Self>,
        _: client_request_context::StartResponseParams,
        _: client_request_context::StartResponseResults,
    ) -> capnp::Result<()> {
        if let Some(service) = &self.again {
            let plain = Rc::new(Self { again: None, answered: Cell::new(0) });
            request(service, plain).await?;
        }
        self.answered.set(self.answered.get() + 1);
        Ok(())
    }
}

fn request(
    service: &http_service::Client,
    caller: Rc<Caller>,
) -> impl Future<Output = capnp::Result<()>> + use<> {
    let mut request = service.request_request();
    request.get().set_context(capnp_rpc::new_client_from_rc::<Context, _>(caller));
    let sent = request.send().promise;
    async move { sent.await.map(drop) }
}

struct Pair {
    client: Connection,
    server: Connection,
    guard: Rc<RefCell<GuardState<DuplexStream>>>,
    bites: Arc<Bites>,
}

fn pair(bootstrap: capnp::capability::Client, limits: Limits) -> Pair {
    let (near, far) = duplex(64 << 10);
    let bites = Arc::<Bites>::default();
    let guard = Rc::new(RefCell::new(GuardState::new(far, limits, bites.clone())));
    let server = Connection::over(guard.clone(), Side::Server, Some(bootstrap)).unwrap();
    let client = Connection::new(near, Side::Client, None, Limits::of_dialler()).unwrap();
    Pair { client, server, guard, bites }
}

/// The answers to callbacks arrive after calls that wait for these very answers.
#[tokio::test(flavor = "local")]
async fn plain_callbacks_at_the_limit_come_to_their_end() {
    plain_callbacks(Limits { calls: 4, ..Limits::default() }).await;
}

/// Once too much waits to read more, the unread messages may be these answers.
#[tokio::test(flavor = "local")]
async fn plain_callbacks_at_the_limit_of_what_waits_come_to_their_end() {
    plain_callbacks(Limits { calls: 4, queued_bytes: 160 << 10, ..Limits::default() }).await;
}

async fn plain_callbacks(limits: Limits) {
    let service = Rc::new(Service::default());
    let offered: http_service::Client = capnp_rpc::new_client_from_rc(service.clone());
    let pair = pair(offered.client, limits);
    let caller = Rc::new(Caller { again: None, answered: Cell::new(0) });
    let calls = (0..1000).map(|_| request(&pair.client.bootstrap(), caller.clone()));
    let calls = futures::future::try_join_all(calls.collect::<Vec<_>>());
    tokio::time::timeout(Duration::from_secs(20), calls).await.expect("it isn't stuck").unwrap();
    assert!(pair.bites.get(Limit::Calls) > 0, "the limit was reached");
    assert_eq!((service.begun.get(), caller.answered.get()), (1000, 1000));
    assert_eq!(pair.bites.get(Limit::Stall), 0);
}

/// Below the limit a callback may call again. At the limit its call waits for the call that waits
/// for it.
#[tokio::test(flavor = "local", start_paused = true)]
async fn callbacks_that_call_again_at_the_limit_are_cut_with_a_reason() {
    let limits = Limits { calls: 4, ..Limits::default() };
    for (at_once, is_cut) in [(2, false), (4, true)] {
        let offered: http_service::Client = capnp_rpc::new_client(Service::default());
        let pair = pair(offered.client, limits);
        let again = Some(pair.client.bootstrap());
        let caller = Rc::new(Caller { again, answered: Cell::new(0) });
        let calls = (0..at_once).map(|_| request(&pair.client.bootstrap(), caller.clone()));
        let results = futures::future::join_all(calls.collect::<Vec<_>>()).await;
        for result in results {
            let Err(error) = result else {
                assert!(!is_cut);
                continue;
            };
            assert!(is_cut, "{error}");
            assert_eq!(error.kind, capnp::ErrorKind::Disconnected);
            let reason = "calls wait, and none of those before was answered in 30s";
            assert!(error.extra.contains(reason), "{error}");
        }
        assert_eq!(pair.bites.get(Limit::Stall), u64::from(is_cut));
        assert_eq!(pair.server.is_closed(), is_cut);
    }
}

/// A message of the peer as it comes from the wire.
fn incoming(write: impl FnOnce(message::Builder)) -> ReceivedMessage {
    let mut message = Builder::new_default();
    write(message.init_root());
    crate::wire::tests::incoming(&message)
}

/// A number in an answer may mean nothing until the waiting messages were delivered.
#[test]
fn answers_wait_for_what_they_speak_of_and_for_nothing_else() {
    let mut queue = MessageQueue::default();
    let mut push = |write: fn(message::Builder)| queue.push(incoming(write)).unwrap();
    push(|message| message.init_call().set_question_id(7));
    push(|message| message.init_bootstrap().set_question_id(8));
    type Write = fn(return_::Builder);
    let cases: [(Write, bool); 7] = [
        (|mut answer| answer.set_take_from_other_question(7), true),
        (|mut answer| answer.set_take_from_other_question(5), false),
        (|answer| names(answer, |cap| cap.init_receiver_answer().set_question_id(7)), true),
        (|answer| names(answer, |cap| cap.init_receiver_answer().set_question_id(8)), true),
        (|answer| names(answer, |cap| cap.init_receiver_answer().set_question_id(5)), false),
        (|answer| names(answer, |mut cap| cap.set_sender_hosted(7)), false),
        (|answer| names(answer, |mut cap| cap.set_none(())), false),
    ];
    for (at, (write, waits)) in cases.into_iter().enumerate() {
        let answer = incoming(|message| write(message.init_return()));
        let message::Return(Ok(answer)) =
            answer.get_root::<message::Reader>().unwrap().which().unwrap()
        else {
            panic!("it is one")
        };
        assert_eq!(queue.concerns(answer, 64).unwrap(), waits, "{at}");
    }
    // A message at the front that isn't a call needn't wait.
    assert!(queue.pop(Calls::Wait).is_none());
    assert!(queue.pop(Calls::Begin).is_some());
    assert!(queue.pop(Calls::Wait).is_some());
    assert_eq!((queue.is_empty(), queue.bytes()), (true, 0));
}

fn names(answer: return_::Builder, write: fn(cap_descriptor::Builder)) {
    write(answer.init_results().init_cap_table(1).get(0));
}

/// Takes bytes slowly: one call for each permission.
struct Slow {
    taken: Cell<usize>,
    allowed: &'static tokio::sync::Semaphore,
}

impl byte_stream::Server for Slow {
    async fn write(self: Rc<Self>, params: byte_stream::WriteParams) -> capnp::Result<()> {
        self.allowed.acquire().await.unwrap().forget();
        self.taken.set(self.taken.get() + params.get()?.get_bytes()?.len());
        Ok(())
    }
}

/// A stream that is written ten times as fast as it is read slows down: the bytes between the two
/// ends stay bounded, and all of them arrive.
#[tokio::test(flavor = "local")]
async fn a_stream_is_as_fast_as_its_receiver() {
    const CHUNK: usize = 8 << 10;
    const CHUNKS: usize = 2000;
    // The handlers outlive the test.
    let allowed: &'static _ = Box::leak(Box::new(tokio::sync::Semaphore::new(0)));
    let slow = Rc::new(Slow { taken: Cell::new(0), allowed });
    let offered: byte_stream::Client = capnp_rpc::new_client_from_rc(slow.clone());
    let pair = pair(offered.client, Limits::default());
    let stream: byte_stream::Client = pair.client.bootstrap();
    let written = Rc::new(Cell::new(0));
    let counted = written.clone();
    let writer = tokio::task::spawn_local(async move {
        for _ in 0..CHUNKS {
            let mut write = stream.write_request();
            write.get().set_bytes(&[7; CHUNK]);
            write.send().await?;
            counted.set(counted.get() + CHUNK);
        }
        stream.end_request().send().promise.await.map(drop)
    });
    let mut most = 0;
    while slow.taken.get() < CHUNK * CHUNKS {
        allowed.add_permits(1);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        most = most.max(written.get() - slow.taken.get());
        assert!(pair.guard.borrow().tables.open().1 <= 256 << 10);
    }
    assert!((CHUNK..256 << 10).contains(&most), "{most} bytes were between the two ends");
    // The stream has no method `end`.
    assert_eq!(writer.await.unwrap().unwrap_err().kind, capnp::ErrorKind::Unimplemented);
}
