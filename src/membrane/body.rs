//! A message of our own with the capabilities in it: parameters and results on their way.

use std::cell::Cell;
use std::rc::Rc;

use capnp::any_pointer;
use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp::private::capability::{ClientHook, ParamsHook, PipelineOp, ResponseHook};
use capnp::private::layout::StructSize;
use capnp::serialize;
use capnp::traits::{Imbue, ImbueMut};
use capstead_client::{
    CAPABILITIES_SENT_MAX, CONTENT_BYTES_SENT_MAX, too_large, too_many_capabilities,
};

use crate::error::Result;

/// Words allocated at once: most parameters and results fit, and zeroing more costs time.
const FIRST_SEGMENT_WORDS: u32 = 24;

const WORD: usize = 8;

/// The depth to which a message that was stored may nest: more than any connection takes.
const NESTING_MAX: i32 = 1024;

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
    ///
    /// # Errors
    /// When it can't be read as a whole, or is larger than may be sent: a peer's small message can
    /// point to one part from so many places that its copy is far larger.
    pub(crate) fn copy(from: any_pointer::Reader<'_>) -> Result<Self> {
        let size = from.target_size()?;
        let words = usize::try_from(size.word_count).unwrap_or(usize::MAX);
        check_size(words.saturating_mul(WORD), size.cap_count as usize)?;
        let mut body = Self::with_words(u32::try_from(words + 1).unwrap_or(u32::MAX));
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
        let options =
            *ReaderOptions::new().traversal_limit_in_words(None).nesting_limit(NESTING_MAX);
        let message = serialize::read_message_from_flat_slice(&mut bytes, options)?;
        Self::copy(message.get_root()?)
    }

    /// The size of the message's root struct. `None` if its root is no struct, or a struct not
    /// where a copy begins.
    pub(super) fn size(&self) -> Option<StructSize> {
        const KIND_AND_OFFSET: u64 = 0xffff_ffff;
        let segments = self.message.get_segments_for_output();
        let root = u64::from_le_bytes(*segments.first()?.first_chunk()?);
        // A struct right behind the pointer to it.
        (root & KIND_AND_OFFSET == 0)
            .then_some(StructSize { data: (root >> 32) as u16, pointers: (root >> 48) as u16 })
    }

    /// The bytes of its segments.
    pub(super) fn size_bytes(&self) -> usize {
        self.message.get_segments_for_output().iter().map(|segment| segment.len()).sum()
    }

    /// # Errors
    /// When it can't be sent over a connection. It isn't sent within a vat either then, so that
    /// where an object lives changes nothing.
    pub(super) fn check(&self) -> Result<()> {
        check_size(self.size_bytes(), self.caps.iter().flatten().count())
    }

    /// Puts another capability in the place of the one at the end of a path, if there is one.
    pub(super) fn replace_cap(&mut self, path: &[PipelineOp], by: Box<dyn ClientHook>) {
        let Ok(found) = self.get().and_then(|body| body.get_pipelined_cap(path)) else { return };
        let is_found = |cap: &&mut Box<dyn ClientHook>| {
            (cap.get_ptr(), cap.get_brand()) == (found.get_ptr(), found.get_brand())
        };
        for cap in self.caps.iter_mut().flatten().filter(is_found) {
            *cap = by.clone();
        }
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

/// # Errors
/// When so much can't be sent over a connection in one message.
pub(super) fn check_size(bytes: usize, capabilities: usize) -> Result<()> {
    if bytes > CONTENT_BYTES_SENT_MAX {
        return Err(too_large(bytes));
    }
    if capabilities > CAPABILITIES_SENT_MAX {
        return Err(too_many_capabilities(capabilities));
    }
    Ok(())
}

impl ParamsHook for Body {
    fn get(&self) -> Result<any_pointer::Reader<'_>> {
        let mut reader: any_pointer::Reader<'_> = self.message.get_root_as_reader()?;
        reader.imbue(&self.caps);
        Ok(reader)
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

/// The place at which the results of one call arrive when the handler lets go of them.
#[derive(Clone, Default)]
pub(crate) struct BodySlot(Rc<Arrived>);

#[derive(Default)]
struct Arrived {
    whole: Cell<Option<Body>>,
    early: Cell<Option<Body>>,
    has_offered: Cell<bool>,
    /// Nobody takes the capabilities in the results any more.
    is_abandoned: Cell<bool>,
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

    /// Lets go of the capabilities in the results, now or when they come: nobody will have them.
    pub(super) fn abandon(&self) {
        self.0.is_abandoned.set(true);
        if let Some(body) = self.take() {
            self.arrive(body);
        }
    }

    pub(super) fn arrive(&self, mut body: Body) {
        let caps = self.0.is_abandoned.get().then(|| std::mem::take(&mut body.caps));
        self.put_back(body);
        drop(caps);
    }

    /// The results may be used from now on, as they are in this copy. False if others may be
    /// already.
    pub(super) fn offer(&self, copy: impl FnOnce() -> Result<Body>) -> Result<bool> {
        if self.0.has_offered.replace(true) {
            return Ok(false);
        }
        self.0.early.set(Some(copy()?));
        Ok(true)
    }

    /// The results as they were when the handler last called `set_pipeline`.
    pub(crate) fn take_early(&self) -> Option<Body> {
        self.0.early.take()
    }
}
