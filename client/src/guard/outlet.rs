//! The bytes made for a peer that it has not read, for the code that would make more.
//!
//! A soft limit of the guard looks at calls as they arrive, when their answers don't exist yet: a
//! thousand small calls that arrive at once may have answers of gigabytes. So the code that starts
//! calls asks here before each.
//!
//! A connection between parts of one system carries the calls of many clients, and has one more
//! outlet for each of these [callers](super::callers). A caller's unread bytes count there until
//! the other part has passed them on, no matter where they are meanwhile. So a caller that asks for
//! much waits for itself, and not for others on the same connection.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::{Rc, Weak};
use std::task::Waker;

use tokio::sync::oneshot;

/// The bytes on a connection of many callers above which callers with large answers wait. An answer
/// has to wait for all the bytes before it.
const SHARED_BYTES: usize = 2 << 20;

/// A caller's answers are small if they have no more bytes than this. Small answers don't wait for
/// the large ones of other callers.
const SMALL_BYTES: usize = 64 << 10;

type Work = Box<dyn FnOnce()>;

thread_local! {
    /// This thread's connections that carry the calls of many callers.
    static LINKS: RefCell<Vec<Weak<Outlet>>> = RefCell::default();
}

/// Tells whether one of the connections that pass calls on to other parts of this system has much
/// to send.
pub fn crowded() -> bool {
    LINKS.with_borrow(|links| {
        links.iter().any(|link| link.upgrade().is_some_and(|of| of.is_crowded()))
    })
}

/// Resolves when none of these connections has much to send.
pub async fn room_for_calls() {
    loop {
        let link = LINKS.with_borrow(|links| {
            links.iter().filter_map(Weak::upgrade).find(|link| link.is_crowded())
        });
        let Some(link) = link else { return };
        let (sender, receiver) = oneshot::channel();
        link.crowded.borrow_mut().push(Box::new(move || {
            // A receiver that is gone has no calls.
            let _ = sender.send(());
        }));
        drop(link);
        let _ = receiver.await;
    }
}

/// A connection's outgoing side, towards its peer or towards one of the callers behind it.
pub struct Outlet {
    /// Identifies the outlet on this thread; never 0.
    number: u32,
    /// Above this many bytes the peer has to read first.
    bytes_max: usize,
    /// Bytes to be written. For a caller behind the connection: bytes not yet passed on to it.
    pending: Cell<usize>,
    /// Bytes of answers that aren't among the pending ones yet.
    held: Cell<usize>,
    /// Bytes of answers that came from elsewhere and wait for room.
    kept: Cell<usize>,
    is_closed: Cell<bool>,
    waiting: RefCell<Vec<Work>>,
    /// The work that waits until there is less on the connection, which others share.
    crowded: RefCell<Vec<Work>>,
    /// Set if it is among the [`LINKS`].
    is_link: Cell<bool>,
    /// Callers of this thread that are gone, to be told to the other end of the connection.
    gone: RefCell<Vec<u32>>,
    /// The task that drives the connection, to be woken when a caller is gone.
    driver: Cell<Option<Waker>>,
    /// Set for a caller behind a connection.
    shares: Option<Shares>,
    me: Weak<Self>,
}

/// A caller's share of a connection.
struct Shares {
    of: Rc<Outlet>,
    /// Roughly the size of the largest of its recent answers.
    recent: Cell<usize>,
    /// Set while it waits to be told that there is less on the connection.
    is_told: Cell<bool>,
}

impl Outlet {
    pub(super) fn new(bytes_max: usize) -> Rc<Self> {
        Self::with(bytes_max, None)
    }

    /// An outlet for one of the callers behind a connection.
    pub(super) fn of_caller(connection: &Rc<Self>, bytes_max: usize) -> Rc<Self> {
        // The sizes of its answers aren't known yet. Many new callers at once may all ask for much.
        let (recent, is_told) = (Cell::new(2 * SMALL_BYTES), Cell::default());
        Self::with(bytes_max, Some(Shares { of: connection.clone(), recent, is_told }))
    }

    fn with(bytes_max: usize, shares: Option<Shares>) -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            number: next_number(),
            bytes_max,
            pending: Cell::default(),
            held: Cell::default(),
            kept: Cell::default(),
            is_closed: Cell::default(),
            waiting: RefCell::default(),
            crowded: RefCell::default(),
            is_link: Cell::default(),
            gone: RefCell::default(),
            driver: Cell::default(),
            shares,
            me: me.clone(),
        })
    }

    /// A number that identifies the outlet on this thread; never 0.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Tells whether it belongs to a caller behind a connection.
    pub fn is_shared(&self) -> bool {
        self.shares.is_some()
    }

    /// Tells whether the peer has to read before more is made for it.
    pub fn is_full(&self) -> bool {
        if self.is_closed() {
            return false;
        }
        let own = self.bytes();
        let is_crowded = |shares: &Shares| shares.of.bytes() > self.crowd_max(shares);
        own > self.bytes_max || self.shares.as_ref().is_some_and(is_crowded)
    }

    /// Tells whether the connection has ended, so that nobody reads what is made for it.
    pub fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// Counts an answer of this many bytes that isn't written yet.
    pub fn hold(self: &Rc<Self>, bytes: usize) -> HeldAnswer {
        self.held.set(self.held.get() + bytes);
        if let Some(Shares { of, recent, .. }) = &self.shares {
            of.held.set(of.held.get() + bytes);
            recent.set(bytes.max(recent.get() / 2));
        }
        HeldAnswer { outlet: self.clone(), bytes }
    }

    /// Counts an answer of this many bytes that came from elsewhere. Resolves when there is room
    /// for it.
    pub async fn room_for(self: &Rc<Self>, bytes: usize) {
        let _kept = KeptAnswer::new(self, bytes);
        self.room().await;
    }

    /// Resolves when more may be made for the peer, or the connection has ended.
    pub async fn room(&self) {
        while self.is_full() {
            let (sender, receiver) = oneshot::channel();
            self.when_free(move || {
                // A receiver that is gone needs no room.
                let _ = sender.send(());
            });
            let _ = receiver.await;
        }
    }

    /// Does the work once, when the peer has read enough or the connection has ended. It runs in
    /// the middle of the connection's work, in the order in which works were added.
    pub fn when_free(&self, work: impl FnOnce() + 'static) {
        self.waiting.borrow_mut().push(Box::new(work));
        self.ask_for_less();
    }

    /// Bytes of answers from elsewhere that wait for room.
    pub(super) fn kept(&self) -> usize {
        self.kept.get()
    }

    /// Sets the number of bytes to be written.
    pub(super) fn pends(&self, bytes: usize) {
        self.pending.set(bytes);
    }

    /// As [`pends`](Self::pends), after the connection has been polled: also starts waiting work.
    pub(super) fn rest(&self, pending: usize) {
        self.pending.set(pending);
        self.tell();
    }

    /// Counts an answer of this many bytes that goes out to a caller behind the connection. The
    /// caller has read it when the returned value is dropped.
    pub(super) fn sends(self: &Rc<Self>, bytes: usize) -> Unread {
        self.pending.set(self.pending.get() + bytes);
        Unread { outlet: self.clone(), bytes }
    }

    pub(super) fn close(&self) {
        self.is_closed.set(true);
        self.tell();
        // This peer's calls may wait at other ends, and should not begin there.
        let tell = |link: Rc<Self>| {
            link.gone.borrow_mut().push(self.number);
            if let Some(driver) = link.driver.take() {
                driver.wake();
            }
        };
        // The list may already be gone while the thread ends.
        let _ = LINKS.try_with(|links| {
            links.borrow().iter().filter_map(Weak::upgrade).for_each(tell);
        });
    }

    /// The callers that are gone since the last call of this.
    pub(super) fn take_gone(&self, driver: &Waker) -> Vec<u32> {
        self.driver.set(Some(driver.clone()));
        self.gone.take()
    }

    fn bytes(&self) -> usize {
        self.pending.get() + self.held.get()
    }

    /// The bytes on the whole connection above which this caller waits.
    fn crowd_max(&self, shares: &Shares) -> usize {
        let is_small = self.bytes() + shares.recent.get() <= SMALL_BYTES;
        if is_small { shares.of.bytes_max } else { SHARED_BYTES }
    }

    fn tell(&self) {
        if self.is_full() {
            self.ask_for_less();
        } else {
            // Work must not make anything by itself, so all of it can run.
            self.waiting.take().into_iter().for_each(|work| work());
        }
        if !self.crowded.borrow().is_empty() && !self.is_crowded() {
            self.crowded.take().into_iter().for_each(|work| work());
        }
    }

    /// Tells whether there is so much on the connection that large answers wait.
    fn is_crowded(&self) -> bool {
        self.bytes() > SHARED_BYTES && !self.is_closed()
    }

    /// From now on the connection carries the calls of many callers.
    pub(super) fn carries_calls(&self) {
        if !self.is_link.replace(true) {
            LINKS.with_borrow_mut(|links| {
                links.retain(|link| link.strong_count() > 0);
                links.push(self.me.clone());
            });
        }
    }

    fn is_told(&self) {
        if let Some(shares) = &self.shares {
            shares.is_told.set(false);
        }
        self.tell();
    }

    /// Asks to be told when other callers have less on the connection, unless it waits for its own
    /// bytes.
    fn ask_for_less(&self) {
        let Some(shares) = &self.shares else { return };
        if self.waiting.borrow().is_empty()
            || self.bytes() > self.bytes_max
            || shares.is_told.replace(true)
        {
            return;
        }
        let me = self.me.clone();
        let tells: Work = Box::new(move || {
            if let Some(me) = me.upgrade() {
                me.is_told();
            }
        });
        if self.crowd_max(shares) == SHARED_BYTES {
            shares.of.crowded.borrow_mut().push(tells);
        } else {
            shares.of.when_free(tells);
        }
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Outlet").field("is_full", &self.is_full()).finish_non_exhaustive()
    }
}

fn next_number() -> u32 {
    thread_local! {
        static LAST: Cell<u32> = const { Cell::new(0) };
    }
    let next = LAST.get().checked_add(1).unwrap_or(1);
    LAST.set(next);
    next
}

/// Counts an answer in an [`Outlet`] until it is dropped.
#[derive(Debug)]
pub struct HeldAnswer {
    outlet: Rc<Outlet>,
    bytes: usize,
}

impl Drop for HeldAnswer {
    fn drop(&mut self) {
        let Self { outlet, bytes } = self;
        outlet.held.set(outlet.held.get() - *bytes);
        if let Some(Shares { of, .. }) = &outlet.shares {
            of.held.set(of.held.get() - *bytes);
        }
        outlet.tell();
    }
}

/// An answer on its way to a caller behind a connection.
pub(super) struct Unread {
    outlet: Rc<Outlet>,
    bytes: usize,
}

impl Drop for Unread {
    fn drop(&mut self) {
        let Self { outlet, bytes } = self;
        outlet.pending.set(outlet.pending.get() - *bytes);
        outlet.tell();
    }
}

/// An answer that waits for room.
struct KeptAnswer<'a> {
    outlet: &'a Outlet,
    bytes: usize,
}

impl<'a> KeptAnswer<'a> {
    fn new(outlet: &'a Outlet, bytes: usize) -> Self {
        outlet.kept.set(outlet.kept.get() + bytes);
        Self { outlet, bytes }
    }
}

impl Drop for KeptAnswer<'_> {
    fn drop(&mut self) {
        self.outlet.kept.set(self.outlet.kept.get() - self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(outlet: &Outlet) -> Rc<Cell<u32>> {
        let told = Rc::new(Cell::new(0));
        let tells = told.clone();
        outlet.when_free(move || tells.set(tells.get() + 1));
        told
    }

    #[test]
    fn whoever_waits_is_told_once_when_enough_was_read() {
        let outlet = Outlet::new(10);
        outlet.pends(8);
        let held = outlet.hold(3);
        assert!(outlet.is_full());
        let told = [told(&outlet), told(&outlet)];
        outlet.rest(9);
        assert_eq!(told[0].get(), 0);
        drop(held);
        let held = outlet.hold(5);
        assert!(outlet.is_full() && told.iter().all(|told| told.get() == 1));
        drop(held);
        outlet.rest(9);
        assert!(!outlet.is_full() && told.iter().all(|told| told.get() == 1));
    }

    #[test]
    fn nobody_waits_for_a_peer_that_is_gone() {
        let outlet = Outlet::new(10);
        outlet.pends(11);
        let told = told(&outlet);
        outlet.close();
        assert!(told.get() == 1 && !outlet.is_full() && outlet.is_closed());
    }

    #[test]
    fn callers_behind_a_connection_wait_for_what_they_have_not_read_themselves() {
        let connection = Outlet::new(8 * SHARED_BYTES);
        let [greedy, other] = [0; 2].map(|_| Outlet::of_caller(&connection, 4 * SHARED_BYTES));
        drop(other.hold(100));
        let made = greedy.hold(5 * SHARED_BYTES);
        assert!(greedy.is_full() && !other.is_full(), "one has had nothing large");
        assert!(
            Outlet::of_caller(&connection, 1).is_full(),
            "that may be different with a new one"
        );
        drop(made);
        let unread = greedy.sends(5 * SHARED_BYTES);
        connection.rest(0);
        assert!(greedy.is_full() && !other.is_full());
        let told = told(&greedy);
        drop(unread);
        assert!(told.get() == 1 && !greedy.is_full());
    }

    #[test]
    fn large_answers_wait_for_those_of_others_and_small_ones_do_not() {
        let connection = Outlet::new(8 * SHARED_BYTES);
        let [large, small] = [0; 2].map(|_| Outlet::of_caller(&connection, 4 * SHARED_BYTES));
        drop(large.hold(SHARED_BYTES));
        drop(small.hold(100));
        connection.rest(2 * SHARED_BYTES);
        assert!(large.is_full() && !small.is_full());
        let told_large = told(&large);
        connection.rest(9 * SHARED_BYTES);
        assert!(small.is_full(), "there is an end to it");
        let told_small = told(&small);
        connection.rest(7 * SHARED_BYTES);
        assert_eq!((told_small.get(), told_large.get()), (1, 0));
        connection.rest(SHARED_BYTES);
        assert_eq!((told_small.get(), told_large.get()), (1, 1));
        connection.rest(2 * SHARED_BYTES);
        let told_large = told(&large);
        connection.close();
        large.close();
        assert_eq!(told_large.get(), 1);
    }
}
