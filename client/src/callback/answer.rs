//! A call on its way and its caller's part of it: the outcome, and capabilities not known yet.
//!
//! A reply is always sent: if it is dropped, it says that the call was lost. So an answer never
//! goes away with calls waiting on it. When a chain of pipelined calls fails, a loop ends call
//! after call, so a long chain doesn't nest the stack.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use capnp::any_pointer;
use capnp::capability::{Promise, Response};
use capnp::private::capability::{ClientHook, ParamsHook, PipelineHook, PipelineOp, ResultsHook};
use capnp::{Error, Result};
use futures::channel::oneshot;

use super::body::{Body, Opened};

/// A call that was made and isn't answered yet.
pub(super) struct Call {
    pub(super) interface: u64,
    pub(super) method: u16,
    pub(super) params: Box<dyn ParamsHook>,
    pub(super) reply: Reply,
}

/// Calls of a capability that a result promises.
pub(super) trait Waiting {
    /// Sends them to `cap`, and later ones after them.
    ///
    /// # Errors
    /// `cap` is the promise itself.
    fn lead_to(self: Rc<Self>, cap: Box<dyn ClientHook>) -> Result<()>;

    /// Returns them, and refuses later ones.
    fn break_off(&self, error: Error) -> VecDeque<Call>;
}

/// Answers one caller, once. Dropped without an outcome, it answers with an error.
pub(super) struct Reply(Option<Asker>);

enum Asker {
    /// A caller in this client, through [`Hook::new_call`](super::Hook).
    Answer(Answer),
    /// A caller by `ClientHook::call`, such as capnp-rpc for a peer. After an early offer the
    /// method writes the results directly, and this is `None`.
    Results(Option<Box<dyn ResultsHook>>, oneshot::Sender<Result<()>>),
}

impl Reply {
    pub(super) fn to_answer(answer: Answer) -> Self {
        Self(Some(Asker::Answer(answer)))
    }

    /// Creates a reply and the promise that `ClientHook::call` returns. Dropping the promise
    /// doesn't cancel the call.
    pub(super) fn to_results(results: Box<dyn ResultsHook>) -> (Self, Promise<(), Error>) {
        let (ended, end) = oneshot::channel();
        let end = async move { end.await.unwrap_or_else(|_| Err(lost())) };
        (Self(Some(Asker::Results(Some(results), ended))), Promise::from_future(end))
    }

    pub(super) fn send(self, outcome: Result<Body>) {
        match outcome {
            Ok(body) => self.send_written(Ok(()), Some(body)),
            Err(error) => self.send_written(Err(error), None),
        }
    }

    /// Tells the caller the outcome of the method that wrote these results.
    pub(super) fn send_written(mut self, outcome: Result<()>, written: Option<Body>) {
        let kept = || Error::failed("the method kept its results".into());
        let body = |()| written.ok_or_else(kept);
        match self.0.take() {
            None => {}
            Some(Asker::Answer(answer)) => answer.settle(outcome.and_then(body)),
            Some(Asker::Results(None, ended)) => drop(ended.send(outcome)),
            Some(Asker::Results(Some(mut results), ended)) => {
                let write = |body: Body| results.get()?.set_as(body.get()?);
                let outcome = outcome.and_then(body).and_then(write);
                // Release the results first, so that one poll of the caller finds both.
                drop(results);
                // The caller may be gone.
                drop(ended.send(outcome));
            }
        }
    }

    /// Lets pipelined calls go ahead to the capabilities in `early`. Returns the caller's own
    /// results, if the method has to write these from now on.
    pub(super) fn offer(&mut self, early: Body) -> Result<Option<Box<dyn ResultsHook>>> {
        let twice = || Error::failed("set_pipeline was called twice".into());
        match &mut self.0 {
            None => Ok(None),
            Some(Asker::Answer(answer)) => {
                if answer.0.borrow().early.is_some() {
                    return Err(twice());
                }
                answer.redirect(Box::new(Opened(Rc::new(early))));
                Ok(None)
            }
            Some(Asker::Results(results, _)) => {
                let mut results = results.take().ok_or_else(twice)?;
                results.get()?.set_as(early.get()?)?;
                results.set_pipeline()?;
                Ok(Some(results))
            }
        }
    }

    /// Lets pipelined calls go ahead through `pipeline`.
    pub(super) fn redirect(&self, pipeline: Box<dyn PipelineHook>) {
        if let Some(Asker::Answer(answer)) = &self.0 {
            answer.redirect(pipeline);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.0.is_some() {
            Self(self.0.take()).send(Err(lost()));
        }
    }
}

fn lost() -> Error {
    Error::disconnected("the call was lost: the task that ran it has ended".into())
}

/// The outcome of a call, for the client's own code.
#[derive(Clone, Default)]
pub(super) struct Answer(Rc<RefCell<AnswerState>>);

#[derive(Default)]
struct AnswerState {
    outcome: Option<Result<Rc<Body>>>,
    /// The source of pipelined capabilities until the outcome is there.
    early: Option<Box<dyn PipelineHook>>,
    promised: Vec<(Vec<PipelineOp>, Rc<dyn Waiting>)>,
    caller: Option<Waker>,
}

impl Answer {
    /// The caller's promise. Dropping it doesn't cancel the call.
    pub(super) fn response(self) -> Promise<Response<any_pointer::Owned>, Error> {
        Promise::from_future(async move { Ok(Response::new(Box::new(Opened(self.await?)))) })
    }

    /// Passes the pipelined calls on, then wakes the caller. Pipelined calls that fail because this
    /// one did are told in the same loop.
    fn settle(self, outcome: Result<Body>) {
        let mut settled = VecDeque::from([(self, outcome.map(Rc::new))]);
        while let Some((answer, outcome)) = settled.pop_front() {
            answer.0.borrow_mut().outcome = Some(outcome);
            for (error, call) in answer.settle_promised() {
                let mut reply = call.reply;
                match reply.0.take() {
                    Some(Asker::Answer(answer)) => settled.push_back((answer, Err(error))),
                    asker => Reply(asker).send(Err(error)),
                }
            }
            let caller = answer.0.borrow_mut().caller.take();
            if let Some(caller) = caller {
                caller.wake();
            }
        }
    }

    fn redirect(&self, pipeline: Box<dyn PipelineHook>) {
        self.0.borrow_mut().early = Some(pipeline);
        for (error, call) in self.settle_promised() {
            call.reply.send(Err(error));
        }
    }

    /// Returns the calls that waited for capabilities which aren't in the results, each with its
    /// error.
    fn settle_promised(&self) -> Vec<(Error, Call)> {
        let promised = std::mem::take(&mut self.0.borrow_mut().promised);
        let mut failed = Vec::new();
        for (ops, waiting) in promised {
            let known = self.known(&ops).unwrap_or_else(|| Err(lost()));
            if let Err(error) = known.and_then(|cap| waiting.clone().lead_to(cap)) {
                let calls = waiting.break_off(error.clone());
                failed.extend(calls.into_iter().map(|call| (error.clone(), call)));
            }
        }
        failed
    }

    /// Adds calls that wait for the capability at `ops`, until the results are known.
    pub(super) fn add_waiting(&self, ops: &[PipelineOp], waiting: Rc<dyn Waiting>) {
        self.0.borrow_mut().promised.push((ops.to_vec(), waiting));
    }

    /// The capability at `ops` in the results; `None` while the results aren't known.
    pub(super) fn known(&self, ops: &[PipelineOp]) -> Option<Result<Box<dyn ClientHook>>> {
        let state = self.0.borrow();
        match (&state.outcome, &state.early) {
            (Some(Ok(body)), _) => Some(Opened(body.clone()).cap(ops)),
            (Some(Err(error)), _) => Some(Err(error.clone())),
            (None, Some(early)) => Some(Ok(early.get_pipelined_cap(ops))),
            (None, None) => None,
        }
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
