//! Calls that wait until their caller has read more of what was made for it.
//!
//! The size of an answer shows when it is made, so that only the next call can wait for it. Without
//! that, a thousand calls that came at once, each with an answer of megabytes, would take the
//! memory of the whole server. Calls that one object makes on another never wait here, because
//! their callers are in no position to read.
//!
//! Invariants:
//! - Calls of one connection start in the order in which they came: behind one that waits, all of
//!   them do.
//! - A connection whose calls waited has one of them at a time among those that start next, so that
//!   others don't wait for all of them.
//! - A call whose connection has ended is refused, and never begins.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use capstead_client::Outlet;

use super::Scheduler;
use crate::error::disconnected;
use crate::host::state::queued_call::{Passage, QueuedCall};

/// The calls that wait, by the address of the outlet that they wait for. An outlet is here for as
/// long as a call waits for it, or one that did is among those that start next.
#[derive(Default)]
pub(super) struct WaitingForReaders(RefCell<HashMap<usize, VecDeque<QueuedCall>>>);

/// A call that may start now.
pub(super) struct Startable {
    pub(super) call: QueuedCall,
    /// More calls may wait behind it.
    pub(super) waited_for: Option<Rc<Outlet>>,
}

impl Scheduler {
    /// The call if it may start now. Otherwise it waits, or is refused because its caller is gone.
    pub(super) fn startable(self: &Rc<Self>, mut queued: QueuedCall) -> Option<Startable> {
        let passage = queued.passage;
        let asks = matches!(passage, Passage::None | Passage::Next);
        let Some(outlet) = queued.call.reply.outlet().filter(|_| asks) else {
            return Some(Startable { call: queued, waited_for: None });
        };
        queued.passage = Passage::Passed;
        if passage == Passage::None {
            if !outlet.is_full() && self.behind.0.borrow().is_empty() {
                return Some(Startable { call: queued, waited_for: None });
            }
            return self.wait_behind(queued);
        }
        let outlet = outlet.clone();
        if outlet.is_full() {
            self.behind.0.borrow_mut().entry(key(&outlet)).or_default().push_front(queued);
            self.watch(&outlet);
            return None;
        }
        // A host that passed it on lets go of it when its caller's connection ends.
        if outlet.is_closed() || self.is_closing.get() && queued.call.reply.is_abandoned() {
            queued.facet.refuse(queued.call, disconnected("the caller's connection is over"));
            self.next_behind(&outlet);
            return None;
        }
        Some(Startable { call: queued, waited_for: Some(outlet) })
    }

    fn wait_behind(self: &Rc<Self>, mut queued: QueuedCall) -> Option<Startable> {
        let Some(outlet) = queued.call.reply.outlet().cloned() else {
            return Some(Startable { call: queued, waited_for: None });
        };
        let mut behind = self.behind.0.borrow_mut();
        let is_first = match behind.get_mut(&key(&outlet)) {
            Some(waiting) => {
                queued.passage = Passage::None;
                waiting.push_back(queued);
                false
            }
            None if outlet.is_full() => {
                behind.insert(key(&outlet), VecDeque::from([queued]));
                true
            }
            None => return Some(Startable { call: queued, waited_for: None }),
        };
        drop(behind);
        if is_first {
            self.watch(&outlet);
        }
        None
    }

    /// A call that waited has started: the next one of that connection may.
    pub(super) fn next_behind(self: &Rc<Self>, outlet: &Rc<Outlet>) {
        if outlet.is_full() {
            return self.watch(outlet);
        }
        let next = {
            let mut behind = self.behind.0.borrow_mut();
            let next = behind.get_mut(&key(outlet)).and_then(VecDeque::pop_front);
            if next.is_none() {
                behind.remove(&key(outlet));
            }
            next
        };
        if let Some(next) = next {
            self.queue(QueuedCall { passage: Passage::Next, ..next });
        }
    }

    fn watch(self: &Rc<Self>, outlet: &Rc<Outlet>) {
        let (scheduler, weak) = (Rc::downgrade(self), Rc::downgrade(outlet));
        outlet.when_free(move || {
            if let (Some(scheduler), Some(outlet)) = (scheduler.upgrade(), weak.upgrade()) {
                scheduler.next_behind(&outlet);
            }
        });
    }

    /// Drops the calls that wait for their callers, since the vat is closing.
    pub(in crate::host) fn drop_behind(&self) {
        // Their callers are told as they are dropped, and may come back here.
        drop(self.behind.0.take());
    }
}

/// Tells outlets apart for as long as they exist.
pub(in crate::host) fn key(outlet: &Rc<Outlet>) -> usize {
    Rc::as_ptr(outlet).addr()
}
