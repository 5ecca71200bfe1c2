//! The life of a call: first poll, further polls, reply. Every poll is a turn of its object.
//!
//! Most handlers are done with their first poll, which needs no task and no waker. A handler that
//! has to wait gets a task of its own, so that its object goes on with other calls meanwhile.
//!
//! Invariants:
//! - All that one poll writes becomes durable together, or not at all.
//! - A handler that has started runs to its end, unless its instance ends. It goes on only when not
//!   too much waits for the disk, so that none can fill the memory.
//! - A panic of a handler ends its instance, and nothing else.
//! - The reply waits in the gate for all that the object wrote before.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use capnp::capability::{self, Params, Promise};
use capstead_client::sturdyref::Method;

use super::alarms;
use super::answer::answer;
use super::cut;
use super::ending;
use super::expiry;
use super::gated;
use super::once;
use super::sockets;
use crate::error::{Result, failed, name_method, of_class};
use crate::host::base::fault::catch_panic;
use crate::host::base::right::is_granting;
use crate::host::state::facet::{Behind, Facet};
use crate::host::state::instance::Instance;
use crate::host::state::keeping::{KeptAwake, on_behalf_of};
use crate::host::state::queued_call::{PendingReply, QueuedCall};
use crate::host::state::slot::ObjectSpec;
use crate::membrane::{BodySlot, Call, Chain, Dispatch, Keeper, Results};

/// The instance ended in its turn, or before: nothing of the turn has an effect.
pub(in crate::host) struct InstanceEnded;

pub(in crate::host) type Handler = Promise<(), capnp::Error>;

/// The call, the chain and the keeper to which a turn belongs.
#[derive(Default)]
pub(in crate::host) struct TurnCause {
    /// None: it belongs to the object's waking.
    pub(in crate::host) method: Option<Method>,
    /// The calls of exclusive objects that led here.
    pub(in crate::host) chain: Option<Chain>,
    pub(in crate::host) keeper: Option<Rc<Keeper>>,
}

/// Polls a call for the first time.
pub(in crate::host) fn first_poll(
    instance: &Rc<Instance>,
    server: &dyn Dispatch,
    queued: QueuedCall,
) {
    let QueuedCall { facet, call, under_way, permit, keeper, kept, .. } = queued;
    let Call { method, params, reply, chain, .. } = call;
    let cause = TurnCause { method: Some(method), chain, keeper: Some(keeper) };
    let pending = PendingReply { reply, facet: facet.clone(), under_way, permit, kept };
    let admitted = once::admit(instance, &facet, method, pending);
    let Some((pending, claim)) = admitted else { return };
    let params = match gated::entering(instance, params, &facet.right) {
        Ok(params) => Params::new(params),
        Err(error) => return answer(instance, pending, Err(error)),
    };
    let (results, body) = Results::new();
    let results = capability::Results::new(Box::new(results));
    instance.vat.metrics.calls_total.add(1);
    let polled = turn(instance, &cause, || {
        let start = || match &facet.behind {
            _ if is_granting(method) => {
                let calls = instance.spec.class.grant_calls;
                calls(instance, &facet, method, params, results)
            }
            _ if sockets::is_resuming(method) => {
                sockets::resume(instance, &facet, method, &params, results)
            }
            Behind::Object => server.dispatch(method, params, results),
            Behind::Made(made) => made.call(method, params, results),
            Behind::Socket(way) => sockets::call(way, instance, server.object(), method, &params),
            Behind::Alarm(firing) => alarms::call(firing, instance, server.object()),
        };
        let mut handler = match claim {
            None => start(),
            Some(claim) => claim.run(instance, body.clone(), start),
        };
        // It needs no waker: if it has to wait, its own task polls it again at once.
        let polled = Pin::new(&mut handler).poll(&mut Context::from_waker(Waker::noop()));
        (handler, polled)
    });
    match polled {
        Err(InstanceEnded) => {
            facet.lost_call();
            answer(instance, pending, Err(instance.why_ended()));
        }
        Ok((_, Poll::Ready(outcome))) => {
            let outcome = outcome.map_err(|error| name_method(error, method));
            finish(instance, pending, outcome, (&body, cause.keeper.as_ref()));
        }
        Ok((handler, Poll::Pending)) => go_on(instance, cause, facet, pending, handler, body),
    }
}

/// Polls the handler to its end, also when the caller has left. The task ends with the handler or
/// the instance.
fn go_on(
    instance: &Rc<Instance>,
    cause: TurnCause,
    facet: Rc<Facet>,
    mut pending: PendingReply,
    handler: Handler,
    body: BodySlot,
) {
    if let Some(keeper) = &cause.keeper {
        pending.kept = Some(KeptAwake::new(instance, keeper));
    }
    let number = instance.owe(pending);
    let ends = expiry::of_request(instance, number, cause.method, &facet.right);
    open_early(instance, number, (&body, cause.keeper.as_ref()));
    let owner = instance.clone();
    let instance = instance.clone();
    let task = tokio::task::spawn_local(async move {
        let _held_while_it_runs = (facet, ends);
        let keeper = cause.keeper.clone();
        let mut handler = InTurns { instance: &instance, cause, future: handler };
        let outcome = poll_fn(|cx| {
            let polled = Pin::new(&mut handler).poll(cx);
            instance.vat.busy(|| open_early(&instance, number, (&body, keeper.as_ref())));
            polled
        });
        let outcome = outcome.await;
        instance.remove_task(number);
        let pending = instance.take_pending(number);
        if let (Ok(outcome), Some(pending)) = (outcome, pending) {
            instance.vat.busy(|| finish(&instance, pending, outcome, (&body, keeper.as_ref())));
        }
    });
    owner.add_task(number, &task);
}

/// The results of a call, and its keeper.
type Answering<'a> = (&'a BodySlot, Option<&'a Rc<Keeper>>);

/// If the handler has called `set_pipeline`, the capabilities in its results so far may be called
/// once all writes so far are durable.
fn open_early(instance: &Rc<Instance>, number: u64, (body, keeper): Answering<'_>) {
    let Some(mut early) = body.take_early() else { return };
    let leaves = |cap| gated::leaving_while_running(instance, cap);
    on_behalf_of(&instance.vat, keeper, || early.replace_caps(leaves));
    let (owner, whole) = (instance.clone(), body.clone());
    instance.gate.call(move || {
        // Taken out meanwhile, since the calls that start now may end the instance.
        let Some(mut pending) = owner.take_pending(number) else { return };
        match pending.reply.open_pipeline(early, whole) {
            Ok(()) => owner.put_back(number, pending),
            Err(error) => pending.reply.send(Err(error)),
        }
    });
}

/// A future whose polls are turns of an instance.
pub(in crate::host) struct InTurns<'a, F> {
    pub(in crate::host) instance: &'a Rc<Instance>,
    pub(in crate::host) cause: TurnCause,
    pub(in crate::host) future: F,
}

impl<F: Future + Unpin> Future for InTurns<'_, F> {
    type Output = std::result::Result<F::Output, InstanceEnded>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let instance = self.instance;
        if instance.broken().is_some() {
            return Poll::Ready(Err(InstanceEnded));
        }
        if instance.vat.turns.holds_back(cx.waker()) {
            return Poll::Pending;
        }
        let Self { cause, future, .. } = &mut *self;
        match instance.vat.busy(|| turn(instance, cause, || Pin::new(future).poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(InstanceEnded) => Poll::Ready(Err(InstanceEnded)),
        }
    }
}

/// One turn: the writes that `poll` makes are one atomic batch; a panic discards them and ends this
/// instance, and nothing else.
pub(in crate::host) fn turn<T>(
    instance: &Rc<Instance>,
    cause: &TurnCause,
    poll: impl FnOnce() -> T,
) -> std::result::Result<T, InstanceEnded> {
    let vat = &instance.vat;
    vat.turns.begin(instance.account.clone());
    let ObjectSpec { id, class, .. } = &instance.spec;
    vat.activity.begin(class.number, *id, cause.method);
    if let Some(bodies) = vat.bodies.get() {
        bodies.runs_here();
    }
    if cause.chain.is_some() {
        vat.chain.borrow_mut().clone_from(&cause.chain);
    }
    vat.keeper.borrow_mut().clone_from(&cause.keeper);
    let polled = std::panic::catch_unwind(AssertUnwindSafe(poll));
    if cause.chain.is_some() {
        vat.chain.take();
    }
    vat.keeper.take();
    vat.activity.end();
    match polled {
        Ok(output) if instance.broken().is_none() => {
            vat.turns.end(&instance.gate);
            cut::after_turn(vat);
            Ok(output)
        }
        Ok(aborted) => {
            vat.live_grants.take_revoked();
            catch_panic("dropping an aborted turn", || drop(aborted));
            Err(InstanceEnded)
        }
        Err(_) => {
            vat.live_grants.take_revoked();
            tracing::error!(class = instance.spec.class.name, "an object panicked and was ended");
            ending::abort(instance, "panicked");
            Err(InstanceEnded)
        }
    }
}

fn finish(
    instance: &Rc<Instance>,
    pending: PendingReply,
    outcome: Result<()>,
    (body, keeper): Answering<'_>,
) {
    let outcome = outcome.map_err(of_class).and_then(|()| {
        let mut body = body.take().ok_or_else(|| failed("the handler kept its results"))?;
        // If the call brought the answer to a request, the call that runs waits for its body.
        let leaves =
            if pending.facet.is_made() { gated::leaving_while_running } else { gated::leaving };
        on_behalf_of(&instance.vat, keeper, || body.replace_caps(|cap| leaves(instance, cap)));
        Ok(body)
    });
    answer(instance, pending, outcome);
}
