//! A call as a caller in this vat holds it: its outcome, and capabilities not known yet.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use capnp::any_pointer;
use capnp::capability::{Promise, Response};
use capnp::private::capability::{ClientHook, PipelineHook, PipelineOp};
use capstead_client::Owed;

use super::body::{Body, View};
use super::pipeline::Pipeline;
use crate::error::Result;

/// The outcome of one call. Resolving it delivers the pipelined calls first, then wakes the caller.
#[derive(Clone, Default)]
pub(super) struct Answer(Rc<AnswerState>);

#[derive(Default)]
struct AnswerState {
    outcome: RefCell<Option<Result<Rc<Body>>>>,
    pipeline: Pipeline,
    caller: RefCell<Option<Waker>>,
    /// The number of the caller's handles.
    asked: Cell<usize>,
}

/// A handle of the caller. When the last one is dropped, the answer has no use.
pub(super) struct AnswerHandle(Answer);

impl AnswerHandle {
    /// The caller's promise. Dropping it doesn't take the call back.
    pub(super) fn response(
        self,
        see: impl FnOnce(Rc<Body>) -> View + 'static,
    ) -> Promise<Response<any_pointer::Owned>, capnp::Error> {
        Promise::from_future(async move {
            let body = self.0.clone().await?;
            Ok(Response::new(Box::new(see(body))))
        })
    }

    /// The capability at the end of a path.
    pub(super) fn get_pipelined_cap(&self, path: &[PipelineOp]) -> Box<dyn ClientHook> {
        self.0.get_pipelined_cap(path)
    }
}

impl Clone for AnswerHandle {
    fn clone(&self) -> Self {
        self.0.asked()
    }
}

impl Drop for AnswerHandle {
    fn drop(&mut self) {
        let state = &*self.0.0;
        state.asked.set(state.asked.get() - 1);
        if state.asked.get() == 0 && state.outcome.borrow().is_none() {
            state.pipeline.abandon();
        }
    }
}

impl Owed for AnswerState {
    fn answered(&self) {
        self.pipeline.answered();
    }
}

impl Answer {
    pub(super) fn resolve(&self, mut outcome: Result<Body>) {
        if let Ok(result) = &mut outcome {
            self.0.pipeline.keep_used(result);
        }
        let outcome = outcome.map(Rc::new);
        self.0.outcome.replace(Some(outcome.clone()));
        self.0.pipeline.end(outcome);
        if let Some(caller) = self.0.caller.take() {
            caller.wake();
        }
    }

    pub(super) fn pipeline(&self) -> &Pipeline {
        &self.0.pipeline
    }

    /// A handle for the caller.
    pub(super) fn asked(&self) -> AnswerHandle {
        self.0.asked.set(self.0.asked.get() + 1);
        AnswerHandle(self.clone())
    }

    pub(super) fn owed(&self) -> Rc<dyn Owed> {
        self.0.clone()
    }
}

impl Future for Answer {
    type Output = Result<Rc<Body>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(outcome) = &*self.0.outcome.borrow() {
            return Poll::Ready(outcome.clone());
        }
        self.0.caller.replace(Some(cx.waker().clone()));
        Poll::Pending
    }
}

impl PipelineHook for Answer {
    fn add_ref(&self) -> Box<dyn PipelineHook> {
        Box::new(self.clone())
    }

    fn get_pipelined_cap(&self, path: &[PipelineOp]) -> Box<dyn ClientHook> {
        self.0.pipeline.get(path)
    }
}
