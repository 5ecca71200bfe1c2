//! Request ids: a call that has one is applied at most once, and gets the same reply when it is
//! made again.
//!
//! A caller who lost the reply can't know whether the call happened. With an id they make it again,
//! and are told. The id comes with the facet that the call was made on, which `once` of the
//! interface `Facet` made. The records of such calls lie in the object's own storage, where its
//! class doesn't see them. Parameters are never compared, and the id of a call that runs is never
//! forgotten.
//!
//! Invariants:
//! - All that the handler of such a call sends waits for a record of the call. That is written in
//!   its first turn, before anything of the handler runs.
//! - The first turn's batch says that the call has begun, and the last turn's how it ended; if they
//!   are the same turn, only the end is written. So a crash or a panic leaves the truth.
//! - A call that has begun never begins again while its id is kept.
//! - The first caller is told what was stored, so that every later one is told the same.
//! - Ids are numbered as their calls begin, `first..next`; no id that is kept has another number.

mod kept;
mod operator;

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use capnp::capability::Promise;
use futures::FutureExt;

use capstead_client::sturdyref::{GrantId, Method};

use self::kept::{count, forget_in_turn, forget_oldest, forget_over, kept};
pub(in crate::host) use self::operator::{IdSelection, Stage, clear_requests, requests};
use super::answer::answer;
use super::shares::{self, Change, Share};
use crate::error::{Reason, Result, failed, of_class};
use crate::host::base::request_record::{
    self as record, CallState, Outcome, REPLY_BYTES_MAX, Record, RequestId,
};
use crate::host::base::retention::KeptNumbers;
use crate::host::state::facet::Facet;
use crate::host::state::instance::Instance;
use crate::host::state::queued_call::PendingReply;
use crate::limits::REQUEST_IDS_MAX;
use crate::membrane::{Body, BodySlot};
use crate::storage::Space;

/// The most ids that are forgotten when a new one comes. More than one, so that they become fewer.
const FORGOTTEN_AT_ONCE: usize = 2;

/// The fate of a call, as it is about to start.
enum CallFate {
    /// Nothing is known of it.
    New(IdClaim),
    /// It runs.
    Running,
    /// It ended so.
    Ended(Outcome),
}

/// The right to run a call with an id.
pub(in crate::host) struct IdClaim {
    id: RequestId,
    number: Cell<u64>,
    began: Cell<u64>,
    method: Method,
    /// The grants in whose shares it counts.
    lineage: Vec<GrantId>,
    /// The number of an earlier call with the same id, which is to be forgotten.
    over: Option<u64>,
}

/// Decides whether the call is to run. If so, gives back the caller, and the right to run a call
/// with an id if it has one. Otherwise the caller is answered, now or later.
pub(in crate::host) fn admit(
    instance: &Rc<Instance>,
    facet: &Facet,
    method: Method,
    pending: PendingReply,
) -> Option<(PendingReply, Option<IdClaim>)> {
    let Some(id) = facet.request() else { return Some((pending, None)) };
    let outcome = match find(instance, facet, id, method) {
        Ok(CallFate::New(claim)) => return Some((pending, Some(claim))),
        Ok(CallFate::Running) => {
            instance.vat.metrics.calls_repeated_total.add(1);
            let number = instance.owe(pending);
            if let Some(waiting) = instance.requests.known().running.borrow_mut().get_mut(id) {
                waiting.push(number);
            }
            return None;
        }
        Ok(CallFate::Ended(outcome)) => {
            instance.vat.metrics.calls_repeated_total.add(1);
            outcome
        }
        Err(error) => Err(error),
    };
    tell(instance, pending, &outcome);
    None
}

/// Tells one caller how the call ended.
fn tell(instance: &Rc<Instance>, pending: PendingReply, outcome: &Outcome) {
    let outcome = outcome.as_ref().map_err(Clone::clone);
    answer(instance, pending, outcome.and_then(|reply| Body::from_bytes(reply)));
}

fn find(instance: &Instance, facet: &Facet, id: &RequestId, method: Method) -> Result<CallFate> {
    let is_running = instance.requests.runs(id);
    let record = instance.read(Space::Requests, &id.key())?;
    let record = record.map(|record| Record::decode(&record)).transpose()?;
    let (retention, kept) = (&instance.vat.retention, kept(instance)?);
    let over = record.as_ref().map(|record| record.number);
    let is_kept = |record: &Record<CallState>| {
        is_running || !retention.is_call_over(record.number, record.began, kept)
    };
    match record.filter(is_kept) {
        None => {
            let lineage = shares::lineage_of_ids(&instance.vat, &facet.right);
            make_room(instance, &lineage)?;
            let (number, began) = (Cell::new(kept.next), Cell::new(retention.now_ms()));
            Ok(CallFate::New(IdClaim { id: id.clone(), number, began, method, lineage, over }))
        }
        Some(record) if record.method != method => Err(Reason::RequestIdReused
            .error("another method was called with this id; every call needs a fresh one")),
        Some(Record { state: CallState::Ended(outcome), .. }) => Ok(CallFate::Ended(outcome)),
        Some(_) if is_running => Ok(CallFate::Running),
        Some(_) => Err(Reason::Unknown
            .error("the call was begun and cut short; look at what it did, and don't repeat it")),
    }
}

/// Sees to it that the object may keep another id: if there is no room, ids whose time is over are
/// forgotten.
///
/// # Errors
/// As for [`check_room`].
fn make_room(instance: &Instance, lineage: &[GrantId]) -> Result<()> {
    let Err(refused) = check_room(instance, lineage) else { return Ok(()) };
    match forget_over(instance)? {
        0 => Err(refused),
        _ => check_room(instance, lineage),
    }
}

/// Checks that the object may keep another id.
///
/// # Errors
/// When there are as many as can be, for the object or for one of these grants; when they take as
/// many bytes as they may, or space is low.
fn check_room(instance: &Instance, lineage: &[GrantId]) -> Result<()> {
    let kept = kept(instance)?;
    // Numbers of ids that were cleared are missing, so the ids may be fewer.
    if kept.next - kept.first >= REQUEST_IDS_MAX && count(instance)? >= REQUEST_IDS_MAX {
        return Err(Reason::TooManyRequestIds.error(format_args!(
            "the object keeps {REQUEST_IDS_MAX} request ids, and the oldest are still needed; the \
             call has not happened: make it again when they are forgotten"
        )));
    }
    let (store, account) = (instance.vat.turns.store(), &instance.account);
    for grant in lineage {
        let share = shares::share(&store, instance.spec.id, *grant)?;
        if let Err(error) = share.check_bytes(account.limit()) {
            if let Ok(agent) = instance.vat.agent() {
                agent.sweep_dead_grants(instance.spec.id);
            }
            return Err(error);
        }
        if !share.has_room_for_id() {
            return Err(shares::too_many_ids());
        }
    }
    store.check_records(account, record::BYTES_MIN)?;
    Ok(())
}

impl IdClaim {
    /// Runs the handler that `start` gives, its first turn now and the others later, and records
    /// the end of the call.
    pub(in crate::host) fn run(
        self,
        instance: &Rc<Instance>,
        body: BodySlot,
        start: impl FnOnce() -> Promise<(), capnp::Error>,
    ) -> Promise<(), capnp::Error> {
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
                match self.record(&instance, &CallState::Begun) {
                    Ok(()) => Poll::Pending,
                    // The storage has failed: nothing that the handler does counts any more.
                    Err(error) => Poll::Ready(Err(error)),
                }
            }
        }))
    }

    /// Gives the call its place in the order of all, and forgets old ones.
    fn begin(&self, instance: &Instance) -> Result<()> {
        if let Some(number) = self.over {
            forget_in_turn(instance, number, &self.id)?;
        }
        forget_oldest(instance, FORGOTTEN_AT_ONCE)?;
        self.take_place(instance)?;
        let more = Change::More(Share { ids: 1, ..Share::default() });
        shares::change_in_turn(instance, &self.lineage, more)?;
        let running = &instance.requests.known().running;
        running.borrow_mut().insert(self.id.clone(), Vec::new());
        Ok(())
    }

    /// Writes the last place in the order of all, which is the call's own.
    fn take_place(&self, instance: &Instance) -> Result<()> {
        let (number, order) = (self.number.get(), record::order_record(self.began.get(), &self.id));
        instance.write_record(Space::Requests, &record::order_key(number), Some(&order))?;
        let (kept, known) = (kept(instance)?, instance.requests.known());
        known.kept.set(Some(KeptNumbers { next: number.saturating_add(1), ..kept }));
        known.count.set(known.count.get().map(|count| count + 1));
        Ok(())
    }

    /// A call that ran for longer than ids are kept was passed by. It becomes the newest when it
    /// ends, since its callers may still ask.
    fn renew(&self, instance: &Instance) -> Result<()> {
        let kept = kept(instance)?;
        let number = self.number.get();
        if number >= kept.first {
            return Ok(());
        }
        instance.write_record(Space::Requests, &record::order_key(number), None)?;
        let count = &instance.requests.known().count;
        count.set(count.get().map(|count| count.saturating_sub(1)));
        self.number.set(kept.next);
        self.began.set(instance.vat.retention.now_ms());
        self.take_place(instance)
    }

    fn record(&self, instance: &Instance, state: &CallState) -> Result<()> {
        let record = Record {
            number: self.number.get(),
            began: self.began.get(),
            method: self.method,
            lineage: self.lineage.clone(),
            state,
        };
        let record = record.encode();
        instance.write_record(Space::Requests, &self.id.key(), Some(&record))?;
        if matches!(state, CallState::Ended(_)) {
            let more = Share { bytes: record.len() as u64, ..Share::default() };
            shares::change_in_turn(instance, &self.lineage, Change::More(more))?;
        }
        Ok(())
    }

    /// Records how the call ended, and tells all who asked meanwhile. Gives what the first caller
    /// is told.
    fn end(&self, instance: &Rc<Instance>, outcome: Result<()>, body: &BodySlot) -> Result<()> {
        let outcome = outcome.map_err(of_class).map_err(plain).and_then(|()| reply_to_store(body));
        let outcome = match outcome {
            Err(error) if error.extra.len() > REPLY_BYTES_MAX => Err(too_long()),
            outcome => outcome,
        };
        let state = CallState::Ended(outcome);
        let recorded = self.renew(instance).and_then(|()| self.record(instance, &state));
        let CallState::Ended(outcome) = state else { unreachable!("it was made a line above") };
        let outcome = recorded.and(outcome);
        let waiting = instance.requests.known().running.borrow_mut().remove(&self.id);
        for number in waiting.unwrap_or_default() {
            if let Some(pending) = instance.take_pending(number) {
                tell(instance, pending, &outcome);
            }
        }
        outcome.map(drop)
    }
}

/// A copy of the reply's message.
fn reply_to_store(body: &BodySlot) -> Outcome {
    let mut reply = body.take().ok_or_else(|| failed("the handler kept its results"))?;
    let message = reply.bytes()?;
    let message = message.ok_or_else(|| {
        Reason::ReplyNotStorable.error("the call happened, and its reply has capabilities in it")
    })?;
    if message.len() > REPLY_BYTES_MAX {
        return Err(too_long());
    }
    body.put_back(reply);
    Ok(message)
}

fn too_long() -> capnp::Error {
    Reason::ReplyNotStorable.error(format_args!(
        "the call happened, and its reply has more than {REPLY_BYTES_MAX} bytes"
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
pub(in crate::host) fn decode_records(bytes: &[u8]) {
    drop(Record::decode(bytes));
    drop(record::decode_order(bytes));
    drop(record::number_in(bytes));
}

/// One of each of these records.
#[cfg(fuzzing)]
pub(in crate::host) fn sample_records() -> Vec<Vec<u8>> {
    let method = Method { interface: 7, ordinal: 1 };
    let ended = CallState::Ended(Ok(b"reply".to_vec()));
    let records = [CallState::Begun, ended, CallState::Ended(Err(failed("reason")))];
    let lineage = vec![GrantId::from_bytes([9; 16])];
    let encode =
        |state| Record { number: 1, began: 2, method, lineage: lineage.clone(), state }.encode();
    records.iter().map(encode).collect()
}
