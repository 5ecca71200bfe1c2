//! The beginning of a call: it is refused, it runs, or its object is woken first.

use std::rc::Rc;

use super::{run, waking};
use crate::host::state::queued_call::QueuedCall;
use crate::host::state::slot::Slot;
use crate::host::state::vat::Vat;
use crate::host::state::{exclusive, keeping, parked};

/// Begins a call whose turn to start has come.
pub(super) fn begin(vat: &Rc<Vat>, queued: QueuedCall) {
    let slot = queued.facet.slot.clone();
    let returned = queued.returned();
    begin_in(vat, &slot, queued);
    parked::after_returned(&slot, returned);
    // The call may have been the last holder of the slot, and the object asleep by now.
    vat.objects.release(&slot);
}

fn begin_in(vat: &Rc<Vat>, slot: &Rc<Slot>, queued: QueuedCall) {
    if let Some(error) = queued.facet.broken() {
        return queued.facet.refuse(queued.call, error);
    }
    if let Err(error) = keeping::check(vat, slot, &queued) {
        return queued.facet.refuse(queued.call, error);
    }
    if let Some((instance, server)) = slot.awake() {
        if let Some(queued) = exclusive::enter(&instance, queued) {
            run::first_poll(&instance, &*server, queued);
        }
        return;
    }
    if slot.is_waking() {
        return waking::wait(vat, slot, queued);
    }
    slot.begin_waking(queued);
    waking::wake(vat, slot);
}
