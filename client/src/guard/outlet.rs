//! The bytes made for a peer that it has not read, for those who would make more.
//!
//! A soft limit of the guard looks at calls as they come in, when their answers aren't there yet: a thousand
//! small calls that came at once may have answers of gigabytes. Whoever starts calls asks here before each.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

/// One connection's side towards its peer.
pub struct Outlet {
    /// The peer is behind when there is more than this.
    bytes_max: usize,
    /// Bytes that are to be written.
    pending: Cell<usize>,
    /// Bytes of answers that were made since, and are not among these yet.
    made: Cell<usize>,
    /// Bytes of answers that wait for something else.
    held: Cell<usize>,
    is_closed: Cell<bool>,
    waiting: RefCell<Vec<Box<dyn FnOnce()>>>,
}

impl Outlet {
    pub(super) fn new(bytes_max: usize) -> Rc<Self> {
        Rc::new(Self {
            bytes_max,
            pending: Cell::default(),
            made: Cell::default(),
            held: Cell::default(),
            is_closed: Cell::default(),
            waiting: RefCell::default(),
        })
    }

    /// The peer has to read before more is made for it.
    pub fn is_full(&self) -> bool {
        let bytes = self.pending.get() + self.made.get() + self.held.get();
        bytes > self.bytes_max && !self.is_closed.get()
    }

    /// The connection is over: nobody reads what is made for it.
    pub fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// An answer of so many bytes was given to the RPC system.
    pub fn made(&self, bytes: usize) {
        self.made.set(self.made.get() + bytes);
    }

    /// There is an answer of so many bytes, which can't be given to the RPC system yet.
    pub fn hold(self: &Rc<Self>, bytes: usize) -> HeldAnswer {
        self.held.set(self.held.get() + bytes);
        HeldAnswer { outlet: self.clone(), bytes }
    }

    /// Does this once, when the peer has read enough or the connection is over. It is done in the middle of
    /// the connection's work, after what others wait with who came before.
    pub fn when_free(&self, work: impl FnOnce() + 'static) {
        self.waiting.borrow_mut().push(Box::new(work));
    }

    /// So much is to be written.
    pub(super) fn pends(&self, bytes: usize) {
        self.pending.set(bytes);
    }

    /// Everything that was made is among what pends, since the connection has been polled.
    pub(super) fn rest(&self, pending: usize) {
        self.pending.set(pending);
        self.made.set(0);
        self.tell();
    }

    pub(super) fn close(&self) {
        self.is_closed.set(true);
        self.tell();
    }

    fn tell(&self) {
        if !self.is_full() {
            // None of them makes anything by itself.
            self.waiting.take().into_iter().for_each(|work| work());
        }
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Outlet").field("is_full", &self.is_full()).finish_non_exhaustive()
    }
}

/// Counts in an [`Outlet`] until it is dropped.
#[derive(Debug)]
pub struct HeldAnswer {
    outlet: Rc<Outlet>,
    bytes: usize,
}

impl Drop for HeldAnswer {
    fn drop(&mut self) {
        let Self { outlet, bytes } = self;
        outlet.held.set(outlet.held.get() - *bytes);
        outlet.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_is_told_once_when_enough_was_read() {
        let outlet = Outlet::new(10);
        let told = Rc::new(Cell::new(0));
        let tells = told.clone();
        outlet.pends(8);
        let held = outlet.hold(3);
        assert!(outlet.is_full());
        outlet.when_free(move || tells.set(tells.get() + 1));
        outlet.rest(9);
        assert_eq!(told.get(), 0);
        drop(held);
        outlet.made(5);
        assert!(outlet.is_full() && told.get() == 1);
        outlet.rest(9);
        assert!(!outlet.is_full() && told.get() == 1);
    }

    #[test]
    fn nobody_waits_for_a_peer_that_is_gone() {
        let outlet = Outlet::new(10);
        let told = Rc::new(Cell::new(false));
        let tells = told.clone();
        outlet.pends(11);
        outlet.when_free(move || tells.set(true));
        outlet.close();
        assert!(told.get() && !outlet.is_full() && outlet.is_closed());
    }
}
