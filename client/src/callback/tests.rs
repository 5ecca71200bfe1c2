//! Calls on a callback by the client's own code: order, panics, streams and pipelined calls.

use super::answer::Waiting;
use super::*;
use crate::http_capnp::byte_stream;
use crate::restorer_capnp::restorer;
use capnp::traits::HasTypeId;
use futures::FutureExt;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::time::Duration;
use tokio::sync::Notify;

const TIME: Duration = Duration::from_secs(20);

/// A callback that notes the text of each call when its method begins.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) begun: RefCell<Vec<String>>,
    pub(super) ended: Cell<u32>,
    /// Lets a waiting method end.
    pub(super) go: Notify,
    /// The result of `restore`; `None` gives another capability for these notes.
    pub(super) gift: RefCell<Option<restorer::Client>>,
}

impl Notes {
    async fn note(&self, text: &str) -> capnp::Result<()> {
        self.begun.borrow_mut().push(text.to_owned());
        match text {
            "panic" => panic!("a method may do that"),
            "fail" => return Err(Error::failed("it fails".into())),
            "wait" => self.go.notified().await,
            "yield" => tokio::task::yield_now().await,
            _ => {}
        }
        self.ended.set(self.ended.get() + 1);
        Ok(())
    }

    pub(super) async fn expect(&self, texts: &[&str]) {
        let came = async {
            while self.begun.borrow().len() < texts.len() {
                tokio::task::yield_now().await;
            }
        };
        let came = tokio::time::timeout(TIME, came).await;
        assert!(came.is_ok(), "{:?} began, and no more", self.begun.borrow());
        assert_eq!(*self.begun.borrow(), texts);
    }
}

impl restorer::Server for Notes {
    async fn locate(
        self: Rc<Self>,
        params: restorer::LocateParams,
        mut results: restorer::LocateResults,
    ) -> capnp::Result<()> {
        let text = params.get()?.get_sturdy_ref()?.to_str()?;
        self.note(text).await?;
        results.get().set_address(text);
        Ok(())
    }

    async fn restore(
        self: Rc<Self>,
        params: restorer::RestoreParams,
        mut results: restorer::RestoreResults,
    ) -> capnp::Result<()> {
        let text = params.get()?.get_sturdy_ref()?.to_str()?;
        let gift = self.gift.borrow().clone();
        let gift = gift.unwrap_or_else(|| capability(self.clone()));
        if text != "null" {
            results.get().init_cap().set_as_capability(gift.client.hook);
        }
        if text == "early" {
            results.set_pipeline()?;
            self.note("wait").await?;
        }
        self.note(text).await
    }
}

/// Fails instead of hanging when a call never ends.
async fn in_time<T>(call: Promise<T, Error>) -> capnp::Result<T> {
    tokio::time::timeout(TIME, call).await.expect("the call ends")
}

pub(super) fn locate(
    on: &restorer::Client,
    text: &str,
) -> impl Future<Output = capnp::Result<String>> + use<> {
    let mut request = on.locate_request();
    request.get().set_sturdy_ref(text);
    let response = in_time(request.send().promise);
    async move { Ok(response.await?.get()?.get_address()?.to_str()?.to_owned()) }
}

pub(super) struct Restored {
    pub(super) cap: restorer::Client,
    pub(super) done: Promise<(), Error>,
}

pub(super) fn restore(on: &restorer::Client, text: &str) -> Restored {
    let mut request = on.restore_request();
    request.get().set_sturdy_ref(text);
    let sent = request.send();
    let cap = restorer::Client::new(sent.pipeline.get_cap().as_cap());
    let done = in_time(sent.promise);
    Restored { cap, done: Promise::from_future(async move { done.await.map(drop) }) }
}

fn notes() -> (Rc<Notes>, restorer::Client) {
    let notes = Rc::new(Notes::default());
    (notes.clone(), capability(notes))
}

#[tokio::test(flavor = "local")]
async fn calls_start_in_the_order_made_though_their_promises_are_polled_in_reverse() {
    let (notes, callback) = notes();
    let calls = ["0", "1", "2", "3"].map(|text| locate(&callback, text));
    for (call, text) in calls.into_iter().rev().zip(["3", "2", "1", "0"]) {
        assert_eq!(call.await.unwrap(), text);
    }
    notes.expect(&["0", "1", "2", "3"]).await;
}

/// The calls come through clones, and also through the function that capnp-rpc uses for a peer.
#[tokio::test(flavor = "local")]
async fn calls_start_though_their_promises_are_never_polled_or_dropped() {
    let (notes, callback) = notes();
    let unpolled = locate(&callback, "0");
    drop(locate(&callback.clone(), "1"));
    let mut params = Body::new();
    let root: restorer::locate_params::Builder<'_> = params.builder().unwrap().init_as();
    { root }.set_sturdy_ref("2");
    let results = results::Results::new(Reply::to_answer(Answer::default())).0;
    let hook = &callback.client.hook;
    drop(hook.call(restorer::Client::TYPE_ID, 1, Box::new(params), Box::new(results)));
    // Dropping the capability takes nothing back either.
    let last = locate(&callback, "3");
    drop((callback, last));
    notes.expect(&["0", "1", "2", "3"]).await;
    drop(unpolled);
}

#[tokio::test(flavor = "local")]
async fn a_method_never_runs_within_the_code_that_calls_it() {
    let (notes, callback) = notes();
    let call = {
        // A method that ran inside the call would find this borrowed.
        let _begun = notes.begun.borrow_mut();
        locate(&callback, "0")
    };
    assert!(notes.begun.borrow().is_empty());
    call.await.unwrap();
}

#[tokio::test(flavor = "local")]
async fn methods_interleave_where_they_await() {
    let (notes, callback) = notes();
    let waiting = locate(&callback, "wait");
    assert_eq!(locate(&callback, "later").await.unwrap(), "later");
    notes.go.notify_one();
    assert_eq!(waiting.await.unwrap(), "wait");
}

#[tokio::test(flavor = "local")]
async fn a_panic_ends_one_call_and_says_so() {
    let (notes, callback) = notes();
    let [before, panicking, after] = ["wait", "panic", "after"].map(|text| locate(&callback, text));
    let error = panicking.await.unwrap_err();
    assert!(error.extra.contains("the callback panicked"), "{error}");
    assert_eq!(after.await.unwrap(), "after");
    notes.go.notify_one();
    assert_eq!(before.await.unwrap(), "wait");
    assert_eq!(locate(&callback, "again").await.unwrap(), "again");
}

/// Fails at the first byte that isn't zero.
struct Stream;

impl byte_stream::Server for Stream {
    async fn write(self: Rc<Self>, params: byte_stream::WriteParams) -> capnp::Result<()> {
        tokio::task::yield_now().await;
        let is_good = params.get()?.get_bytes()?.iter().all(|byte| *byte == 0);
        is_good.then_some(()).ok_or_else(|| Error::failed("only zeros".into()))
    }

    async fn end(
        self: Rc<Self>,
        _: byte_stream::EndParams,
        _: byte_stream::EndResults,
    ) -> capnp::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "local")]
async fn a_failed_part_of_a_stream_is_an_error_of_that_call_only() {
    let stream: byte_stream::Client = capability(Rc::new(Stream));
    let write = |byte| {
        let mut request = stream.write_request();
        request.get().set_bytes(&[byte]);
        request.send()
    };
    let [first, second, third] = [0, 1, 0].map(write);
    first.await.unwrap();
    assert!(second.await.unwrap_err().extra.contains("only zeros"));
    third.await.unwrap();
    write(0).await.unwrap();
    stream.end_request().send().promise.await.unwrap();
}

/// The result is a capability of ours, or one that capnp-rpc made.
#[tokio::test(flavor = "local")]
async fn pipelined_calls_start_in_order_once_the_result_is_there() {
    for is_stock in [false, true] {
        let (notes, callback) = notes();
        if is_stock {
            *notes.gift.borrow_mut() = Some(capnp_rpc::new_client_from_rc(notes.clone()));
        }
        let restored = restore(&callback, "wait");
        drop(locate(&restored.cap, "1"));
        let unpolled = locate(&restored.cap, "2");
        let polled = locate(&restored.cap, "3");
        notes.expect(&["wait"]).await;
        notes.go.notify_one();
        assert_eq!(polled.await.unwrap(), "3");
        notes.expect(&["wait", "1", "2", "3"]).await;
        drop(unpolled);
        let later = [locate(&restored.cap, "4"), locate(&restored.cap, "5")];
        for call in later.into_iter().rev() {
            call.await.unwrap();
        }
        notes.expect(&["wait", "1", "2", "3", "4", "5"]).await;
        restored.done.await.unwrap();
        *notes.gift.borrow_mut() = None;
    }
}

#[tokio::test(flavor = "local")]
async fn pipelined_calls_fail_with_the_call_or_for_want_of_a_result() {
    let (notes, callback) = notes();
    for (text, reason) in [("fail", "it fails"), ("panic", "panicked"), ("null", "null")] {
        let restored = restore(&callback, text);
        let second = restore(&restored.cap, "never begun");
        let third = locate(&second.cap, "never begun");
        let error = third.await.unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert!(second.done.await.is_err());
        assert_eq!(restored.done.await.is_ok(), text == "null");
        assert!(locate(&restored.cap, "never begun").await.is_err());
    }
    notes.expect(&["fail", "panic", "null"]).await;
}

#[tokio::test(flavor = "local")]
async fn calls_go_to_what_a_method_offers_before_it_ends() {
    let (notes, callback) = notes();
    let restored = restore(&callback, "early");
    assert_eq!(locate(&restored.cap, "pipelined").await.unwrap(), "pipelined");
    notes.go.notify_one();
    restored.done.await.unwrap();
    notes.expect(&["wait", "pipelined", "early"]).await;
}

#[tokio::test(flavor = "local")]
async fn a_promise_of_itself_fails() {
    let (notes, callback) = notes();
    let restored = restore(&callback, "wait");
    *notes.gift.borrow_mut() = Some(restored.cap.clone());
    let call = locate(&restored.cap, "never begun");
    // A second promise leads to the first.
    let other = restore(&callback, "other");
    let on_other = locate(&other.cap, "never begun");
    other.done.await.unwrap();
    notes.go.notify_one();
    for error in [call.await.unwrap_err(), on_other.await.unwrap_err()] {
        assert!(error.extra.contains("a promise of itself"), "{error}");
    }
    *notes.gift.borrow_mut() = None;
}

/// The stack size of a thread in an embedding program that gives its threads little.
const STACK_BYTES: usize = 512 << 10;

const CHAIN: usize = 100_000;

/// Runs `test` on a thread with a small stack, in a local runtime.
fn on_small_stack<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test());
    });
    thread.unwrap().join().unwrap();
}

/// A call, and pipelined calls, each on the result of the call before it.
fn chain(callback: &restorer::Client, first: &str, then: &str) -> (Restored, Restored) {
    let first = restore(callback, first);
    let mut last = restore(&first.cap, then);
    for _ in 0..CHAIN {
        last = restore(&last.cap, then);
    }
    (first, last)
}

#[test]
fn long_chains_of_pipelined_calls_nest_no_stack() {
    on_small_stack(async || {
        let (notes, callback) = notes();
        let (first, last) = chain(&callback, "wait", "");
        notes.expect(&["wait"]).await;
        notes.go.notify_one();
        last.done.await.unwrap();
        first.done.await.unwrap();
        assert_eq!(notes.ended.get() as usize, CHAIN + 2);
    });
}

#[test]
fn long_chains_of_pipelined_calls_fail_together() {
    on_small_stack(async || {
        let (_, callback) = notes();
        let (first, last) = chain(&callback, "fail", "never begun");
        assert!(last.done.await.unwrap_err().extra.contains("it fails"));
        assert!(first.done.await.is_err());
    });
}

#[test]
fn long_chains_of_pipelined_calls_can_be_dropped_with_their_runtime() {
    on_small_stack(async || {
        let (notes, callback) = notes();
        let set = tokio::task::LocalSet::new();
        let (_, last) = set
            .run_until(async {
                let chain = chain(&callback, "wait", "never begun");
                notes.expect(&["wait"]).await;
                chain
            })
            .await;
        drop(set);
        let error = last.done.await.unwrap_err();
        assert_eq!(error.kind, capnp::ErrorKind::Disconnected);
        assert!(error.extra.contains("the call was lost"), "{error}");
    });
}

/// Each promise is settled before the one that it leads to.
#[test]
fn long_chains_of_promises_nest_no_stack() {
    on_small_stack(async || {
        let (notes, callback) = notes();
        let promises: Vec<_> = (0..CHAIN).map(|_| Queue::promised()).collect();
        for pair in promises.windows(2) {
            pair[0].clone().lead_to(Hook::wrap(pair[1].clone())).unwrap();
        }
        promises[CHAIN - 1].clone().lead_to(callback.client.hook).unwrap();
        let first = restorer::Client::new(Hook::wrap(promises[0].clone()));
        drop(promises);
        assert_eq!(locate(&first, "through all").await.unwrap(), "through all");
        drop(first);
        drop(notes);
    });
}

#[tokio::test]
async fn calls_outside_of_a_local_runtime_fail_and_say_what_is_needed() {
    let (notes, callback) = notes();
    for _ in 0..2 {
        let error = locate(&callback, "never begun").await.unwrap_err();
        assert!(error.extra.contains("LocalSet"), "{error}");
    }
    let inside = async { locate(&callback, "inside").await.unwrap() };
    tokio::task::LocalSet::new().run_until(inside).await;
    notes.expect(&["inside"]).await;
}

#[tokio::test]
async fn callers_are_told_when_the_runtime_ends_first() {
    let (notes, callback) = notes();
    let set = tokio::task::LocalSet::new();
    let inside = set.enter();
    let begun = locate(&callback, "wait");
    drop(inside);
    set.run_until(notes.expect(&["wait"])).await;
    let inside = set.enter();
    let queued = locate(&callback, "never begun");
    drop((inside, set));
    assert!(begun.await.unwrap_err().extra.contains("the call was lost"));
    assert!(queued.await.unwrap_err().extra.contains("LocalRuntime"));
    notes.expect(&["wait"]).await;
}

/// A method that keeps calling its own capability.
struct Busy(RefCell<Option<restorer::Client>>);

impl restorer::Server for Busy {
    async fn locate(
        self: Rc<Self>,
        _: restorer::LocateParams,
        _: restorer::LocateResults,
    ) -> capnp::Result<()> {
        if let Some(again) = &*self.0.borrow() {
            drop(locate(again, ""));
        }
        Ok(())
    }
}

#[tokio::test(flavor = "local")]
async fn a_method_that_always_calls_its_own_capability_leaves_room_for_others() {
    let busy = Rc::new(Busy(RefCell::default()));
    let callback: restorer::Client = capability(busy.clone());
    *busy.0.borrow_mut() = Some(callback.clone());
    locate(&callback, "").await.unwrap();
    let (_, other) = notes();
    assert_eq!(locate(&other, "other").await.unwrap(), "other");
    busy.0.take();
}

#[tokio::test(flavor = "local")]
async fn each_capability_is_its_own_and_no_promise() {
    let (notes, callback) = notes();
    let other: restorer::Client = capability(notes);
    let [one, two] = [&callback.client.hook, &other.client.hook];
    assert_ne!(one.get_ptr(), two.get_ptr(), "less power in one must not become more in the other");
    assert_eq!(one.get_ptr(), one.add_ref().get_ptr());
    assert!(one.get_brand() == two.get_brand() && one.get_brand() != 0);
    let promised = restore(&callback, "wait").cap.client.hook;
    for hook in [one, &promised] {
        assert!(hook.get_resolved().is_none() && hook.when_more_resolved().is_none());
        assert!(matches!(hook.when_resolved().now_or_never(), Some(Ok(()))));
    }
}
