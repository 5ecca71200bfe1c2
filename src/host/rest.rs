//! Rest: an instance that nobody needs for a while is dropped. The object sleeps, its facets stay good,
//! and its next call wakes it.
//!
//! Invariants:
//! - It goes only if no call runs or waits in it, nothing waits in its gate, nobody holds a capability
//!   that it made, and the vat alone holds its value. A reply that has left keeps nothing awake.
//! - An instance stands in the row once, from its waking on, and the row is nearly in the order of time.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::instance::Instance;
use super::slot::Slot;
use super::vat::Vat;
use crate::membrane::Dispatch;

/// A warm time has so many ticks: the last call isn't remembered more exactly.
const TICKS: u32 = 4;

/// Objects that are looked at before other tasks of the thread get their turn again.
const LOOKS_IN_A_ROW: usize = 256;

/// Which objects are awake, by the time at which to look at each of them again.
#[derive(Default)]
pub(super) struct Warm {
    now: Cell<u32>,
    row: RefCell<VecDeque<(u32, Weak<Instance>)>>,
    keeps: Cell<bool>,
}

impl Warm {
    pub(super) fn now(&self) -> u32 {
        self.now.get()
    }
}

impl Vat {
    /// An object that wakes from now on falls asleep when it had no call for `warm`, or up to a quarter longer.
    pub(crate) fn rest_after(self: &Rc<Self>, warm: Duration) {
        self.warm.keeps.set(true);
        let length = (warm / TICKS).max(Duration::from_millis(1));
        self.essential(tick(Rc::downgrade(self), length));
    }

    /// The instance has just woken.
    pub(super) fn keep_warm(&self, instance: &Rc<Instance>) {
        instance.was_used();
        if self.warm.keeps.get() {
            let place = (self.warm.now() + TICKS, Rc::downgrade(instance));
            self.warm.row.borrow_mut().push_back(place);
        }
    }

    /// As if the object had had no call for long.
    #[cfg(test)]
    pub(super) fn rest_now(self: &Rc<Self>, id: crate::id::ObjectId) {
        self.warm.now.set(self.warm.now() + 1);
        let slot = self.slots.borrow().get(&id).cloned();
        if let Some(slot) = slot {
            self.busy(|| self.put_to_sleep(&slot, 0));
        }
    }

    /// Looks at the next object whose time has come, if there is one.
    fn look_at_next(self: &Rc<Self>) -> bool {
        let now = self.warm.now();
        let next = self.warm.row.borrow_mut().pop_front_if(|(at, _)| *at < now);
        let Some((_, place)) = next else { return false };
        // One that has ended since doesn't come back.
        let Some(instance) = place.upgrade().filter(|instance| instance.broken().is_none()) else {
            return true;
        };
        let slot = self.slots.borrow().get(&instance.birth.id).cloned();
        if let Some(slot) = slot
            && !self.busy(|| self.put_to_sleep(&slot, TICKS))
        {
            let again = instance.used.get() + TICKS;
            // Somebody needs one that had no call: it has another warm time.
            let again = if again < now { now + TICKS } else { again };
            self.warm.row.borrow_mut().push_back((again, place));
        }
        true
    }

    /// Drops the instance if it had no call for more than `ticks`, and nobody needs it. Whether the
    /// object sleeps.
    pub(super) fn put_to_sleep(&self, slot: &Rc<Slot>, ticks: u32) -> bool {
        let Some((instance, server)) = slot.awake() else { return true };
        let rested = self.warm.now().saturating_sub(instance.used.get()) > ticks;
        if !rested || !is_at_rest(&instance, &*server) {
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
