//! The beginnings of instances: an object is woken from storage by its first call.
//!
//! Invariants:
//! - `wake` ends before the first call starts; calls that arrive meanwhile wait in their order.
//! - An object that could not wake leaves no place behind that nobody holds.
//! - A call to which `wake` led itself gets an error that says `deadlock:`, and none waits for ever: what isn't
//!   found out, such as a way through a client's callback, ends when `wake` has taken too long.

use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::exclusive::refuse;
use super::instance::Instance;
use super::run::{Cause, Ended, Turns, contain};
use super::slot::{Passage, Slot, Start, State};
use super::vat::Vat;
use crate::error::{Reason, Result, of_class, overloaded};
use crate::membrane::{Chain, Dispatch};

/// The number of the task that wakes an instance; calls count from 0 on.
const WAKING: u64 = u64::MAX;

/// The result of a `wake`.
type Woken = std::result::Result<Result<Rc<dyn Dispatch>>, Ended>;

impl Vat {
    /// Wakes the object, for which calls wait in its slot already.
    pub(in crate::host) fn wake(self: &Rc<Self>, slot: &Rc<Slot>) {
        let (instance, chain) = match self.new_instance(slot) {
            Ok(new) => new,
            Err(error) => {
                for start in slot.end() {
                    start.call.reply.send(Err(error.clone()));
                }
                return;
            }
        };
        slot.waking.replace(Some(instance.clone()));
        self.metrics.wakes_total.add(1);
        let mut waking = (slot.birth.class.wake)(instance.clone());
        let cause = || Cause { chain: Some(chain.clone()), ..Cause::default() };
        let mut cx = std::task::Context::from_waker(Waker::noop());
        let turns = Turns { instance: &instance, cause: cause(), future: &mut waking };
        match Pin::new(&mut { turns }).poll(&mut cx) {
            Poll::Ready(woken) => self.woken(slot, instance, woken),
            Poll::Pending => {
                let (vat, slot, cause) = (self.clone(), slot.clone(), cause());
                let patience = self.waits.wake_patience.get();
                // Ends with `wake`, whose callers wait for it, or when that has taken too long.
                let owner = instance.clone();
                let task = tokio::task::spawn_local(async move {
                    let mut turns = Turns { instance: &instance, cause, future: waking };
                    let woken = tokio::time::timeout(patience, &mut turns).await;
                    vat.busy(|| match woken {
                        Ok(woken) => vat.woken(&slot, instance.clone(), woken),
                        Err(_) => vat.gave_up(&slot, &instance, patience),
                    });
                    contain("dropping what wakes an object", || drop(turns));
                    vat.release(&slot);
                });
                owner.tasks.borrow_mut().insert(WAKING, task.abort_handle());
            }
        }
    }

    /// The instance that wakes now, and the calls that its own belong to: `wake` after those that
    /// led to the first call.
    fn new_instance(self: &Rc<Self>, slot: &Slot) -> Result<(Rc<Instance>, Chain)> {
        self.make_room()?;
        let first = match &*slot.state.borrow() {
            State::Waking(waiting) => waiting.front().and_then(|first| first.call.chain.clone()),
            _ => None,
        };
        let (wake, chain) = self.waits.lengthen(first)?;
        let instance = Instance::new(self, slot.birth.clone())?;
        instance.waking.set(Some(wake));
        if let State::Waking(waiting) = &*slot.state.borrow() {
            for start in waiting {
                self.waits.begin(&instance, start);
            }
        }
        Ok((instance, chain))
    }

    /// Another call waits for the object to wake, or is refused since `wake` waits for it.
    pub(in crate::host) fn wait_for_waking(&self, slot: &Slot, start: Start) {
        let instance = slot.waking.borrow().clone();
        let chain = start.call.chain.as_ref();
        if let (Some(instance), Some(chain)) = (&instance, chain) {
            let wake = instance.waking.get();
            if wake.is_some_and(|wake| self.waits.leads_back(wake, chain)) {
                let class = instance.birth.class.name;
                let error = Reason::Deadlock.error(format_args!(
                    "this call waits until the {class} is awake, and its wake waits for the call"
                ));
                self.metrics.deadlocks_refused_total.add(1);
                return drop(refuse(start, error));
            }
            self.waits.begin(instance, &start);
        }
        if let State::Waking(waiting) = &mut *slot.state.borrow_mut() {
            waiting.push_back(start);
        }
    }

    /// The instance ended, or could not wake: gives back the calls that waited for it.
    pub(in crate::host) fn end_slot(&self, slot: &Slot, instance: &Instance) -> VecDeque<Start> {
        let waiting = slot.end();
        self.end_waiting(&waiting, instance);
        waiting
    }

    /// These calls don't wait for `wake` any more.
    fn end_waiting(&self, waiting: &VecDeque<Start>, instance: &Instance) {
        instance.waking.set(None);
        for start in waiting {
            self.waits.end(instance, start);
        }
    }

    fn gave_up(&self, slot: &Slot, instance: &Rc<Instance>, patience: Duration) {
        if !slot.ends_waking(instance) {
            return; // its callers were told when it was ended
        }
        self.metrics.waits_given_up_total.add(1);
        let class = instance.birth.class.name;
        let reason =
            format!("the {class} did not wake within {patience:?}: the call did not happen");
        tracing::warn!(class, ?patience, "an object did not wake in time");
        self.sleep_again(slot, instance, &overloaded(reason));
    }

    fn woken(self: &Rc<Self>, slot: &Rc<Slot>, instance: Rc<Instance>, woken: Woken) {
        if !slot.ends_waking(&instance) {
            return; // its callers were told when it was ended
        }
        let server = match woken {
            Ok(Ok(server)) => server,
            Ok(Err(error)) => return self.sleep_again(slot, &instance, &of_class(error)),
            Err(Ended) => return self.sleep_again(slot, &instance, &instance.ended()),
        };
        self.metrics.objects_awake.add(1);
        self.keep_warm(&instance);
        let State::Waking(mut waiting) = slot.state.replace(State::Awake(instance.clone(), server))
        else {
            unreachable!("only the end of waking ends waking");
        };
        self.end_waiting(&waiting, &instance);
        for start in &mut waiting {
            start.passage = Passage::Waited;
        }
        self.queue_first(waiting);
    }

    /// The object could not wake: those who wait are told, after what `wake` wrote is durable.
    fn sleep_again(&self, slot: &Slot, instance: &Instance, error: &capnp::Error) {
        for Start { call, under_way, .. } in self.end_slot(slot, instance) {
            let error = error.clone();
            instance.gate.reply(move |on_its_way| {
                call.reply.keep((under_way, on_its_way));
                call.reply.send(Err(error));
            });
        }
        instance.end("could not wake");
    }
}
