//! Capabilities that belong to the server itself and not to an object: calls on them start at once,
//! without queue, turn or gate.

use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use capnp::capability::{self, FromClientHook, FromServer, Params};

use super::body::BodySlot;
use super::call::{Call, Dispatch, Reply, dispatch};
use super::hook::{self, CallTarget};
use super::results::Results;
use crate::error::{Result, failed, name_method};

thread_local! {
    /// The number of the outlet to which the call answers that starts now; 0: it has none.
    static CALLER: Cell<u32> = const { Cell::new(0) };
}

/// Tells callers apart, at the start of a call: a number of the client that made it, or 0 for all
/// within this process.
pub(crate) fn caller() -> u32 {
    CALLER.get()
}

/// The capability to `server`. Its calls start in the order made, within the call that makes them.
pub(crate) fn serve<C: FromServer<S>, S: 'static>(server: Rc<S>) -> C {
    let served = Served(dispatch::<C, S>(server));
    FromClientHook::new(hook::wrap(Rc::new(served)))
}

struct Served(Rc<dyn Dispatch>);

impl CallTarget for Served {
    fn enqueue(self: Rc<Self>, call: Call) {
        let (results, slot) = Results::new();
        let results = capability::Results::new(Box::new(results));
        let Call { method, params, reply, .. } = call;
        // Such a call may make another one.
        let before = CALLER.replace(reply.outlet().map_or(0, |outlet| outlet.number()));
        let mut run = self.0.dispatch(method, Params::new(params.into_hook()), results);
        let polled =
            futures::FutureExt::poll_unpin(&mut run, &mut Context::from_waker(Waker::noop()));
        CALLER.set(before);
        match polled {
            Poll::Ready(outcome) => {
                let outcome = outcome.map_err(|error| name_method(error, method));
                finish(reply, outcome, &slot);
            }
            Poll::Pending => {
                // Ends with the method, which answers also when nobody waits any more.
                tokio::task::spawn_local(async move { finish(reply, run.await, &slot) });
            }
        }
    }
}

fn finish(reply: Reply, outcome: Result<()>, slot: &BodySlot) {
    let body = || slot.take().ok_or_else(|| failed("the method kept its results"));
    reply.send(outcome.and_then(|()| body()));
}

impl Drop for Served {
    fn drop(&mut self) {
        hook::forget(self);
    }
}
