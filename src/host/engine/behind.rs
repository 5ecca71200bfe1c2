//! Calls that wait until their caller has read more of what was made for it.
//!
//! The size of an answer shows when it is made, so that only the next call can wait for it. A thousand calls
//! that came at once, each with an answer of megabytes, would else take the memory of the whole server.
//!
//! Invariants:
//! - Calls of one connection start in the order in which they came: behind one that waits, all of them do.
//! - A connection whose calls waited has one of them at a time among those that start next, so that others
//!   don't wait for all of them.
//! - Nobody waits for a connection that is over: what waited for it has not begun, and never does.
//!
//! Calls that one object makes on another never wait here: their callers are in no position to read.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use capstead_client::Outlet;

use super::slot::{Passage, Start};
use super::vat::Vat;
use crate::error::disconnected;

/// The calls that wait, by the address of the outlet that they wait for. An outlet is here for as long as a
/// call waits for it, or one that did is among those that start next.
#[derive(Default)]
pub(in crate::host) struct Behind(RefCell<HashMap<usize, VecDeque<Start>>>);

/// A call that may start now.
pub(in crate::host) struct Startable {
    pub(in crate::host) start: Start,
    /// More calls may wait behind it.
    pub(in crate::host) waited_for: Option<Rc<Outlet>>,
}

impl Vat {
    /// The call if it may start now. Else it waits, or its caller is gone.
    pub(in crate::host) fn startable(self: &Rc<Self>, mut start: Start) -> Option<Startable> {
        let passage = start.passage;
        let asks = matches!(passage, Passage::None | Passage::Next);
        let Some(outlet) = start.call.reply.outlet().filter(|_| asks) else {
            return Some(Startable { start, waited_for: None });
        };
        start.passage = Passage::Passed;
        if passage == Passage::None {
            if !outlet.is_full() && self.behind.0.borrow().is_empty() {
                return Some(Startable { start, waited_for: None });
            }
            return self.wait_behind(start);
        }
        let outlet = outlet.clone();
        if outlet.is_full() {
            self.behind.0.borrow_mut().entry(key(&outlet)).or_default().push_front(start);
            self.watch(&outlet);
            return None;
        }
        // A host that passed it on lets go of it when its caller's connection ends.
        if outlet.is_closed() || self.closing.get() && start.call.reply.is_abandoned() {
            start.facet.refuse(start.call, disconnected("the caller's connection is over"));
            self.next_behind(&outlet);
            return None;
        }
        Some(Startable { start, waited_for: Some(outlet) })
    }

    fn wait_behind(self: &Rc<Self>, mut start: Start) -> Option<Startable> {
        let Some(outlet) = start.call.reply.outlet().cloned() else {
            return Some(Startable { start, waited_for: None });
        };
        let mut behind = self.behind.0.borrow_mut();
        let is_first = match behind.get_mut(&key(&outlet)) {
            Some(waiting) => {
                start.passage = Passage::None;
                waiting.push_back(start);
                false
            }
            None if outlet.is_full() => {
                behind.insert(key(&outlet), VecDeque::from([start]));
                true
            }
            None => return Some(Startable { start, waited_for: None }),
        };
        drop(behind);
        if is_first {
            self.watch(&outlet);
        }
        None
    }

    /// One that waited has started: the next of that connection may.
    pub(in crate::host) fn next_behind(self: &Rc<Self>, outlet: &Rc<Outlet>) {
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
            self.queue(Start { passage: Passage::Next, ..next });
        }
    }

    fn watch(self: &Rc<Self>, outlet: &Rc<Outlet>) {
        let (vat, weak) = (Rc::downgrade(self), Rc::downgrade(outlet));
        outlet.when_free(move || {
            if let (Some(vat), Some(outlet)) = (vat.upgrade(), weak.upgrade()) {
                vat.next_behind(&outlet);
            }
        });
    }

    /// The vat is closing.
    pub(in crate::host) fn forget_behind(&self) {
        // Their callers are told as they are dropped, and may come back here.
        drop(self.behind.0.take());
    }
}

/// Tells outlets apart for as long as they exist.
pub(super) fn key(outlet: &Rc<Outlet>) -> usize {
    Rc::as_ptr(outlet).addr()
}
