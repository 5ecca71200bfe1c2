//! Calls that waited for their object, and whose callers have to read before they start.
//!
//! [`behind`](super::behind) asks before a call comes to its object. One that waits there, for its turn or
//! until the object is awake, may start long after: what its caller has to read by then is asked once more.
//!
//! Invariants:
//! - Calls of one connection on one object start in the order in which they came: behind one that waits
//!   here, all of them do.
//! - An exclusive object waits for nobody who has to read: calls of others have their turn meanwhile, and
//!   the time counts for nobody's patience.
//! - Nobody waits for a connection that is over: what waited for it has not begun, and never does.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use capstead_client::Outlet;

use super::behind::key;
use super::instance::Instance;
use super::slot::{Passage, Slot, Start};
use super::vat::Vat;
use crate::error::disconnected;
use crate::membrane::Reply;

/// The calls of one instance that wait for their callers.
#[derive(Default)]
pub(in crate::host) struct Parked(RefCell<Rows>);

#[derive(Default)]
struct Rows {
    by_outlet: HashMap<usize, Row>,
    /// Outlets that had room when an exclusive object ran another call: they are asked when that ends.
    ready: VecDeque<usize>,
}

/// The calls of one connection. None is here without a reply.
struct Row {
    outlet: Rc<Outlet>,
    calls: VecDeque<Start>,
}

impl Rows {
    /// The first call of that connection.
    fn pop(&mut self, outlet: usize) -> Option<Start> {
        let row = self.by_outlet.get_mut(&outlet)?;
        let start = row.calls.pop_front();
        if row.calls.is_empty() {
            self.by_outlet.remove(&outlet);
        }
        start
    }
}

impl Parked {
    pub(in crate::host) fn is_empty(&self) -> bool {
        self.0.borrow().by_outlet.is_empty()
    }

    /// Calls of that connection wait here.
    fn has(&self, outlet: &Rc<Outlet>) -> bool {
        let rows = self.0.borrow();
        !rows.by_outlet.is_empty() && rows.by_outlet.contains_key(&key(outlet))
    }

    /// Takes out the calls that were cut.
    pub(in crate::host) fn take_cut(&self, instance: &Instance, cut: &mut Vec<Reply>) {
        let mut gone = Vec::new();
        let mut rows = self.0.borrow_mut();
        for row in rows.by_outlet.values_mut() {
            for mut start in std::mem::take(&mut row.calls) {
                if start.facet.right.is_cut() {
                    cut.push(start.call.reply.take());
                    gone.push(start);
                } else {
                    row.calls.push_back(start);
                }
            }
        }
        rows.by_outlet.retain(|_, row| !row.calls.is_empty());
        drop(rows);
        for start in gone {
            waits_no_more(instance, &start);
        }
    }

    /// All that wait, when the instance ended.
    pub(in crate::host) fn end(&self, instance: &Instance) -> Vec<Start> {
        let Rows { by_outlet, .. } = self.0.take();
        let all: Vec<_> = by_outlet.into_values().flat_map(|row| row.calls).collect();
        for start in &all {
            waits_no_more(instance, start);
        }
        all
    }

    /// Puts a call at the front or at the end of the row of its connection. True of the first one.
    fn put(&self, outlet: &Rc<Outlet>, start: Start, is_front: bool) -> bool {
        let mut rows = self.0.borrow_mut();
        let new = || Row { outlet: outlet.clone(), calls: VecDeque::new() };
        let Row { calls, .. } = rows.by_outlet.entry(key(outlet)).or_insert_with(new);
        if is_front {
            calls.push_front(start);
        } else {
            calls.push_back(start);
        }
        is_front || calls.len() == 1
    }
}

impl Vat {
    /// A call that waited for this outlet has come back: the next one may.
    pub(in crate::host) fn after_returned(&self, slot: &Slot, outlet: Option<Rc<Outlet>>) {
        if let Some(outlet) = outlet
            && let Some((instance, _)) = slot.awake()
        {
            self.next_parked(&instance, &outlet);
        }
    }

    /// The call if its object may have it now. Else it waits for its caller, or that is gone.
    pub(in crate::host) fn past_parked(
        &self,
        instance: &Rc<Instance>,
        start: Start,
    ) -> Option<Start> {
        let Some(outlet) = start.call.reply.outlet() else { return Some(start) };
        if start.passage == Passage::Returned {
            if outlet.is_closed() {
                return refuse(start);
            }
            if !outlet.is_full() && !is_running(instance) {
                return Some(start);
            }
            self.park(instance, start);
            return None;
        }
        // Behind the call that runs an exclusive object has all others in one row.
        let waits = !is_running(instance)
            && (instance.parked.has(outlet)
                || start.passage == Passage::Waited && outlet.is_full());
        if !waits {
            return Some(start);
        }
        self.park(instance, start);
        None
    }

    fn park(&self, instance: &Rc<Instance>, start: Start) {
        if instance.exclusive.is_some() {
            self.waits.begin(instance, &start);
        }
        put(instance, start);
    }

    /// A call that an exclusive object has waiting, if it may start. Else it waits for its caller.
    pub(in crate::host) fn or_parked(instance: &Rc<Instance>, start: Start) -> Option<Start> {
        let waits = |outlet: &Rc<Outlet>| outlet.is_full() || instance.parked.has(outlet);
        if !start.call.reply.outlet().is_some_and(waits) {
            return Some(start);
        }
        put(instance, start);
        None
    }

    /// The next call of an exclusive object that waited for its caller, if one may start.
    pub(in crate::host) fn ready_again(instance: &Rc<Instance>) -> Option<Start> {
        loop {
            let mut rows = instance.parked.0.borrow_mut();
            let outlet = rows.ready.pop_front()?;
            let Some(row) = rows.by_outlet.get(&outlet) else { continue };
            let of = row.outlet.clone();
            if of.is_full() {
                drop(rows);
                watch(instance, &of);
                continue;
            }
            let start = rows.pop(outlet);
            if rows.by_outlet.contains_key(&outlet) {
                rows.ready.push_back(outlet);
            }
            drop(rows);
            match start {
                Some(start) if of.is_closed() => {
                    waits_no_more(instance, &start);
                    refuse(start);
                }
                start => return start,
            }
        }
    }

    /// The caller has read enough, or one of its calls has started: the next of them may.
    pub(in crate::host) fn next_parked(&self, instance: &Rc<Instance>, outlet: &Rc<Outlet>) {
        if !instance.parked.has(outlet) {
            return;
        }
        if outlet.is_full() {
            return watch(instance, outlet);
        }
        let mut rows = instance.parked.0.borrow_mut();
        if is_running(instance) {
            return rows.ready.push_back(key(outlet));
        }
        let next = rows.pop(key(outlet));
        drop(rows);
        if let Some(next) = next {
            waits_no_more(instance, &next);
            self.queue_first(VecDeque::from([Start { passage: Passage::Returned, ..next }]));
        }
    }
}

fn put(instance: &Rc<Instance>, start: Start) {
    let Some(outlet) = start.call.reply.outlet().cloned() else { return };
    let is_front = start.passage == Passage::Returned;
    let start = Start { passage: Passage::Passed, ..start };
    // Whoever began one that came back goes on with the next.
    if instance.parked.put(&outlet, start, is_front) && !is_front {
        watch(instance, &outlet);
    }
}

/// A call of an exclusive object runs.
fn is_running(instance: &Instance) -> bool {
    instance.exclusive.as_ref().is_some_and(|exclusive| !exclusive.is_idle())
}

fn waits_no_more(instance: &Instance, start: &Start) {
    if instance.exclusive.is_some() {
        instance.vat.waits.end(instance, start);
    }
}

fn refuse(start: Start) -> Option<Start> {
    start.facet.refuse(start.call, disconnected("the caller's connection is over"));
    None
}

fn watch(instance: &Rc<Instance>, outlet: &Rc<Outlet>) {
    let (instance, weak) = (Rc::downgrade(instance), Rc::downgrade(outlet));
    outlet.when_free(move || {
        if let (Some(instance), Some(outlet)) = (instance.upgrade(), weak.upgrade()) {
            instance.vat.next_parked(&instance, &outlet);
        }
    });
}
