//! One call at a time, for objects of exclusive classes.
//!
//! Invariants:
//! - A call starts when the one before it has ended, in the order of arrival; those whose callers have to
//!   read first are passed over.
//! - A call that its own chain keeps from starting gets an error that says `deadlock:`, and none waits
//!   for ever: what isn't found out, across hosts, ends when its patience does.
//!
//! Calls of an object that wakes wait alike, of whichever class, for `wake`, which counts as the call that runs.
//!
//! A call waits for the one that runs. That one waits for the calls that it led to, and those may wait
//! for others: if this comes back to the chain of the first call, nobody would ever go on.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::cut;
use super::instance::Instance;
use super::slot::Start;
use super::vat::Vat;
use crate::error::{Reason, Result, overloaded};
use crate::limits::{EXCLUSIVE_WAIT_SECS, WAKE_SECS};
use crate::membrane::{Chain, Reply};

/// The calls of one exclusive instance.
#[derive(Default)]
pub(in crate::host) struct Exclusive {
    /// The one that runs, or is about to.
    running: Cell<Option<u128>>,
    waiting: RefCell<VecDeque<(Instant, Start)>>,
    /// A task ends the waiting of those who wait too long.
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
        cut::take_cut(self.waiting.borrow_mut().iter_mut().map(|(_, start)| start), cut);
    }

    /// The next call that may start; those whose callers have to read first are [parked](super::parked).
    fn next(&self, instance: &Rc<Instance>) -> Option<Start> {
        if let Some(start) = Vat::ready_again(instance) {
            return Some(start);
        }
        loop {
            let (_, start) = self.waiting.borrow_mut().pop_front()?;
            if let Some(start) = Vat::or_parked(instance, start) {
                return Some(start);
            }
        }
    }

    /// Those who wait, when the instance ended.
    pub(in crate::host) fn end(&self, instance: &Instance) -> Vec<Start> {
        let waiting: Vec<_> = self.waiting.take().into_iter().map(|(_, start)| start).collect();
        for start in &waiting {
            instance.vat.waits.end(instance, start);
        }
        waiting
    }
}

/// The right of one call to run in an exclusive object. The next one starts when it is dropped.
pub(in crate::host) struct Entry(Rc<Instance>);

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.vat.leave(&self.0);
    }
}

/// The waiting calls that a vat knows of.
pub(in crate::host) struct Waits {
    /// The instances at which calls wait that a call led to.
    led_to: RefCell<HashMap<u128, Vec<Weak<Instance>>>>,
    /// Makes numbers of calls, which nobody can guess: who knows one can have calls refused.
    secrets: [RandomState; 2],
    /// Calls that have a number.
    count: Cell<u64>,
    pub(in crate::host) patience: Cell<Duration>,
    /// The time that `wake` may take.
    pub(in crate::host) wake_patience: Cell<Duration>,
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

    pub(in crate::host) fn begin(&self, instance: &Rc<Instance>, start: &Start) {
        let mut led_to = self.led_to.borrow_mut();
        for call in start.call.chain.iter().flat_map(Chain::calls) {
            led_to.entry(call).or_default().push(Rc::downgrade(instance));
        }
    }

    pub(in crate::host) fn end(&self, instance: &Instance, start: &Start) {
        let mut led_to = self.led_to.borrow_mut();
        for call in start.call.chain.iter().flat_map(Chain::calls) {
            let Some(at) = led_to.get_mut(&call) else { continue };
            let place = at.iter().position(|at| std::ptr::eq(at.as_ptr(), instance));
            place.map(|place| at.swap_remove(place));
            if at.is_empty() {
                led_to.remove(&call);
            }
        }
    }

    /// Tells whether what `running` waits for waits for one of the chain.
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

impl Vat {
    /// Gives the call back if it may start now; otherwise it waits, or was refused.
    pub(in crate::host) fn enter(&self, instance: &Rc<Instance>, start: Start) -> Option<Start> {
        if start.entry.is_some() {
            return Some(start);
        }
        let mut start = self.past_parked(instance, start)?;
        let Some(exclusive) = &instance.exclusive else { return Some(start) };
        let Some(running) = exclusive.running.get() else {
            return match self.take_turn(instance, exclusive, &mut start) {
                Ok(()) => Some(start),
                Err(error) => refuse(start, error),
            };
        };
        let chain = start.call.chain.as_ref();
        if chain.is_some_and(|chain| self.waits.leads_back(running, chain)) {
            let class = instance.birth.class.name;
            let error = Reason::Deadlock
                .error(format_args!("this call waits for a call of the {class} that waits for it"));
            self.metrics.deadlocks_refused_total.add(1);
            return refuse(start, error);
        }
        self.waits.begin(instance, &start);
        exclusive.waiting.borrow_mut().push_back((Instant::now(), start));
        if !exclusive.is_timed.replace(true) {
            let patience = self.waits.patience.get();
            tokio::task::spawn_local(end_waiting(Rc::downgrade(instance), patience));
        }
        None
    }

    fn take_turn(
        &self,
        instance: &Rc<Instance>,
        exclusive: &Exclusive,
        start: &mut Start,
    ) -> Result<()> {
        let (call, chain) = self.waits.lengthen(start.call.chain.take())?;
        start.call.chain = Some(chain);
        start.entry = Some(Entry(instance.clone()));
        exclusive.running.set(Some(call));
        Ok(())
    }

    /// A call of the instance ended: the next one starts.
    fn leave(&self, instance: &Rc<Instance>) {
        let Some(exclusive) = &instance.exclusive else { return };
        exclusive.running.set(None);
        while exclusive.is_idle() {
            let Some(mut start) = exclusive.next(instance) else { return };
            self.waits.end(instance, &start);
            match self.take_turn(instance, exclusive, &mut start) {
                Ok(()) => self.queue(start),
                Err(error) => drop(refuse(start, error)),
            }
        }
    }
}

pub(in crate::host) fn refuse(start: Start, error: capnp::Error) -> Option<Start> {
    start.call.reply.keep(start.under_way);
    start.call.reply.send(Err(error));
    None
}

/// Ends with the last call that waits, or the instance.
async fn end_waiting(instance: Weak<Instance>, patience: Duration) {
    loop {
        let first = {
            let Some(instance) = instance.upgrade() else { return };
            let Some(exclusive) = &instance.exclusive else { return };
            let first = exclusive.waiting.borrow().front().map(|(since, _)| *since + patience);
            match first {
                Some(until) if until <= Instant::now() => {
                    let start = exclusive.waiting.borrow_mut().pop_front();
                    if let Some((_, start)) = start {
                        instance.vat.waits.end(&instance, &start);
                        instance.vat.metrics.waits_given_up_total.add(1);
                        let class = instance.birth.class.name;
                        let reason = format!(
                            "waited {patience:?} for the {class}, which runs one call at a time: the call did not happen"
                        );
                        instance.vat.busy(|| refuse(start, overloaded(reason)));
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
