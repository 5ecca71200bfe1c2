//! Rest: an instance that nobody needs for a while is dropped. The object sleeps, its facets stay
//! good, and its next call wakes it.
//!
//! When too much is awake, those that were not used for the longest time rest earlier, and those
//! that never wrote before all others: an object that isn't in the storage yet loses nothing by it.
//!
//! Open WebSockets keep nothing awake: they stay with the slot.
//!
//! Invariant: an instance goes only if no call runs or waits in it, nothing waits in its gate,
//! nobody holds a capability that it made, and the vat alone holds its value. A reply that has left
//! keeps nothing awake. [`keeping`](crate::host::state::keeping) bounds what those who call keep.

use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use crate::error::Result;
use crate::host::state::awake::TICKS;
use crate::host::state::instance::Instance;
use crate::host::state::slot::Slot;
use crate::host::state::vat::Vat;
use crate::membrane::Dispatch;

/// Objects that are looked at before other tasks of the thread get their turn again, and in search
/// of room for one more.
const LOOKS_IN_A_ROW: usize = 256;

/// Lets objects fall asleep that had no call for `warm`, or up to a quarter longer.
pub(in crate::host) fn rest_after(vat: &Rc<Vat>, warm: Duration) {
    let length = (warm / TICKS).max(Duration::from_millis(1));
    vat.fault.watch(tick(Rc::downgrade(vat), length));
}

/// Puts the object to sleep, as if it had had no call for long.
#[cfg(test)]
pub(in crate::host) fn rest_now(vat: &Rc<Vat>, id: crate::id::ObjectId) {
    if let Some(slot) = vat.objects.find(id) {
        vat.busy(|| put_to_sleep(vat, &slot));
    }
}

/// Looks at the next object whose time has come. False if there is none.
fn look_at_next(vat: &Rc<Vat>) -> bool {
    let due = vat.objects.awake().take_due();
    due.inspect(|instance| let_rest(vat, instance)).is_some()
}

/// Room for one more instance.
///
/// # Errors
/// `overloaded` when too much is awake, and none of those that were looked at can sleep.
pub(in crate::host) fn make_room(vat: &Rc<Vat>) -> Result<()> {
    let awake = vat.objects.awake();
    let mut looks = 0;
    while looks < LOOKS_IN_A_ROW {
        if !awake.is_full() {
            return Ok(());
        }
        let Some(instance) = awake.take_least_used() else { break };
        // One that is kept comes back only when it is kept no more.
        looks += usize::from(!instance.keepers.is_kept());
        let_rest(vat, &instance);
    }
    if awake.is_full() { Err(awake.full()) } else { Ok(()) }
}

/// Puts the object to sleep, or back at the end of its row: at once, or when it is kept no more.
fn let_rest(vat: &Rc<Vat>, instance: &Rc<Instance>) {
    if let Some(slot) = vat.objects.find(instance.spec.id)
        && !vat.busy(|| put_to_sleep(vat, &slot))
        && !instance.keepers.stay_out_of_row()
    {
        vat.objects.awake().keep_warm(instance);
    }
}

/// Drops the instance if nobody needs it. True if the object sleeps.
fn put_to_sleep(vat: &Vat, slot: &Rc<Slot>) -> bool {
    let Some((instance, server)) = slot.awake() else { return true };
    if !is_at_rest(&instance, &*server) {
        return false;
    }
    drop(server);
    drop(instance.end("fell asleep"));
    slot.sleep();
    vat.metrics.objects_awake.subtract(1);
    vat.objects.release(slot);
    true
}

fn is_at_rest(instance: &Instance, server: &dyn Dispatch) -> bool {
    !instance.has_pending()
        && instance.exclusive.as_ref().is_none_or(|calls| calls.is_idle())
        && instance.parked.is_empty()
        && !instance.keepers.is_kept()
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
        vat.objects.awake().tick();
        while (0..LOOKS_IN_A_ROW).all(|_| look_at_next(&vat)) {
            tokio::task::yield_now().await;
        }
    }
}

/// Puts objects to sleep whenever the awake ones have grown too much. Ends with the vat.
pub(in crate::host) async fn shrink(vat: Weak<Vat>, grown: Rc<Notify>) {
    loop {
        grown.notified().await;
        let Some(vat) = vat.upgrade() else { return };
        // Objects that can't sleep now are looked at again when the next value grows.
        while vat.objects.awake().is_over() && make_room(&vat).is_ok() {
            tokio::task::yield_now().await;
        }
    }
}
