//! Rest: an instance that nobody needs for a while is dropped. The object sleeps, its facets stay good,
//! and its next call wakes it.
//!
//! When too much is awake, those that were not used for the longest time rest earlier, and those that never
//! wrote before all others: what has no name in the storage costs nobody anything but its next waking.
//!
//! Invariant: an instance goes only if no call runs or waits in it, nothing waits in its gate, nobody holds
//! a capability that it made, and the vat alone holds its value. A reply that has left keeps nothing awake.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::instance::Instance;
use super::slot::Slot;
use super::vat::Vat;
use crate::error::Result;
use crate::membrane::Dispatch;

/// A warm time has so many ticks: the last call isn't remembered more exactly.
const TICKS: u32 = 4;

/// Objects that are looked at before other tasks of the thread get their turn again, and in search of room
/// for one more.
const LOOKS_IN_A_ROW: usize = 256;

/// The time for which objects stay awake.
#[derive(Default)]
pub(in crate::host) struct Warm {
    now: Cell<u32>,
}

impl Warm {
    pub(in crate::host) fn now(&self) -> u32 {
        self.now.get()
    }
}

impl Vat {
    /// An object falls asleep when it had no call for `warm`, or up to a quarter longer.
    pub(crate) fn rest_after(self: &Rc<Self>, warm: Duration) {
        let length = (warm / TICKS).max(Duration::from_millis(1));
        self.essential(tick(Rc::downgrade(self), length));
    }

    /// The instance has just woken.
    pub(in crate::host) fn keep_warm(&self, instance: &Rc<Instance>) {
        instance.was_used();
        self.awake.put(instance);
    }

    /// As if the object had had no call for long.
    #[cfg(test)]
    pub(in crate::host) fn rest_now(self: &Rc<Self>, id: crate::id::ObjectId) {
        let slot = self.slots.borrow().get(&id).cloned();
        if let Some(slot) = slot {
            self.busy(|| self.put_to_sleep(&slot));
        }
    }

    /// Looks at the next object whose time has come, if there is one.
    fn look_at_next(self: &Rc<Self>) -> bool {
        let now = self.warm.now();
        let is_due = |instance: &Instance| now.saturating_sub(instance.used.get()) > TICKS;
        let due = self.awake.take(is_due);
        due.inspect(|instance| self.let_rest(instance)).is_some()
    }

    /// Room for one more instance.
    ///
    /// # Errors
    /// `overloaded` when too much is awake, and none of those that were looked at can sleep.
    pub(in crate::host) fn make_room(self: &Rc<Self>) -> Result<()> {
        for _ in 0..LOOKS_IN_A_ROW {
            if !self.awake.is_full() {
                return Ok(());
            }
            let Some(instance) = self.awake.take(|_| true) else { break };
            self.let_rest(&instance);
        }
        if self.awake.is_full() { Err(self.awake.full()) } else { Ok(()) }
    }

    /// Puts the object to sleep, or back at the end of its row if somebody needs it.
    fn let_rest(self: &Rc<Self>, instance: &Rc<Instance>) {
        let slot = self.slots.borrow().get(&instance.birth.id).cloned();
        if let Some(slot) = slot
            && !self.busy(|| self.put_to_sleep(&slot))
        {
            self.keep_warm(instance);
        }
    }

    /// Drops the instance if nobody needs it. Whether the object sleeps.
    fn put_to_sleep(&self, slot: &Rc<Slot>) -> bool {
        let Some((instance, server)) = slot.awake() else { return true };
        if !is_at_rest(&instance, &*server) {
            return false;
        }
        drop(server);
        instance.end("fell asleep");
        slot.sleep();
        self.metrics.objects_awake.subtract(1);
        self.release(slot);
        true
    }
}

fn is_at_rest(instance: &Instance, server: &dyn Dispatch) -> bool {
    instance.running.borrow().is_empty()
        && instance.exclusive.as_ref().is_none_or(|calls| calls.is_idle())
        && instance.parked.is_empty()
        && instance.made.get() == 0
        && instance.gate.is_open()
        && server.holders() == 0
}

/// Ends with the vat.
async fn tick(vat: Weak<Vat>, length: Duration) {
    let mut ticks = tokio::time::interval(length);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(vat) = vat.upgrade() else { return };
        vat.warm.now.set(vat.warm.now() + 1);
        while (0..LOOKS_IN_A_ROW).all(|_| vat.look_at_next()) {
            tokio::task::yield_now().await;
        }
    }
}

/// Ends with the vat.
pub(in crate::host) async fn shrink(vat: Weak<Vat>, grown: Rc<Notify>) {
    loop {
        grown.notified().await;
        let Some(vat) = vat.upgrade() else { return };
        // What can't sleep now is looked at again when the next value grows.
        while vat.awake.is_over() && vat.make_room().is_ok() {
            tokio::task::yield_now().await;
        }
    }
}
