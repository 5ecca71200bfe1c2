//! The ends of instances: by a panic, by `abort`, or by the operator's hand. Each breaks all
//! facets.
//!
//! Invariants:
//! - Turns that were submitted before the end are made durable, and their replies still leave.
//! - Writes of the unfinished turn, and what was sent after them, are dropped.
//! - Everybody who waits for the instance is told.

use std::rc::Rc;

use super::instance::{Instance, ended};
use super::slot::{Slot, Start};
use super::vat::Vat;
use crate::error::not_begun;
use crate::id::ObjectId;

impl Vat {
    /// A panic or an abort, in a turn of the instance or outside.
    pub(in crate::host) fn break_off(&self, instance: &Rc<Instance>, how: &str) {
        if instance.broken().is_some() {
            return;
        }
        let in_its_turn = self.store.borrow().turn_object() == Some(instance.birth.id);
        if in_its_turn {
            self.store.borrow_mut().discard();
        }
        instance.gate.discard_unsealed();
        instance.end(how);
        let Some(slot) = self.slots.borrow().get(&instance.birth.id).cloned() else { return };
        let is_awake = slot.awake().is_some_and(|(awake, _)| Rc::ptr_eq(&awake, instance));
        let is_waking = slot.ends_waking(instance);
        if is_awake || is_waking {
            self.end_of(&slot, instance);
        }
        self.release(&slot);
    }

    /// The operator replaces what the object stores: its instance, if it has one, must not go on.
    pub(in crate::host) fn replace(self: &Rc<Self>, id: ObjectId) {
        let Some(slot) = self.slots.borrow().get(&id).cloned() else { return };
        let instance = match slot.awake() {
            Some((instance, _)) => Some(instance),
            None => slot.waking.take(),
        };
        match instance {
            Some(instance) => {
                instance.end("was replaced");
                self.end_of(&slot, &instance);
            }
            // A sleeping object's facets are of what it was.
            None => slot.break_facets(ended(slot.birth.class.name, "was replaced")),
        }
        self.release(&slot);
    }

    /// Nobody reaches the instance any more, and those who wait for it to wake are told.
    fn end_of(&self, slot: &Rc<Slot>, instance: &Instance) {
        if slot.awake().is_some() {
            self.metrics.objects_awake.subtract(1);
        }
        let waiting = self.end_slot(slot, instance);
        // Also those that were made while it slept, or wakes.
        slot.break_facets(instance.ended());
        for Start { call, under_way, .. } in waiting {
            call.reply.keep(under_way);
            call.reply.send(Err(not_begun(instance.ended())));
        }
    }
}
