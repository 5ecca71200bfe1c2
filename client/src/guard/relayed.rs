//! The bytes that several connections of a thread have to send, which pass on to each other what they read.
//!
//! One of them may bring faster than another takes, and what lies between the two would have no bound. So
//! nothing more is read on any of them while all have too much to send.
//!
//! **Invariant:** at their other ends, reading never waits for writing: else both ends could wait for each other.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::task::Waker;

/// Bytes that connections have to send together. Clones count the same.
#[derive(Clone)]
pub struct Relayed(Rc<Inner>);

struct Inner {
    bytes_max: usize,
    pending: Cell<usize>,
    readers: RefCell<Vec<Waker>>,
}

impl Relayed {
    /// Nothing is read while more than so many bytes are to be sent.
    pub fn new(bytes_max: usize) -> Self {
        let (pending, readers) = (Cell::default(), RefCell::default());
        Self(Rc::new(Inner { bytes_max, pending, readers }))
    }

    /// Tells whether reading has to wait; then it wakes `reader` when it may go on.
    pub(super) fn is_full(&self, reader: &Waker) -> bool {
        let is_full = self.0.pending.get() > self.0.bytes_max;
        if is_full {
            let mut readers = self.0.readers.borrow_mut();
            if !readers.iter().any(|other| other.will_wake(reader)) {
                readers.push(reader.clone());
            }
        }
        is_full
    }
}

impl fmt::Debug for Relayed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Relayed").field("pending", &self.0.pending.get()).finish_non_exhaustive()
    }
}

/// One connection's part, until it is dropped.
pub(super) struct Part {
    pub(super) of: Relayed,
    bytes: usize,
}

impl Part {
    pub(super) fn of(of: Relayed) -> Self {
        Self { of, bytes: 0 }
    }

    /// The connection has so much to send now.
    pub(super) fn pends(&mut self, bytes: usize) {
        let Inner { bytes_max, pending, readers } = &*self.of.0;
        let before = std::mem::replace(&mut self.bytes, bytes);
        let (all_before, all) = (pending.get(), pending.get() - before + bytes);
        pending.set(all);
        if all_before > *bytes_max && all <= *bytes_max {
            readers.take().into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.pends(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn readers_go_on_when_all_have_little_to_send() {
        let all = Relayed::new(10);
        let [mut one, mut other] = [(); 2].map(|()| Part::of(all.clone()));
        let woken = Arc::new(Woken::default());
        let reader = Waker::from(woken.clone());
        one.pends(6);
        assert!(!all.is_full(&reader));
        other.pends(5);
        assert!(all.is_full(&reader) && all.is_full(&reader), "of both together");
        other.pends(6);
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        drop(one);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "once, though it asked twice");
        assert!(!all.is_full(&reader));
    }
}
