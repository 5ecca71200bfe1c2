//! A capability that came into an object. Calls of the object on it wait at the object's gate.
//!
//! Each capability is wrapped as it comes in, with parameters or results, and unwrapped as it
//! leaves, so that another vat gets its own capability back and calls make no detour.
//!
//! Invariant: no byte of a body leaves after the end of the right by which it was asked for.

mod chained_call;

use std::cell::RefCell;
use std::rc::Rc;

use capnp::private::capability::{ClientHook, ParamsHook};
use capnp::traits::HasTypeId;

use self::chained_call::CallRoute;
use crate::error::Result;
use crate::host::base::right::Right;
use crate::host::state::facet::{Facet, Maker};
use crate::host::state::instance::Instance;
use crate::membrane::{self, Call, CallTarget, Params};
use crate::schema::http_capnp::byte_stream;

pub(in crate::host) struct Gated {
    pub(super) instance: Rc<Instance>,
    pub(in crate::host) raw: Box<dyn ClientHook>,
    /// The route of calls on it, once calls of chains were made.
    route: RefCell<CallRoute>,
    /// The right by which the call came that brought it, or that brought the capability of which it
    /// is a result.
    pub(super) came_by: Right,
}

impl Gated {
    /// Somebody else's capability as the instance sees it.
    pub(in crate::host) fn wrap(
        instance: &Rc<Instance>,
        raw: Box<dyn ClientHook>,
    ) -> Box<dyn ClientHook> {
        Self::wrap_by(instance, raw, Right::default())
    }

    fn wrap_by(
        instance: &Rc<Instance>,
        raw: Box<dyn ClientHook>,
        came_by: Right,
    ) -> Box<dyn ClientHook> {
        let route = RefCell::default();
        membrane::wrap(Rc::new(Self { instance: instance.clone(), raw, route, came_by }))
    }

    /// A capability that is never asked for chains, as it can't lead back to an object: calls on it
    /// keep their order also across instances.
    pub(super) fn wrap_plain(
        instance: &Rc<Instance>,
        raw: Box<dyn ClientHook>,
    ) -> Box<dyn ClientHook> {
        let (route, came_by) = (RefCell::new(CallRoute::Plain), Right::default());
        membrane::wrap(Rc::new(Self { instance: instance.clone(), raw, route, came_by }))
    }
}

impl CallTarget for Gated {
    fn enqueue(self: Rc<Self>, mut call: Call) {
        let gate = self.instance.gate.clone();
        if let Some(error) = self.instance.broken() {
            call.reply.send(Err(error));
            return;
        }
        if call.method.interface == byte_stream::Client::TYPE_ID
            && let Err(error) = self.came_by.check(&self.instance.vat.clock)
        {
            call.reply.send(Err(error));
            return;
        }
        call.chain.clone_from(&self.instance.vat.chain.borrow());
        call.keeper.clone_from(&self.instance.vat.keeper.borrow());
        call.from_object = true;
        gate.call(move || chained_call::send(&self, call));
    }

    fn leaving(&self, cap: Box<dyn ClientHook>) -> Box<dyn ClientHook> {
        leaving(&self.instance, cap)
    }

    /// A capability that comes back, also by pipelining, is gated in its turn.
    fn entering(&self, cap: Box<dyn ClientHook>) -> Box<dyn ClientHook> {
        Self::wrap_by(&self.instance, cap, self.came_by.clone())
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        membrane::forget(self);
    }
}

/// Parameters as the instance may see them, of a call by this right.
pub(in crate::host) fn entering(
    instance: &Rc<Instance>,
    params: Params,
    right: &Right,
) -> Result<Box<dyn ParamsHook>> {
    let params = params.replace_caps(|cap| Gated::wrap_by(instance, cap, right.clone()))?;
    Ok(params.into_hook())
}

/// A capability that the instance gives away, as it looks outside. Somebody else's leaves without
/// our gate, since the message that carries it is gated; a facet leaves as it is, and a capability
/// that the class made as a facet.
pub(in crate::host) fn leaving(
    instance: &Rc<Instance>,
    cap: Box<dyn ClientHook>,
) -> Box<dyn ClientHook> {
    if let Some(gated) = membrane::find::<Gated>(&*cap) {
        return gated.raw.add_ref();
    }
    if membrane::find::<Facet>(&*cap).is_some() {
        return cap;
    }
    made(instance, Maker::Library(cap))
}

/// The same, for one that is given away while a call runs: ahead of its answer, or by a call that
/// went past it. A call on it may be the one that the running call waits for.
pub(in crate::host) fn leaving_while_running(
    instance: &Rc<Instance>,
    cap: Box<dyn ClientHook>,
) -> Box<dyn ClientHook> {
    let left = leaving(instance, cap);
    if let Some(exclusive) = &instance.exclusive
        && let Some(facet) = membrane::find::<Facet>(&*left)
    {
        facet.serves_call(instance, exclusive.running());
    }
    left
}

/// A capability that the instance makes, as others may hold it.
pub(in crate::host) fn made(instance: &Rc<Instance>, by: Maker) -> Box<dyn ClientHook> {
    match instance.broken() {
        None => Facet::made(instance, by),
        Some(error) => membrane::broken(error),
    }
}
