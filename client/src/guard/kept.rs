//! Paths into the peer's answers that are kept after the answer has come.
//!
//! Suppose we call on the promised result of a call, and the result turns out to be ours, or the
//! result of one of the peer's calls, or arrives by a call that the peer reflected. Later calls
//! would then take a shorter way than those still on their way through the peer, and overtake them.
//! In the protocol the peer can say when the long way is empty, but only for its own part of that
//! way; and where answers of both sides cross, it takes the question for a breach of the protocol.
//!
//! So the way never changes. The guard tells the RPC system that the result is a capability of the
//! peer, with a number that the guard chose. Messages to that capability are sent to the path into
//! the answer, and the call is finished when the capability is released.
//!
//! **Invariant:** everything sent on a path into an answer goes the same way, before and after the
//! answer.
//! **Invariant:** a call keeps its number while its `Finish` is held: a later call of ours with the
//! same number goes out under another one.

use super::patch::Patches;
use super::scatter::{ByNumber, NumberSet};
use super::tables::NOT_OPEN;
use crate::limits::{Limit, Rejection};
use crate::wire::ReceivedMessage;
use capnp::message::{Builder, HeapAllocator};
use capnp::private::capability::{ClientHook, PipelineOp};
use capnp::traits::Imbue;
use capnp_rpc::rpc_capnp::{
    call, cap_descriptor, disembargo, message, message_target, payload, promised_answer, return_,
};
use std::ops::Range;

/// The numbers of kept capabilities, and of calls whose own number is taken. Neither side gives out
/// this many, and the numbers above are for the other side's guard.
const OWN: Range<u32> = 1 << 29..1 << 30;

/// Field numbers, from the outermost on.
type Path = Vec<u16>;

/// The kept paths of a connection; the head of the file explains them.
#[derive(Default)]
pub(super) struct KeptPaths {
    /// The paths on which something was sent, by the calls of ours that have no answer yet.
    used: ByNumber<Vec<Path>>,
    /// By the guard's number: the call on the wire, and the path into its answer.
    caps: ByNumber<(u32, Path)>,
    /// The number of kept capabilities that hold back each call's `Finish`.
    calls: ByNumber<usize>,
    /// Calls that the RPC system has finished, and whose `Finish` is held.
    finished: NumberSet,
    /// The numbers on the wire of the RPC system's calls, and the reverse.
    renamed: ByNumber<u32>,
    names: ByNumber<u32>,
    next: u32,
}

/// The capabilities of an answer that are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Those that aren't the peer's own.
    NotTheirs,
    /// All, because the answer came by way of us.
    All,
}

impl KeptPaths {
    /// Tells whether sent messages need no changes.
    fn is_idle(&self) -> bool {
        self.caps.is_empty() && self.renamed.is_empty() && self.finished.is_empty()
    }

    fn number(&mut self) -> u32 {
        loop {
            self.next = if OWN.contains(&(self.next + 1)) { self.next + 1 } else { OWN.start };
            if !self.caps.contains_key(&self.next) && !self.names.contains_key(&self.next) {
                return self.next;
            }
        }
    }

    /// The number by which the RPC system knows a call of ours that the peer answers; `None` if it
    /// is the number on the wire.
    ///
    /// # Errors
    /// The peer has that call under another number.
    pub(super) fn name(&mut self, call: u32) -> Result<Option<u32>, Rejection> {
        if self.names.is_empty() {
            return Ok(None);
        }
        if self.renamed.get(&call).is_some_and(|wire| self.names.contains_key(wire)) {
            return Rejection::over(Limit::UnknownCapability, NOT_OPEN);
        }
        Ok(self.names.remove(&call))
    }

    /// Changes a message that is about to be sent, so that it names kept capabilities as the peer
    /// knows them. Returns `false` if it isn't sent now, or never.
    pub(super) fn change(
        &mut self,
        message: &mut Builder<HeapAllocator>,
    ) -> Result<bool, Rejection> {
        if self.is_idle() {
            return Ok(true);
        }
        match message.get_root::<message::Builder>()?.which()? {
            message::Call(call) => self.change_call(call?)?,
            message::Bootstrap(bootstrap) => {
                let mut bootstrap = bootstrap?;
                let call = bootstrap.reborrow().get_question_id();
                let name = self.begin(call);
                bootstrap.set_question_id(name);
            }
            message::Return(answer) => {
                if let return_::Results(payload) = answer?.which()? {
                    self.change_caps(payload?)?;
                }
            }
            message::Finish(finish) => {
                let mut finish = finish?;
                let call = self.wire(finish.reborrow().get_question_id());
                finish.set_question_id(call);
                if self.calls.contains_key(&call) {
                    self.finished.insert(call);
                    return Ok(false);
                }
            }
            message::Disembargo(disembargo) => self.change_disembargo(disembargo?)?,
            _ => {}
        }
        Ok(true)
    }

    /// The RPC system releases a capability. If it was kept here, returns what happens to the
    /// `Release`.
    pub(super) fn release(&mut self, cap: u32) -> Option<Released> {
        let (call, _) = self.caps.remove(&cap)?;
        let left = self.calls.get_mut(&call)?;
        *left -= 1;
        if *left > 0 {
            return Some(Released::Kept);
        }
        self.calls.remove(&call);
        let is_finished = self.finished.remove(&call);
        Some(if is_finished { Released::Last(call) } else { Released::Kept })
    }

    /// Forgets the kept capabilities of an answer whose caller gave up. Returns the call whose held
    /// `Finish` goes out now.
    pub(super) fn give_up(&mut self, call: u32) -> Option<u32> {
        let wire = self.wire(call);
        self.calls.remove(&wire)?;
        self.caps.retain(|_, (of, _)| *of != wire);
        self.finished.remove(&wire).then_some(wire)
    }

    /// Notes the paths into open answers used by a call that is about to be sent.
    pub(super) fn note_call(&mut self, call: call::Reader) -> Result<(), Rejection> {
        self.note_number(call.get_question_id());
        if let message_target::PromisedAnswer(answer) = call.get_target()?.which()? {
            self.note_path(answer?)?;
        }
        self.note_caps(call.get_params()?)
    }

    /// Starts afresh for this number: nothing was sent yet on the answer to its call.
    pub(super) fn note_number(&mut self, call: u32) {
        self.used.remove(&call);
    }

    /// As [`note_call`](Self::note_call), for an answer of ours.
    pub(super) fn note_answer(&mut self, answer: return_::Reader) -> Result<(), Rejection> {
        match answer.which()? {
            return_::Results(payload) => self.note_caps(payload?),
            _ => Ok(()),
        }
    }

    fn note_caps(&mut self, payload: payload::Reader) -> Result<(), Rejection> {
        for cap in payload.get_cap_table()? {
            if let cap_descriptor::ReceiverAnswer(answer) = cap.which()? {
                self.note_path(answer?)?;
            }
        }
        Ok(())
    }

    fn note_path(&mut self, answer: promised_answer::Reader) -> Result<(), Rejection> {
        let path = path_of(answer)?;
        let used = self.used.entry(answer.get_question_id()).or_default();
        if !used.contains(&path) {
            used.push(path);
        }
        Ok(())
    }

    /// Keeps capabilities of an answer to our call that is about to be delivered.
    pub(super) fn receive(
        &mut self,
        call: u32,
        incoming: &ReceivedMessage,
        which: Which,
        patches: &mut Patches,
    ) -> Result<(), Rejection> {
        let Some(used) = self.used.remove(&call) else { return Ok(()) };
        let Ok(message::Return(answer)) = incoming.get_root::<message::Reader>()?.which() else {
            return Ok(());
        };
        let answer = answer?;
        let return_::Results(payload) = answer.which()? else { return Ok(()) };
        if answer.get_no_finish_needed() {
            // The peer has forgotten the answer.
            return Ok(());
        }
        let payload = payload?;
        let caps = payload.get_cap_table()?;
        let marks: Vec<_> = caps.iter().map(|_| Some(mark())).collect();
        let mut known = Vec::new();
        for path in used {
            let Some(at) = place(payload, &marks, &path) else { continue };
            let cap = caps.get(at);
            let is_theirs = matches!(
                cap.which()?,
                cap_descriptor::SenderHosted(_) | cap_descriptor::SenderPromise(_)
            );
            let is_there = !matches!(cap.which()?, cap_descriptor::None(()));
            if is_there && !known.contains(&at) && (which == Which::All || !is_theirs) {
                known.push(at);
                let number = self.number();
                let wire = self.wire(call);
                *self.calls.entry(wire).or_default() += 1;
                self.caps.insert(number, (wire, path));
                patches.hosted(cap, number)?;
            }
        }
        Ok(())
    }

    /// The number on the wire of the RPC system's call.
    fn wire(&self, call: u32) -> u32 {
        self.renamed.get(&call).copied().unwrap_or(call)
    }

    /// Begins a call of the RPC system. Returns its number on the wire.
    fn begin(&mut self, call: u32) -> u32 {
        self.renamed.remove(&call);
        if !self.finished.contains(&call) {
            return call;
        }
        let name = self.number();
        self.renamed.insert(call, name);
        self.names.insert(name, call);
        name
    }

    fn change_call(&mut self, mut call: call::Builder) -> Result<(), Rejection> {
        // The target comes first: it refers to calls before this one.
        self.change_target(call.reborrow().get_target()?)?;
        self.change_caps(call.reborrow().get_params()?)?;
        let name = self.begin(call.reborrow().get_question_id());
        call.set_question_id(name);
        Ok(())
    }

    fn change_target(&self, mut target: message_target::Builder) -> Result<(), Rejection> {
        match target.reborrow().which()? {
            message_target::ImportedCap(id) => {
                if let Some((call, path)) = self.caps.get(&id) {
                    write_answer(target.init_promised_answer(), *call, path);
                }
            }
            message_target::PromisedAnswer(answer) => self.rename(answer?),
        }
        Ok(())
    }

    fn change_caps(&self, payload: payload::Builder) -> Result<(), Rejection> {
        let mut caps = payload.get_cap_table()?;
        for at in 0..caps.len() {
            let mut cap = caps.reborrow().get(at);
            match cap.reborrow().which()? {
                cap_descriptor::ReceiverHosted(id) => {
                    if let Some((call, path)) = self.caps.get(&id) {
                        write_answer(cap.init_receiver_answer(), *call, path);
                    }
                }
                cap_descriptor::ReceiverAnswer(answer) => self.rename(answer?),
                _ => {}
            }
        }
        Ok(())
    }

    fn change_disembargo(&self, disembargo: disembargo::Builder) -> Result<(), Rejection> {
        self.change_target(disembargo.get_target()?)
    }

    fn rename(&self, mut answer: promised_answer::Builder) {
        let wire = self.wire(answer.reborrow().get_question_id());
        answer.set_question_id(wire);
    }
}

/// The message that goes out for a `Release`.
pub(super) enum Released {
    /// None: the peer doesn't know of the kept capability.
    Kept,
    /// The held `Finish` of this call.
    Last(u32),
}

fn path_of(answer: promised_answer::Reader) -> Result<Path, Rejection> {
    let mut path = Vec::new();
    for step in answer.get_transform()? {
        if let promised_answer::op::GetPointerField(field) = step.which()? {
            path.push(field);
        }
    }
    Ok(path)
}

fn write_answer(mut answer: promised_answer::Builder, call: u32, path: &[u16]) {
    answer.set_question_id(call);
    let mut steps = answer.init_transform(path.len() as u32);
    for (at, field) in (0..).zip(path) {
        steps.reborrow().get(at).set_get_pointer_field(*field);
    }
}

/// A capability that serves only as a unique address.
fn mark() -> Box<dyn ClientHook> {
    capnp_rpc::new_broken_cap(capnp::Error::failed("it marks a place".into())).hook
}

/// The place in the table of the capability at the end of a path, if there is one.
fn place<'a>(
    mut payload: payload::Reader<'a>,
    marks: &'a Vec<Option<Box<dyn ClientHook>>>,
    path: &[u16],
) -> Option<u32> {
    payload.imbue(marks);
    let steps: Vec<_> = path.iter().map(|field| PipelineOp::GetPointerField(*field)).collect();
    let found = payload.get_content().get_pipelined_cap(&steps).ok()?.get_ptr();
    let at =
        marks.iter().position(|mark| mark.as_ref().is_some_and(|mark| mark.get_ptr() == found));
    at.map(|at| at as u32)
}
