//! What a caller in this vat holds of a call: its outcome, and capabilities not known yet.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use capnp::Error;
use capnp::any_pointer;
use capnp::capability::{Promise, Response};
use capnp::private::capability::{ClientHook, PipelineHook, PipelineOp};

use futures::channel::oneshot;

use super::body::{Body, Opened, View};
use super::call::{Call, deliver};
use super::hook::{self, Target};
use crate::error::Result;

/// The outcome of one call. Resolving it delivers the pipelined calls first, then wakes the caller.
#[derive(Clone, Default)]
pub(super) struct Answer(Rc<RefCell<State>>);

#[derive(Default)]
struct State {
    outcome: Option<Result<Rc<Body>>>,
    /// Where pipelined capabilities come from when the call went to another vat.
    redirected: Option<Box<dyn PipelineHook>>,
    promised: Vec<(Vec<PipelineOp>, Rc<Later>)>,
    caller: Option<Waker>,
}

impl Answer {
    pub(super) fn resolve(&self, outcome: Result<Body>) {
        self.0.borrow_mut().outcome = Some(outcome.map(Rc::new));
        self.settle_promised();
        let caller = self.0.borrow_mut().caller.take();
        if let Some(caller) = caller {
            caller.wake();
        }
    }

    pub(super) fn redirect(&self, pipeline: Box<dyn PipelineHook>) {
        self.0.borrow_mut().redirected = Some(pipeline);
        self.settle_promised();
    }

    fn settle_promised(&self) {
        let promised = std::mem::take(&mut self.0.borrow_mut().promised);
        for (ops, later) in promised {
            later.resolve(self.get_pipelined_cap(&ops));
        }
    }

    /// The caller's promise. Dropping it doesn't take the call back.
    pub(super) fn response(
        self,
        see: impl FnOnce(Rc<Body>) -> View + 'static,
    ) -> Promise<Response<any_pointer::Owned>, Error> {
        Promise::from_future(async move {
            let body = self.await?;
            Ok(Response::new(Box::new(see(body))))
        })
    }
}

impl Future for Answer {
    type Output = Result<Rc<Body>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.borrow_mut();
        if let Some(outcome) = &state.outcome {
            return Poll::Ready(outcome.clone());
        }
        state.caller = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl PipelineHook for Answer {
    fn add_ref(&self) -> Box<dyn PipelineHook> {
        Box::new(self.clone())
    }

    fn get_pipelined_cap(&self, ops: &[PipelineOp]) -> Box<dyn ClientHook> {
        let mut state = self.0.borrow_mut();
        match (&state.outcome, &state.redirected) {
            (Some(Ok(body)), _) => Opened(body.clone()).get_pipelined_cap(ops),
            (Some(Err(error)), _) => hook::broken(error.clone()),
            (None, Some(pipeline)) => pipeline.get_pipelined_cap(ops),
            (None, None) => {
                let later = Rc::new(Later::default());
                state.promised.push((ops.to_vec(), later.clone()));
                hook::wrap(later)
            }
        }
    }
}

/// A capability that isn't known yet. Its calls wait in the order made, and are kept when all
/// callers let go; capnp-rpc's queued client loses them then.
#[derive(Default)]
struct Later(RefCell<Queue>);

#[derive(Default)]
struct Queue {
    target: Option<Box<dyn ClientHook>>,
    calls: Vec<Call>,
    waiting: Vec<oneshot::Sender<Box<dyn ClientHook>>>,
}

impl Later {
    fn resolve(&self, target: Box<dyn ClientHook>) {
        // Calls that arrive while these are delivered must queue behind them.
        loop {
            let calls = std::mem::take(&mut self.0.borrow_mut().calls);
            if calls.is_empty() {
                break;
            }
            for call in calls {
                deliver(&*target, call);
            }
        }
        let mut queue = self.0.borrow_mut();
        for waiting in std::mem::take(&mut queue.waiting) {
            // The one who waited may have left.
            let _ = waiting.send(target.clone());
        }
        queue.target = Some(target);
    }
}

impl Target for Later {
    fn enqueue(self: Rc<Self>, call: Call) {
        let target = self.0.borrow().target.clone();
        match target {
            Some(target) => deliver(&*target, call),
            None => self.0.borrow_mut().calls.push(call),
        }
    }

    fn leads(&self) -> Option<Box<dyn ClientHook>> {
        self.0.borrow().target.clone()
    }

    fn when_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        if let Some(target) = self.resolved() {
            return Some(Promise::ok(target));
        }
        let (sender, receiver) = oneshot::channel();
        push_live(&mut self.0.borrow_mut().waiting, sender);
        Some(Promise::from_future(async move {
            receiver.await.map_err(|_| crate::error::disconnected("the answer was lost"))
        }))
    }
}

/// Adds one who waits, in the place of those that have left if there are any.
pub(super) fn push_live<T>(waiting: &mut Vec<oneshot::Sender<T>>, one: oneshot::Sender<T>) {
    if waiting.len() == waiting.capacity() {
        waiting.retain(|waiting| !waiting.is_canceled());
    }
    waiting.push(one);
}

impl Drop for Later {
    fn drop(&mut self) {
        hook::forget(self);
    }
}
