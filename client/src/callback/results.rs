//! The results of a method that runs, and the reply that they become.
//!
//! A method writes its results into a message of our own and not into a connection's, because the
//! connection may end while the method still runs.

use std::cell::Cell;
use std::rc::Rc;

use capnp::any_pointer;
use capnp::capability::Promise;
use capnp::private::capability::{PipelineHook, RequestHook, ResultsHook};
use capnp::{Error, Result};

use super::answer::Reply;
use super::body::Body;

/// A call with a running method: its reply, and the results after the method has dropped them.
pub(super) struct Open {
    reply: Cell<Option<Reply>>,
    written: Cell<Option<Body>>,
}

impl Open {
    /// Ends the call.
    pub(super) fn finish(&self, outcome: Result<()>) {
        let (reply, written) = (self.reply.take(), self.written.take());
        if let Some(reply) = reply {
            reply.send_written(outcome, written);
        }
    }
}

/// The results that a method writes.
pub(super) struct Results {
    body: Option<Body>,
    /// The caller's own results, once they were offered early; from then on written in place.
    offered: Option<Box<dyn ResultsHook>>,
    open: Rc<Open>,
}

impl Results {
    pub(super) fn new(reply: Reply) -> (Self, Rc<Open>) {
        let open = Open { reply: Cell::new(Some(reply)), written: Cell::default() };
        let open = Rc::new(open);
        (Self { body: None, offered: None, open: open.clone() }, open)
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        if self.offered.is_none() {
            self.open.written.set(Some(self.body.take().unwrap_or_else(Body::new)));
        }
    }
}

impl ResultsHook for Results {
    fn get(&mut self) -> Result<any_pointer::Builder<'_>> {
        match &mut self.offered {
            Some(offered) => offered.get(),
            None => self.body.get_or_insert_with(Body::new).builder(),
        }
    }

    fn set_pipeline(&mut self) -> Result<()> {
        let early = Body::copy(self.get()?.into_reader())?;
        let ended = || Error::failed("set_pipeline was called after the end of the call".into());
        let mut reply = self.open.reply.take().ok_or_else(ended)?;
        let offered = reply.offer(early);
        self.open.reply.set(Some(reply));
        if let Some(offered) = offered? {
            self.offered = Some(offered);
        }
        Ok(())
    }

    /// Does nothing: a method that started runs to its end.
    fn allow_cancellation(&self) {}

    fn tail_call(self: Box<Self>, request: Box<dyn RequestHook>) -> Promise<(), Error> {
        self.direct_tail_call(request).0
    }

    fn direct_tail_call(
        mut self: Box<Self>,
        request: Box<dyn RequestHook>,
    ) -> (Promise<(), Error>, Box<dyn PipelineHook>) {
        let sent = request.send();
        let copied = async move { self.get()?.set_as(sent.promise.await?.get()?) };
        (Promise::from_future(copied), sent.pipeline.hook)
    }
}
