//! The order in which the calls of a vat start.
//!
//! A call that finds the vat idle starts at once, within the code that makes it: that is the usual
//! case, and costs nothing. Every other call waits in one queue for all objects. One rule for all
//! of them keeps the order in which callers made their calls, whichever way these came.
//!
//! Invariants:
//! - Calls start in the order in which they were accepted. Only a call whose caller has much to
//!   read waits longer, [behind](self::behind), and holds up nobody else's.
//! - No call starts within a turn or within the start of another call, so that no chain of calls
//!   nests the stack. A panic that unwinds through here leaves the vat idle.
//! - No call starts while too much waits for the commit thread. When less does, calls start before
//!   those go on that run already: see `Turns::holds_back`.
//! - A call is under way from its acceptance until its [`UnderWay`] is dropped. A vat that is
//!   closing accepts only calls of its own objects, which belong to calls under way.

mod behind;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

pub(in crate::host) use self::behind::key;
use self::behind::{Startable, WaitingForReaders};
use super::queued_call::QueuedCall;
use crate::clock::monotonic;
use crate::error::{Result, disconnected, not_begun};
use crate::host::base::fault::catch_panic;
use crate::host::base::turns::Turns;
use crate::membrane::Call;

/// Queued calls that start before other tasks of the thread run again.
const STARTS_IN_A_ROW: usize = 64;
/// The time that starts after the first [`STARTS_UNTIMED`] may take, since answers of megabytes
/// take milliseconds each; the clock is read once for that number of starts.
const IN_A_ROW: Duration = Duration::from_millis(2);
const STARTS_UNTIMED: usize = 4;

/// See the head of the file.
#[derive(Default)]
pub(in crate::host) struct Scheduler {
    queue: RefCell<VecDeque<QueuedCall>>,
    /// Calls whose callers have to read before they start.
    behind: WaitingForReaders,
    is_busy: Cell<bool>,
    /// Wakes the task that starts queued calls.
    runnable: Rc<Notify>,
    under_way: Cell<usize>,
    is_closing: Cell<bool>,
    /// Told when calls end while the vat is closing.
    call_ended: Notify,
}

/// An accepted call, for as long as this exists. Shutdown waits until all of these are dropped.
pub(in crate::host) struct UnderWay(Rc<Scheduler>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Self(scheduler) = self;
        scheduler.under_way.set(scheduler.under_way.get() - 1);
        if scheduler.is_closing.get() {
            scheduler.call_ended.notify_waiters();
        }
    }
}

impl Scheduler {
    /// Accepts a call. A closing vat accepts those that its own objects make, until the end.
    ///
    /// # Errors
    /// When the server is shutting down: the call did not happen.
    pub(in crate::host) fn admit(self: &Rc<Self>, call: &Call) -> Result<UnderWay> {
        if self.is_closing.get() && !call.from_object {
            return Err(not_begun(disconnected("the server is shutting down")));
        }
        self.under_way.set(self.under_way.get() + 1);
        Ok(UnderWay(self.clone()))
    }

    /// Gives the call back if it may start at once; otherwise it is queued.
    ///
    /// A call from foreign code starts only after that code has returned: capnp-rpc keeps a promise
    /// borrowed while it hands over the calls made on it, and the object may call that promise.
    pub(in crate::host) fn now_or_queued(
        &self,
        call: QueuedCall,
        turns: &Turns,
    ) -> Option<QueuedCall> {
        if self.is_busy.get() {
            // `busy` starts it when its work is done.
            self.queue.borrow_mut().push_back(call);
        } else if !call.call.reply.is_foreign()
            && self.queue.borrow().is_empty()
            && turns.has_room()
        {
            return Some(call);
        } else {
            self.queue(call);
        }
        None
    }

    /// Starts a call soon, after those that wait already.
    pub(in crate::host) fn queue(&self, call: QueuedCall) {
        self.queue.borrow_mut().push_back(call);
        self.runnable.notify_one();
    }

    /// Queues calls before all others, since they have waited longest.
    pub(in crate::host) fn queue_first(&self, calls: VecDeque<QueuedCall>) {
        let mut queue = self.queue.borrow_mut();
        let others = std::mem::replace(&mut *queue, calls);
        queue.extend(others);
        self.runnable.notify_one();
    }

    /// Does something during which calls may be made, and then starts them with `begin`.
    pub(in crate::host) fn busy<T>(
        self: &Rc<Self>,
        turns: &Turns,
        work: impl FnOnce() -> T,
        begin: impl Fn(QueuedCall),
    ) -> T {
        if self.is_busy.get() {
            return work();
        }
        let busy = Busy::begin(self, turns);
        let output = work();
        self.begin_queued(turns, begin);
        drop(busy);
        output
    }

    fn begin_queued(self: &Rc<Self>, turns: &Turns, begin: impl Fn(QueuedCall)) {
        let mut began = None;
        for at in 0..STARTS_IN_A_ROW {
            if !turns.has_room() {
                return; // it goes on when more has become durable
            }
            if at > 0
                && at % STARTS_UNTIMED == 0
                && began.get_or_insert_with(monotonic).elapsed() > IN_A_ROW
            {
                return;
            }
            let Some(call) = self.queue.borrow_mut().pop_front() else { return };
            let Some(Startable { call, waited_for }) = self.startable(call) else { continue };
            // A panic in one call, perhaps in the RPC library, must not end the task that starts
            // calls.
            catch_panic("starting a call", || begin(call));
            if let Some(outlet) = waited_for {
                self.next_behind(&outlet);
            }
        }
    }

    /// Wakes the task that starts calls, if any are queued.
    pub(in crate::host) fn go_on(&self) {
        if self.has_queued() {
            self.runnable.notify_one();
        }
    }

    pub(in crate::host) fn has_queued(&self) -> bool {
        !self.queue.borrow().is_empty()
    }

    /// Notified when calls may be queued; the task that starts them awaits it.
    pub(in crate::host) fn runnable(&self) -> Rc<Notify> {
        self.runnable.clone()
    }

    /// From now on only calls of the vat's own objects are accepted.
    pub(in crate::host) fn close(&self) {
        self.is_closing.set(true);
    }

    pub(in crate::host) fn is_closing(&self) -> bool {
        self.is_closing.get()
    }

    /// Resolves when no call is under way. The vat must be closing.
    pub(in crate::host) async fn all_ended(&self) {
        loop {
            let ended = self.call_ended.notified();
            if self.under_way.get() == 0 {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for Scheduler {
    /// Lets the task that starts queued calls end.
    fn drop(&mut self) {
        self.runnable.notify_one();
    }
}

/// Calls queue while this exists.
struct Busy<'a> {
    scheduler: &'a Scheduler,
    turns: &'a Turns,
}

impl<'a> Busy<'a> {
    fn begin(scheduler: &'a Scheduler, turns: &'a Turns) -> Self {
        scheduler.is_busy.set(true);
        Self { scheduler, turns }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.scheduler.is_busy.set(false);
        if self.scheduler.has_queued() && self.turns.has_room() {
            self.scheduler.runnable.notify_one();
        }
    }
}
