//! A message of our own with its capabilities: parameters, and results until they are whole.

use std::rc::Rc;

use capnp::message::{Builder, HeapAllocator};
use capnp::private::capability::{ClientHook, ParamsHook, PipelineHook, PipelineOp, ResponseHook};
use capnp::traits::{Imbue, ImbueMut};
use capnp::{Result, any_pointer};

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
