//! The turns of a vat: how their writes go to the commit thread, and when their gates open.
//!
//! One turn is open at a time, since one thread runs all objects. When it ends, its writes are
//! submitted as one batch and get a ticket. The commit thread makes batches durable in the order of
//! their tickets, many with one sync, and says so by `progress`; the gates that wait open then.
//!
//! Invariants:
//! - A turn that has begun is submitted or discarded, as a whole, before the next one begins.
//! - A gate opens only up to the ticket that the commit thread has reported durable.
//! - Once the storage has failed nothing becomes durable any more: gates stay shut, and those who
//!   await a flush are told.

mod durable;

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use tokio::sync::Notify;

use crate::gate::Gate;
use crate::id::ObjectId;
use crate::storage::{Account, StorageError, Store, Ticket};

/// See the head of the file.
pub(in crate::host) struct Turns {
    store: RefCell<Store>,
    /// Submitted turns, each with the gate that opens once it is durable.
    submitted: RefCell<VecDeque<(Ticket, Rc<Gate>)>>,
    /// A list is being visited, in a snapshot of its own.
    is_visiting: Cell<bool>,
    /// Wakes the task that hands submitted turns to the commit thread. It runs after all that is
    /// ready to run now, so that calls which came together share one sync.
    committable: Rc<Notify>,
    /// Wakes the task that opens gates. The commit thread notifies it, and so does the drop of
    /// this.
    progress: Arc<Notify>,
    /// Told when more has become durable, and when the storage has failed.
    settled: Notify,
    /// Handlers that go on when less waits for the disk.
    held_back: RefCell<Vec<Waker>>,
}

impl Turns {
    /// `progress` is told by the commit thread of `store`.
    pub(in crate::host) fn new(store: Store, progress: Arc<Notify>) -> Self {
        Self {
            store: RefCell::new(store),
            submitted: RefCell::default(),
            is_visiting: Cell::default(),
            committable: Rc::default(),
            progress,
            settled: Notify::new(),
            held_back: RefCell::default(),
        }
    }

    /// The storage, to be read.
    pub(in crate::host) fn store(&self) -> Ref<'_, Store> {
        self.store.borrow()
    }

    /// The storage, for writes in the open turn. Turns begin and end by the methods of this type,
    /// never through this reference.
    pub(in crate::host) fn store_mut(&self) -> RefMut<'_, Store> {
        self.store.borrow_mut()
    }

    /// A turn begins that writes through the account.
    pub(in crate::host) fn begin(&self, account: Rc<Account>) {
        self.store.borrow_mut().begin(account);
    }

    /// The open turn ends: its writes are submitted, and `gate` opens when they are durable.
    pub(in crate::host) fn end(&self, gate: &Rc<Gate>) {
        let submitted = self.store.borrow_mut().submit_turn();
        let Some(ticket) = submitted else { return };
        gate.turn_submitted(ticket);
        self.committable.notify_one();
        self.open_when_durable(ticket, gate);
    }

    /// Ends the open turn without its writes, if it is one of this object. Tells whether it was.
    pub(in crate::host) fn discard_turn_of(&self, object: ObjectId) -> bool {
        let mut store = self.store.borrow_mut();
        let is_open = store.turn_object() == Some(object);
        if is_open {
            store.discard();
        }
        is_open
    }

    /// Runs `work` as a turn of the server's own; if it fails, nothing is written.
    ///
    /// # Errors
    /// That of `work`.
    pub(in crate::host) fn of_server<T, E>(
        &self,
        account: Rc<Account>,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        self.begin(account);
        let written = work();
        let mut store = self.store.borrow_mut();
        if written.is_ok() {
            store.submit_turn();
            self.committable.notify_one();
        } else {
            store.discard();
        }
        written
    }

    /// Resolves when no turn is open. A task never runs within a turn, but a call can be made
    /// within one: then this waits.
    pub(in crate::host) async fn outside_turns(&self) {
        while self.store.borrow().turn_object().is_some() {
            tokio::task::yield_now().await;
        }
    }

    /// Tells whether another call may start: not too much waits for the commit thread.
    pub(in crate::host) fn has_room(&self) -> bool {
        !self.store.borrow().is_full()
    }

    /// Tells whether a handler that runs must not go on yet, since too much waits for the commit
    /// thread. It is woken when it may.
    pub(in crate::host) fn holds_back(&self, handler: &Waker) -> bool {
        // After a failure nothing will make room, and nothing is kept.
        let holds = !self.has_room() && self.store.borrow().failure().is_none();
        if holds {
            self.held_back.borrow_mut().push(handler.clone());
        }
        holds
    }

    /// Opens the gate when everything up to `ticket`, which was submitted, is durable.
    fn open_when_durable(&self, ticket: Ticket, gate: &Rc<Gate>) {
        self.submitted.borrow_mut().push_back((ticket, gate.clone()));
    }

    /// The last turn of the object that may not be durable yet. From now on the gate waits for it,
    /// and opens with the last turn submitted by now at the latest.
    pub(in crate::host) fn await_unsettled(
        &self,
        object: ObjectId,
        gate: &Rc<Gate>,
    ) -> Option<Ticket> {
        let ticket = self.store.borrow().unsettled_ticket(object)?;
        self.open_when_durable(ticket, gate);
        Some(ticket)
    }

    /// Hands the submitted turns to the commit thread.
    pub(in crate::host) fn hand_over_submitted(&self) {
        self.store.borrow().hand_over_submitted();
    }

    /// Has the submitted turns committed, by this thread perhaps.
    pub(in crate::host) fn commit_submitted(&self) {
        self.store.borrow().commit_submitted();
    }

    /// Calls `open` with each gate that waits for something that is durable by now.
    pub(in crate::host) fn settle(&self, open: impl Fn(&Rc<Gate>, Ticket)) {
        let durable = self.store.borrow_mut().settle();
        let is_durable = |(ticket, _): &mut (Ticket, _)| *ticket <= durable;
        loop {
            let next = self.submitted.borrow_mut().pop_front_if(is_durable);
            let Some((_, gate)) = next else { return };
            open(&gate, durable);
        }
    }

    /// Commits every submitted turn, drops the open one, and closes the storage.
    ///
    /// # Errors
    /// When a commit failed, now or earlier.
    pub(in crate::host) fn close(&self) -> Result<(), StorageError> {
        self.store.borrow_mut().close()
    }

    /// Notified when turns were submitted; the task that hands them on awaits it.
    pub(in crate::host) fn committable(&self) -> Rc<Notify> {
        self.committable.clone()
    }

    /// Begins a visit of a list in a snapshot of its own. `None` while another visit is under way:
    /// LMDB has few snapshots.
    pub(in crate::host) fn begin_visit(&self) -> Option<Visit<'_>> {
        (!self.is_visiting.replace(true)).then(|| Visit(self))
    }
}

impl Drop for Turns {
    /// Lets the tasks that commit and settle end.
    fn drop(&mut self) {
        self.committable.notify_one();
        self.progress.notify_one();
    }
}

/// A visit of a list. While it exists, other lists are read page by page.
pub(in crate::host) struct Visit<'a>(&'a Turns);

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.0.is_visiting.set(false);
    }
}
