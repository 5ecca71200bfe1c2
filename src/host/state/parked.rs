//! Calls that waited for their object, and now wait once more, for their caller to read.
//!
//! The [scheduler](super::scheduler) asks before a call comes to its object. A call that then
//! waits, for its turn or until the object is awake, may start long after. So its caller, who may
//! have got much to read by then, is asked once more.
//!
//! Invariants:
//! - Calls of one connection on one object start in the order in which they came: once one of them
//!   waits here, so do all later ones.
//! - An exclusive object never waits for a caller to read: it runs other callers' calls meanwhile.
//!   Time spent here doesn't count towards the time that calls wait for an exclusive object.
//! - A call whose connection has ended is refused, and never begins.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use capstead_client::Outlet;

use super::instance::Instance;
use super::keeping::KeptAwake;
use super::queued_call::{Passage, QueuedCall};
use super::scheduler::key;
use super::slot::Slot;
use crate::error::disconnected;
use crate::membrane::Reply;

/// The calls of one instance that wait for their callers. Most objects have none.
#[derive(Default)]
pub(in crate::host) struct Parked(RefCell<Option<Box<Rows>>>);

#[derive(Default)]
struct Rows {
    by_outlet: HashMap<usize, Row>,
    /// Outlets that had room when an exclusive object ran another call. They are asked when
    /// the running call ends.
    ready: VecDeque<usize>,
}

/// The calls of one connection. No call whose reply was cut stays here.
struct Row {
    outlet: Rc<Outlet>,
    calls: VecDeque<QueuedCall>,
}

/// The end of a row to which a call goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RowEnd {
    Front,
    Back,
}

impl Rows {
    /// The first call of that connection.
    fn pop(&mut self, outlet: usize) -> Option<QueuedCall> {
        let row = self.by_outlet.get_mut(&outlet)?;
        let queued = row.calls.pop_front();
        if row.calls.is_empty() {
            self.by_outlet.remove(&outlet);
        }
        queued
    }
}

impl Parked {
    pub(in crate::host) fn is_empty(&self) -> bool {
        self.0.borrow().as_ref().is_none_or(|rows| rows.by_outlet.is_empty())
    }

    /// Calls of that connection wait here.
    fn has(&self, outlet: &Rc<Outlet>) -> bool {
        let rows = self.0.borrow();
        let has_any = rows.as_ref().filter(|rows| !rows.by_outlet.is_empty());
        has_any.is_some_and(|rows| rows.by_outlet.contains_key(&key(outlet)))
    }

    /// Takes out the calls that were cut.
    pub(in crate::host) fn take_cut(&self, instance: &Instance, cut: &mut Vec<Reply>) {
        let mut gone = Vec::new();
        let mut rows = self.0.borrow_mut();
        let Some(rows) = &mut *rows else { return };
        for row in rows.by_outlet.values_mut() {
            for mut queued in std::mem::take(&mut row.calls) {
                if queued.facet.right.is_cut() {
                    cut.push(queued.call.reply.take());
                    gone.push(queued);
                } else {
                    row.calls.push_back(queued);
                }
            }
        }
        rows.by_outlet.retain(|_, row| !row.calls.is_empty());
        for queued in gone {
            waits_no_more(instance, &queued);
        }
    }

    /// Takes out all calls, when the instance ended.
    pub(in crate::host) fn take_waiting(&self, instance: &Instance) -> Vec<QueuedCall> {
        let Rows { by_outlet, .. } = self.0.take().map(|rows| *rows).unwrap_or_default();
        let all: Vec<_> = by_outlet.into_values().flat_map(|row| row.calls).collect();
        for queued in &all {
            waits_no_more(instance, queued);
        }
        all
    }

    /// Puts a call at that end of its connection's row: in front if it came back. True if it is the
    /// row's first.
    fn put(&self, outlet: &Rc<Outlet>, queued: QueuedCall, end: RowEnd) -> bool {
        let mut rows = self.0.borrow_mut();
        let rows = rows.get_or_insert_default();
        let new = || Row { outlet: outlet.clone(), calls: VecDeque::new() };
        let Row { calls, .. } = rows.by_outlet.entry(key(outlet)).or_insert_with(new);
        match end {
            RowEnd::Front => calls.push_front(queued),
            RowEnd::Back => calls.push_back(queued),
        }
        end == RowEnd::Front || calls.len() == 1
    }
}

/// A call that waited for this outlet has reached its object: the next of the row may follow.
pub(in crate::host) fn after_returned(slot: &Slot, outlet: Option<Rc<Outlet>>) {
    if let Some(outlet) = outlet
        && let Some((instance, _)) = slot.awake()
    {
        go_on(&instance, &outlet);
    }
}

/// The call if its object may have it now. Otherwise it waits for its caller, or is refused because
/// the caller is gone.
pub(in crate::host) fn pass(instance: &Rc<Instance>, queued: QueuedCall) -> Option<QueuedCall> {
    let Some(outlet) = queued.call.reply.outlet() else { return Some(queued) };
    if queued.passage == Passage::Returned {
        if outlet.is_closed() {
            refuse(queued);
            return None;
        }
        if !outlet.is_full() && !is_running(instance) {
            return Some(queued);
        }
        park(instance, queued);
        return None;
    }
    // While a call runs, an exclusive object keeps all others itself: none is parked.
    let waits = !is_running(instance)
        && (instance.parked.has(outlet) || queued.passage == Passage::Waited && outlet.is_full());
    if !waits {
        return Some(queued);
    }
    park(instance, queued);
    None
}

fn park(instance: &Rc<Instance>, queued: QueuedCall) {
    if instance.exclusive.is_some() {
        instance.vat.objects.waits().add(instance, &queued);
    }
    put(instance, queued);
}

/// The call that an exclusive object has waiting, if it may start. Otherwise it waits for its
/// caller.
pub(in crate::host) fn unless_waits(
    instance: &Rc<Instance>,
    queued: QueuedCall,
) -> Option<QueuedCall> {
    let waits = |outlet: &Rc<Outlet>| outlet.is_full() || instance.parked.has(outlet);
    if !queued.call.reply.outlet().is_some_and(waits) {
        return Some(queued);
    }
    put(instance, queued);
    None
}

/// The next call of an exclusive object that waited for its caller, if one may start.
pub(in crate::host) fn take_ready(instance: &Rc<Instance>) -> Option<QueuedCall> {
    loop {
        let mut parked = instance.parked.0.borrow_mut();
        let rows = parked.as_mut()?;
        let ready = rows.ready.pop_front()?;
        let Some(row) = rows.by_outlet.get(&ready) else { continue };
        let outlet = row.outlet.clone();
        if outlet.is_full() {
            drop(parked);
            watch(instance, &outlet);
            continue;
        }
        let queued = rows.pop(ready);
        if rows.by_outlet.contains_key(&ready) {
            rows.ready.push_back(ready);
        }
        drop(parked);
        match queued {
            Some(queued) if outlet.is_closed() => {
                waits_no_more(instance, &queued);
                refuse(queued);
            }
            queued => return queued,
        }
    }
}

/// The caller has read enough, or one of its calls has started: the next of them may.
fn go_on(instance: &Rc<Instance>, outlet: &Rc<Outlet>) {
    if !instance.parked.has(outlet) {
        return;
    }
    if outlet.is_full() {
        return watch(instance, outlet);
    }
    let mut parked = instance.parked.0.borrow_mut();
    let Some(rows) = &mut *parked else { return };
    if is_running(instance) {
        return rows.ready.push_back(key(outlet));
    }
    let next = rows.pop(key(outlet));
    drop(parked);
    if let Some(next) = next {
        waits_no_more(instance, &next);
        let next = QueuedCall { passage: Passage::Returned, ..next };
        instance.vat.scheduler.queue_first(VecDeque::from([next]));
    }
}

fn put(instance: &Rc<Instance>, queued: QueuedCall) {
    let Some(outlet) = queued.call.reply.outlet().cloned() else { return };
    let end = if queued.passage == Passage::Returned { RowEnd::Front } else { RowEnd::Back };
    let kept = Some(KeptAwake::new(instance, &queued.keeper));
    let queued = QueuedCall { passage: Passage::Passed, kept, ..queued };
    // For a call that came back, `after_returned` sees to the next.
    if instance.parked.put(&outlet, queued, end) && end == RowEnd::Back {
        watch(instance, &outlet);
    }
}

/// A call of an exclusive object runs.
fn is_running(instance: &Instance) -> bool {
    instance.exclusive.as_ref().is_some_and(|exclusive| !exclusive.is_idle())
}

fn waits_no_more(instance: &Instance, queued: &QueuedCall) {
    if instance.exclusive.is_some() {
        instance.vat.objects.waits().remove(instance, queued);
    }
}

fn refuse(queued: QueuedCall) {
    queued.facet.refuse(queued.call, disconnected("the caller's connection is over"));
}

fn watch(instance: &Rc<Instance>, outlet: &Rc<Outlet>) {
    let (instance, weak) = (Rc::downgrade(instance), Rc::downgrade(outlet));
    outlet.when_free(move || {
        if let (Some(instance), Some(outlet)) = (instance.upgrade(), weak.upgrade()) {
            go_on(&instance, &outlet);
        }
    });
}
