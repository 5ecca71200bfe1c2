//! The bytes that a connection has still to write.
//!
//! While the peer reads, they are one buffer. When it doesn't, they become a list of pieces: one
//! buffer of megabytes would be copied each time it grows, and for a while the old copies would
//! take more memory than the bytes themselves.

use capnp::message::{Builder, HeapAllocator};
use std::cell::Cell;
use std::collections::VecDeque;

use super::WORD;

/// The length at which another piece begins, and the capacity that is kept when all is written.
const PIECE_BYTES: usize = 256 << 10;

/// Bytes already written are removed from a piece when they are more than this, and more than the
/// unwritten ones.
const WRITTEN_BYTES_KEPT: usize = 64 << 10;

thread_local! {
    /// The buffer of this thread's connections, between two of their writes.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// See the head of the file.
#[derive(Default)]
pub(super) struct Output {
    /// The pieces before the last one.
    full: VecDeque<Vec<u8>>,
    last: Vec<u8>,
    /// The bytes of the first piece that are already written.
    written: usize,
    /// The bytes in `full`, and the memory that they take.
    full_bytes: usize,
    full_held: usize,
}

impl Output {
    /// Adds a message.
    pub(super) fn push(&mut self, message: &Builder<HeapAllocator>) {
        self.make_room();
        let segments = message.get_segments_for_output();
        let count = segments.len() as u32;
        self.last.extend((count - 1).to_le_bytes());
        for segment in segments.iter() {
            self.last.extend(((segment.len() / WORD) as u32).to_le_bytes());
        }
        if count.is_multiple_of(2) {
            self.last.extend([0; 4]);
        }
        for segment in segments.iter() {
            self.last.extend_from_slice(segment);
        }
    }

    fn make_room(&mut self) {
        if self.last.capacity() == 0 {
            self.last = SPARE.take();
        }
        if self.pending() == 0 {
            // All is written, and the stream is still being flushed.
            self.last.clear();
            self.written = 0;
        }
        if self.last.len() >= PIECE_BYTES {
            let piece = std::mem::replace(&mut self.last, Vec::with_capacity(PIECE_BYTES));
            self.full_bytes += piece.len();
            self.full_held += piece.capacity();
            self.full.push_back(piece);
        } else if self.full.is_empty() && self.written > WRITTEN_BYTES_KEPT.max(self.pending()) {
            self.last.drain(..self.written);
            self.written = 0;
        }
    }

    /// Overwrites bytes of the message that was pushed last, at this place in it.
    pub(super) fn patch_last(
        &mut self,
        message: &Builder<HeapAllocator>,
        place: *const u8,
        bytes: &[u8],
    ) {
        let mut behind = 0;
        for segment in message.get_segments_for_output().iter().rev() {
            behind += segment.len();
            let within = place.addr().wrapping_sub(segment.as_ptr().addr());
            if within < segment.len() {
                let at = self.last.len() - behind + within;
                self.last[at..at + bytes.len()].copy_from_slice(bytes);
                return;
            }
        }
    }

    /// The next bytes to be written; empty when all are.
    pub(super) fn next(&self) -> &[u8] {
        &self.full.front().unwrap_or(&self.last)[self.written..]
    }

    /// That many of the next bytes are written.
    pub(super) fn advance(&mut self, count: usize) {
        self.written += count;
        if let Some(piece) = self.full.pop_front_if(|piece| piece.len() == self.written) {
            self.full_bytes -= piece.len();
            self.full_held -= piece.capacity();
            self.written = 0;
        }
    }

    /// The number of bytes that are still to be written.
    pub(super) fn pending(&self) -> usize {
        self.full_bytes + self.last.len() - self.written
    }

    /// The bytes of memory that this takes.
    pub(super) fn held(&self) -> usize {
        self.full_held + self.last.capacity()
    }

    /// Tells whether no message is there, not even a written one.
    pub(super) fn is_empty(&self) -> bool {
        self.full.is_empty() && self.last.is_empty()
    }

    /// All bytes are written: gives the buffer to the next connection.
    pub(super) fn rest(&mut self) {
        let mut spare = std::mem::take(self).last;
        if spare.capacity() <= PIECE_BYTES {
            spare.clear();
            SPARE.set(spare);
        }
    }
}
