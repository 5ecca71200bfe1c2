//! The capability to an object that others hold, and to what the object made itself.

use std::rc::Rc;

use capnp::private::capability::ClientHook;
use capnp::traits::HasTypeId;

use super::once::{self, RequestId};
use super::slot::{Slot, Start};
use super::vat::Vat;
use crate::error::disconnected;
use crate::membrane::{self, Call, Target};
use crate::schema::facet_capnp::facet;

/// What a peer, another object or the gateway holds. Dropping the last one lets a sleeping object's
/// place go.
pub(super) struct Facet {
    pub(super) vat: Rc<Vat>,
    pub(super) slot: Rc<Slot>,
    /// A capability that the class made itself: calls on it are turns of the object.
    pub(super) made: Option<Box<dyn ClientHook>>,
    /// The calls made on it are one call that is applied once.
    pub(super) request: Option<RequestId>,
    generation: u32,
}

impl Facet {
    /// The object itself.
    pub(super) fn object(vat: &Rc<Vat>, slot: Rc<Slot>) -> Box<dyn ClientHook> {
        Self::wrap(vat, slot, None, None)
    }

    /// Something that the instance now awake made, such as a callback or a session.
    pub(super) fn made(
        vat: &Rc<Vat>,
        slot: Rc<Slot>,
        made: Box<dyn ClientHook>,
    ) -> Box<dyn ClientHook> {
        Self::wrap(vat, slot, Some(made), None)
    }

    /// The same object, for one call that is applied once; none of what the instance made.
    pub(super) fn with_request(&self, id: RequestId) -> Option<Box<dyn ClientHook>> {
        let is_object = self.made.is_none();
        is_object.then(|| Self::wrap(&self.vat, self.slot.clone(), None, Some(id)))
    }

    fn wrap(
        vat: &Rc<Vat>,
        slot: Rc<Slot>,
        made: Option<Box<dyn ClientHook>>,
        request: Option<RequestId>,
    ) -> Box<dyn ClientHook> {
        let generation = slot.generation.get();
        membrane::wrap(Rc::new(Self { vat: vat.clone(), slot, made, request, generation }))
    }

    /// Whether the instance that this facet was made for has ended.
    pub(super) fn is_broken(&self) -> bool {
        self.generation != self.slot.generation.get()
    }
}

impl Target for Facet {
    fn enqueue(self: Rc<Self>, call: Call) {
        if self.is_broken() {
            call.reply.send(Err(disconnected("the object ended: restore its reference")));
            return;
        }
        if call.interface == facet::Client::TYPE_ID {
            return once::answer_at_facet(&self, call);
        }
        match self.vat.clone().admit() {
            Ok(under_way) => self.vat.clone().start(Start { facet: self, call, under_way }),
            Err(error) => drop(call.reply.send(Err(error))),
        }
    }
}

impl Drop for Facet {
    fn drop(&mut self) {
        membrane::forget(self);
        self.vat.release(&self.slot);
    }
}
