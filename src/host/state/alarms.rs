//! The alarms of a vat that are being fired, and those that come next.
//!
//! All others are in the storage alone, in the order of their times. So a host with a hundred
//! thousand alarms holds no more in memory than one with a hundred.
//!
//! **Invariant:** one alarm is fired once at a time, however often it is set meanwhile.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::id::ObjectId;
use crate::limits::{ALARM_SLOW, ALARMS_AT_ONCE};
use crate::storage::Due;

/// One alarm that is being fired.
pub(in crate::host) struct Firing {
    pub(in crate::host) object: ObjectId,
    pub(in crate::host) name: Box<str>,
    /// The setting of the alarm that is fired.
    pub(in crate::host) serial: u64,
    began: Instant,
    /// The class's method has begun.
    pub(in crate::host) has_begun: Cell<bool>,
    /// The turn that ended the method has written what becomes of the alarm.
    pub(in crate::host) is_settled: Cell<bool>,
}

/// See the head of the file.
pub(in crate::host) struct AlarmClock {
    firing: RefCell<HashMap<ObjectId, Vec<Rc<Firing>>>>,
    under_way: Cell<usize>,
    /// Due ones that were read and not fired yet.
    ready: RefCell<VecDeque<Due>>,
    /// The time of the next one in the storage that was looked for; the greatest if there is none.
    next_ms: Cell<u64>,
    /// Wakes the task that fires alarms.
    changed: Rc<Notify>,
    serial: Cell<u64>,
}

impl AlarmClock {
    pub(in crate::host) fn new() -> Self {
        // Random, so that no two settings have the same serial, those of other processes included.
        let first_serial = RandomState::new().hash_one(0);
        Self {
            firing: RefCell::default(),
            under_way: Cell::default(),
            ready: RefCell::default(),
            next_ms: Cell::new(u64::MAX),
            changed: Rc::default(),
            serial: Cell::new(first_serial),
        }
    }

    pub(in crate::host) fn next_serial(&self) -> u64 {
        self.serial.set(self.serial.get().wrapping_add(1));
        self.serial.get()
    }

    /// Notified when there may be something to fire; the task that does it awaits it.
    pub(in crate::host) fn changed(&self) -> Rc<Notify> {
        self.changed.clone()
    }

    /// The storage was looked at, and this is the time of the next alarm.
    pub(in crate::host) fn looked(&self, next_ms: Option<u64>) {
        self.next_ms.set(next_ms.unwrap_or(u64::MAX));
    }

    /// An alarm was set for this time.
    pub(in crate::host) fn was_set(&self, at_ms: u64) {
        if at_ms < self.next_ms.get() {
            self.changed.notify_one();
        }
    }

    /// Alarms that wait to be fired.
    pub(in crate::host) fn ready(&self) -> &RefCell<VecDeque<Due>> {
        &self.ready
    }

    pub(in crate::host) fn is_firing(&self, object: ObjectId, name: &str) -> bool {
        let firing = self.firing.borrow();
        firing.get(&object).is_some_and(|all| all.iter().any(|firing| *firing.name == *name))
    }

    /// Tells whether another alarm may be fired: those that are slow don't count.
    pub(in crate::host) fn has_room(&self) -> bool {
        if self.under_way.get() < ALARMS_AT_ONCE {
            return true;
        }
        let firing = self.firing.borrow();
        let is_slow = |firing: &&Rc<Firing>| firing.began.elapsed() >= ALARM_SLOW;
        let slow = firing.values().flatten().filter(is_slow).count();
        self.under_way.get() - slow < ALARMS_AT_ONCE
    }

    /// An alarm is fired from now on.
    pub(in crate::host) fn begin(&self, due: &Due, serial: u64) -> Rc<Firing> {
        let firing = Rc::new(Firing {
            object: due.object,
            name: due.name.clone(),
            serial,
            began: Instant::now(),
            has_begun: Cell::default(),
            is_settled: Cell::default(),
        });
        self.firing.borrow_mut().entry(due.object).or_default().push(firing.clone());
        self.under_way.set(self.under_way.get() + 1);
        firing
    }

    /// The firing has ended. If the alarm was set again meanwhile it may be due again.
    pub(in crate::host) fn end(&self, ended: &Rc<Firing>) {
        let mut firing = self.firing.borrow_mut();
        if let Some(all) = firing.get_mut(&ended.object) {
            all.retain(|firing| !Rc::ptr_eq(firing, ended));
            if all.is_empty() {
                firing.remove(&ended.object);
            }
        }
        self.under_way.set(self.under_way.get() - 1);
        self.changed.notify_one();
    }

    #[cfg(test)]
    pub(in crate::host) fn under_way(&self) -> usize {
        self.under_way.get()
    }
}

impl Drop for AlarmClock {
    /// Lets the task that fires alarms end.
    fn drop(&mut self) {
        self.changed.notify_one();
    }
}
