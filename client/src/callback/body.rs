//! A message of our own with its capabilities: parameters, and results until they are whole.
//!
//! A method writes its results here and not into a connection's message, because the connection may
//! end while the method still runs.

use std::cell::Cell;
use std::rc::Rc;

use capnp::any_pointer;
use capnp::capability::Promise;
use capnp::message::{Builder, HeapAllocator};
use capnp::private::capability::{
    ClientHook, ParamsHook, PipelineHook, PipelineOp, RequestHook, ResponseHook, ResultsHook,
};
use capnp::traits::{Imbue, ImbueMut};
use capnp::{Error, Result};

use super::answer::Reply;

/// Words allocated at once: enough for most messages; zeroing more would take time.
const FIRST_SEGMENT_WORDS: u32 = 24;

/// The most words allocated at once for a copy, 8 MiB; a larger copy gets more segments.
const COPY_SEGMENT_WORDS_MAX: u64 = 1 << 20;

/// A message and its capabilities.
pub(super) struct Body {
    message: Builder<HeapAllocator>,
    caps: Vec<Option<Box<dyn ClientHook>>>,
}

impl Body {
    pub(super) fn new() -> Self {
        Self::with_words(FIRST_SEGMENT_WORDS)
    }

    fn with_words(words: u32) -> Self {
        let allocator = HeapAllocator::new().first_segment_words(words);
        Self { message: Builder::new(allocator), caps: Vec::new() }
    }

    pub(super) fn copy(from: any_pointer::Reader<'_>) -> Result<Self> {
        let words = from.target_size()?.word_count + 1;
        let mut body = Self::with_words(words.min(COPY_SEGMENT_WORDS_MAX) as u32);
        body.builder()?.set_as(from)?;
        Ok(body)
    }

    pub(super) fn builder(&mut self) -> Result<any_pointer::Builder<'_>> {
        let mut builder: any_pointer::Builder<'_> = self.message.get_root()?;
        builder.imbue_mut(&mut self.caps);
        Ok(builder)
    }
}

impl ParamsHook for Body {
    fn get(&self) -> Result<any_pointer::Reader<'_>> {
        let mut reader: any_pointer::Reader<'_> = self.message.get_root_as_reader()?;
        reader.imbue(&self.caps);
        Ok(reader)
    }
}

/// Results that are complete, or were offered early.
pub(super) struct Opened(pub(super) Rc<Body>);

impl Opened {
    pub(super) fn cap(&self, ops: &[PipelineOp]) -> Result<Box<dyn ClientHook>> {
        self.0.get()?.get_pipelined_cap(ops)
    }
}

impl ResponseHook for Opened {
    fn get(&self) -> Result<any_pointer::Reader<'_>> {
        ParamsHook::get(&*self.0)
    }
}

impl PipelineHook for Opened {
    fn add_ref(&self) -> Box<dyn PipelineHook> {
        Box::new(Self(self.0.clone()))
    }

    fn get_pipelined_cap(&self, ops: &[PipelineOp]) -> Box<dyn ClientHook> {
        self.cap(ops).unwrap_or_else(|error| capnp_rpc::new_broken_cap(error).hook)
    }
}

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
