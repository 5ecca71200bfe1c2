//! Request ids: a call that has one is applied at most once, and asked again is told its reply again.
//!
//! The id comes with the facet that the call was made on, which `once` of the interface `Facet` made.
//! The knowledge of such calls lies in the object's own storage, where its class doesn't see it.
//!
//! Invariants:
//! - Whatever the handler of such a call sends waits for a record of the call: one is written in its
//!   first turn, before anything of the handler runs.
//! - The first turn's batch says that the call has begun, and the last turn's how it ended; if they are
//!   the same turn, then the latter alone. So what a crash or a panic leaves is the truth.
//! - A call that has begun never begins again while its id is kept.
//! - The first caller is told what was stored, so that every later one is told the same.
//! - Ids are numbered as their calls begin, `first..next`; no id that is kept has another number.
//!
//! It never compares parameters, and never forgets the id of a call that runs.

mod record;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use capnp::capability::Promise;
use futures::FutureExt;

pub(super) use self::record::{Method, RequestId};
use self::record::{ORDER, Outcome, REPLY_BYTES_MAX, Record, State};
use super::facet::Facet;
use super::instance::Instance;
use super::run::{self, Handler, Running};
use crate::clock::Clock;
use crate::error::{Result, failed, of_class, overloaded};
use crate::limits::REQUEST_IDS_MAX;
use crate::membrane::{Body, BodySlot};
use crate::storage::Space;

/// Ids that are forgotten at most when a new one comes: as more than one, they become fewer.
const FORGOTTEN_AT_ONCE: usize = 2;

/// The time for which ids are kept, and the clock by which.
pub(crate) struct Retention {
    clock: Clock,
    millis: u64,
}

impl Retention {
    pub(crate) fn new(clock: Clock, time: Duration) -> Self {
        Self { clock, millis: u64::try_from(time.as_millis()).unwrap_or(u64::MAX) }
    }

    pub(super) fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// Tells whether what began then is to be forgotten by now. A clock that was put back forgets
    /// later.
    fn is_over(&self, began: u64) -> bool {
        self.clock.now_ms() >= began.saturating_add(self.millis)
    }

    /// Tells whether the call of that number is to be forgotten by now. One that began later than
    /// now was begun by a clock that was ahead, and counts from when that was noticed on; only as
    /// long as that is so, since it may also be that the clock is behind now.
    fn is_call_over(&self, number: u64, began: u64, kept: Kept) -> bool {
        let was_noticed = number < kept.by_then.0 && self.is_ahead(began);
        self.is_over(began) || (was_noticed && self.is_over(kept.by_then.1))
    }

    fn is_ahead(&self, time: u64) -> bool {
        time > self.clock.now_ms()
    }
}

/// The knowledge of an instance about its calls with ids, beside what is stored.
#[derive(Default)]
pub(super) struct Requests {
    /// The numbers of the calls that are kept; none before they were looked for.
    kept: Cell<Option<Kept>>,
    /// The calls that run, with those who ask for their replies, by the numbers of `Instance::running`.
    running: RefCell<HashMap<RequestId, Vec<u64>>>,
}

/// Numbers of calls, from the oldest that may be kept to the next one.
#[derive(Clone, Copy)]
struct Kept {
    first: u64,
    next: u64,
    /// All calls before this number had begun by this time.
    by_then: (u64, u64),
}

/// The fate of a call, as it is about to start.
enum Found {
    /// Nothing is known of it.
    New(Claim),
    /// It runs.
    Running,
    /// It ended so.
    Ended(Outcome),
}

/// The right to run a call with an id.
pub(super) struct Claim {
    id: RequestId,
    number: u64,
    began: u64,
    method: Method,
}

/// Decides whether the call is to run: the caller is given back then, and what is to be recorded of
/// it, if it has an id. Else the caller is answered, now or later.
pub(super) fn admit(
    instance: &Rc<Instance>,
    facet: &Facet,
    method: Method,
    running: Running,
) -> Option<(Running, Option<Claim>)> {
    let Some(id) = facet.request() else { return Some((running, None)) };
    let outcome = match find(instance, id, method) {
        Ok(Found::New(claim)) => return Some((running, Some(claim))),
        Ok(Found::Running) => {
            instance.vat.metrics.calls_repeated_total.add(1);
            let number = instance.owe(running);
            if let Some(waiting) = instance.requests.running.borrow_mut().get_mut(id) {
                waiting.push(number);
            }
            return None;
        }
        Ok(Found::Ended(outcome)) => {
            instance.vat.metrics.calls_repeated_total.add(1);
            outcome
        }
        Err(error) => Err(error),
    };
    tell(instance, running, &outcome);
    None
}

/// Tells one caller how the call ended.
fn tell(instance: &Rc<Instance>, running: Running, outcome: &Outcome) {
    let outcome = outcome.as_ref().map_err(Clone::clone);
    run::answer(instance, running, outcome.and_then(|reply| Body::from_bytes(reply)));
}

fn find(instance: &Instance, id: &RequestId, method: Method) -> Result<Found> {
    let is_running = instance.requests.running.borrow().contains_key(id);
    let record = instance.read(Space::Requests, &id.key())?;
    let record = record.map(|record| Record::decode(&record)).transpose()?;
    let (retention, kept) = (&instance.vat.retention, kept(instance)?);
    let is_kept = |record: &Record<State>| {
        is_running || !retention.is_call_over(record.number, record.began, kept)
    };
    match record.filter(is_kept) {
        None => {
            let claim =
                |number| Claim { id: id.clone(), number, began: retention.clock.now_ms(), method };
            room_for_another(instance).map(claim).map(Found::New)
        }
        Some(record) if record.method != method => Err(failed(
            "request-id-reused: another method was called with this id; every call needs a fresh one",
        )),
        Some(Record { state: State::Ended(outcome), .. }) => Ok(Found::Ended(outcome)),
        Some(_) if is_running => Ok(Found::Running),
        Some(_) => Err(failed(
            "unknown: the call was begun and cut short; look at what it did, and don't repeat it",
        )),
    }
}

/// The number for another call.
///
/// # Errors
/// When there are as many as can be, or space is low.
fn room_for_another(instance: &Instance) -> Result<u64> {
    let Kept { first, next, .. } = kept(instance)?;
    if next - first >= REQUEST_IDS_MAX && matches!(oldest(instance, first)?, Oldest::Kept) {
        return Err(overloaded(format!(
            "the object keeps {REQUEST_IDS_MAX} request ids, and the oldest are still needed; the \
             call has not happened"
        )));
    }
    instance.vat.store.borrow().check_room()?;
    Ok(next)
}

fn kept(instance: &Instance) -> Result<Kept> {
    if let Some(kept) = instance.requests.kept.get() {
        return Ok(kept);
    }
    let ends = instance.vat.store.borrow().ends(instance.birth.id, Space::Requests, &[ORDER])?;
    let by_then = instance.read(Space::Requests, &record::BY_THEN)?;
    let by_then = by_then.map(|record| record::decode_by_then(&record)).transpose()?;
    let by_then = by_then.unwrap_or_default();
    let kept = match ends {
        None => Kept { first: 0, next: 0, by_then },
        Some([first, last]) => Kept {
            first: record::number_in(&first)?,
            next: record::number_in(&last)?.saturating_add(1),
            by_then,
        },
    };
    instance.requests.kept.set(Some(kept));
    Ok(kept)
}

/// The fate of the oldest id.
enum Oldest {
    Kept,
    /// It was begun by a clock that was ahead, which nobody has noticed yet.
    Ahead,
    /// It can be forgotten; none where there is nothing to forget.
    Over(Option<RequestId>),
}

fn oldest(instance: &Instance, number: u64) -> Result<Oldest> {
    let record = instance.read(Space::Requests, &record::order_key(number))?;
    let Some(record) = record else { return Ok(Oldest::Over(None)) };
    let (began, id) = record::decode_order(&record)?;
    let is_running = instance.requests.running.borrow().contains_key(&id);
    let (retention, kept) = (&instance.vat.retention, kept(instance)?);
    let (by_number, by_time) = kept.by_then;
    if retention.is_ahead(began) && (number >= by_number || retention.is_ahead(by_time)) {
        return Ok(Oldest::Ahead);
    }
    if is_running || !retention.is_call_over(number, began, kept) {
        return Ok(Oldest::Kept);
    }
    Ok(Oldest::Over(Some(id)))
}

impl Claim {
    /// Runs the handler that `start` gives, in its first turn now and in the following later, and
    /// records what becomes of the call.
    pub(super) fn run(
        self,
        instance: &Rc<Instance>,
        body: BodySlot,
        start: impl FnOnce() -> Handler,
    ) -> Handler {
        if let Err(error) = self.begin(instance) {
            return Promise::err(error);
        }
        let (mut handler, instance) = (start(), instance.clone());
        let mut has_begun = false;
        Promise::from_future(poll_fn(move |cx: &mut Context<'_>| match handler.poll_unpin(cx) {
            Poll::Ready(outcome) => Poll::Ready(self.end(&instance, outcome, &body)),
            Poll::Pending if has_begun => Poll::Pending,
            Poll::Pending => {
                has_begun = true;
                match self.record(&instance, &State::Begun) {
                    Ok(()) => Poll::Pending,
                    // The storage has failed: nothing that the handler does counts any more.
                    Err(error) => Poll::Ready(Err(error)),
                }
            }
        }))
    }

    /// Gives the call its place in the order of all, and forgets old ones.
    fn begin(&self, instance: &Instance) -> Result<()> {
        let Kept { mut first, mut by_then, .. } = kept(instance)?;
        for _ in 0..FORGOTTEN_AT_ONCE {
            if first == self.number {
                break;
            }
            match oldest(instance, first)? {
                Oldest::Kept => break,
                Oldest::Ahead => {
                    by_then = (self.number, self.began);
                    let record = record::by_then_record(by_then.0, by_then.1);
                    instance.write_record(Space::Requests, &record::BY_THEN, Some(&record))?;
                    break;
                }
                Oldest::Over(id) => {
                    if let Some(id) = id {
                        forget(instance, first, &id)?;
                    }
                    first += 1;
                }
            }
        }
        let order = record::order_record(self.began, &self.id);
        instance.write_record(Space::Requests, &record::order_key(self.number), Some(&order))?;
        let next = self.number.saturating_add(1);
        instance.requests.kept.set(Some(Kept { first, next, by_then }));
        instance.requests.running.borrow_mut().insert(self.id.clone(), Vec::new());
        Ok(())
    }

    fn record(&self, instance: &Instance, state: &State) -> Result<()> {
        let Self { number, began, method, .. } = *self;
        let record = Record { number, began, method, state }.encode();
        instance.write_record(Space::Requests, &self.id.key(), Some(&record))
    }

    /// Records how the call ended, and tells all who asked meanwhile; what the first caller is told.
    fn end(&self, instance: &Rc<Instance>, outcome: Result<()>, body: &BodySlot) -> Result<()> {
        let outcome = outcome.map_err(of_class).map_err(plain).and_then(|()| reply_to_store(body));
        let outcome = match outcome {
            Err(error) if error.extra.len() > REPLY_BYTES_MAX => Err(too_long()),
            outcome => outcome,
        };
        let state = State::Ended(outcome);
        let recorded = self.record(instance, &state);
        let State::Ended(outcome) = state else { unreachable!("it was made a line above") };
        let outcome = recorded.and(outcome);
        let waiting = instance.requests.running.borrow_mut().remove(&self.id).unwrap_or_default();
        for number in waiting {
            let running = instance.running.borrow_mut().remove(&number);
            if let Some(running) = running {
                tell(instance, running, &outcome);
            }
        }
        outcome.map(drop)
    }
}

/// Takes an id away that has been kept long enough.
fn forget(instance: &Instance, number: u64, id: &RequestId) -> Result<()> {
    instance.write_record(Space::Requests, &record::order_key(number), None)?;
    let record = instance.read(Space::Requests, &id.key())?;
    let record = record.map(|record| Record::decode(&record)).transpose()?;
    // The same id may have come again since.
    if record.is_some_and(|record| record.number == number) {
        instance.write_record(Space::Requests, &id.key(), None)?;
    }
    Ok(())
}

/// The message of the reply, which stays where it is.
fn reply_to_store(body: &BodySlot) -> Outcome {
    let mut reply = body.take().ok_or_else(|| failed("the handler kept its results"))?;
    let message = reply.bytes()?;
    let message = message.ok_or_else(|| {
        failed("reply-not-storable: the call happened, and its reply has capabilities in it")
    })?;
    if message.len() > REPLY_BYTES_MAX {
        return Err(too_long());
    }
    body.put_back(reply);
    Ok(message)
}

fn too_long() -> capnp::Error {
    failed(format!(
        "reply-not-storable: the call happened, and its reply has more than {REPLY_BYTES_MAX} bytes"
    ))
}

/// An error as it crosses the wire: with one of the four kinds.
fn plain(error: capnp::Error) -> capnp::Error {
    use capnp::ErrorKind::{Disconnected, Failed, Overloaded, Unimplemented};
    match error.kind {
        Failed | Overloaded | Disconnected | Unimplemented => error,
        _ => failed(error.to_string()),
    }
}

/// Looks at bytes as at each record and key of a request id.
#[cfg(fuzzing)]
pub(super) fn decode_records(bytes: &[u8]) {
    drop(Record::decode(bytes));
    drop(record::decode_order(bytes));
    drop(record::number_in(bytes));
}

/// One of each of these records.
#[cfg(fuzzing)]
pub(super) fn sample_records() -> Vec<Vec<u8>> {
    let method = Method { interface: 7, method: 1 };
    let ended = State::Ended(Ok(b"reply".to_vec()));
    let records = [State::Begun, ended, State::Ended(Err(failed("reason")))];
    let encode = |state| Record { number: 1, began: 2, method, state }.encode();
    records.iter().map(encode).collect()
}
