//! The calls on a facet as they come: refused, answered within the call, or queued.
//!
//! A facet itself answers the methods of the interface `Facet` that only derive another one; all
//! other calls are queued.
//!
//! **Invariant:** no call is queued that the right of the facet doesn't allow.

use std::rc::Rc;

use capnp::any_pointer;
use capnp::private::capability::ClientHook;
use capnp::traits::HasTypeId;
use capstead_client::sturdyref::Method;

use super::citing;
use crate::error::{Reason, Result, no_such_method};
use crate::host::base::caveats::caveats;
use crate::host::base::request_record::RequestId;
use crate::host::base::right::may_call;
use crate::host::state::facet::{Behind, Facet};
use crate::host::state::keeping;
use crate::host::state::queued_call::{Passage, QueuedCall};
use crate::membrane::{Body, Call, CallTarget, Chain};
use crate::schema::facet_capnp::facet as interface;

/// The methods of the interface `Facet`.
const ONCE: u16 = 0;
/// See [`ONCE`].
const IN_CHAIN: u16 = 1;
/// See [`ONCE`].
const ATTENUATE: u16 = 2;
/// See [`ONCE`].
const CITE: u16 = 5;

impl CallTarget for Facet {
    fn enqueue(self: Rc<Self>, mut call: Call) {
        if let Some(error) = self.broken() {
            return self.refuse(call, error);
        }
        match (call.method.interface, call.method.ordinal) {
            (interface::Client::TYPE_ID, ONCE | IN_CHAIN | ATTENUATE | CITE) => {
                return answer(&self, call);
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
        if let Some(chain) = self.chain() {
            call.chain = Some(chain.clone());
        }
        match self.vat.scheduler.admit(&call) {
            Ok(under_way) => {
                let vat = self.vat.clone();
                let keeper = keeping::keeper(&self, &mut call);
                let (permit, kept, passage) = (None, None, Passage::None);
                let facet = match &self.behind {
                    Behind::Socket(way) => way.of_call(self.clone()),
                    _ => self,
                };
                let queued = QueuedCall { facet, call, under_way, permit, keeper, kept, passage };
                vat.start(queued);
            }
            Err(error) => call.reply.send(Err(error)),
        }
    }
}

/// The capability that a method of the interface `Facet` makes of this one.
fn derive(
    facet: &Facet,
    method: Method,
    params: any_pointer::Reader<'_>,
) -> Result<Box<dyn ClientHook>> {
    let mut right = facet.right.clone();
    let mut carried = facet.carried();
    match method.ordinal {
        ONCE if !facet.is_object() => {
            return Err(Reason::NotRepeatable
                .error("what an object made itself ends with it, and has no request ids"));
        }
        ONCE => {
            let params: interface::once_params::Reader<'_> = params.get_as()?;
            carried.request = Some(RequestId::new(params.get_id()?)?);
        }
        IN_CHAIN => {
            let params: interface::in_chain_params::Reader<'_> = params.get_as()?;
            carried.chain = Chain::from_bytes(params.get_calls()?)?;
        }
        ATTENUATE => {
            let params: interface::attenuate_params::Reader<'_> = params.get_as()?;
            right = right.narrowed(&caveats(params.get_caveats()?)?)?;
        }
        _ => return Err(no_such_method(method)),
    }
    Ok(facet.derived(right, carried))
}

/// Answers a call of the interface `Facet`, within the call: neither queue nor gate is in its
/// way.
fn answer(facet: &Facet, call: Call) {
    let Call { method, params, reply, .. } = call;
    let answer = || {
        if method.ordinal == CITE {
            return citing::answer(facet, params.get()?);
        }
        let derived = derive(facet, method, params.get()?)?;
        let mut body = Body::new();
        // The results of all its methods are alike.
        let results: interface::once_results::Builder<'_> = body.builder()?.init_as();
        results.init_facet().set_as_capability(derived);
        Ok(body)
    };
    let answered = answer();
    if method.ordinal != CITE || facet.vat.turns.is_settled() {
        return reply.send(answered);
    }
    // An object that stores the citation, perhaps on another host, relies on what was written
    // of this one. The task ends when that is durable, or the storage has failed.
    let (vat, id) = (facet.vat.clone(), facet.slot.spec.id);
    tokio::task::spawn_local(async move {
        let durable = vat.turns.durable_of(id).await;
        reply.send(durable.map_err(Into::into).and(answered));
    });
}
