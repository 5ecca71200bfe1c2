//! The results that a handler writes.
//!
//! They are written into a message of our own and copied into the RPC system's when the gate opens,
//! so that no handler ever holds a message that could leave by itself.

use capnp::any_pointer;
use capnp::capability::Promise;
use capnp::private::capability::{PipelineHook, RequestHook, ResultsHook};

use super::answer::Answer;
use super::body::{Body, BodySlot};
use crate::error::{Result, failed, unimplemented};

/// The message into which a handler writes its results.
pub(crate) struct Results {
    body: Option<Body>,
    slot: BodySlot,
}

impl Results {
    pub(crate) fn new() -> (Self, BodySlot) {
        let slot = BodySlot::default();
        (Self { body: None, slot: slot.clone() }, slot)
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        self.slot.arrive(self.body.take().unwrap_or_else(Body::new));
    }
}

impl ResultsHook for Results {
    fn get(&mut self) -> Result<any_pointer::Builder<'_>> {
        self.body.get_or_insert_with(Body::new).builder()
    }

    /// Only noted here: the engine opens the pipeline when the gate opens.
    fn set_pipeline(&mut self) -> Result<()> {
        let slot = self.slot.clone();
        let is_first = slot.offer(|| Body::copy(self.get()?.into_reader()))?;
        if is_first { Ok(()) } else { Err(failed("set_pipeline was called twice")) }
    }

    /// Without effect: a handler that started runs to its end.
    fn allow_cancellation(&self) {}

    fn tail_call(mut self: Box<Self>, request: Box<dyn RequestHook>) -> Promise<(), capnp::Error> {
        let reply = request.send().promise;
        Promise::from_future(async move { self.get()?.set_as(reply.await?.get()?) })
    }

    /// Not for hooks of ours: a pipeline must not pass by the gate.
    fn direct_tail_call(
        self: Box<Self>,
        request: Box<dyn RequestHook>,
    ) -> (Promise<(), capnp::Error>, Box<dyn PipelineHook>) {
        let closed = Answer::default();
        closed.resolve(Err(unimplemented("results of a tail call can't be pipelined")));
        (self.tail_call(request), Box::new(closed))
    }
}
