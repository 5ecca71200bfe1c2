//! The awake objects of a vat, by their last use, and the bounds of their number and memory.
//!
//! Instances that were not used for the longest time rest first. A use must cost next to nothing,
//! as every call is one: it notes a number, and moves nothing.
//!
//! Invariants:
//! - The place of an instance in a row is the number of one of its uses, perhaps not of its last
//!   one. When its turn comes it moves to the place of that.
//! - An instance counts from its beginning until the memory that it takes is free again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use tokio::sync::Notify;

use super::instance::Instance;
use super::keeping::AllKeepers;
use crate::error::{Reason, Result};
use crate::limits::{AWAKE_BYTES_MAX, AWAKE_OBJECTS_MAX, INSTANCE_BYTES, SHARES_OF_AWAKE};
use crate::membrane::Keeper;

/// A warm time has so many ticks: the last call isn't remembered more exactly.
pub(in crate::host) const TICKS: u32 = 4;

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

/// Instances by the number of a use.
type UseOrder = BTreeMap<u64, Weak<Instance>>;

/// See the head of the file.
pub(in crate::host) struct Awake {
    limits: Cell<AwakeLimits>,
    /// Objects that had never written when they were put here.
    blank: RefCell<UseOrder>,
    others: RefCell<UseOrder>,
    uses: Cell<u64>,
    instances: Cell<usize>,
    /// The bytes of their values, and of the open WebSockets of all objects.
    bytes: Cell<usize>,
    /// Those of the sockets.
    sockets: Cell<usize>,
    /// The present time in ticks.
    now: Cell<u32>,
    /// Wakes the task that puts objects to sleep when those that are awake have grown too much.
    grown: Rc<Notify>,
    keepers: AllKeepers,
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
            sockets: Cell::default(),
            now: Cell::default(),
            grown: Rc::default(),
            keepers: AllKeepers::default(),
        }
    }

    /// The present time in ticks, of which a warm time has [`TICKS`].
    pub(in crate::host) fn now(&self) -> u32 {
        self.now.get()
    }

    /// A tick has passed.
    pub(in crate::host) fn tick(&self) {
        self.now.set(self.now.get() + 1);
    }

    /// Tells the task that puts objects to sleep when those that are awake have grown too much.
    pub(in crate::host) fn grown(&self) -> Rc<Notify> {
        self.grown.clone()
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

    /// Another instance begins.
    pub(in crate::host) fn add(&self) {
        self.instances.set(self.instances.get() + 1);
    }

    /// An instance whose values took so many bytes is no more.
    pub(in crate::host) fn remove(&self, bytes: usize) {
        self.instances.set(self.instances.get() - 1);
        self.bytes.set(self.bytes.get() - bytes);
    }

    /// The values of an instance have another size.
    pub(in crate::host) fn resize(&self, before: usize, now: usize) {
        self.bytes.set(self.bytes.get() - before + now);
        if now > before && self.is_over() {
            self.grown.notify_one();
        }
    }

    fn bytes(&self) -> usize {
        self.bytes.get().saturating_add(self.instances.get().saturating_mul(INSTANCE_BYTES))
    }

    /// There is no room for one more.
    pub(in crate::host) fn is_full(&self) -> bool {
        self.instances.get() >= self.limits.get().objects || self.is_over()
    }

    /// The keepers of objects that stay awake.
    pub(in crate::host) fn keepers(&self) -> &AllKeepers {
        &self.keepers
    }

    /// Tells whether one more object may stay awake for this keeper.
    pub(in crate::host) fn has_room_for(&self, keeper: &Keeper) -> bool {
        let AwakeLimits { objects, bytes } = self.limits.get();
        keeper.objects() < (objects / SHARES_OF_AWAKE).max(1)
            && keeper.bytes() < (bytes / SHARES_OF_AWAKE).max(1)
    }

    /// The awake objects take more than they may.
    pub(in crate::host) fn is_over(&self) -> bool {
        self.bytes() > self.limits.get().bytes
    }

    /// The open WebSockets of an object have another size.
    pub(in crate::host) fn resize_sockets(&self, before: usize, now: usize) {
        self.sockets.set(self.sockets.get() - before + now);
        self.resize(before, now);
    }

    /// # Errors
    /// When open sockets take half of what awake objects may: no object sleeps to make room for
    /// them, so the other half is for the objects.
    pub(in crate::host) fn check_room_for_socket(&self) -> Result<()> {
        let bytes = self.sockets.get();
        if bytes < self.limits.get().bytes / 2 {
            return Ok(());
        }
        Err(Reason::Overloaded.error(format_args!(
            "open WebSockets take {} MiB: try again when some have closed; they may take half of \
             --awake-bytes",
            bytes >> 20
        )))
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

    /// The instance is in use: its warm time begins again.
    pub(in crate::host) fn keep_warm(&self, instance: &Rc<Instance>) {
        instance.was_used();
        self.put(instance);
    }

    /// The instance has a place from now on.
    fn put(&self, instance: &Rc<Instance>) {
        let row = if instance.exists() { &self.others } else { &self.blank };
        row.borrow_mut().insert(instance.last_use.get(), Rc::downgrade(instance));
    }

    /// Takes out the instance that was not used for the longest time: first of those that never
    /// wrote, then of all others.
    pub(in crate::host) fn take_least_used(&self) -> Option<Rc<Instance>> {
        self.take(|_| true)
    }

    /// The same, if its warm time is over.
    pub(in crate::host) fn take_due(&self) -> Option<Rc<Instance>> {
        let now = self.now.get();
        self.take(|instance| now.saturating_sub(instance.used.get()) > TICKS)
    }

    fn take(&self, is_wanted: impl Fn(&Instance) -> bool) -> Option<Rc<Instance>> {
        let blank = self.take_from(&self.blank, Instance::exists, &is_wanted);
        blank.or_else(|| self.take_from(&self.others, |_| false, is_wanted))
    }

    fn take_from(
        &self,
        row: &RefCell<UseOrder>,
        is_elsewhere: impl Fn(&Instance) -> bool,
        is_wanted: impl Fn(&Instance) -> bool,
    ) -> Option<Rc<Instance>> {
        loop {
            let (number, place) = row.borrow_mut().pop_first()?;
            // An instance that has ended since doesn't come back.
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

impl Drop for Awake {
    /// Lets the task that puts objects to sleep end.
    fn drop(&mut self) {
        self.grown.notify_one();
    }
}
