//! The ends of instances other than by rest: by a panic, by `abort`, by the operator's hand, or
//! with the vat. Each breaks all facets. WebSockets stay after the first two: they are the
//! object's, and messages that had not begun are the first of the next instance.
//!
//! Invariants:
//! - Turns that were submitted before the end are made durable, and their replies still leave.
//! - Writes of the unfinished turn, and what was sent after them, are dropped, but for the
//!   attachments of WebSockets.
//! - Everybody who waits for the instance is told.

use std::collections::VecDeque;
use std::rc::Rc;

use super::sockets;
use crate::error::not_begun;
use crate::host::state::facet::Behind;
use crate::host::state::instance::Instance;
use crate::host::state::queued_call::QueuedCall;
use crate::host::state::slot::Slot;
use crate::host::state::slot::end_error;
use crate::host::state::vat::Vat;
use crate::id::ObjectId;

/// Ends an instance that panicked or aborts, in its turn or outside.
pub(in crate::host) fn abort(instance: &Rc<Instance>, how: &str) {
    if instance.broken().is_some() {
        return;
    }
    let vat = &instance.vat;
    let is_discarded = vat.turns.discard_turn_of(instance.spec.id);
    instance.gate.discard_unsubmitted();
    if is_discarded {
        sockets::keep_attachments(instance);
    }
    let kept = instance.end(how);
    let Some(slot) = vat.objects.find(instance.spec.id) else { return };
    let is_awake = slot.awake().is_some_and(|(awake, _)| Rc::ptr_eq(&awake, instance));
    let is_waking = slot.end_waking(instance);
    if is_waking {
        slot.with_waiting(|waiting| did_not_wake(waiting));
    }
    if is_awake || is_waking {
        vacate(&slot, instance);
    }
    if !kept.is_empty() {
        vat.scheduler.queue_first(kept);
    }
    vat.objects.release(&slot);
}

/// Ends the instance of an object, if it has one, since the operator replaces what it stores.
pub(in crate::host) fn replace(vat: &Vat, id: ObjectId) {
    let Some(slot) = vat.objects.find(id) else { return };
    sockets::replaced(&slot);
    match slot.take_instance() {
        Some(instance) => {
            refuse(instance.end("was replaced"), &instance);
            vacate(&slot, &instance);
        }
        // A sleeping object's facets are of what it was.
        None => slot.break_facets(end_error(slot.spec.class.name, "was replaced")),
    }
    vat.objects.release(&slot);
}

/// Ends the instance in this slot, if there is one, since the vat closes.
pub(in crate::host) fn shut_down(slot: &Slot) {
    sockets::shut_down(slot);
    if let Some(instance) = slot.take_instance() {
        refuse(instance.end("was shut down"), &instance);
        drop(take_waiting(slot, &instance));
        slot.break_facets(instance.why_ended());
    }
}

/// Nobody reaches the instance any more, and those who wait for it to wake are told.
fn vacate(slot: &Rc<Slot>, instance: &Instance) {
    if slot.awake().is_some() {
        instance.vat.metrics.objects_awake.subtract(1);
    }
    let waiting = take_waiting(slot, instance);
    // Also those that were made while it slept, or wakes.
    slot.break_facets(instance.why_ended());
    refuse(waiting, instance);
}

/// Tells the callers that their calls didn't happen.
fn refuse(calls: VecDeque<QueuedCall>, instance: &Instance) {
    for queued in calls {
        queued.refuse(not_begun(instance.why_ended()));
    }
}

/// It is the object's own fault that these calls don't begin.
pub(super) fn did_not_wake(waiting: &VecDeque<QueuedCall>) {
    for queued in waiting {
        if let Behind::Alarm(firing) = &queued.facet.behind {
            firing.is_tried.set(true);
        }
    }
}

/// The instance ended, or could not wake: gives back the calls that waited for it.
pub(super) fn take_waiting(slot: &Slot, instance: &Instance) -> VecDeque<QueuedCall> {
    let waiting = slot.vacate();
    end_waits(&waiting, instance);
    waiting
}

/// These calls don't wait for `wake` any more.
pub(super) fn end_waits(waiting: &VecDeque<QueuedCall>, instance: &Instance) {
    instance.waking.set(None);
    for queued in waiting {
        instance.vat.objects.waits().remove(instance, queued);
    }
}
