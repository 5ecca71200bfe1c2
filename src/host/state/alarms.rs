//! The alarms of a vat that are being fired, and those that come next.
//!
//! All others are in the storage alone, in the order of their times. So a host with a hundred
//! thousand alarms holds no more in memory than one with a hundred.
//!
//! Some are passed over without a write: those of objects whose class this server doesn't have,
//! until the next start, and those whose records can't be read for some minutes.
//!
//! **Invariant:** one alarm is fired once at a time, however often it is set meanwhile.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::id::ObjectId;
use crate::limits::{ALARM_ASIDE, ALARMS_AT_ONCE, ALARMS_SLOW_MAX};
use crate::storage::Due;

/// One alarm that is being fired.
pub(in crate::host) struct Firing {
    pub(in crate::host) object: ObjectId,
    pub(in crate::host) name: Box<str>,
    /// The setting of the alarm that is fired.
    pub(in crate::host) setting: u64,
    is_slow: Cell<bool>,
    /// The class's method has begun, or the object failed to wake: an error is the alarm's own.
    pub(in crate::host) is_tried: Cell<bool>,
    /// The turn that ended the method has written what becomes of the alarm, or its object was
    /// replaced.
    pub(in crate::host) is_settled: Cell<bool>,
}

/// See the head of the file.
pub(in crate::host) struct AlarmClock {
    firing: RefCell<HashMap<ObjectId, Vec<Rc<Firing>>>>,
    under_way: Cell<usize>,
    /// Those among them that are slow.
    slow: Cell<usize>,
    /// Due ones that were read and not fired yet.
    ready: RefCell<VecDeque<Due>>,
    /// The time of the next one in the storage that was looked for; the greatest if there is none.
    next_ms: Cell<u64>,
    /// No alarm is due before this time but those of objects without a class.
    first_ms: Cell<u64>,
    /// Objects whose class this server doesn't have, and these classes.
    classless: RefCell<HashSet<ObjectId>>,
    missing: RefCell<HashSet<Box<str>>>,
    /// Alarms that can't be read, and since when.
    aside: RefCell<HashMap<ObjectId, HashMap<Box<str>, Instant>>>,
    waits_for_disk: Cell<bool>,
    /// Wakes the task that fires alarms.
    changed: Rc<Notify>,
    /// The number of the last setting.
    setting: Cell<u64>,
}

impl AlarmClock {
    pub(in crate::host) fn new() -> Self {
        // Random, so that no two settings have the same number, those of other processes included.
        let first_setting = RandomState::new().hash_one(0);
        Self {
            firing: RefCell::default(),
            under_way: Cell::default(),
            slow: Cell::default(),
            ready: RefCell::default(),
            next_ms: Cell::new(u64::MAX),
            first_ms: Cell::default(),
            classless: RefCell::default(),
            missing: RefCell::default(),
            aside: RefCell::default(),
            waits_for_disk: Cell::default(),
            changed: Rc::default(),
            setting: Cell::new(first_setting),
        }
    }

    pub(in crate::host) fn next_setting(&self) -> u64 {
        self.setting.set(self.setting.get().wrapping_add(1));
        self.setting.get()
    }

    /// Notified when there may be something to fire; the task that does it awaits it.
    pub(in crate::host) fn changed(&self) -> Rc<Notify> {
        self.changed.clone()
    }

    /// The storage was looked at. These are the times of the first alarm that can be fired, and of
    /// the next one that is due later.
    pub(in crate::host) fn looked(&self, first_ms: u64, next_ms: Option<u64>) {
        self.first_ms.set(first_ms);
        self.next_ms.set(next_ms.unwrap_or(u64::MAX));
    }

    /// The time from which alarms have to be looked for.
    pub(in crate::host) fn first_ms(&self) -> u64 {
        self.first_ms.get()
    }

    /// An alarm is due at this time from now on.
    pub(in crate::host) fn was_set(&self, at_ms: u64) {
        self.first_ms.set(self.first_ms.get().min(at_ms));
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

    /// The alarms of an object that are being fired.
    pub(in crate::host) fn under_way_of(&self, object: ObjectId) -> usize {
        self.firing.borrow().get(&object).map_or(0, Vec::len)
    }

    /// Tells whether another alarm may be fired: slow ones don't count until they are many.
    pub(in crate::host) fn has_room(&self) -> bool {
        let slow = self.slow.get();
        self.under_way.get() - slow < ALARMS_AT_ONCE && slow < ALARMS_SLOW_MAX
    }

    /// The firing takes long.
    pub(in crate::host) fn turned_slow(&self, firing: &Firing) {
        if !firing.is_slow.replace(true) {
            self.slow.set(self.slow.get() + 1);
            self.changed.notify_one();
        }
    }

    /// Nothing is fired until more is durable.
    pub(in crate::host) fn wait_for_disk(&self) {
        self.waits_for_disk.set(true);
    }

    /// More is durable.
    pub(in crate::host) fn go_on(&self) {
        if self.waits_for_disk.take() {
            self.changed.notify_one();
        }
    }

    /// The object's class isn't here: its alarms wait until the next start. True for the first
    /// object of the class.
    pub(in crate::host) fn has_no_class(&self, object: ObjectId, class: &str) -> bool {
        self.classless.borrow_mut().insert(object);
        self.missing.borrow_mut().insert(class.into())
    }

    pub(in crate::host) fn is_classless(&self, object: ObjectId) -> bool {
        self.classless.borrow().contains(&object)
    }

    /// The alarm can't be read: it is left alone for some time.
    pub(in crate::host) fn put_aside(&self, due: &Due) {
        let mut aside = self.aside.borrow_mut();
        aside.entry(due.object).or_default().insert(due.name.clone(), Instant::now());
    }

    pub(in crate::host) fn is_aside(&self, due: &Due) -> bool {
        self.aside.borrow().get(&due.object).is_some_and(|names| names.contains_key(&due.name))
    }

    /// Forgets those that were aside for long enough. Tells whether any are left.
    pub(in crate::host) fn forget_old_aside(&self) -> bool {
        let mut aside = self.aside.borrow_mut();
        aside.retain(|_, names| {
            names.retain(|_, since| since.elapsed() < ALARM_ASIDE);
            !names.is_empty()
        });
        !aside.is_empty()
    }

    /// The object and its alarms are replaced: what becomes of those under way changes nothing.
    pub(in crate::host) fn replace(&self, object: ObjectId) {
        for firing in self.firing.borrow().get(&object).into_iter().flatten() {
            firing.is_settled.set(true);
        }
    }

    /// Alarms were imported, with times that may have passed.
    pub(in crate::host) fn imported(&self, object: ObjectId) {
        self.classless.borrow_mut().remove(&object);
        self.aside.borrow_mut().remove(&object);
        self.was_set(0);
    }

    /// An alarm is fired from now on.
    pub(in crate::host) fn begin(&self, due: &Due, setting: u64) -> Rc<Firing> {
        let firing = Rc::new(Firing {
            object: due.object,
            name: due.name.clone(),
            setting,
            is_slow: Cell::default(),
            is_tried: Cell::default(),
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
        if ended.is_slow.get() {
            self.slow.set(self.slow.get() - 1);
        }
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
