//! The pipeline of an answer: the capabilities in a result that isn't there yet, and the calls on
//! them.
//!
//! Invariants:
//! - A path into a result leads to one capability, from its first use on; the result keeps that
//!   one.
//! - Calls on it are delivered in the order made, also when all callers let go; capnp-rpc's queued
//!   client loses them then.
//! - Once nobody can use paths into a result any more, only its capabilities that are held are
//!   kept.
//! - However many results make each other known, the stack doesn't nest: calls on the second are
//!   delivered after those on the first.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::{Poll, Waker};

use capnp::Error;
use capnp::capability::Promise;
use capnp::private::capability::{ClientHook, ParamsHook, PipelineHook, PipelineOp};
use futures::channel::oneshot;

use super::body::{Body, BodySlot};
use super::call::{Call, deliver};
use super::hook::{self, CallTarget, CapEnd};

/// A [`Body`] in which pipelined capabilities are found.
struct Opened(Rc<Body>);

impl PipelineHook for Opened {
    fn add_ref(&self) -> Box<dyn PipelineHook> {
        Box::new(Self(self.0.clone()))
    }

    fn get_pipelined_cap(&self, ops: &[PipelineOp]) -> Box<dyn ClientHook> {
        self.0.get().and_then(|body| body.get_pipelined_cap(ops)).unwrap_or_else(hook::broken)
    }
}

/// See the head of the file.
#[derive(Default)]
pub(super) struct Pipeline(RefCell<PipelineState>);

#[derive(Default)]
struct PipelineState {
    source: Option<Source>,
    used: Vec<(Vec<PipelineOp>, Rc<PromisedCap>)>,
    /// The caller has let go of the answer.
    is_abandoned: bool,
    /// The vat that the call went to has answered.
    is_answered: bool,
    /// The task that waits for one of these two events.
    watcher: Option<Waker>,
}

/// The events of a call that was passed on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Abandoned,
    Answered,
}

/// The source of the capabilities in a result.
enum Source {
    /// The results as they were offered ahead of the reply, and the place at which those of the
    /// reply arrive.
    Early(Opened, BodySlot),
    /// The call went to another vat. The probe is a capability in its result.
    Remote { pipeline: Box<dyn PipelineHook>, probe: Box<dyn ClientHook> },
    /// The call has ended.
    Ended(Result<Opened, Error>),
}

impl Source {
    /// `None`: only the end of the call will tell. That is so while the answer is there and the RPC
    /// system hasn't handed it over yet; asked then, it panics if there is no capability in that
    /// place.
    fn cap(&self, path: &[PipelineOp]) -> Option<Box<dyn ClientHook>> {
        match self {
            Self::Early(opened, _) | Self::Ended(Ok(opened)) => {
                Some(opened.get_pipelined_cap(path))
            }
            Self::Remote { probe, .. } if probe.get_resolved().is_some() => None,
            Self::Remote { pipeline, .. } => Some(pipeline.get_pipelined_cap(path)),
            Self::Ended(Err(error)) => Some(hook::broken(error.clone())),
        }
    }
}

impl Pipeline {
    /// The capability at the end of a path.
    pub(super) fn get(&self, path: &[PipelineOp]) -> Box<dyn ClientHook> {
        let mut state = self.0.borrow_mut();
        if let Some((_, later)) = state.used.iter().find(|(used, _)| fields(used).eq(fields(path)))
        {
            return hook::wrap(later.clone());
        }
        let known = state.source.as_ref().and_then(|source| source.cap(path));
        match known {
            Some(known) if matches!(state.source, Some(Source::Ended(_))) => known,
            known => {
                let later = Rc::new(PromisedCap::default());
                state.used.push((path.to_vec(), later.clone()));
                drop(state);
                if let Some(known) = known {
                    later.resolve(known);
                }
                hook::wrap(later)
            }
        }
    }

    /// Capabilities come from these results until the reply is there.
    pub(super) fn offer(&self, early: Body, whole: BodySlot) {
        self.settle(Source::Early(Opened(Rc::new(early)), whole));
    }

    /// Capabilities come from another vat until its answer is there.
    pub(super) fn redirect(&self, pipeline: Box<dyn PipelineHook>) {
        let probe = pipeline.get_pipelined_cap(&[]);
        self.settle(Source::Remote { pipeline, probe });
    }

    /// The result is there. Paths that were used already keep leading to the same capabilities.
    pub(super) fn keep_used(&self, result: &mut Body) {
        for (path, later) in &self.0.borrow().used {
            if let Some(target) = later.target() {
                result.replace_cap(path, target);
            }
        }
    }

    /// The call has ended, and nothing will change any more.
    pub(super) fn end(&self, outcome: Result<Rc<Body>, Error>) {
        let used: Vec<_> = self.0.borrow().used.iter().map(|(_, later)| later.clone()).collect();
        for later in &used {
            later.let_go_of_circle();
        }
        if outcome.is_err() {
            // A handler whose caller was told already goes on, and nobody has what it offered.
            let offered = match &self.0.borrow().source {
                Some(Source::Early(_, whole)) => Some(whole.clone()),
                _ => None,
            };
            if let Some(whole) = offered {
                whole.abandon();
            }
        }
        self.settle(Source::Ended(outcome.map(Opened)));
    }

    fn settle(&self, source: Source) {
        let mut state = self.0.borrow_mut();
        let waiting = state.used.iter().filter(|(_, later)| later.target().is_none());
        let known = waiting.filter_map(|(path, later)| Some((later.clone(), source.cap(path)?)));
        let known: Vec<_> = known.collect();
        let is_lost = matches!(source, Source::Ended(Err(_)));
        let before = state.source.replace(source);
        drop(state);
        // Nobody gets the results of a call that was answered before its handler ended.
        if let (true, Some(Source::Early(_, whole))) = (is_lost, &before) {
            whole.abandon();
        }
        // Calls that are delivered now, and dropped capabilities, may well come back here.
        drop(before);
        for (later, target) in known {
            later.resolve(target);
        }
        self.let_go();
    }

    /// The caller has let go of the answer: no path into it will be used from now on.
    pub(super) fn abandon(&self) {
        self.0.borrow_mut().is_abandoned = true;
        self.let_go();
        self.tell();
    }

    /// The vat that the call went to has answered, or the call never got there.
    pub(super) fn answered(&self) {
        self.0.borrow_mut().is_answered = true;
        self.tell();
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.0.borrow().is_abandoned
    }

    fn tell(&self) {
        let watcher = self.0.borrow_mut().watcher.take();
        if let Some(watcher) = watcher {
            watcher.wake();
        }
    }

    /// Only one task waits at a time.
    pub(super) fn poll(&self, event: Event, waker: &Waker) -> Poll<()> {
        let mut state = self.0.borrow_mut();
        let is_there = match event {
            Event::Abandoned => state.is_abandoned,
            Event::Answered => state.is_answered,
        };
        if is_there {
            return Poll::Ready(());
        }
        state.watcher = Some(waker.clone());
        Poll::Pending
    }

    /// Keeps nothing of an abandoned answer but promises on which calls may wait.
    fn let_go(&self) {
        let mut state = self.0.borrow_mut();
        if !state.is_abandoned
            || !matches!(state.source, Some(Source::Early(..) | Source::Remote { .. }))
        {
            return;
        }
        let source = state.source.take();
        let known: Vec<_> =
            state.used.extract_if(.., |(_, later)| later.target().is_some()).collect();
        drop(state);
        if let Some(Source::Early(_, whole)) = &source {
            whole.abandon();
        }
        // Dropped when nothing here is borrowed.
        drop((source, known));
    }
}

/// A path as its follower takes it.
fn fields(path: &[PipelineOp]) -> impl Iterator<Item = u16> {
    path.iter().filter_map(|step| match step {
        PipelineOp::Noop => None,
        PipelineOp::GetPointerField(field) => Some(*field),
    })
}

/// A capability that isn't known yet, and then stands for one that is.
#[derive(Default)]
pub(super) struct PromisedCap(RefCell<PromiseState>);

#[derive(Default)]
struct PromiseState {
    target: Option<Box<dyn ClientHook>>,
    /// The calls that waited have been delivered: all others may go there at once.
    is_open: bool,
    calls: VecDeque<Call>,
    waiting: Vec<oneshot::Sender<Box<dyn ClientHook>>>,
}

thread_local! {
    /// Promises that are known, and whose calls are to be delivered.
    static KNOWN: RefCell<VecDeque<Rc<PromisedCap>>> = RefCell::default();
    /// A caller further up on the stack delivers them.
    static DELIVERS: Cell<bool> = const { Cell::new(false) };
}

/// A panic that passes must not keep all others from being delivered.
struct Delivers;

impl Drop for Delivers {
    fn drop(&mut self) {
        DELIVERS.set(false);
    }
}

impl PromisedCap {
    /// The capability to which it leads, also while calls on it still wait.
    fn target(&self) -> Option<Box<dyn ClientHook>> {
        self.0.borrow().target.clone()
    }

    fn resolve(self: &Rc<Self>, target: Box<dyn ClientHook>) {
        self.0.borrow_mut().target = Some(target);
        KNOWN.with_borrow_mut(|known| known.push_back(self.clone()));
        if DELIVERS.replace(true) {
            return;
        }
        let delivers = Delivers;
        while let Some(known) = KNOWN.with_borrow_mut(VecDeque::pop_front) {
            known.deliver_calls();
        }
        drop(delivers);
    }

    /// A peer may have resolved its promise to this very result. Promises that lead to each other
    /// would keep each other alive.
    fn let_go_of_circle(&self) {
        if let Some(target) = self.target()
            && let Err(error) = hook::follow(&*target)
        {
            let before = self.0.borrow_mut().target.replace(hook::broken(error));
            // Dropped when nothing here is borrowed.
            drop(before);
        }
    }

    fn deliver_calls(self: &Rc<Self>) {
        let Some(target) = self.target() else { return };
        let is_itself =
            |end: &Rc<dyn CallTarget>| std::ptr::addr_eq(Rc::as_ptr(end), Rc::as_ptr(self));
        let target = match hook::follow(&*target) {
            Ok(CapEnd { target: Some(end), .. }) if is_itself(&end) => {
                hook::broken(hook::endless())
            }
            // A long row of results that stand for each other isn't kept as a whole.
            Ok(CapEnd { hook: Some(end), is_busy: false, .. }) => end,
            _ => target,
        };
        let before = self.0.borrow_mut().target.replace(target.clone());
        drop(before);
        // Calls that are made meanwhile queue behind them.
        while let Some(call) = self.next_call() {
            // A panic that a call leads to must not hold up the calls behind it.
            if catch_unwind(AssertUnwindSafe(|| deliver(&*target, call))).is_err() {
                tracing::error!("delivering a call panicked; it is lost");
            }
        }
        let waiting = std::mem::take(&mut self.0.borrow_mut().waiting);
        for waiting in waiting {
            // The receiver may be gone.
            let _ = waiting.send(target.clone());
        }
    }

    fn next_call(&self) -> Option<Call> {
        let mut queue = self.0.borrow_mut();
        let call = queue.calls.pop_front();
        queue.is_open = call.is_none();
        call
    }
}

impl CallTarget for PromisedCap {
    fn enqueue(self: Rc<Self>, call: Call) {
        match self.leads() {
            Some(target) => deliver(&*target, call),
            None => self.0.borrow_mut().calls.push_back(call),
        }
    }

    fn leads(&self) -> Option<Box<dyn ClientHook>> {
        let queue = self.0.borrow();
        queue.target.clone().filter(|_| queue.is_open)
    }

    fn when_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        if let Some(target) = self.leads() {
            return Some(Promise::ok(target));
        }
        let (sender, receiver) = oneshot::channel();
        push_live(&mut self.0.borrow_mut().waiting, sender);
        Some(Promise::from_future(async move {
            receiver.await.map_err(|_| crate::error::disconnected("the answer was lost"))
        }))
    }
}

/// Adds a sender, in the place of those whose receivers are gone if there are any.
pub(super) fn push_live<T>(waiting: &mut Vec<oneshot::Sender<T>>, one: oneshot::Sender<T>) {
    if waiting.len() == waiting.capacity() {
        waiting.retain(|waiting| !waiting.is_canceled());
    }
    waiting.push(one);
}

impl Drop for PromisedCap {
    fn drop(&mut self) {
        hook::forget(self);
    }
}
