//! Which objects are awake, and which of them were not used for the longest time.
//!
//! Invariants:
//! - The place of an instance in a row is the number of one of its uses, of an earlier one than its last
//!   perhaps: that is looked at when its turn comes. So a use costs no search.
//! - An instance counts from its beginning until the memory that it takes is free again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use super::instance::Instance;
use crate::error::Reason;
use crate::limits::{AWAKE_BYTES_MAX, AWAKE_OBJECTS_MAX, INSTANCE_BYTES};

/// The bounds of one host's awake objects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AwakeLimits {
    pub(crate) objects: usize,
    /// The bytes of values in memory, and [`INSTANCE_BYTES`] for each instance.
    pub(crate) bytes: usize,
}

impl AwakeLimits {
    /// No limit.
    pub(crate) const NONE: Self = Self { objects: usize::MAX, bytes: usize::MAX };

    /// The part of one of so many hosts.
    pub(crate) fn share(self, hosts: u16) -> Self {
        let share = |whole: usize| whole / usize::from(hosts).max(1);
        Self { objects: share(self.objects), bytes: share(self.bytes) }
    }
}

impl Default for AwakeLimits {
    fn default() -> Self {
        Self { objects: AWAKE_OBJECTS_MAX, bytes: AWAKE_BYTES_MAX }
    }
}

/// By use.
type Row = BTreeMap<u64, Weak<Instance>>;

/// See the head of the file.
pub(in crate::host) struct Awake {
    limits: Cell<AwakeLimits>,
    /// Those that had never written when they were put here.
    blank: RefCell<Row>,
    others: RefCell<Row>,
    uses: Cell<u64>,
    instances: Cell<usize>,
    /// The bytes of their values.
    bytes: Cell<usize>,
}

impl Awake {
    pub(in crate::host) fn new(limits: AwakeLimits) -> Self {
        Self {
            limits: Cell::new(limits),
            blank: RefCell::default(),
            others: RefCell::default(),
            uses: Cell::default(),
            instances: Cell::default(),
            bytes: Cell::default(),
        }
    }

    #[cfg(test)]
    pub(in crate::host) fn limit(&self, limits: AwakeLimits) {
        self.limits.set(limits);
    }

    /// The number of a use.
    pub(in crate::host) fn use_number(&self) -> u64 {
        self.uses.set(self.uses.get() + 1);
        self.uses.get()
    }

    /// An instance begins.
    pub(in crate::host) fn begins(&self) {
        self.instances.set(self.instances.get() + 1);
    }

    /// An instance is no more that took so many bytes.
    pub(in crate::host) fn ends(&self, bytes: usize) {
        self.instances.set(self.instances.get() - 1);
        self.takes(bytes, 0);
    }

    /// The values of an instance take so many bytes now.
    pub(in crate::host) fn takes(&self, before: usize, now: usize) {
        self.bytes.set(self.bytes.get() - before + now);
    }

    fn bytes(&self) -> usize {
        self.bytes.get().saturating_add(self.instances.get().saturating_mul(INSTANCE_BYTES))
    }

    /// There is no room for one more.
    pub(in crate::host) fn is_full(&self) -> bool {
        self.instances.get() >= self.limits.get().objects || self.is_over()
    }

    /// The awake objects take more than they may.
    pub(in crate::host) fn is_over(&self) -> bool {
        self.bytes() > self.limits.get().bytes
    }

    /// Why nothing more wakes.
    pub(in crate::host) fn full(&self) -> capnp::Error {
        let (instances, bytes) = (self.instances.get(), self.bytes() >> 20);
        Reason::Overloaded.error(format_args!(
            "{instances} objects are awake and take {bytes} MiB, and none of those that \
             were looked at can sleep: try again soon; --awake-objects and --awake-bytes say how many \
             may be"
        ))
    }

    /// The instance has a place from now on.
    pub(in crate::host) fn put(&self, instance: &Rc<Instance>) {
        let row = if instance.exists() { &self.others } else { &self.blank };
        row.borrow_mut().insert(instance.last_use.get(), Rc::downgrade(instance));
    }

    /// Takes the instance out that was not used for the longest time, if `is_wanted` says so of it: first
    /// of those that never wrote, then of all others.
    pub(in crate::host) fn take(
        &self,
        is_wanted: impl Fn(&Instance) -> bool,
    ) -> Option<Rc<Instance>> {
        let blank = self.take_from(&self.blank, Instance::exists, &is_wanted);
        blank.or_else(|| self.take_from(&self.others, |_| false, is_wanted))
    }

    fn take_from(
        &self,
        row: &RefCell<Row>,
        is_elsewhere: impl Fn(&Instance) -> bool,
        is_wanted: impl Fn(&Instance) -> bool,
    ) -> Option<Rc<Instance>> {
        loop {
            let (number, place) = row.borrow_mut().pop_first()?;
            // One that has ended since doesn't come back.
            let Some(instance) = place.upgrade().filter(|instance| instance.broken().is_none())
            else {
                continue;
            };
            if instance.last_use.get() > number || is_elsewhere(&instance) {
                self.put(&instance);
            } else if is_wanted(&instance) {
                return Some(instance);
            } else {
                self.put(&instance);
                return None;
            }
        }
    }
}
