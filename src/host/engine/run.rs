//! The life of a call: first poll, further polls, reply. Every poll is a turn of its object.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use capnp::capability::{self, Params, Promise};
use capstead_client::sturdyref::Method;

use super::exclusive::Entry;
use super::facet::Facet;
use super::gated;
use super::instance::Instance;
use super::once;
use super::right::is_granting;
use super::right::revoked_under_way;
use super::slot::{Birth, Start};
use super::vat::Vat;
use crate::error::{Result, failed, name_method, of_class};
use crate::membrane::{Body, BodySlot, Call, Chain, Dispatch, Reply, Results};

/// A call that was accepted: shutdown waits until all of these were dropped.
pub(in crate::host) struct UnderWay(pub(in crate::host) Rc<Vat>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.call_ended();
    }
}

/// The reply that is owed to the caller of a handler that waits for something.
pub(in crate::host) struct Running {
    pub(in crate::host) reply: Reply,
    /// The facet on which the call was made.
    pub(in crate::host) facet: Rc<Facet>,
    pub(in crate::host) under_way: UnderWay,
    /// Of an exclusive object: its next call starts when this is dropped.
    pub(in crate::host) entry: Option<Entry>,
}

/// The instance ended in its turn, or before: nothing of the turn has an effect.
pub(in crate::host) struct Ended;

pub(in crate::host) type Handler = Promise<(), capnp::Error>;

/// The call, and the chain, to which a turn belongs.
#[derive(Default)]
pub(in crate::host) struct Cause {
    /// 0: to the object's waking.
    pub(in crate::host) interface: u64,
    pub(in crate::host) method: u16,
    /// The calls of exclusive objects that led here.
    pub(in crate::host) chain: Option<Chain>,
}

/// Polls a call for the first time.
pub(in crate::host) fn first_poll(instance: &Rc<Instance>, server: &dyn Dispatch, start: Start) {
    let Start { facet, call, under_way, entry, .. } = start;
    let Call { interface, method, params, reply, chain, .. } = call;
    let cause = Cause { interface, method, chain };
    let running = Running { reply, facet: facet.clone(), under_way, entry };
    let admitted = once::admit(instance, &facet, Method::new(interface, method), running);
    let Some((running, claim)) = admitted else { return };
    let params = match gated::entering(instance, params) {
        Ok(params) => Params::new(params),
        Err(error) => return answer(instance, running, Err(error)),
    };
    let (results, body) = Results::new();
    let results = capability::Results::new(Box::new(results));
    instance.vat.metrics.calls_total.add(1);
    let polled = turn(instance, &cause, || {
        let start = || match &facet.made {
            _ if is_granting(interface) => {
                let calls = instance.birth.class.grant_calls;
                calls(instance, &facet, Method::new(interface, method), params, results)
            }
            None => server.dispatch(interface, method, params, results),
            Some(made) => made.call(interface, method, params, results),
        };
        let mut handler = match claim {
            None => start(),
            Some(claim) => claim.run(instance, body.clone(), start),
        };
        // It is polled again at once by a task of its own if it has to wait.
        let polled = Pin::new(&mut handler).poll(&mut Context::from_waker(Waker::noop()));
        (handler, polled)
    });
    match polled {
        Err(Ended) => answer(instance, running, Err(instance.ended())),
        Ok((_, Poll::Ready(outcome))) => {
            let outcome = outcome.map_err(|error| name_method(error, interface, method));
            finish(instance, running, outcome, &body);
        }
        Ok((handler, Poll::Pending)) => go_on(instance, cause, facet, running, handler, body),
    }
}

/// Polls the handler to its end, also when the caller has left. The task ends with the handler or
/// the instance.
fn go_on(
    instance: &Rc<Instance>,
    cause: Cause,
    facet: Rc<Facet>,
    running: Running,
    handler: Handler,
    body: BodySlot,
) {
    let number = instance.owe(running);
    open_early(instance, number, &body);
    let owner = instance.clone();
    let instance = instance.clone();
    let task = tokio::task::spawn_local(async move {
        let _held_while_it_runs = facet;
        let mut handler = Turns { instance: &instance, cause, future: handler };
        let outcome = poll_fn(|cx| {
            let polled = Pin::new(&mut handler).poll(cx);
            instance.vat.busy(|| open_early(&instance, number, &body));
            polled
        });
        let outcome = outcome.await;
        instance.tasks.borrow_mut().remove(&number);
        let running = instance.running.borrow_mut().remove(&number);
        if let (Ok(outcome), Some(running)) = (outcome, running) {
            instance.vat.busy(|| finish(&instance, running, outcome, &body));
        }
    });
    owner.tasks.borrow_mut().insert(number, task.abort_handle());
}

/// The handler called `set_pipeline`: what it has put into its results by then may be called once
/// all writes so far are durable.
fn open_early(instance: &Rc<Instance>, number: u64, body: &BodySlot) {
    let Some(mut early) = body.take_early() else { return };
    early.replace_caps(|cap| gated::leaving(instance, cap));
    let (owner, whole) = (instance.clone(), body.clone());
    instance.gate.call(move || {
        // Taken out meanwhile, since the calls that now start may end the instance.
        let running = owner.running.borrow_mut().remove(&number);
        let Some(mut running) = running else { return };
        match running.reply.open_pipeline(early, whole) {
            Ok(()) => drop(owner.running.borrow_mut().insert(number, running)),
            Err(error) => running.reply.send(Err(error)),
        }
    });
}

/// A future whose polls are turns of an instance.
pub(in crate::host) struct Turns<'a, F> {
    pub(in crate::host) instance: &'a Rc<Instance>,
    pub(in crate::host) cause: Cause,
    pub(in crate::host) future: F,
}

impl<F: Future + Unpin> Future for Turns<'_, F> {
    type Output = std::result::Result<F::Output, Ended>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let instance = self.instance;
        if instance.broken().is_some() {
            return Poll::Ready(Err(Ended));
        }
        let Self { cause, future, .. } = &mut *self;
        match instance.vat.busy(|| turn(instance, cause, || Pin::new(future).poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(Ended) => Poll::Ready(Err(Ended)),
        }
    }
}

/// One turn: the writes that `poll` makes are one atomic batch; a panic drops them, and ends the
/// instance alone, as [`Context::abort`](super::Context::abort) does.
pub(in crate::host) fn turn<T>(
    instance: &Rc<Instance>,
    cause: &Cause,
    poll: impl FnOnce() -> T,
) -> std::result::Result<T, Ended> {
    let vat = &instance.vat;
    vat.store.borrow_mut().begin(instance.account.clone());
    let Birth { id, class, .. } = &instance.birth;
    vat.pulse.begin(class.number, *id, cause.interface, cause.method);
    if let Some(bodies) = vat.bodies.get() {
        bodies.runs_here();
    }
    if cause.chain.is_some() {
        vat.chain.borrow_mut().clone_from(&cause.chain);
    }
    let polled = std::panic::catch_unwind(AssertUnwindSafe(poll));
    if cause.chain.is_some() {
        vat.chain.take();
    }
    vat.pulse.end();
    match polled {
        Ok(output) if instance.broken().is_none() => {
            vat.seal(instance);
            Ok(output)
        }
        Ok(aborted) => {
            contain("dropping an aborted turn", || drop(aborted));
            Err(Ended)
        }
        Err(_) => {
            tracing::error!(class = instance.birth.class.name, "an object panicked and was ended");
            vat.break_off(instance, "panicked");
            Err(Ended)
        }
    }
}

fn finish(instance: &Rc<Instance>, running: Running, outcome: Result<()>, body: &BodySlot) {
    let outcome = outcome.map_err(of_class).and_then(|()| {
        let mut body = body.take().ok_or_else(|| failed("the handler kept its results"))?;
        body.replace_caps(|cap| gated::leaving(instance, cap));
        Ok(body)
    });
    answer(instance, running, outcome);
}

pub(in crate::host) fn answer(instance: &Rc<Instance>, running: Running, outcome: Result<Body>) {
    instance.was_used();
    let Running { reply, under_way, entry, facet } = running;
    let (grant, vat) = (facet.right.grant.clone(), instance.vat.clone());
    drop((entry, facet));
    let held = reply.hold(&outcome);
    instance.gate.reply(move |on_its_way| {
        reply.keep((under_way, on_its_way));
        if grant.is_some_and(|grant| grant.is_cut()) {
            return vat.tell_cut(reply, revoked_under_way());
        }
        reply.send(outcome);
        drop(held);
    });
}

/// Runs code of the class whose panic must end nothing else.
pub(in crate::host) fn contain(what: &str, work: impl FnOnce()) {
    if std::panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
        tracing::error!("{what} panicked");
    }
}
