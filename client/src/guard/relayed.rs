//! The bytes to be sent by several connections of one thread that pass on to each other the
//! messages they read.
//!
//! One of them may bring messages faster than another takes them, and the bytes between the two
//! would have no bound. So while they have too much to send together, none of them reads.
//!
//! **Invariant:** the other ends never stop reading to wait for writing; otherwise both ends could
//! wait for each other.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::task::Waker;

/// Bytes that several connections have to send together. Clones share one count.
#[derive(Clone)]
pub struct Relayed(Rc<Inner>);

struct Inner {
    bytes_max: usize,
    pending: Cell<usize>,
    readers: RefCell<Vec<Waker>>,
}

impl Relayed {
    /// Reading stops while more than this many bytes are to be sent.
    pub fn new(bytes_max: usize) -> Self {
        let (pending, readers) = (Cell::default(), RefCell::default());
        Self(Rc::new(Inner { bytes_max, pending, readers }))
    }

    /// Tells whether reading has to stop; if so, `reader` is woken when it may continue.
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

    /// Sets the number of bytes that the connection has to send.
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
