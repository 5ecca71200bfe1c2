//! The capability to an object that others hold, and to what the object made itself.

use std::rc::Rc;

use capnp::any_pointer;
use capnp::capability::{Params, Promise, Results};
use capnp::private::capability::ClientHook;

use super::instance::Instance;
use super::slot::{Slot, Start};
use super::vat::Vat;
use crate::error::disconnected;
use crate::membrane::{self, Call, Dispatch, Target};

/// What a peer, another object or the gateway holds. Dropping the last one lets a sleeping object's
/// place go.
pub(super) struct Facet {
    pub(super) vat: Rc<Vat>,
    pub(super) slot: Rc<Slot>,
    pub(super) made: Option<Made>,
    generation: u32,
}

/// A capability that the class made itself: calls on it are turns of the object, it keeps the
/// instance awake, and breaks with it.
pub(super) struct Made {
    instance: Rc<Instance>,
    by: Maker,
}

/// With what a class made a capability.
pub(super) enum Maker {
    /// Its context.
    Context(Rc<dyn Dispatch>),
    /// capnp-rpc, whose capabilities let new calls overtake those that waited for a streaming one, and
    /// refuse all calls after a streaming one that failed.
    Library(Box<dyn ClientHook>),
}

impl Made {
    /// Begins a method of it.
    pub(super) fn call(
        &self,
        interface: u64,
        method: u16,
        params: Params<any_pointer::Owned>,
        results: Results<any_pointer::Owned>,
    ) -> Promise<(), capnp::Error> {
        match &self.by {
            Maker::Context(server) => server.dispatch(interface, method, params, results),
            Maker::Library(cap) => cap.call(interface, method, params.hook, results.hook),
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        self.instance.made.set(self.instance.made.get() - 1);
        self.instance.was_used();
    }
}

impl Facet {
    /// The object itself.
    pub(super) fn object(vat: &Rc<Vat>, slot: Rc<Slot>) -> Box<dyn ClientHook> {
        Self::wrap(vat, slot, None)
    }

    /// Something that an instance made, such as a callback or a session.
    pub(super) fn made(instance: &Rc<Instance>, by: Maker) -> Box<dyn ClientHook> {
        instance.made.set(instance.made.get() + 1);
        let made = Made { instance: instance.clone(), by };
        let vat = &instance.vat;
        Self::wrap(vat, vat.slot(&instance.birth), Some(made))
    }

    fn wrap(vat: &Rc<Vat>, slot: Rc<Slot>, made: Option<Made>) -> Box<dyn ClientHook> {
        let generation = slot.generation.get();
        membrane::wrap(Rc::new(Self { vat: vat.clone(), slot, made, generation }))
    }

    /// Why no call reaches the object through this facet any more, if so.
    pub(super) fn broken(&self) -> Option<capnp::Error> {
        let made = self.made.as_ref().and_then(|made| made.instance.broken());
        let is_of_another = self.generation != self.slot.generation.get();
        made.or_else(|| {
            is_of_another.then(|| disconnected("the object ended: restore its reference"))
        })
    }
}

impl Target for Facet {
    fn enqueue(self: Rc<Self>, call: Call) {
        if let Some(error) = self.broken() {
            return call.reply.send(Err(error));
        }
        match self.vat.clone().admit() {
            Ok(under_way) => {
                let vat = self.vat.clone();
                vat.start(Start { facet: self, call, under_way, has_entered: false });
            }
            Err(error) => call.reply.send(Err(error)),
        }
    }
}

impl Drop for Facet {
    fn drop(&mut self) {
        membrane::forget(self);
        self.vat.release(&self.slot);
    }
}
