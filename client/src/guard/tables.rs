//! The parts of the RPC system's tables for one connection that the peer decides about.
//!
//! Every message that is delivered or sent changes these tables as it changes those of the RPC
//! system. So their entries can be counted, and a number that was never given out is noticed before
//! the RPC system follows it. Nothing here waits or sends.
//!
//! An honest peer may still use the number of a call that has ended, because it pipelines on an
//! answer that it hasn't read yet. Only that call fails.

use super::callers::Receipt;
use super::exports::Exports;
use super::owed::Debt;
use super::scatter::{ByNumber, NumberSet};
use crate::limits::{Limit, Limits, Rejection};
use crate::wire::ReceivedMessage;
use capnp::Error;
use capnp_rpc::rpc_capnp::{
    call, cap_descriptor, disembargo, exception, finish, message, message_target, payload,
    promised_answer, return_,
};

mod strangers;

/// The reason for refusing an answer.
pub(super) const NOT_OPEN: &str = "a call was answered that is not open";

type Checked<T = ()> = Result<T, Rejection>;

/// The tables of a connection; the head of the file explains them.
#[derive(Default)]
pub(super) struct Tables {
    /// Calls of the peer, until they are answered and finished.
    answers: ByNumber<PeerCall>,
    /// The number of calls without an answer, and the bytes of their messages.
    open: usize,
    open_bytes: usize,
    /// Calls of ours without an answer.
    questions: ByNumber<Question>,
    /// The number of those whose caller has not given up.
    asked: usize,
    exports: Exports,
    /// Bytes of the answered calls that gave capabilities away and are not finished. The RPC system
    /// keeps the capabilities until then, even if the peer releases them.
    unfinished_bytes: usize,
    /// Set once a call of the peer has succeeded that shows a reference which the peer may use.
    has_served: bool,
    /// Capabilities of the peer that we hold.
    imports: NumberSet,
}

/// The receiver of an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AnswerTo {
    Peer,
    /// A call of ours that the peer sent back to us: the peer doesn't get the results.
    OurCall,
}

/// Roughly the least memory that a capability held by the peer takes.
const EXPORT_BYTES: usize = 512;

/// Roughly the memory that an answer takes until its call is finished.
const ANSWER_BYTES: usize = 2560;

/// A call of the peer.
enum PeerCall {
    /// Without a `Return` so far; it has its `Finish` if that has already come.
    Open { bytes: usize, kind: Kind, finish: Option<ReceivedMessage> },
    /// The `Return` is out; it gave these capabilities away.
    Returned { exports: Vec<u32>, bytes: usize },
}

/// The purpose of a call of the peer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Anybody may succeed with it: a bootstrap, and a call that needs no more than the text of a
    /// reference.
    Open,
    /// It succeeds only for a peer that may use a reference.
    Trusted,
}

/// A call of ours.
struct Question {
    /// A `Finish` went out, and the content of the `Return` will not be used.
    is_given_up: bool,
    debt: Debt,
}

impl Tables {
    /// The number of calls that have begun and have no answer, and the bytes of their messages.
    pub(super) fn open(&self) -> (usize, usize) {
        (self.open, self.open_bytes)
    }

    /// Tells whether the peer's call has no answer yet.
    pub(super) fn is_open(&self, call: u32) -> bool {
        matches!(self.answers.get(&call), Some(PeerCall::Open { .. }))
    }

    /// The peer's calls that have no answer yet and for whose answers it waits.
    pub(super) fn waiting(&self) -> impl Iterator<Item = u32> {
        let waits = |answer: &PeerCall| matches!(answer, PeerCall::Open { finish: None, .. });
        self.answers.iter().filter(move |(_, answer)| waits(answer)).map(|(call, _)| *call)
    }

    /// Tells whether the peer's call has no answer yet, and the peer no longer needs one.
    pub(super) fn is_finished(&self, call: u32) -> bool {
        matches!(self.answers.get(&call), Some(PeerCall::Open { finish: Some(_), .. }))
    }

    /// Tells whether a caller here waits for the answer to our call.
    pub(super) fn waits_for(&self, call: u32) -> bool {
        self.questions.get(&call).is_some_and(|question| !question.is_given_up)
    }

    /// Tells whether the peer owes an answer to this call of ours.
    pub(super) fn has_question(&self, call: u32) -> bool {
        self.questions.contains_key(&call)
    }

    /// Tells whether the caller of our call has given up, while the peer still owes the answer.
    pub(super) fn is_given_up(&self, call: u32) -> bool {
        self.questions.get(&call).is_some_and(|question| question.is_given_up)
    }

    /// Hands on the receipt of an answer to our call, which has come.
    pub(super) fn owes_receipt(&self, call: u32, receipt: Option<Receipt>) {
        if let (Some(receipt), Some(question)) = (receipt, self.questions.get(&call)) {
            question.debt.owes_receipt(receipt);
        }
    }

    /// The number of our calls that the peer has not answered.
    pub(super) fn questions(&self) -> usize {
        self.questions.len()
    }

    /// Tells whether a caller here waits for any answer of the peer.
    pub(super) fn waits_for_peer(&self) -> bool {
        self.asked > 0
    }

    /// The number of our capabilities that the peer holds.
    pub(super) fn exports(&self) -> usize {
        self.exports.len()
    }

    /// Bytes of the calls whose answers gave the peer the capabilities that it holds.
    pub(super) fn export_bytes(&self) -> usize {
        self.exports.bytes() + self.unfinished_bytes
    }

    /// Roughly the memory for the capabilities that the peer holds, and for the answers that gave
    /// it some until it has finished their calls.
    pub(super) fn held(&self) -> usize {
        let unfinished = self.answers.len() - self.open;
        self.export_bytes() + self.exports() * EXPORT_BYTES + unfinished * ANSWER_BYTES
    }

    /// Tells whether a call of the peer has succeeded that only a holder of a reference can make.
    pub(super) fn has_served(&self) -> bool {
        self.has_served
    }

    /// Tells whether neither side has an open call, or holds a capability of the other.
    pub(super) fn are_empty(&self) -> bool {
        self.answers.is_empty()
            && self.questions.is_empty()
            && self.exports.len() == 0
            && self.imports.is_empty()
    }

    /// Checks and counts a message of this many bytes that is about to be delivered.
    pub(super) fn receive(
        &mut self,
        message: message::Reader,
        bytes: usize,
        limits: &Limits,
    ) -> Checked {
        match message.which() {
            Ok(message::Call(call)) => self.receive_call(call?, bytes, limits)?,
            Ok(message::Return(answer)) => self.receive_return(answer?, limits)?,
            Ok(message::Finish(finish)) => self.receive_finish(finish?)?,
            Ok(message::Bootstrap(bootstrap)) => {
                self.begin(bootstrap?.get_question_id(), Kind::Open, bytes, limits)?;
            }
            Ok(message::Release(release)) => {
                let release = release?;
                self.exports.release(release.get_id(), release.get_reference_count())?;
            }
            Ok(message::Disembargo(disembargo)) => {
                self.receive_disembargo(disembargo?, limits)?;
            }
            Ok(message::Abort(abort)) => return Err(ended_by(abort?).into()),
            _ => return unknown_kind("a message"),
        }
        Ok(())
    }

    /// Holds a `Finish` back until the `Return` of its call is out; then it comes here again.
    pub(super) fn hold(&mut self, call: u32, message: ReceivedMessage) -> Checked {
        match self.answers.get_mut(&call) {
            Some(PeerCall::Open { finish: finish @ None, .. }) => {
                *finish = Some(message);
                Ok(())
            }
            _ => Err(Error::disconnected("a call was finished twice".into()).into()),
        }
    }

    /// Counts a call of ours that goes out.
    pub(super) fn send_call(&mut self, call: call::Reader) -> capnp::Result<()> {
        self.ask(call.get_question_id(), Debt::of_sent());
        self.exports.add_all(call.get_params()?, 0, |_| {})
    }

    /// Counts a message of ours that goes out and is neither a `Call` nor a `Return`.
    pub(super) fn send(&mut self, message: message::Reader) -> capnp::Result<()> {
        match message.which() {
            Ok(message::Bootstrap(bootstrap)) => {
                self.ask(bootstrap?.get_question_id(), Debt::default());
            }
            Ok(message::Finish(finish)) => {
                if let Some(question) = self.questions.get_mut(&finish?.get_question_id())
                    && !std::mem::replace(&mut question.is_given_up, true)
                {
                    self.asked -= 1;
                }
            }
            Ok(message::Release(release)) => {
                // The RPC system releases all references to an import at once.
                self.imports.remove(&release?.get_id());
            }
            _ => {}
        }
        Ok(())
    }

    fn ask(&mut self, call: u32, debt: Debt) {
        self.questions.insert(call, Question { is_given_up: false, debt });
        self.asked += 1;
    }

    fn begin(&mut self, call: u32, kind: Kind, bytes: usize, limits: &Limits) -> Checked {
        if self.answers.len() >= limits.answers {
            return Rejection::over(Limit::Answers, "too many calls were not finished");
        }
        let answer = PeerCall::Open { bytes, kind, finish: None };
        if self.answers.insert(call, answer).is_some() {
            let reason = "a call has the number of an open one";
            return Err(Error::disconnected(reason.into()).into());
        }
        self.open += 1;
        self.open_bytes += bytes;
        Ok(())
    }

    fn receive_call(&mut self, call: call::Reader, bytes: usize, limits: &Limits) -> Checked {
        let call::send_results_to::Caller(()) = call.get_send_results_to().which()? else {
            return unknown_kind("results that go to a third party: a call");
        };
        self.check_target(call.get_target()?, limits)?;
        self.receive_payload(call.get_params()?, limits)?;
        // Calls of a peer that was served already change nothing.
        let is_open = !self.has_served && strangers::is_open(call)?;
        let kind = if is_open { Kind::Open } else { Kind::Trusted };
        self.begin(call.get_question_id(), kind, bytes, limits)
    }

    fn receive_return(&mut self, answer: return_::Reader, limits: &Limits) -> Checked {
        let Some(question) = self.questions.remove(&answer.get_answer_id()) else {
            return Rejection::over(Limit::UnknownCapability, NOT_OPEN);
        };
        self.asked -= usize::from(!question.is_given_up);
        match (answer.which()?, question.is_given_up) {
            (return_::Results(payload), false) => self.receive_payload(payload?, limits),
            // The RPC system drops these results unread.
            (return_::Results(_) | return_::Canceled(()), true) | (return_::Exception(_), _) => {
                Ok(())
            }
            _ => unknown_kind("an answer"),
        }
    }

    /// Forgets a call that is answered and finished. It may have been forgotten before, if its
    /// answer needed no `Finish`.
    fn receive_finish(&mut self, finish: finish::Reader) -> Checked {
        let answer = self.answers.remove(&finish.get_question_id());
        let Some(PeerCall::Returned { exports, bytes }) = answer else { return Ok(()) };
        self.unfinished_bytes -= bytes;
        if finish.get_release_result_caps() {
            for id in exports {
                self.exports.release(id, 1)?;
            }
        }
        Ok(())
    }

    fn receive_disembargo(&self, disembargo: disembargo::Reader, limits: &Limits) -> Checked {
        match disembargo.get_context().which()? {
            disembargo::context::SenderLoopback(_) => {
                self.check_target(disembargo.get_target()?, limits)
            }
            disembargo::context::ReceiverLoopback(_) => Ok(()),
            _ => unknown_kind("a disembargo"),
        }
    }

    fn receive_payload(&mut self, payload: payload::Reader, limits: &Limits) -> Checked {
        let caps = payload.get_cap_table()?;
        if caps.len() as usize > limits.capabilities {
            let (count, max) = (caps.len(), limits.capabilities);
            let reason = format!("{count} capabilities in one message; the limit is {max}");
            return Rejection::over(Limit::Capabilities, reason);
        }
        caps.iter().try_for_each(|cap| self.receive_cap(cap, limits))
    }

    fn receive_cap(&mut self, cap: cap_descriptor::Reader, limits: &Limits) -> Checked {
        match cap.which()? {
            cap_descriptor::None(()) => Ok(()),
            cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id) => {
                self.import(id, limits)
            }
            cap_descriptor::ReceiverHosted(id) => self.exports.check(id),
            cap_descriptor::ReceiverAnswer(answer) => check_path(answer?, limits),
            cap_descriptor::ThirdPartyHosted(_) => unknown_kind("a capability of a third party"),
        }
    }

    fn import(&mut self, id: u32, limits: &Limits) -> Checked {
        self.imports.insert(id);
        if self.imports.len() > limits.imports {
            let reason = "too many capabilities of the peer are held here";
            return Rejection::over(Limit::Imports, reason);
        }
        Ok(())
    }

    fn check_target(&self, target: message_target::Reader, limits: &Limits) -> Checked {
        match target.which()? {
            message_target::ImportedCap(id) => self.exports.check(id),
            message_target::PromisedAnswer(answer) => check_path(answer?, limits),
        }
    }

    /// Counts a `Return` of ours that goes out. If the `Finish` of its call was held, its turn
    /// comes now.
    pub(super) fn send_answer(
        &mut self,
        answer: return_::Reader,
        to: AnswerTo,
    ) -> capnp::Result<Option<ReceivedMessage>> {
        let call = answer.get_answer_id();
        let (bytes, kind, finish) = match self.answers.remove(&call) {
            Some(PeerCall::Open { bytes, kind, finish }) => (Some(bytes), kind, finish),
            _ => (None, Kind::Open, None),
        };
        let mut exports = Vec::new();
        if let return_::Results(payload) = answer.which()? {
            self.has_served |= kind == Kind::Trusted;
            self.exports.add_all(payload?, bytes.unwrap_or_default(), |id| exports.push(id))?;
        }
        let Some(bytes) = bytes else { return Ok(None) };
        self.open -= 1;
        self.open_bytes -= bytes;
        // The RPC system forgets the call by itself if its answer needs no `Finish`; the peer
        // doesn't know that if it doesn't get the results.
        if to == AnswerTo::OurCall || !answer.get_no_finish_needed() {
            let bytes = if exports.is_empty() { 0 } else { bytes };
            self.unfinished_bytes += bytes;
            self.answers.insert(call, PeerCall::Returned { exports, bytes });
        }
        Ok(finish)
    }
}

/// Checks a path. The RPC system copies it, and it may be far longer than its message suggests.
pub(super) fn check_path(answer: promised_answer::Reader, limits: &Limits) -> Checked {
    let steps = answer.get_transform()?.len();
    if steps <= u32::from(limits.nesting) {
        return Ok(());
    }
    Rejection::over(Limit::Nesting, format!("a path of {steps} steps into an answer is refused"))
}

/// The error for calls on their way. To them it is a lost connection, no matter which kind the peer
/// gave.
fn ended_by(abort: exception::Reader) -> Error {
    let reason = abort.get_reason().and_then(|reason| Ok(reason.to_string()?));
    Error::disconnected(reason.unwrap_or_else(|_| "the peer gave no reason that is text".into()))
}

fn unknown_kind<T>(what: &str) -> Checked<T> {
    Rejection::over(Limit::UnknownKind, format!("{what} of a kind that is not in use"))
}

#[cfg(test)]
impl Tables {
    /// The numbers of calls that are not finished, of finished ones that wait for their answer, and
    /// of the capabilities that each side holds.
    pub(super) fn counts(&self) -> super::TableCounts {
        let held = |answer: &&PeerCall| matches!(answer, PeerCall::Open { finish: Some(_), .. });
        super::TableCounts {
            answers: self.answers.len(),
            held: self.answers.values().filter(held).count(),
            questions: self.questions.len(),
            exports: self.exports.len(),
            imports: self.imports.len(),
        }
    }
}
