//! The capability to an object that others hold, and to capabilities that the object made itself.
//!
//! A facet is bound to a slot and not to an instance, and to the right by which it is held.
//!
//! **Invariant:** a facet of an ended instance is broken, unless it is the way in to a WebSocket or
//! of an alarm.
//! Every facet whose grant was cut is broken.

use std::cell::Cell;
use std::rc::Rc;

use capnp::any_pointer;
use capnp::capability::{Params, Promise, Results};
use capnp::private::capability::ClientHook;
use capstead_client::sturdyref::Method;

use super::alarms::Firing;
use super::instance::Instance;
use super::keeping::{self, KeptAwake};
use super::slot::Slot;
use super::socket_way::SocketWay;
use super::vat::Vat;
use crate::error::not_begun;
use crate::host::base::request_record::RequestId;
use crate::host::base::right::{Right, revoked};
use crate::membrane::{self, Call, Chain, Dispatch};

/// An object as a peer, another object or the gateway holds it. Dropping the last one lets a
/// sleeping object's place go.
pub(in crate::host) struct Facet {
    pub(in crate::host) vat: Rc<Vat>,
    pub(in crate::host) slot: Rc<Slot>,
    pub(in crate::host) behind: Behind,
    pub(in crate::host) right: Right,
    /// The extras that the calls made on it carry; there seldom are any.
    carried: Option<Box<Carried>>,
    generation: u32,
}

/// The part of the object that takes the calls on a facet.
#[derive(Clone)]
pub(in crate::host) enum Behind {
    Object,
    /// Something that an instance made.
    Made(Rc<Made>),
    /// A WebSocket of the object, which is no instance's.
    Socket(Rc<SocketWay>),
    /// An alarm of the object that is being fired; the host alone holds this.
    Alarm(Rc<Firing>),
}

/// The extras that travel with calls.
#[derive(Clone, Default)]
pub(in crate::host) struct Carried {
    /// They are one call that is applied once.
    pub(in crate::host) request: Option<RequestId>,
    /// The calls that led to them.
    pub(in crate::host) chain: Option<Chain>,
}

/// A capability that the class made itself: calls on it are turns of the object, it keeps the
/// instance awake, and breaks with it.
pub(in crate::host) struct Made {
    instance: Rc<Instance>,
    pub(in crate::host) kept: KeptAwake,
    by: Maker,
    /// The call of an exclusive object that gave it away before it answered.
    serves: Cell<Option<u128>>,
}

/// The means by which a class made a capability.
pub(in crate::host) enum Maker {
    /// Its context.
    Context(Rc<dyn Dispatch>),
    /// capnp-rpc, whose capabilities let new calls overtake those that waited for a streaming one,
    /// and refuse all calls after a streaming one that failed.
    Library(Box<dyn ClientHook>),
}

impl Made {
    /// Begins a method of it.
    pub(in crate::host) fn call(
        &self,
        method: Method,
        params: Params<any_pointer::Owned>,
        results: Results<any_pointer::Owned>,
    ) -> Promise<(), capnp::Error> {
        match &self.by {
            Maker::Context(server) => server.dispatch(method, params, results),
            Maker::Library(cap) => {
                cap.call(method.interface, method.ordinal, params.hook, results.hook)
            }
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        self.instance.was_used();
    }
}

impl Facet {
    /// The object itself.
    pub(in crate::host) fn object(
        vat: &Rc<Vat>,
        slot: Rc<Slot>,
        right: Right,
    ) -> Box<dyn ClientHook> {
        Self::wrap(vat, slot, right, Behind::Object)
    }

    /// Something that an instance made, such as a callback or a session.
    pub(in crate::host) fn made(instance: &Rc<Instance>, by: Maker) -> Box<dyn ClientHook> {
        let kept = KeptAwake::new(instance, &keeping::present(&instance.vat));
        let made = Made { instance: instance.clone(), kept, by, serves: Cell::default() };
        let vat = &instance.vat;
        Self::wrap(
            vat,
            vat.objects.slot(&instance.spec),
            Right::default(),
            Behind::Made(Rc::new(made)),
        )
    }

    /// The way in to a socket.
    pub(in crate::host) fn socket(way: SocketWay, right: Right) -> Box<dyn ClientHook> {
        let (vat, slot) = (way.vat().clone(), way.slot().clone());
        Self::wrap(&vat, slot, right, Behind::Socket(Rc::new(way)))
    }

    /// The way by which the host fires an alarm.
    pub(in crate::host) fn alarm(
        vat: &Rc<Vat>,
        slot: Rc<Slot>,
        firing: Rc<Firing>,
    ) -> Box<dyn ClientHook> {
        Self::wrap(vat, slot, Right::default(), Behind::Alarm(firing))
    }

    /// The same right, by a way that only calls have: it is no capability, and nobody holds it.
    pub(in crate::host) fn of_calls(&self, way: SocketWay) -> Rc<Self> {
        Rc::new(Self {
            vat: self.vat.clone(),
            slot: self.slot.clone(),
            behind: Behind::Socket(Rc::new(way)),
            right: self.right.clone(),
            carried: None,
            generation: self.generation,
        })
    }

    fn wrap(vat: &Rc<Vat>, slot: Rc<Slot>, right: Right, behind: Behind) -> Box<dyn ClientHook> {
        let (vat, generation) = (vat.clone(), slot.generation());
        membrane::wrap(Rc::new(Self { vat, slot, behind, right, carried: None, generation }))
    }

    /// It is the object itself, and nothing that ends before that.
    pub(in crate::host) fn is_object(&self) -> bool {
        matches!(self.behind, Behind::Object)
    }

    /// It is something that the class or the library made.
    pub(in crate::host) fn is_made(&self) -> bool {
        matches!(self.behind, Behind::Made(_))
    }

    /// The call of an exclusive object to which it brings things, if it was made for one.
    pub(in crate::host) fn serves(&self) -> Option<u128> {
        match &self.behind {
            Behind::Made(made) => made.serves.get(),
            _ => None,
        }
    }

    /// If it is something of this instance, it brings things to this call from now on.
    pub(in crate::host) fn serves_call(&self, instance: &Rc<Instance>, call: Option<u128>) {
        if let Behind::Made(made) = &self.behind
            && Rc::ptr_eq(&made.instance, instance)
        {
            made.serves.set(call);
        }
    }

    pub(in crate::host) fn is_of_socket(&self) -> bool {
        matches!(self.behind, Behind::Socket(_))
    }

    /// A call on it had begun, and its instance has ended.
    pub(in crate::host) fn lost_call(&self) {
        if let Behind::Socket(way) = &self.behind {
            way.lost_message();
        }
    }

    /// The id of the call that is made on it, which is applied once.
    pub(in crate::host) fn request(&self) -> Option<&RequestId> {
        self.carried.as_ref()?.request.as_ref()
    }

    /// The calls that led to those on it, if it carries them.
    pub(in crate::host) fn chain(&self) -> Option<&Chain> {
        self.carried.as_ref()?.chain.as_ref()
    }

    /// The extras that the calls made on it carry.
    pub(in crate::host) fn carried(&self) -> Carried {
        self.carried.as_deref().cloned().unwrap_or_default()
    }

    /// The same part of the object by another right, whose calls carry these extras.
    pub(in crate::host) fn derived(&self, right: Right, carried: Carried) -> Box<dyn ClientHook> {
        let carries = carried.request.is_some() || carried.chain.is_some();
        membrane::wrap(Rc::new(Self {
            vat: self.vat.clone(),
            slot: self.slot.clone(),
            behind: self.behind.clone(),
            right,
            carried: carries.then(|| Box::new(carried)),
            generation: self.generation,
        }))
    }

    /// Answers a call that doesn't reach the object.
    pub(in crate::host) fn refuse(&self, call: Call, error: capnp::Error) {
        if self.right.is_cut() {
            return self.vat.tell_when_durable(call.reply, error);
        }
        call.reply.send(Err(not_begun(error)));
    }

    /// Why no call reaches the object through this facet any more, if so.
    pub(in crate::host) fn broken(&self) -> Option<capnp::Error> {
        if self.right.is_cut() {
            return Some(revoked());
        }
        let made = match &self.behind {
            Behind::Object => None,
            Behind::Made(made) => made.instance.broken(),
            Behind::Socket(_) | Behind::Alarm(_) => return None,
        };
        let is_of_another = self.generation != self.slot.generation();
        made.or_else(|| is_of_another.then(|| self.slot.why_ended(self.generation)))
    }
}

impl Drop for Facet {
    fn drop(&mut self) {
        membrane::forget(self);
        // The way to a socket has the slot too, and lets go of it last.
        if !self.is_of_socket() {
            self.vat.objects.release(&self.slot);
        }
    }
}
