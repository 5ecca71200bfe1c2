//! The beginnings of instances: an object is woken from storage by its first call.
//!
//! Invariants:
//! - `wake` ends before the first call starts; calls that arrive meanwhile wait in their order.
//! - An object that could not wake leaves no place behind that nobody holds.
//! - A call to which `wake` led itself gets an error that says `deadlock:`. A deadlock that isn't
//!   found, such as one by way of a client's callback, ends when `wake` has taken too long.

use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::ending::{did_not_wake, end_waits, take_waiting};
use super::rest;
use super::run::{InTurns, InstanceEnded, TurnCause};
use crate::error::{Reason, Result, of_class, overloaded};
use crate::host::base::fault::catch_panic;
use crate::host::state::instance::Instance;
use crate::host::state::keeping::KeptAwake;
use crate::host::state::queued_call::{Passage, QueuedCall};
use crate::host::state::slot::Slot;
use crate::host::state::vat::Vat;
use crate::membrane::{Chain, Dispatch};

/// The number of the task that wakes an instance; calls count from 0 on.
const WAKING: u64 = u64::MAX;

/// The result of a `wake`.
type WakeResult = std::result::Result<Result<Rc<dyn Dispatch>>, InstanceEnded>;

/// Wakes the object, for which calls wait in its slot already.
pub(in crate::host) fn wake(vat: &Rc<Vat>, slot: &Rc<Slot>) {
    let (instance, chain) = match new_instance(vat, slot) {
        Ok(new) => new,
        Err(error) => {
            for queued in slot.vacate() {
                queued.call.reply.send(Err(error.clone()));
            }
            return;
        }
    };
    slot.set_waking(&instance);
    vat.metrics.wakes_total.add(1);
    let mut waking = (slot.spec.class.wake)(instance.clone());
    let keeper = slot.with_waiting(|waiting| waiting.front().map(|first| first.keeper.clone()));
    let keeper = keeper.flatten();
    let cause = || TurnCause { method: None, chain: Some(chain.clone()), keeper: keeper.clone() };
    let mut cx = std::task::Context::from_waker(Waker::noop());
    let turns = InTurns { instance: &instance, cause: cause(), future: &mut waking };
    match Pin::new(&mut { turns }).poll(&mut cx) {
        Poll::Ready(result) => woke(vat, slot, instance, result),
        Poll::Pending => {
            let (vat, slot, cause) = (vat.clone(), slot.clone(), cause());
            let patience = vat.objects.waits().wake_patience();
            // Ends with `wake`, whose callers wait for it, or when that has taken too long.
            let owner = instance.clone();
            let task = tokio::task::spawn_local(async move {
                let mut turns = InTurns { instance: &instance, cause, future: waking };
                let result = tokio::time::timeout(patience, &mut turns).await;
                vat.busy(|| match result {
                    Ok(result) => woke(&vat, &slot, instance.clone(), result),
                    Err(_) => give_up(&vat, &slot, &instance, patience),
                });
                catch_panic("dropping what wakes an object", || drop(turns));
                vat.objects.release(&slot);
            });
            owner.add_task(WAKING, &task);
        }
    }
}

/// The instance that wakes now, and the calls that its own belong to: `wake` after those that led
/// to the first call.
fn new_instance(vat: &Rc<Vat>, slot: &Slot) -> Result<(Rc<Instance>, Chain)> {
    rest::make_room(vat)?;
    let chain_of_first = |waiting: &mut VecDeque<QueuedCall>| {
        waiting.front().and_then(|first| first.call.chain.clone())
    };
    let first = slot.with_waiting(chain_of_first).flatten();
    let (wake, chain) = vat.objects.waits().lengthen(first)?;
    let instance = Instance::new(vat, slot.spec.clone())?;
    instance.waking.set(Some(wake));
    slot.with_waiting(|waiting| {
        for queued in waiting {
            queued.kept = Some(KeptAwake::new(&instance, &queued.keeper));
            vat.objects.waits().add(&instance, queued);
        }
    });
    Ok((instance, chain))
}

/// Another call waits for the object to wake, or is refused since `wake` waits for it.
pub(in crate::host) fn wait(vat: &Vat, slot: &Slot, mut queued: QueuedCall) {
    let instance = slot.waking();
    queued.kept = instance.as_ref().map(|instance| KeptAwake::new(instance, &queued.keeper));
    let chain = queued.call.chain.as_ref();
    if let (Some(instance), Some(chain)) = (&instance, chain) {
        let waits = vat.objects.waits();
        if instance.waking.get().is_some_and(|wake| waits.leads_back(wake, chain)) {
            let class = instance.spec.class.name;
            let error = Reason::Deadlock.error(format_args!(
                "this call waits until the {class} is awake, and its wake waits for the call"
            ));
            vat.metrics.deadlocks_refused_total.add(1);
            return queued.refuse(error);
        }
        waits.add(instance, &queued);
    }
    slot.wait(queued);
}

fn give_up(vat: &Vat, slot: &Slot, instance: &Rc<Instance>, patience: Duration) {
    if !slot.end_waking(instance) {
        return; // its callers were told when it was ended
    }
    vat.metrics.waits_given_up_total.add(1);
    let class = instance.spec.class.name;
    let reason = format!("the {class} did not wake within {patience:?}: the call did not happen");
    tracing::warn!(class, ?patience, "an object did not wake in time");
    sleep_again(slot, instance, &overloaded(reason));
}

fn woke(vat: &Rc<Vat>, slot: &Rc<Slot>, instance: Rc<Instance>, result: WakeResult) {
    if !slot.end_waking(&instance) {
        return; // its callers were told when it was ended
    }
    let server = match result {
        Ok(Ok(server)) => server,
        Ok(Err(error)) => return sleep_again(slot, &instance, &of_class(error)),
        Err(InstanceEnded) => return sleep_again(slot, &instance, &instance.why_ended()),
    };
    vat.metrics.objects_awake.add(1);
    vat.objects.awake().keep_warm(&instance);
    let mut waiting = slot.set_awake(instance.clone(), server);
    end_waits(&waiting, &instance);
    for queued in &mut waiting {
        queued.passage = Passage::Waited;
    }
    vat.scheduler.queue_first(waiting);
}

/// The object could not wake: those who wait are told, after what `wake` wrote is durable.
fn sleep_again(slot: &Slot, instance: &Instance, error: &capnp::Error) {
    let waiting = take_waiting(slot, instance);
    did_not_wake(&waiting);
    for QueuedCall { call, under_way, .. } in waiting {
        let error = error.clone();
        instance.gate.reply(move |on_its_way| {
            call.reply.keep((under_way, on_its_way));
            call.reply.send(Err(error));
        });
    }
    drop(instance.end("could not wake"));
}
