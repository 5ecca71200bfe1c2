//! Calls that belong to a chain, on capabilities of other vats. Calls of Cap'n Proto have no
//! headers, so the chain travels by the method `inChain` of the interface `Facet`. The first call
//! of a chain asks once whether the capability has that interface, and waits for the answer.
//!
//! Invariants:
//! - Calls on one capability leave in the order made, whichever chains they belong to.
//! - A capability without that interface, such as a client's callback, is called as it is.

use std::collections::VecDeque;
use std::rc::Rc;

use capnp::ErrorKind;
use capnp::capability::{FromClientHook, RemotePromise};
use capnp::private::capability::ClientHook;

use super::Gated;
use crate::error::overloaded;
use crate::host::state::facet::Facet;
use crate::membrane::{self, Call, Chain, deliver};
use crate::schema::facet_capnp::facet;

/// The most calls of one holder that wait for the answer.
const CALLS_WAITING_MAX: usize = 4096;

/// The way in which calls are made on a capability.
#[derive(Default)]
pub(super) enum CallRoute {
    /// No chain has come here.
    #[default]
    Unknown,
    Asking(VecDeque<Call>),
    /// The capability for the chain of the last call: from now on all calls go by `inChain`, since
    /// those that don't might overtake the others on the way.
    Chained {
        latest: Option<u128>,
        cap: Box<dyn ClientHook>,
    },
    Plain,
}

/// Makes a call that has passed the gate.
pub(super) fn send(gated: &Rc<Gated>, call: Call) {
    let chained = match &mut *gated.route.borrow_mut() {
        CallRoute::Unknown if call.chain.is_none() => None,
        // Within a vat the chain is part of the call. A promise may become anything yet.
        CallRoute::Unknown if membrane::find::<Facet>(&*gated.raw).is_some() => None,
        route @ CallRoute::Unknown => {
            let asked = in_chain(gated, call.chain.as_ref());
            *route = CallRoute::Asking(VecDeque::from([call]));
            // Ends with the answer, or with the connection.
            tokio::task::spawn_local(learn(gated.clone(), asked));
            return;
        }
        CallRoute::Asking(waiting) if waiting.len() < CALLS_WAITING_MAX => {
            return waiting.push_back(call);
        }
        CallRoute::Asking(_) => {
            let reason = "too many calls wait for a capability that doesn't answer";
            return call.reply.send(Err(overloaded(reason)));
        }
        CallRoute::Chained { latest, cap } => {
            let this = latest_of(&call);
            if *latest != this {
                (*latest, *cap) = (this, with_chain(gated, &call));
            }
            Some(cap.add_ref())
        }
        CallRoute::Plain => None,
    };
    let to = chained.as_deref().unwrap_or(&*gated.raw);
    deliver(to, call);
}

fn in_chain(gated: &Gated, chain: Option<&Chain>) -> RemotePromise<facet::in_chain_results::Owned> {
    let mut request = facet::Client::new(gated.raw.add_ref()).in_chain_request();
    request.get().set_calls(&chain.map(Chain::to_bytes).unwrap_or_default());
    request.send()
}

/// The capability for calls of the chain that this call belongs to.
fn with_chain(gated: &Gated, call: &Call) -> Box<dyn ClientHook> {
    in_chain(gated, call.chain.as_ref()).pipeline.get_facet().as_cap()
}

/// Sends the calls that wait on their way, once it is known.
async fn learn(gated: Rc<Gated>, asked: RemotePromise<facet::in_chain_results::Owned>) {
    let is_plain = match asked.promise.await {
        Ok(_) => false,
        Err(error) => error.kind == ErrorKind::Unimplemented,
    };
    loop {
        let next = match &mut *gated.route.borrow_mut() {
            CallRoute::Asking(waiting) => waiting.pop_front(),
            _ => None,
        };
        match next {
            // Calls that this leads to queue behind the others.
            Some(call) if is_plain => deliver(&*gated.raw, call),
            Some(call) => deliver(&*with_chain(&gated, &call), call),
            None => break,
        }
    }
    gated.route.replace(if is_plain {
        CallRoute::Plain
    } else {
        // No call has this number: the next one asks for its own chain.
        CallRoute::Chained { latest: Some(0), cap: gated.raw.add_ref() }
    });
}

/// The call that led to this one, if it belongs to a chain.
fn latest_of(call: &Call) -> Option<u128> {
    call.chain.as_ref().and_then(|chain| chain.calls().next())
}
