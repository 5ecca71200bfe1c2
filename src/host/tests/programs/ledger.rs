//! The events of a program on this thread, and the rules that it must not break.
//!
//! Every actor reports here what it starts, which calls it received of which actor, and what it
//! answered. The ledger compares that with the order in which the calls were made, and with what
//! the model disk has made durable at that moment. It decides nothing: a broken rule is written
//! down, and the program goes on.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use capnp::{Error, ErrorKind};

use crate::id::ObjectId;
use crate::storage::testing::model::MemoryLog;
use crate::storage::{Reads, Space};

/// The number that stands for a client where a sender is named.
pub(super) const CLIENT: u32 = u32::MAX;

/// The beginning of an error for which a program asked.
pub(super) const ASKED: &str = "as asked by the program";

/// A capability as one holder has it, and the number of a call on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CallId {
    pub(super) stub: u32,
    pub(super) sequence: u32,
}

/// A message's sender, and how many writes it had made by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) sender: u32,
    pub(super) wrote: u32,
}

/// One capability as one holder has it.
#[derive(Debug, Default)]
struct Stub {
    made: u32,
    started: u32,
    /// The call whose result it is, while that may be unknown to the holder.
    promised_by: Option<CallId>,
    /// The object that it turned out to be one of, and how often that had been broken by then.
    reaches: Option<(u32, u32)>,
}

/// An object of the program.
#[derive(Debug)]
struct Place {
    disk: MemoryLog,
    id: ObjectId,
    /// The number of times that all facets of it were broken.
    breaks: u32,
    /// It runs one call at a time.
    is_exclusive: bool,
}

#[derive(Debug, Default)]
struct Ledger {
    stubs: Vec<Stub>,
    places: Vec<Place>,
    answered: HashMap<CallId, Sent>,
    awaited: BTreeSet<CallId>,
    /// Calls behind which others of their stub started: they must have been refused.
    skipped: Vec<CallId>,
    /// Calls that ended otherwise than by being refused.
    went: BTreeSet<CallId>,
    /// Something happened for which capabilities may break.
    breaks: bool,
    started: u64,
    ended: u64,
    /// Rules that were broken.
    problems: Vec<String>,
    /// Connections were cut.
    cuts: bool,
    /// Calls that were answered by another one.
    tails: HashMap<CallId, CallId>,
    /// Calls whose results are too much for one message.
    too_much: HashMap<CallId, u32>,
    /// Calls failed without a reason.
    blank: bool,
}

thread_local! {
    static LEDGER: RefCell<Ledger> = RefCell::default();
}

fn with<T>(act: impl FnOnce(&mut Ledger) -> T) -> T {
    LEDGER.with_borrow_mut(act)
}

/// Forgets the last program; its objects are those of `places`.
pub(super) fn begin(places: impl Iterator<Item = (MemoryLog, ObjectId)>) {
    let places =
        places.map(|(disk, id)| Place { disk, id, breaks: 0, is_exclusive: false }).collect();
    with(|ledger| *ledger = Ledger { places, ..Ledger::default() });
}

/// An object of the program is exclusive: calls may be refused that would wait for themselves.
pub(super) fn exclusive(object: usize) {
    with(|ledger| ledger.places[object].is_exclusive = true);
}

pub(super) fn is_exclusive(object: u32) -> bool {
    with(|ledger| ledger.places.get(object as usize).is_some_and(|place| place.is_exclusive))
}

/// The judgement of a program.
pub(super) struct Verdict {
    /// The number of calls that started.
    pub(super) started: u64,
    /// The rules that were broken.
    pub(super) problems: Vec<String>,
}

pub(super) fn end() -> Verdict {
    with(|ledger| Verdict {
        started: ledger.started,
        problems: std::mem::take(&mut ledger.problems),
    })
}

/// A number that changes with whatever happens.
pub(super) fn activity() -> u64 {
    with(|ledger| ledger.started + ledger.ended)
}

pub(super) fn problem(text: String) {
    with(|ledger| ledger.problems.push(text));
}

/// Somebody holds a capability from now on.
pub(super) fn new_stub() -> u32 {
    promised_stub(None)
}

/// Somebody holds what a call will return.
pub(super) fn promised_stub(promised_by: Option<CallId>) -> u32 {
    with(|ledger| {
        ledger.stubs.push(Stub { promised_by, ..Stub::default() });
        ledger.stubs.len() as u32 - 1
    })
}

/// The stub is a facet that the vat just made.
pub(super) fn opened(stub: u32, object: u32) {
    with(|ledger| {
        let breaks = ledger.places[object as usize].breaks;
        ledger.stubs[stub as usize].reaches = Some((object, breaks));
    });
}

/// The next call is about to be made on a stub.
pub(super) fn makes_call(stub: u32) -> CallId {
    with(|ledger| {
        let made = &mut ledger.stubs[stub as usize].made;
        *made += 1;
        CallId { stub, sequence: *made - 1 }
    })
}

/// All facets that an object has now are about to break.
pub(super) fn breaks(object: u32) {
    with(|ledger| {
        ledger.breaks = true;
        ledger.places[object as usize].breaks += 1;
    });
}

/// Capabilities may break from now on.
pub(super) fn may_break() {
    with(|ledger| ledger.breaks = true);
}

/// A connection is cut: capabilities may break.
pub(super) fn may_lose() {
    with(|ledger| (ledger.breaks, ledger.cuts) = (true, true));
}

/// A call is to be answered by another one.
pub(super) fn tails(call: CallId, tail: CallId) {
    with(|ledger| _ = ledger.tails.insert(call, tail));
}

/// The results of a call that runs in that object can't be sent.
pub(super) fn is_too_much(call: CallId, by: u32) {
    with(|ledger| _ = ledger.too_much.insert(call, by));
}

/// A call fails and doesn't say why.
pub(super) fn says_nothing() {
    with(|ledger| ledger.blank = true);
}

/// An object's host begins again from what was durable.
pub(super) fn moves_to(object: u32, disk: &MemoryLog) {
    with(|ledger| ledger.places[object as usize].disk = disk.clone());
}

/// An actor starts a call; `by` is the object it belongs to.
pub(super) fn starts(call: CallId, sent: Sent, by: u32) {
    arrives(sent, "a call");
    let promised_by = with(|ledger| {
        ledger.started += 1;
        let may_refuse = ledger.places.iter().any(|place| place.is_exclusive);
        let stub = &mut ledger.stubs[call.stub as usize];
        let expected = std::mem::replace(&mut stub.started, call.sequence + 1);
        let promised_by = stub.promised_by;
        if call.sequence < expected || call.sequence > expected && !may_refuse {
            ledger.problems.push(format!("{call:?} started where call {expected} was the next"));
        }
        ledger
            .skipped
            .extend((expected..call.sequence).map(|sequence| CallId { sequence, ..call }));
        if by != CLIENT {
            let now = (by, ledger.places[by as usize].breaks);
            let reaches = *stub.reaches.get_or_insert(now);
            if reaches != now {
                ledger.problems.push(format!("{call:?} reached {now:?}, its stub {reaches:?}"));
            }
        }
        promised_by
    });
    if let Some(parent) = promised_by {
        follows_answer(call, parent);
    }
}

/// A call on a promised capability starts: the answer that it waits for must have left.
fn follows_answer(call: CallId, mut parent: CallId) {
    while let Some(tail) = with(|ledger| ledger.tails.get(&parent).copied()) {
        parent = tail;
    }
    match with(|ledger| ledger.answered.get(&parent).copied()) {
        Some(answer) => arrives(answer, "the answer that a pipelined call waits for"),
        None => problem(format!("{call:?} started before {parent:?} had an answer")),
    }
}

/// An actor gives the answer of a call, or the capabilities in it, to an actor that sends it on.
pub(super) fn answers(call: CallId, sent: Sent) {
    with(|ledger| _ = ledger.answered.entry(call).or_insert(sent));
}

/// A message was received: all that its sender wrote before must be durable.
pub(super) fn arrives(sent: Sent, what: &str) {
    let Sent { sender, wrote } = sent;
    if sender == CLIENT {
        return;
    }
    with(|ledger| {
        let durable = durable(&ledger.places[sender as usize]);
        if durable < wrote {
            let text = format!("{what} of object {sender}: {wrote} writes, {durable} durable");
            ledger.problems.push(text);
        }
    });
}

fn durable(place: &Place) -> u32 {
    let stored = place.disk.get(place.id, Space::Data, super::actor::KEY).unwrap();
    stored.map_or(0, |stored| u32::from_be_bytes(stored.try_into().unwrap()))
}

/// Somebody awaits a call for as long as it exists.
pub(super) struct Awaiting(CallId);

impl Awaiting {
    pub(super) fn new(call: CallId) -> Self {
        with(|ledger| ledger.awaited.insert(call));
        Self(call)
    }
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        with(|ledger| ledger.awaited.remove(&self.0));
    }
}

/// The calls whose callers still await them, and whether they have started.
pub(super) fn awaited() -> Vec<(CallId, bool)> {
    with(|ledger| {
        let started = |call: &CallId| ledger.stubs[call.stub as usize].started > call.sequence;
        ledger.awaited.iter().map(|call| (*call, started(call))).collect()
    })
}

/// A call ended for its caller.
pub(super) fn ends(call: CallId, outcome: &Result<Option<Sent>, Error>) {
    let is_refused = is_refused(outcome);
    with(|ledger| {
        ledger.ended += 1;
        if !is_refused {
            ledger.went.insert(call);
        }
    });
    match outcome {
        Ok(None) => {}
        Ok(Some(sent)) => {
            arrives(*sent, "a reply");
            // A client may call itself without a message.
            if with(|ledger| ledger.too_much.get(&call).is_some_and(|by| *by != CLIENT)) {
                problem(format!("{call:?} was answered by too much for a message"));
            }
            if with(|ledger| ledger.stubs[call.stub as usize].started <= call.sequence) {
                problem(format!("{call:?} was answered and never started"));
            }
        }
        Err(error) if error.extra.contains(ASKED) => match asked(&error.extra) {
            Some(sent) => arrives(sent, "an error"),
            None => problem(format!("{call:?}: {error}")),
        },
        Err(_) if is_refused => {}
        Err(error) if may_be_said(&error.extra) => {}
        Err(error) => with(|ledger| {
            if error.kind != ErrorKind::Disconnected || !ledger.may_be_broken(call.stub) {
                ledger.problems.push(format!("{call:?} failed: {error}"));
            }
        }),
    }
}

/// Tells whether an error is due to results that can't be sent, or to one that has no text.
fn may_be_said(text: &str) -> bool {
    with(|ledger| {
        let is_too_much = text.contains("too-large: ") || text.contains("too-many-capabilities: ");
        is_too_much && !ledger.too_much.is_empty()
            || ledger.blank && text.trim_start_matches("remote exception: ").is_empty()
    })
}

/// An exclusive object refused it, because it would wait for itself.
fn is_refused<T>(outcome: &Result<T, Error>) -> bool {
    let has_exclusive = with(|ledger| ledger.places.iter().any(|place| place.is_exclusive));
    has_exclusive && outcome.as_ref().is_err_and(|error| error.extra.contains("deadlock: "))
}

impl Ledger {
    /// Tells whether something happened that breaks the stub, as far as is known of it.
    fn may_be_broken(&self, stub: u32) -> bool {
        let is_of_now =
            |(object, breaks): (u32, u32)| self.places[object as usize].breaks == breaks;
        self.cuts || self.breaks && !self.stubs[stub as usize].reaches.is_some_and(is_of_now)
    }
}

/// The error that a program asked an actor for.
pub(super) fn asked_for(sent: Sent) -> Error {
    Error::failed(format!("{ASKED} {} {} .", sent.sender, sent.wrote))
}

fn asked(text: &str) -> Option<Sent> {
    let (_, rest) = text.split_once(ASKED)?;
    let mut numbers = rest.split_whitespace().map_while(|word| word.parse().ok());
    Some(Sent { sender: numbers.next()?, wrote: numbers.next()? })
}
