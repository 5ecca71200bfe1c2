//! The capability to an object that others hold, and to capabilities that the object made itself.
//!
//! A facet is bound to a slot and not to an instance, and to the right by which it is held. It
//! answers the methods of the interface `Facet` that only derive another facet; all other calls are
//! queued.
//!
//! Invariants:
//! - No call is queued that the right of the facet doesn't allow.
//! - A facet of an ended instance is broken, unless it is the way in to a WebSocket. Every facet
//!   whose grant was cut is broken.

use std::cell::Cell;
use std::rc::Rc;

use capnp::any_pointer;
use capnp::capability::{Params, Promise, Results};
use capnp::private::capability::ClientHook;
use capnp::traits::HasTypeId;
use capstead_client::sturdyref::Method;

use super::instance::Instance;
use super::keeping::{self, KeptAwake};
use super::once::RequestId;
use super::right::{Right, may_call, revoked};
use super::slot::{Passage, QueuedCall, Slot};
use super::sockets::SocketWay;
use super::vat::Vat;
use super::{caveats, citing, cut};
use crate::error::{Reason, Result, no_such_method, not_begun};
use crate::membrane::{self, Body, Call, CallTarget, Chain, Dispatch};
use crate::schema::facet_capnp::facet;

/// The methods of the interface `Facet`.
const ONCE: u16 = 0;
/// See [`ONCE`].
const IN_CHAIN: u16 = 1;
/// See [`ONCE`].
const ATTENUATE: u16 = 2;
/// See [`ONCE`].
const CITE: u16 = 5;

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
}

/// The extras that travel with calls.
#[derive(Clone, Default)]
struct Carried {
    /// They are one call that is applied once.
    request: Option<RequestId>,
    /// The calls that led to them.
    chain: Option<Chain>,
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
    pub(super) fn serves_call(&self, instance: &Rc<Instance>, call: Option<u128>) {
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

    /// The capability that a method of the interface `Facet` makes of this one.
    fn derive(
        &self,
        method: Method,
        params: any_pointer::Reader<'_>,
    ) -> Result<Box<dyn ClientHook>> {
        let mut right = self.right.clone();
        let mut carried = self.carried.as_deref().cloned().unwrap_or_default();
        match method.ordinal {
            ONCE if !self.is_object() => {
                return Err(Reason::NotRepeatable
                    .error("what an object made itself ends with it, and has no request ids"));
            }
            ONCE => {
                let params: facet::once_params::Reader<'_> = params.get_as()?;
                carried.request = Some(RequestId::new(params.get_id()?)?);
            }
            IN_CHAIN => {
                let params: facet::in_chain_params::Reader<'_> = params.get_as()?;
                carried.chain = Chain::from_bytes(params.get_calls()?)?;
            }
            ATTENUATE => {
                let params: facet::attenuate_params::Reader<'_> = params.get_as()?;
                right = right.narrowed(&caveats::caveats(params.get_caveats()?)?)?;
            }
            _ => return Err(no_such_method(method)),
        }
        let carries = carried.request.is_some() || carried.chain.is_some();
        Ok(membrane::wrap(Rc::new(Self {
            vat: self.vat.clone(),
            slot: self.slot.clone(),
            behind: self.behind.clone(),
            right,
            carried: carries.then(|| Box::new(carried)),
            generation: self.generation,
        })))
    }

    /// Answers a call of the interface `Facet`, within the call: neither queue nor gate is in its
    /// way.
    fn answer(&self, call: Call) {
        let Call { method, params, reply, .. } = call;
        let answer = || {
            if method.ordinal == CITE {
                return citing::answer(self, params.get()?);
            }
            let derived = self.derive(method, params.get()?)?;
            let mut body = Body::new();
            // The results of all its methods are alike.
            let results: facet::once_results::Builder<'_> = body.builder()?.init_as();
            results.init_facet().set_as_capability(derived);
            Ok(body)
        };
        let answered = answer();
        if method.ordinal != CITE || self.vat.turns.is_settled() {
            return reply.send(answered);
        }
        // An object that stores the citation, perhaps on another host, relies on what was written
        // of this one. The task ends when that is durable, or the storage has failed.
        let (vat, id) = (self.vat.clone(), self.slot.spec.id);
        tokio::task::spawn_local(async move {
            let durable = vat.turns.durable_of(id).await;
            reply.send(durable.map_err(Into::into).and(answered));
        });
    }

    /// Answers a call that doesn't reach the object.
    pub(in crate::host) fn refuse(&self, call: Call, error: capnp::Error) {
        if self.right.is_cut() {
            return cut::tell(&self.vat, call.reply, error);
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
            Behind::Socket(_) => return None,
        };
        let is_of_another = self.generation != self.slot.generation();
        made.or_else(|| is_of_another.then(|| self.slot.why_ended(self.generation)))
    }
}

impl CallTarget for Facet {
    fn enqueue(self: Rc<Self>, mut call: Call) {
        if let Some(error) = self.broken() {
            return self.refuse(call, error);
        }
        match (call.method.interface, call.method.ordinal) {
            (facet::Client::TYPE_ID, ONCE | IN_CHAIN | ATTENUATE | CITE) => {
                return self.answer(call);
            }
            _ if may_call(&self.right, call.method) => {}
            _ => return call.reply.send(Err(no_such_method(call.method))),
        }
        if let Err(error) = self.right.check_time(&self.vat.clock) {
            return call.reply.send(Err(error));
        }
        if let Behind::Socket(way) = &self.behind {
            let Some(left) = way.take(call) else { return };
            call = left;
        }
        if let Some(chain) = self.carried.as_ref().and_then(|carried| carried.chain.as_ref()) {
            call.chain = Some(chain.clone());
        }
        match self.vat.scheduler.admit(&call) {
            Ok(under_way) => {
                let vat = self.vat.clone();
                let keeper = keeping::keeper(&self, &mut call);
                let (permit, kept, passage) = (None, None, Passage::None);
                let facet = self;
                let queued = QueuedCall { facet, call, under_way, permit, keeper, kept, passage };
                vat.start(queued);
            }
            Err(error) => call.reply.send(Err(error)),
        }
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
