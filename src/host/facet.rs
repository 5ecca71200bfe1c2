//! The capability to an object that others hold, and to what the object made itself.

use std::rc::Rc;

use capnp::private::capability::ClientHook;

use super::slot::{Slot, Start};
use super::vat::Vat;
use crate::error::disconnected;
use crate::membrane::{self, Call, Dispatch, Target};

/// What a peer, another object or the gateway holds. Dropping the last one lets a sleeping object's
/// place go.
pub(super) struct Facet {
    pub(super) vat: Rc<Vat>,
    pub(super) slot: Rc<Slot>,
    /// What the class made itself: calls on it are turns of the object.
    pub(super) made: Option<Made>,
    generation: u32,
}

/// A capability that a class made.
pub(super) enum Made {
    /// By its context.
    Methods(Rc<Dispatch>),
    /// By capnp-rpc: after a streaming call this lets new calls overtake those that waited for it, and
    /// after one that failed it refuses all others.
    Hook(Box<dyn ClientHook>),
}

impl Facet {
    /// The object itself.
    pub(super) fn object(vat: &Rc<Vat>, slot: Rc<Slot>) -> Box<dyn ClientHook> {
        Self::wrap(vat, slot, None)
    }

    /// Something that the instance now awake made, such as a callback or a session.
    pub(super) fn made(vat: &Rc<Vat>, slot: Rc<Slot>, made: Made) -> Box<dyn ClientHook> {
        Self::wrap(vat, slot, Some(made))
    }

    fn wrap(vat: &Rc<Vat>, slot: Rc<Slot>, made: Option<Made>) -> Box<dyn ClientHook> {
        let generation = slot.generation.get();
        membrane::wrap(Rc::new(Self { vat: vat.clone(), slot, made, generation }))
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
