//! The memory of all bodies together.
//!
//! Invariant: the memory of a body counts from when it is taken until it is dropped, or was taken
//! out.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::limits::{HTTP_PART_BYTES, HTTP_UNENDED_BYTES_MAX, HTTP_WINDOW_BYTES};
use crate::metrics::Metrics;

thread_local! {
    /// That of the server whose object has its turn.
    static HERE: RefCell<Arc<Room>> = RefCell::new(Room::of_objects(Arc::default()));
}

/// The memory for bodies of one kind.
#[derive(Debug)]
pub(crate) struct Room {
    held: AtomicUsize,
    most: usize,
    /// A body of up to so many bytes is let in beyond it.
    small: usize,
    /// One of up to so many has a reserve, as large as the room: slow readers can't cut off the
    /// stream of one that keeps up.
    window: usize,
    /// All bodies are counted for the operator.
    metrics: Arc<Metrics>,
}

impl Room {
    /// For bodies of requests that objects have yet to read, of all hosts of a server.
    pub(crate) fn of_objects(metrics: Arc<Metrics>) -> Arc<Self> {
        let (held, most) = (AtomicUsize::new(0), HTTP_UNENDED_BYTES_MAX);
        // Small bodies have a reserve, which many large ones that stall can't take.
        Arc::new(Self { held, most, small: 0, window: HTTP_PART_BYTES, metrics })
    }

    /// For all bodies that a gateway holds. Slow readers can't keep small answers from all others.
    pub(crate) fn of_gateway(most: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        let (held, small, window) = (AtomicUsize::new(0), HTTP_PART_BYTES, HTTP_WINDOW_BYTES);
        Arc::new(Self { held, most, small, window, metrics })
    }

    /// The bodies for objects that have their turn on this thread count here.
    pub(crate) fn runs_here(self: &Arc<Self>) {
        HERE.with_borrow_mut(|here| {
            // Nearly always it is this one already.
            if !Arc::ptr_eq(here, self) {
                *here = self.clone();
            }
        });
    }

    /// The room of which [`Room::runs_here`] was said last.
    pub(super) fn here() -> Arc<Self> {
        HERE.with_borrow(Arc::clone)
    }

    /// Tells whether there is room for so many bytes.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.held.load(Ordering::Relaxed) + bytes <= self.most
    }

    /// Tells whether a body of `length` bytes in all may take so many of them now.
    fn lets_in(&self, more: usize, length: usize) -> bool {
        self.has_room(more)
            || length <= self.small
            || length <= self.window && self.has_reserve(more)
            || self.refuse()
    }

    /// Tells whether a message of a WebSocket's client may, of which so much has come. Frames that
    /// nobody reads don't keep it out: half of the reserve is for messages.
    pub(crate) fn lets_message_in(&self, more: usize, length: usize) -> bool {
        let most = self.most.saturating_add(self.most / 2);
        let has_room = self.held.load(Ordering::Relaxed) + more <= most;
        has_room || length <= self.small || self.refuse()
    }

    /// There is no room.
    fn refuse(&self) -> bool {
        self.metrics.http_bodies_refused_total.add(1);
        false
    }

    /// Tells whether this fits when the room is full: as much again is for those who empty it.
    pub(crate) fn has_reserve(&self, bytes: usize) -> bool {
        self.held.load(Ordering::Relaxed) + bytes <= self.most.saturating_mul(2)
    }

    /// Counts bytes that are here, whether there was room or not.
    pub(crate) fn count(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.metrics.http_body_bytes.add(bytes as u64);
    }

    /// So much of that is gone.
    pub(crate) fn release(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.metrics.http_body_bytes.subtract(bytes as u64);
    }

    /// A body of which there is nothing yet.
    pub(crate) fn body(self: &Arc<Self>) -> Held {
        Held { room: self.clone(), bytes: Vec::new(), counted: 0 }
    }
}

/// The bytes of one body. The writer drops them, wherever that is.
#[derive(Debug)]
pub(crate) struct Held {
    room: Arc<Room>,
    bytes: Vec<u8>,
    /// The memory of `bytes`, which may have room for more.
    counted: usize,
}

impl Held {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Tells whether there is memory for them too.
    pub(crate) fn extend(&mut self, bytes: &[u8]) -> bool {
        let length = self.bytes.len() + bytes.len();
        // It grows by a half, so that a body in many parts is copied seldom and wastes little.
        let least = self.bytes.capacity();
        let capacity = if length > least { length.max(least + least / 2) } else { least };
        let more = capacity - self.counted;
        if !self.room.lets_in(more, length) {
            return false;
        }
        self.room.count(more);
        self.counted = capacity;
        self.bytes.reserve_exact(capacity - self.bytes.len());
        self.bytes.extend_from_slice(bytes);
        true
    }

    /// Takes all bytes out, which go on counting.
    pub(super) fn take(&mut self) -> Self {
        let empty = self.room.body();
        std::mem::replace(self, empty)
    }

    /// Tells whether others could hold something too.
    pub(super) fn leaves_room(&self) -> bool {
        self.room.has_room(HTTP_PART_BYTES)
    }

    /// The bytes, which count no longer.
    pub(crate) fn into_bytes(mut self) -> Vec<u8> {
        self.release();
        std::mem::take(&mut self.bytes)
    }

    fn release(&mut self) {
        let counted = std::mem::take(&mut self.counted);
        self.room.release(counted);
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A body that comes in many small parts counts with the memory that it takes.
    #[test]
    fn memory_counts_and_not_length() {
        let room = Room::of_objects(Arc::default());
        let mut held = room.body();
        for _ in 0..10_000 {
            assert!(held.extend(&[0; 100]));
            assert!(held.bytes.capacity() <= held.counted, "all of it counts");
            assert_eq!(room.held.load(Ordering::Relaxed), held.counted);
            assert!(held.counted <= 100 + held.bytes().len() / 2 * 3);
        }
        drop(held);
        assert_eq!(room.held.load(Ordering::Relaxed), 0);
    }

    /// Several servers may have their hosts on one thread, and their objects turns there one after
    /// the other.
    #[test]
    fn each_server_has_a_room_of_its_own() {
        let room = || Room::of_objects(Arc::default());
        let (one, other) = (room(), room());
        one.runs_here();
        let mut held = Room::here().body();
        let all = vec![0; HTTP_UNENDED_BYTES_MAX];
        assert!(held.extend(&all));
        let large = vec![0; HTTP_PART_BYTES + 1];
        assert!(!Room::here().body().extend(&large), "it is full");
        assert!(Room::here().body().extend(b"x"), "small ones have a reserve");
        other.runs_here();
        assert!(Room::here().body().extend(&large));
        one.runs_here();
        assert!(!Room::here().body().extend(&large));
        assert_eq!(held.into_bytes().len(), all.len());
        assert!(Room::here().body().extend(&large), "what was taken out counts no longer");
    }
}
