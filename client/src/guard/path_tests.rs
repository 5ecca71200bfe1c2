//! Promises and reflected calls by raw messages, as implementations in C++ send them, and excessive
//! messages between two RPC systems.

use super::raw::{Cap, Write, bootstrap, bytes_of, finish, release, resolve, settle, write};
use super::*;
use crate::ERROR_BYTES_MAX;
use crate::connection::Connection;
use crate::http_capnp::byte_stream;
use crate::restorer_capnp::restorer;
use capnp::capability::FromClientHook;
use capnp::message::ReaderOptions;
use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::{message_target, return_};
use capnp_rpc::rpc_twoparty_capnp::Side;
use std::cell::RefCell;
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// `restore` gives this capability itself, or as many new ones as its text says. `locate` repeats
/// its text, or gives as many bytes as it says; "fail" fails with a long error.
struct Echo;

impl restorer::Server for Echo {
    async fn restore(
        self: Rc<Self>,
        params: restorer::RestoreParams,
        mut results: restorer::RestoreResults,
    ) -> capnp::Result<()> {
        let count = params.get()?.get_sturdy_ref()?.to_string()?.parse().unwrap_or(0);
        let mut cap = results.get().init_cap();
        if count == 0 {
            let echo: restorer::Client = capnp_rpc::new_client(Self);
            cap.set_as_capability(echo.client.hook);
            return Ok(());
        }
        let mut list = cap.initn_as::<capnp::any_pointer_list::Builder>(count);
        for at in 0..count {
            let echo: restorer::Client = capnp_rpc::new_client(Self);
            list.reborrow().get(at).set_as_capability(echo.client.hook);
        }
        Ok(())
    }

    async fn locate(
        self: Rc<Self>,
        params: restorer::LocateParams,
        mut results: restorer::LocateResults,
    ) -> capnp::Result<()> {
        let text = params.get()?.get_sturdy_ref()?.to_str()?;
        if text == "fail" {
            return Err(Error::failed("€".repeat(3 << 20)));
        }
        match text.parse() {
            Ok(count) => results.get().set_address("x".repeat(count)),
            Err(_) => results.get().set_address(text),
        }
        Ok(())
    }
}

/// A peer that sends raw messages. Both sides offer their bootstrap capability.
pub(super) struct Peer {
    far: DuplexStream,
    near: Connection,
    pub(super) guard: Rc<RefCell<GuardState<DuplexStream>>>,
    unread: Vec<u8>,
}

impl Peer {
    fn new(limits: Limits) -> Self {
        let (far, near) = duplex(64 << 10);
        let guard = GuardState::new(near, limits, Arc::default());
        let guard = Rc::new(RefCell::new(guard));
        let echo: restorer::Client = capnp_rpc::new_client(Echo);
        let near = Connection::over(guard.clone(), Side::Client, Some(echo.client)).unwrap();
        Self { far, near, guard, unread: Vec::new() }
    }

    async fn send(&mut self, messages: &[Write]) {
        self.far.write_all(&bytes_of(messages)).await.unwrap();
        settle().await;
    }

    /// The messages that were sent since the last call of this, one word for each.
    pub(super) async fn sent(&mut self) -> Vec<String> {
        settle().await;
        let mut bytes = vec![0; 1 << 20];
        while let Some(read) = futures::FutureExt::now_or_never(self.far.read(&mut bytes)) {
            match read.unwrap() {
                0 => break,
                count => self.unread.extend_from_slice(&bytes[..count]),
            }
        }
        let mut rest = &self.unread[..];
        let mut said = Vec::new();
        while !rest.is_empty() {
            let options = ReaderOptions::default();
            let message = capnp::serialize::read_message(&mut rest, options).unwrap();
            said.push(word(message.get_root().unwrap()));
        }
        self.unread.clear();
        said
    }
}

fn word(message: message::Reader) -> String {
    match message.which().unwrap() {
        message::Bootstrap(Ok(ask)) => format!("bootstrap {}", ask.get_question_id()),
        message::Call(Ok(call)) => {
            let hops = capnp::raw::get_struct_data_section(call)[17];
            let through = if hops > 0 { format!(" through {hops}") } else { String::new() };
            match call.get_target().unwrap().which().unwrap() {
                message_target::ImportedCap(id) => {
                    format!("call {} on {id}{through}", call.get_question_id())
                }
                message_target::PromisedAnswer(_) => {
                    format!("call {}{through}", call.get_question_id())
                }
            }
        }
        message::Finish(Ok(finish)) => format!("finish {}", finish.get_question_id()),
        message::Release(Ok(release)) => {
            format!("release {} {}", release.get_id(), release.get_reference_count())
        }
        message::Return(Ok(answer)) => {
            let how = match answer.which().unwrap() {
                return_::Results(_) => "results",
                return_::Exception(_) => "exception",
                return_::ResultsSentElsewhere(()) => "elsewhere",
                _ => "another",
            };
            format!("return {} {how}", answer.get_answer_id())
        }
        message::Resolve(_) => "resolve".into(),
        message::Abort(Ok(abort)) => abort.get_reason().unwrap().to_string().unwrap(),
        _ => "another".into(),
    }
}

fn takes_from(question: u32, from: u32) -> Write {
    write(move |message| {
        let mut answer = message.init_return();
        answer.set_answer_id(question);
        answer.set_take_from_other_question(from);
    })
}

/// The answer to a `restore`, with this capability.
fn restored(question: u32, to: Cap) -> Write {
    write(move |message| {
        let mut answer = message.init_return();
        answer.set_answer_id(question);
        let mut payload = answer.init_results();
        to.write(payload.reborrow().init_cap_table(1).get(0));
        // A capability pointer holds the capability's index in the table.
        let mut places = Vec::new();
        let mut content = payload.reborrow().get_content();
        content.imbue_mut(&mut places);
        let nobody = capnp_rpc::new_broken_cap(Error::failed("nobody".into()));
        let mut results = content.init_as::<restorer::restore_results::Builder>();
        results.reborrow().init_cap().set_as_capability(nobody.hook);
    })
}

/// The answer to a `locate`.
fn located(question: u32, text: &'static str) -> Write {
    write(move |message| {
        let mut answer = message.init_return();
        answer.set_answer_id(question);
        let content = answer.init_results().init_content();
        content.init_as::<restorer::locate_results::Builder>().set_address(text);
    })
}

fn reflects(question: u32, method: u16, text: &'static str) -> Write {
    write(move |message| {
        let mut call = message.init_call();
        call.set_question_id(question);
        call.set_interface_id(restorer::Client::TYPE_ID);
        call.set_method_id(method);
        call.reborrow().init_send_results_to().set_yourself(());
        call.reborrow().init_target().set_imported_cap(0);
        let content = call.init_params().init_content();
        content.init_as::<restorer::locate_params::Builder>().set_sturdy_ref(text);
    })
}

const RESTORE: u16 = 0;
const LOCATE: u16 = 1;

/// Sets up a peer that has our bootstrap capability as our export 0, and was asked for its own.
async fn acquainted() -> (Peer, restorer::Client) {
    acquainted_within(Limits::of_dialler()).await
}

pub(super) async fn acquainted_within(limits: Limits) -> (Peer, restorer::Client) {
    let mut peer = Peer::new(limits);
    let theirs: restorer::Client = peer.near.bootstrap();
    peer.send(&[bootstrap(0)]).await;
    assert_eq!(peer.sent().await, ["bootstrap 0", "return 0 results"]);
    (peer, theirs)
}

#[tokio::test(flavor = "local")]
async fn what_a_promise_turns_out_to_be_stays_with_the_peer() {
    let (mut peer, theirs) = acquainted().await;
    let first = theirs.locate_request().send();
    assert_eq!(peer.sent().await, ["call 1"]);
    let imports = |peer: &Peer| peer.guard.borrow().counts().imports;
    for to in [Cap::Hosted(6), Cap::Promise(7), Cap::Ours(0)] {
        let held = imports(&peer);
        peer.send(&[resolve(5, to)]).await;
        let released = match to {
            Cap::Hosted(id) | Cap::Promise(id) => vec![format!("release {id} 1")],
            _ => vec![],
        };
        assert_eq!(peer.sent().await, released);
        assert_eq!(imports(&peer), held);
    }
    drop(first);
    assert!(!peer.near.is_closed());
}

/// The peer passes calls on its own promise on, no matter what it says the promise became. Calls
/// that then took the short way would overtake earlier ones.
#[tokio::test(flavor = "local")]
async fn a_promise_that_turns_out_to_be_ours_is_still_called_over_the_wire() {
    for is_called_before in [false, true] {
        let (mut peer, theirs) = acquainted().await;
        let asked = theirs.restore_request().send();
        assert_eq!(peer.sent().await, ["call 1"]);
        peer.send(&[restored(1, Cap::Promise(5))]).await;
        let answer = asked.promise.await.unwrap();
        let promised: restorer::Client =
            answer.get().unwrap().get_cap().get_as_capability().unwrap();
        let before = is_called_before.then(|| promised.locate_request().send());
        let sent: &[_] = if is_called_before { &["call 2 on 5"] } else { &[] };
        assert_eq!(peer.sent().await, sent);

        peer.send(&[resolve(5, Cap::Ours(0))]).await;
        let mut after = promised.locate_request();
        after.get().set_sturdy_ref("ours");
        let after = after.send();
        let number = 2 + u32::from(is_called_before);
        assert_eq!(peer.sent().await, [format!("call {number} on 5")]);
        peer.send(&[located(number, "theirs")]).await;
        let place = after.promise.await.unwrap();
        assert_eq!(place.get().unwrap().get_address().unwrap(), "theirs");

        // The peer keeps the promise until this side has dropped it.
        drop((answer, asked.pipeline, place, after.pipeline, before));
        assert!(!peer.sent().await.contains(&"release 5 1".into()));
        drop(promised);
        assert_eq!(peer.sent().await, ["release 5 1"]);
        assert!(!peer.near.is_closed());
    }
}

/// Every layer used to copy such an error when it passed it on, and blocked the thread meanwhile.
#[tokio::test(flavor = "local")]
async fn a_long_error_of_the_peer_is_cut_as_it_arrives() {
    let (mut peer, theirs) = acquainted().await;
    let asked = theirs.locate_request().send();
    assert_eq!(peer.sent().await, ["call 1"]);
    peer.send(&[write(|message| {
        let mut answer = message.init_return();
        answer.set_answer_id(1);
        answer.init_exception().set_reason("x".repeat(2 * ERROR_BYTES_MAX));
    })])
    .await;
    let error = asked.promise.await.map(drop).unwrap_err();
    let said = error.extra.strip_prefix("remote exception: ").unwrap();
    assert_eq!(said.len(), ERROR_BYTES_MAX);
    assert!(said.ends_with("x ... (cut; it had 131072 bytes)"), "{}", &said[said.len() - 60..]);
}

#[tokio::test(flavor = "local")]
async fn a_reflected_call_answers_ours_with_its_results() {
    for early in [false, true] {
        let (mut peer, theirs) = acquainted().await;
        let restored = theirs.restore_request().send();
        let located = theirs.locate_request().send();
        assert_eq!(peer.sent().await, ["call 1", "call 2"]);
        let (mut calls, takes) = (
            vec![reflects(7, RESTORE, "x"), reflects(8, LOCATE, "here")],
            vec![takes_from(1, 7), takes_from(2, 8)],
        );
        if early {
            calls.extend(takes);
            peer.send(&calls).await;
        } else {
            peer.send(&calls).await;
            peer.send(&takes).await;
        }
        let said = peer.sent().await;
        assert_eq!(said, ["return 7 elsewhere", "return 8 elsewhere"]);
        let answer = located.promise.await.unwrap();
        assert_eq!(answer.get().unwrap().get_address().unwrap(), "here");
        let answered = restored.promise.await.unwrap();
        let ours: restorer::Client = answered.get().unwrap().get_cap().get_as_capability().unwrap();
        peer.send(&[finish(7, false), finish(8, false)]).await;
        // It is called directly.
        assert!(ours.locate_request().send().promise.await.unwrap().get().is_ok());
        drop((answer, located.pipeline));
        assert_eq!(peer.sent().await, ["finish 2"]);
        drop((ours, answered, restored.pipeline));
        assert_eq!(peer.sent().await, ["finish 1"]);
        let counts = peer.guard.borrow().counts();
        assert_eq!((counts.exports, counts.held), (1, 0), "the bootstrap capability: {counts:?}");
        assert!(!peer.near.is_closed());
    }
}

#[tokio::test(flavor = "local")]
async fn a_reflected_call_may_fail_be_given_up_or_answer_nothing() {
    let (mut peer, theirs) = acquainted().await;
    let fails = theirs.locate_request().send();
    let given_up = theirs.locate_request().send();
    drop(given_up);
    drop(theirs.locate_request().send());
    assert_eq!(peer.sent().await, ["call 1", "call 2", "call 3", "finish 2", "finish 3"]);
    peer.send(&[
        reflects(7, LOCATE, "fail"),
        takes_from(1, 7),
        reflects(8, LOCATE, "x"),
        takes_from(2, 8),
        finish(8, true),
        // No message says which call this answers.
        reflects(9, LOCATE, "x"),
        finish(9, true),
        reflects(7 + 3, LOCATE, "x"),
        takes_from(3, 10),
    ])
    .await;
    let error = fails.promise.await.map(drop).unwrap_err();
    assert!(error.extra.starts_with("remote exception: €€") && error.extra.len() <= 80_000);
    peer.send(&[finish(7, true), finish(10, true)]).await;
    let said = peer.sent().await;
    assert_eq!(said.iter().filter(|word| word.ends_with("elsewhere")).count(), 4, "{said:?}");
    assert!(!peer.near.is_closed());
    let counts = peer.guard.borrow().counts();
    assert_eq!((counts.answers, counts.held, counts.questions), (1, 0, 1), "{counts:?}");
}

#[tokio::test(flavor = "local")]
async fn an_answer_is_taken_once_and_from_a_reflected_call_alone() {
    for wrong in [
        vec![takes_from(1, 7)],
        vec![takes_from(9, 7)],
        vec![reflects(7, LOCATE, "x"), takes_from(1, 7), takes_from(1, 7)],
        vec![reflects(1 << 30, LOCATE, "x")],
        vec![release(9, 1)],
        vec![finish(1 << 30, true)],
        vec![finish((1 << 31) - 1, true)],
    ] {
        let (mut peer, theirs) = acquainted().await;
        let asked = theirs.locate_request().send();
        peer.send(&wrong).await;
        assert!(peer.near.is_closed());
        drop(asked);
    }
}

/// C++ numbers the calls of which it needs only the pipeline from 2^31 on.
#[tokio::test(flavor = "local")]
async fn numbers_of_calls_may_be_large() {
    let (mut peer, _theirs) = acquainted().await;
    let large = (1 << 31) + 7;
    peer.send(&[bootstrap(large), finish(large, true), finish(1 << 31, true)]).await;
    assert_eq!(peer.sent().await, [format!("return {large} results")]);
    assert!(!peer.near.is_closed());
}

/// The peer never says which call the results are for.
#[tokio::test(flavor = "local")]
async fn results_that_nobody_takes_are_bounded() {
    let limits = Limits { unsent_bytes: 1 << 20, answers: 100, ..Limits::default() };
    let few_and_large = (7..11).map(|id| reflects(id, LOCATE, "400000")).collect::<Vec<_>>();
    let many_and_small = (7..120).map(|id| reflects(id, LOCATE, "x")).collect::<Vec<_>>();
    for (flood, reason) in [
        (few_and_large, "the peer doesn't say of what its calls are the answers"),
        (many_and_small, "too many calls were not finished"),
    ] {
        let (mut peer, _theirs) = acquainted_within(limits).await;
        peer.send(&flood[..2]).await;
        assert!(!peer.near.is_closed());
        peer.send(&flood[2..]).await;
        assert_eq!(peer.near.closed().await.extra, reason);
    }
}

fn pair() -> (Connection, Connection, restorer::Client) {
    let (near, far) = duplex(64 << 10);
    let echo: restorer::Client = capnp_rpc::new_client(Echo);
    let server = Connection::new(far, Side::Server, Some(echo.client), Limits::default()).unwrap();
    let client = Connection::new(near, Side::Client, None, Limits::of_dialler()).unwrap();
    let echo = client.bootstrap();
    (client, server, echo)
}

async fn locate(on: &restorer::Client, text: &str) -> capnp::Result<usize> {
    let mut request = on.locate_request();
    request.get().set_sturdy_ref(text);
    let answer = request.send().promise.await?;
    Ok(answer.get()?.get_address()?.len())
}

#[tokio::test(flavor = "local")]
async fn what_is_too_large_to_be_sent_fails_alone() {
    let (client, server, echo) = pair();
    let (large, most) = (9 << 20, (8 << 20) - 1024);
    let big = "x".repeat(large);
    let mut request = echo.restore_request();
    request.get().set_sturdy_ref(&big);
    let refused = request.send();
    let pipelined = restorer::Client::new(refused.pipeline.get_cap().as_cap());
    let behind = locate(&pipelined, "x");
    let mut dropped = echo.restore_request();
    dropped.get().set_sturdy_ref(&big);
    drop(dropped.send());
    let error = refused.promise.await.map(drop).unwrap_err();
    assert!(error.extra.contains("too-large: a message of 943"), "{error}");
    behind.await.unwrap_err();
    let error = locate(&echo, &large.to_string()).await.unwrap_err();
    assert!(error.extra.contains("too-large: "), "{error}");
    assert_eq!(locate(&echo, &most.to_string()).await.unwrap(), most);
    // The next answer has the same number as the one that was too large, and is held.
    locate(&echo, &large.to_string()).await.unwrap_err();
    let answer = echo.restore_request().send().promise.await.unwrap();
    let held: restorer::Client = answer.get().unwrap().get_cap().get_as_capability().unwrap();
    drop(answer);
    settle().await;
    assert_eq!(locate(&held, "hello").await.unwrap(), 5);
    assert!(!client.is_closed() && !server.is_closed());
}

#[tokio::test(flavor = "local")]
async fn too_many_capabilities_fail_alone_and_none_is_lost() {
    let (near, far) = duplex(64 << 10);
    let echo: restorer::Client = capnp_rpc::new_client(Echo);
    let state =
        |stream, limits| Rc::new(RefCell::new(GuardState::new(stream, limits, Arc::default())));
    let (near, far) = (state(near, Limits::of_dialler()), state(far, Limits::default()));
    let server = Connection::over(far.clone(), Side::Server, Some(echo.client)).unwrap();
    let client = Connection::over(near.clone(), Side::Client, None).unwrap();
    let echo: restorer::Client = client.bootstrap();
    for (count, is_sent) in [("64", true), ("65", false), ("200", false)] {
        // In a result.
        let mut request = echo.restore_request();
        request.get().set_sturdy_ref(count);
        let answer = request.send().promise.await;
        assert_eq!(answer.is_ok(), is_sent, "{count}");
        if let Err(error) = answer {
            assert!(error.extra.contains("too-many-capabilities: "), "{error}");
        }
        // In parameters.
        let as_stream = byte_stream::Client { client: echo.client.clone() };
        let mut request =
            as_stream.client.new_call::<capnp::any_pointer::Owned, capnp::any_pointer::Owned>(
                restorer::Client::TYPE_ID,
                LOCATE,
                None,
            );
        let count = count.parse().unwrap();
        let list = request.get().init_as::<restorer::restore_results::Builder>().init_cap();
        let mut list = list.initn_as::<capnp::any_pointer_list::Builder>(count);
        for at in 0..count {
            let echo: restorer::Client = capnp_rpc::new_client(Echo);
            list.reborrow().get(at).set_as_capability(echo.client.hook);
        }
        let error = request.send().promise.await.map(drop).unwrap_err();
        assert_eq!(error.extra.contains("too-many-capabilities: "), !is_sent, "{error}");
    }
    settle().await;
    assert!(!client.is_closed() && !server.is_closed());
    let (ours, theirs) = (near.borrow().counts(), far.borrow().counts());
    assert_eq!((ours.exports, ours.questions, theirs.imports), (0, 0, 0), "{ours:?} {theirs:?}");
    assert_eq!((theirs.exports, theirs.held), (0, 0), "{theirs:?}");
}

#[tokio::test(flavor = "local")]
async fn an_error_of_any_length_is_cut_and_no_connection_ends() {
    let (client, server, echo) = pair();
    let error = locate(&echo, "fail").await.unwrap_err();
    assert!(error.extra.ends_with(&format!("€ ... (cut; it had {} bytes)", 9 << 20)), "{error:.9}");
    assert!(error.extra.len() <= ERROR_BYTES_MAX + "remote exception: ".len());
    assert!(!client.is_closed() && !server.is_closed());
}
