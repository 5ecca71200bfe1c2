//! A message of our own with the capabilities in it: parameters and results on their way.
//!
//! Results are written here first and copied into the RPC system's message when the gate opens, so
//! that no handler ever holds a message that could leave by itself.

use std::cell::Cell;
use std::rc::Rc;

use capnp::any_pointer;
use capnp::capability::Promise;
use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp::private::capability::{
    ClientHook, ParamsHook, PipelineHook, PipelineOp, RequestHook, ResponseHook, ResultsHook,
};
use capnp::serialize;
use capnp::traits::{Imbue, ImbueMut};

use super::answer::Answer;
use super::hook;
use crate::error::{Result, unimplemented};

/// Words allocated at once: most parameters and results fit, and zeroing more costs time.
const FIRST_SEGMENT_WORDS: u32 = 24;

pub(crate) type Caps = Vec<Option<Box<dyn ClientHook>>>;

/// A message and its capabilities.
pub(crate) struct Body {
    message: Builder<HeapAllocator>,
    caps: Caps,
}

impl Body {
    pub(crate) fn new() -> Self {
        Self::with_words(FIRST_SEGMENT_WORDS)
    }

    fn with_words(words: u32) -> Self {
        let allocator = HeapAllocator::new().first_segment_words(words);
        Self { message: Builder::new(allocator), caps: Vec::new() }
    }

    /// A copy in which every capability can be replaced.
    pub(crate) fn copy(from: any_pointer::Reader<'_>) -> Result<Self> {
        let words = from.target_size()?.word_count + 1;
        let mut body = Self::with_words(u32::try_from(words).unwrap_or(u32::MAX).min(1 << 20));
        body.builder()?.set_as(from)?;
        Ok(body)
    }

    pub(crate) fn builder(&mut self) -> Result<any_pointer::Builder<'_>> {
        let mut builder: any_pointer::Builder<'_> = self.message.get_root()?;
        builder.imbue_mut(&mut self.caps);
        Ok(builder)
    }

    /// The message in the standard framing; none if there is a capability in it.
    ///
    /// # Errors
    /// When the message can't be read as a whole.
    pub(crate) fn bytes(&mut self) -> Result<Option<Vec<u8>>> {
        // A message that nothing was written into has no segments yet.
        let size = self.builder()?.into_reader().target_size()?;
        let is_data = size.cap_count == 0;
        Ok(is_data.then(|| serialize::write_message_to_words(&self.message)))
    }

    /// The message that was made into these bytes.
    ///
    /// # Errors
    /// When they are no message.
    pub(crate) fn from_bytes(mut bytes: &[u8]) -> Result<Self> {
        let options = *ReaderOptions::new().traversal_limit_in_words(None);
        let message = serialize::read_message_from_flat_slice(&mut bytes, options)?;
        Self::copy(message.get_root()?)
    }

    /// Whether both are copies of the same message with the same capabilities.
    fn is_copy(&self, other: &Self) -> bool {
        let (segments, others) =
            (self.message.get_segments_for_output(), other.message.get_segments_for_output());
        let ids = |body: &Self| -> Vec<_> {
            body.caps.iter().map(|cap| cap.as_ref().map(|cap| cap.get_ptr())).collect()
        };
        *segments == *others && ids(self) == ids(other)
    }

    /// Replaces every capability in the message.
    pub(crate) fn replace_caps(
        &mut self,
        replace: impl Fn(Box<dyn ClientHook>) -> Box<dyn ClientHook>,
    ) {
        for cap in &mut self.caps {
            *cap = cap.take().map(&replace);
        }
    }

    /// The message as a response in which the reader sees other capabilities: no copy.
    pub(super) fn view(
        self: Rc<Self>,
        see: impl Fn(Box<dyn ClientHook>) -> Box<dyn ClientHook>,
    ) -> View {
        let caps = self.caps.iter().map(|cap| cap.clone().map(&see)).collect();
        View { body: self, caps }
    }
}

impl ParamsHook for Body {
    fn get(&self) -> Result<any_pointer::Reader<'_>> {
        let mut reader: any_pointer::Reader<'_> = self.message.get_root_as_reader()?;
        reader.imbue(&self.caps);
        Ok(reader)
    }
}

/// A [`Body`] in which pipelined capabilities are found.
pub(super) struct Opened(pub(super) Rc<Body>);

impl PipelineHook for Opened {
    fn add_ref(&self) -> Box<dyn PipelineHook> {
        Box::new(Self(self.0.clone()))
    }

    fn get_pipelined_cap(&self, ops: &[PipelineOp]) -> Box<dyn ClientHook> {
        self.0.get().and_then(|body| body.get_pipelined_cap(ops)).unwrap_or_else(hook::broken)
    }
}

/// A [`Body`] seen with other capabilities.
pub(super) struct View {
    body: Rc<Body>,
    caps: Caps,
}

impl ResponseHook for View {
    fn get(&self) -> Result<any_pointer::Reader<'_>> {
        let mut reader = self.body.get()?;
        reader.imbue(&self.caps);
        Ok(reader)
    }
}

/// Where the results of one call arrive when the handler lets go of them.
#[derive(Clone, Default)]
pub(crate) struct BodySlot(Rc<Arrived>);

#[derive(Default)]
struct Arrived {
    whole: Cell<Option<Body>>,
    early: Cell<Option<Body>>,
    offered: Cell<Option<Body>>,
}

impl BodySlot {
    /// `None`: the handler still holds its results, or kept them.
    pub(crate) fn take(&self) -> Option<Body> {
        self.0.whole.take()
    }

    /// Puts back what [`BodySlot::take`] took.
    pub(crate) fn put_back(&self, body: Body) {
        self.0.whole.set(Some(body));
    }

    /// Whether `results` are what the handler offered by `set_pipeline`, if it called that.
    ///
    /// # Errors
    /// When they can't be read as a whole.
    pub(crate) fn are_as_offered(&self, results: &Body) -> Result<bool> {
        match self.0.offered.take() {
            None => Ok(true),
            Some(offered) => Ok(offered.is_copy(&Body::copy(results.get()?)?)),
        }
    }

    /// What the results were when the handler first called `set_pipeline`.
    pub(crate) fn take_early(&self) -> Option<Body> {
        self.0.early.take()
    }
}

/// What a handler writes its results into.
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
        self.slot.0.whole.set(Some(self.body.take().unwrap_or_else(Body::new)));
    }
}

impl ResultsHook for Results {
    fn get(&mut self) -> Result<any_pointer::Builder<'_>> {
        self.body.get_or_insert_with(Body::new).builder()
    }

    /// Only noted here: whoever runs the handler opens the pipeline when the gate lets it.
    fn set_pipeline(&mut self) -> Result<()> {
        let offered = if let Some(offered) = self.slot.0.offered.take() {
            offered
        } else {
            let early = Body::copy(self.get()?.into_reader())?;
            self.slot.0.early.set(Some(early));
            Body::copy(self.get()?.into_reader())?
        };
        self.slot.0.offered.set(Some(offered));
        Ok(())
    }

    /// Without effect: a handler that started runs to its end.
    fn allow_cancellation(&self) {}

    fn tail_call(mut self: Box<Self>, request: Box<dyn RequestHook>) -> Promise<(), capnp::Error> {
        let reply = request.send().promise;
        Promise::from_future(async move { self.get()?.set_as(reply.await?.get()?) })
    }

    /// Nothing calls this on a hook that isn't its own; the pipeline must not pass the gate.
    fn direct_tail_call(
        self: Box<Self>,
        request: Box<dyn RequestHook>,
    ) -> (Promise<(), capnp::Error>, Box<dyn PipelineHook>) {
        let closed = Answer::default();
        closed.resolve(Err(unimplemented("results of a tail call can't be pipelined")));
        (self.tail_call(request), Box::new(closed))
    }
}
