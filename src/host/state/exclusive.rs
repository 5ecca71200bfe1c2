//! One call at a time, for objects of exclusive classes.
//!
//! A call waits for the one that runs. That one waits for the calls that it led to, and those may
//! wait for others: if this comes back to the chain of the first call, nobody would ever go on.
//! Calls of an object that wakes, of whichever class, wait in the same way for `wake`, which counts
//! as the call that runs.
//!
//! Invariants:
//! - A call starts when the one before it has ended, in the order of arrival. Those whose callers
//!   have to read first are passed over. Those that bring the call that runs the body of its
//!   request, or the answer to one that it made, go past.
//! - A call that its own chain keeps from starting gets an error that says `deadlock:`. A deadlock
//!   that isn't found, across hosts, ends when the patience of a call does.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::rc::{Rc, Weak};
use std::time::Duration;

use capnp::traits::HasTypeId;
use tokio::time::Instant;

use super::instance::Instance;
use super::parked;
use super::queued_call::{self, QueuedCall};
use crate::error::{Reason, Result, overloaded};
use crate::limits::{EXCLUSIVE_WAIT_SECS, WAKE_SECS};
use crate::membrane::{Chain, Reply};
use crate::schema::http_capnp::byte_stream;
use crate::schema::http_capnp::http_service::client_request_context;

/// The calls of one exclusive instance.
#[derive(Default)]
pub(in crate::host) struct Exclusive {
    /// The number of the call that runs, or is about to.
    running: Cell<Option<u128>>,
    waiting: RefCell<VecDeque<(Instant, QueuedCall)>>,
    /// A task refuses those that wait too long.
    is_timed: Cell<bool>,
}

impl Exclusive {
    /// The call that runs, if one does.
    pub(in crate::host) fn running(&self) -> Option<u128> {
        self.running.get()
    }

    /// No call runs, and so none waits.
    pub(in crate::host) fn is_idle(&self) -> bool {
        self.running.get().is_none()
    }

    /// Takes the replies of waiting calls that were cut.
    pub(in crate::host) fn take_cut(&self, cut: &mut Vec<Reply>) {
        queued_call::take_cut(self.waiting.borrow_mut().iter_mut().map(|(_, queued)| queued), cut);
    }

    /// The next call that may start; those whose callers have to read first are
    /// [parked](super::parked).
    fn next(&self, instance: &Rc<Instance>) -> Option<QueuedCall> {
        if let Some(queued) = parked::take_ready(instance) {
            return Some(queued);
        }
        loop {
            let (_, queued) = self.waiting.borrow_mut().pop_front()?;
            if let Some(queued) = parked::unless_waits(instance, queued) {
                return Some(queued);
            }
        }
    }

    /// Takes out the calls that wait, when the instance ended.
    pub(in crate::host) fn take_waiting(&self, instance: &Instance) -> Vec<QueuedCall> {
        let waiting: Vec<_> = self.waiting.take().into_iter().map(|(_, queued)| queued).collect();
        for queued in &waiting {
            instance.vat.objects.waits().remove(instance, queued);
        }
        waiting
    }
}

/// The right of one call to run in an exclusive object. The next one starts when it is dropped.
pub(in crate::host) struct Permit(Rc<Instance>);

impl Drop for Permit {
    fn drop(&mut self) {
        leave(&self.0);
    }
}

/// The waiting calls that a vat knows of.
pub(in crate::host) struct Waits {
    /// The instances at which calls wait, by the numbers of the calls that led to these.
    led_to: RefCell<HashMap<u128, Vec<Weak<Instance>>>>,
    /// Make numbers of calls that nobody can guess: a caller who knows one can have calls refused.
    secrets: [RandomState; 2],
    /// Calls that have a number.
    count: Cell<u64>,
    /// The time for which a call waits for an exclusive object.
    patience: Cell<Duration>,
    /// The time that `wake` may take.
    wake_patience: Cell<Duration>,
}

impl Waits {
    pub(in crate::host) fn new() -> Self {
        let patience = Cell::new(Duration::from_secs(EXCLUSIVE_WAIT_SECS));
        let secrets = [RandomState::new(), RandomState::new()];
        let wake_patience = Cell::new(Duration::from_secs(WAKE_SECS));
        Self {
            led_to: RefCell::default(),
            secrets,
            count: Cell::default(),
            patience,
            wake_patience,
        }
    }

    pub(in crate::host) fn wake_patience(&self) -> Duration {
        self.wake_patience.get()
    }

    #[cfg(test)]
    pub(in crate::host) fn set_patience(&self, patience: Duration) {
        self.patience.set(patience);
    }

    #[cfg(test)]
    pub(in crate::host) fn set_wake_patience(&self, patience: Duration) {
        self.wake_patience.set(patience);
    }

    #[cfg(test)]
    pub(in crate::host) fn is_empty(&self) -> bool {
        self.led_to.borrow().is_empty()
    }

    fn number(&self) -> u128 {
        self.count.set(self.count.get() + 1);
        let [high, low] = self.secrets.each_ref().map(|secret| secret.hash_one(self.count.get()));
        (u128::from(high) << 64) | u128::from(low)
    }

    /// The number of a call that begins with this chain behind it, and its own chain.
    ///
    /// # Errors
    /// When the chain is too long.
    pub(in crate::host) fn lengthen(&self, chain: Option<Chain>) -> Result<(u128, Chain)> {
        let call = self.number();
        Ok((call, Chain::extend(chain, call)?))
    }

    /// The call waits at the instance from now on.
    pub(in crate::host) fn add(&self, instance: &Rc<Instance>, queued: &QueuedCall) {
        let mut led_to = self.led_to.borrow_mut();
        for call in queued.call.chain.iter().flat_map(Chain::calls) {
            led_to.entry(call).or_default().push(Rc::downgrade(instance));
        }
    }

    /// The call waits at the instance no more.
    pub(in crate::host) fn remove(&self, instance: &Instance, queued: &QueuedCall) {
        let mut led_to = self.led_to.borrow_mut();
        for call in queued.call.chain.iter().flat_map(Chain::calls) {
            let Some(at) = led_to.get_mut(&call) else { continue };
            let place = at.iter().position(|at| std::ptr::eq(at.as_ptr(), instance));
            place.map(|place| at.swap_remove(place));
            if at.is_empty() {
                led_to.remove(&call);
            }
        }
    }

    /// Tells whether the call `running` waits, at whatever remove, for a call of the chain.
    pub(in crate::host) fn leads_back(&self, running: u128, chain: &Chain) -> bool {
        let led_to = self.led_to.borrow();
        let (mut seen, mut next) = (HashSet::new(), vec![running]);
        while let Some(call) = next.pop() {
            if chain.calls().any(|earlier| earlier == call) {
                return true;
            }
            if seen.insert(call) {
                let at = led_to.get(&call).into_iter().flatten().filter_map(Weak::upgrade);
                next.extend(at.filter_map(|at| at.waited_for()));
            }
        }
        false
    }
}

/// Gives the call back if it may start now; otherwise it waits, or was refused.
pub(in crate::host) fn enter(
    instance: &Rc<Instance>,
    mut queued: QueuedCall,
) -> Option<QueuedCall> {
    // That of an instance which ended meanwhile lets nobody in.
    queued.permit = queued.permit.take().filter(|permit| Rc::ptr_eq(&permit.0, instance));
    if queued.permit.is_some() {
        return Some(queued);
    }
    let mut queued = parked::pass(instance, queued)?;
    let Some(exclusive) = &instance.exclusive else { return Some(queued) };
    if brings_http(&queued, exclusive.running()) {
        return Some(queued);
    }
    let Some(running) = exclusive.running.get() else {
        return match permit(instance, exclusive, &mut queued) {
            Ok(()) => Some(queued),
            Err(error) => {
                queued.refuse(error);
                None
            }
        };
    };
    let (vat, waits) = (&instance.vat, instance.vat.objects.waits());
    let chain = queued.call.chain.as_ref();
    if chain.is_some_and(|chain| waits.leads_back(running, chain)) {
        let class = instance.spec.class.name;
        let error = Reason::Deadlock
            .error(format_args!("this call waits for a call of the {class} that waits for it"));
        vat.metrics.deadlocks_refused_total.add(1);
        queued.refuse(error);
        return None;
    }
    waits.add(instance, &queued);
    exclusive.waiting.borrow_mut().push_back((Instant::now(), queued));
    if !exclusive.is_timed.replace(true) {
        tokio::task::spawn_local(end_waiting(Rc::downgrade(instance), waits.patience.get()));
    }
    None
}

/// Tells whether a call brings bytes, or the answer to a request, to the one that runs, which may
/// wait for them. A stream that the class made for anything else is called as all its capabilities
/// are.
fn brings_http(queued: &QueuedCall, running: Option<u128>) -> bool {
    match queued.call.method.interface {
        byte_stream::Client::TYPE_ID => {
            queued.facet.serves().is_some_and(|call| Some(call) == running)
        }
        client_request_context::Client::TYPE_ID => queued.facet.is_made(),
        _ => false,
    }
}

/// The call is the one that runs from now on.
fn permit(instance: &Rc<Instance>, exclusive: &Exclusive, queued: &mut QueuedCall) -> Result<()> {
    let (call, chain) = instance.vat.objects.waits().lengthen(queued.call.chain.take())?;
    queued.call.chain = Some(chain);
    queued.permit = Some(Permit(instance.clone()));
    exclusive.running.set(Some(call));
    Ok(())
}

/// A call of the instance ended: the next one starts.
fn leave(instance: &Rc<Instance>) {
    let Some(exclusive) = &instance.exclusive else { return };
    exclusive.running.set(None);
    while exclusive.is_idle() {
        let Some(mut queued) = exclusive.next(instance) else { return };
        instance.vat.objects.waits().remove(instance, &queued);
        match permit(instance, exclusive, &mut queued) {
            Ok(()) => instance.vat.scheduler.queue(queued),
            Err(error) => queued.refuse(error),
        }
    }
}

/// Refuses calls that have waited too long. Ends with the last call that waits, or the instance.
async fn end_waiting(instance: Weak<Instance>, patience: Duration) {
    loop {
        let first = {
            let Some(instance) = instance.upgrade() else { return };
            let Some(exclusive) = &instance.exclusive else { return };
            let first = exclusive.waiting.borrow().front().map(|(since, _)| *since + patience);
            match first {
                Some(until) if until <= Instant::now() => {
                    let first = exclusive.waiting.borrow_mut().pop_front();
                    if let Some((_, queued)) = first {
                        give_up(&instance, queued, patience);
                    }
                    continue;
                }
                Some(until) => until,
                None => {
                    exclusive.is_timed.set(false);
                    return;
                }
            }
        };
        tokio::time::sleep_until(first).await;
    }
}

fn give_up(instance: &Rc<Instance>, queued: QueuedCall, patience: Duration) {
    let (vat, class) = (&instance.vat, instance.spec.class.name);
    vat.objects.waits().remove(instance, &queued);
    vat.metrics.waits_given_up_total.add(1);
    let reason = format!(
        "waited {patience:?} for the {class}, which runs one call at a time: \
         the call did not happen"
    );
    vat.busy(|| queued.refuse(overloaded(reason)));
}
