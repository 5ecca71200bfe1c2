//! What the RPC system has in its tables for one connection, as far as the peer decides about it.
//!
//! Every message that is delivered and every one that is sent changes these tables as it changes
//! those of the RPC system, so that they can be counted, and a number that was never given out is
//! seen before the RPC system follows it. Nothing here waits or sends.
//!
//! A number of a call that is over may still come from an honest peer, which pipelines on an answer
//! that it hasn't read yet: such a call fails alone.

use super::Message;
use super::chains::Chains;
use super::exports::Exports;
use super::limits::{Limit, Limits, Refusal};
use super::scatter::ByNumber;
use capnp::Error;
use capnp_rpc::rpc_capnp::{
    call, cap_descriptor, disembargo, exception, finish, message, message_target, payload,
    promised_answer, resolve, return_,
};

type Checked<T = ()> = Result<T, Refusal>;

/// See the head of the file.
#[derive(Default)]
pub(super) struct Tables {
    /// Calls of the peer, until they are answered and finished.
    answers: ByNumber<Answer>,
    /// How many of them have no answer, and the bytes of these.
    open: usize,
    open_bytes: usize,
    /// Calls of ours without an answer.
    questions: ByNumber<Question>,
    /// How many of them were not given up.
    asked: usize,
    exports: Exports,
    /// Capabilities of the peer's, and whether each was a promise when it was first named: to the RPC
    /// system it stays one, however it is named later.
    imports: ByNumber<bool>,
    /// What the peer's promises were resolved to.
    chains: Chains,
}

/// A call of the peer.
enum Answer {
    /// Without a `Return` so far, with its `Finish` if that came already.
    Open { bytes: usize, finish: Option<Finish> },
    /// With the capabilities that the `Return` gave away.
    Returned { exports: Vec<u32> },
}

struct Finish {
    message: Message,
    releases: bool,
}

enum Question {
    Asked,
    /// A `Finish` went out, and what comes in the `Return` is not taken.
    GivenUp,
}

/// What becomes of a message.
pub(super) enum Fate {
    Delivered,
    /// It is the `Finish` of a call without a `Return`.
    Held(Held),
}

/// Where a `Finish` is held.
pub(super) struct Held {
    call: u32,
    releases: bool,
}

/// What a message that was sent made of the tables.
pub(super) enum Sent {
    /// The `Return` of a call, and the `Finish` that was held for it.
    Return(Option<Message>),
    Other,
}

impl Tables {
    /// Calls that have begun and have no answer, and the bytes of their messages.
    pub(super) fn open(&self) -> (usize, usize) {
        (self.open, self.open_bytes)
    }

    /// Calls of ours that the peer has not answered.
    pub(super) fn questions(&self) -> usize {
        self.questions.len()
    }

    /// Somebody here waits for an answer of the peer's.
    pub(super) fn waits_for_peer(&self) -> bool {
        self.asked > 0
    }

    /// The RPC system knows the peer's capability `id`.
    pub(super) fn has_import(&self, id: u32) -> bool {
        self.imports.contains_key(&id)
    }

    /// Capabilities of ours that the peer holds.
    pub(super) fn exports(&self) -> usize {
        self.exports.len()
    }

    /// Neither side has an open call, or holds anything of the other.
    pub(super) fn are_empty(&self) -> bool {
        self.answers.is_empty()
            && self.questions.is_empty()
            && self.exports.len() == 0
            && self.imports.is_empty()
    }

    /// A message of so many bytes is about to be delivered.
    pub(super) fn receive(
        &mut self,
        message: message::Reader,
        bytes: usize,
        limits: &Limits,
    ) -> Checked<Fate> {
        match message.which() {
            Ok(message::Call(call)) => self.receive_call(call?, bytes, limits)?,
            Ok(message::Return(answer)) => self.receive_return(answer?, limits)?,
            Ok(message::Finish(finish)) => return self.receive_finish(finish?),
            Ok(message::Bootstrap(bootstrap)) => {
                self.begin(bootstrap?.get_question_id(), bytes, limits)?;
            }
            Ok(message::Resolve(resolve)) => self.receive_resolve(resolve?, limits)?,
            Ok(message::Release(release)) => {
                let release = release?;
                self.exports.release(release.get_id(), release.get_reference_count())?;
            }
            Ok(message::Disembargo(disembargo)) => {
                self.receive_disembargo(disembargo?, limits)?;
            }
            Ok(message::Unimplemented(echo)) => self.receive_echo(echo?)?,
            Ok(message::Abort(abort)) => return Err(ended_by(abort?).into()),
            _ => return unknown_kind("a message"),
        }
        Ok(Fate::Delivered)
    }

    /// Keeps a `Finish` until the `Return` of its call is out.
    pub(super) fn hold(&mut self, held: Held, message: Message) -> Checked {
        match self.answers.get_mut(&held.call) {
            Some(Answer::Open { finish: finish @ None, .. }) => {
                *finish = Some(Finish { message, releases: held.releases });
                Ok(())
            }
            _ => Err(Error::disconnected("a call was finished twice".into()).into()),
        }
    }

    /// A message of ours goes out.
    pub(super) fn send(&mut self, message: message::Reader) -> capnp::Result<Sent> {
        match message.which() {
            Ok(message::Return(answer)) => return self.send_return(answer?).map(Sent::Return),
            Ok(message::Call(call)) => {
                let call = call?;
                self.ask(call.get_question_id());
                self.exports.add_all(call.get_params()?, |_| {})?;
            }
            Ok(message::Bootstrap(bootstrap)) => {
                self.ask(bootstrap?.get_question_id());
            }
            Ok(message::Finish(finish)) => {
                if let Some(question) = self.questions.get_mut(&finish?.get_question_id())
                    && let Question::Asked = std::mem::replace(question, Question::GivenUp)
                {
                    self.asked -= 1;
                }
            }
            Ok(message::Release(release)) => {
                // The RPC system lets go of all references to an import at once.
                let id = release?.get_id();
                self.imports.remove(&id);
                self.chains.release(id);
            }
            Ok(message::Resolve(resolve)) => {
                if let resolve::Cap(cap) = resolve?.which()? {
                    self.exports.add(cap?)?;
                }
            }
            _ => {}
        }
        Ok(Sent::Other)
    }

    fn ask(&mut self, call: u32) {
        self.questions.insert(call, Question::Asked);
        self.asked += 1;
    }

    fn begin(&mut self, call: u32, bytes: usize, limits: &Limits) -> Checked {
        if self.answers.len() >= limits.answers {
            return Refusal::over(Limit::Answers, "too many calls were not finished");
        }
        let answer = Answer::Open { bytes, finish: None };
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
            // The RPC system never answers such a call, so its number could not be given back.
            return unknown_kind("results that don't go to the caller: a call");
        };
        self.check_target(call.get_target()?, limits)?;
        self.receive_payload(call.get_params()?, limits)?;
        self.begin(call.get_question_id(), bytes, limits)
    }

    fn receive_return(&mut self, answer: return_::Reader, limits: &Limits) -> Checked {
        let Some(question) = self.questions.remove(&answer.get_answer_id()) else {
            let reason = "a call was answered that is not open";
            return Refusal::over(Limit::UnknownCapability, reason);
        };
        self.asked -= usize::from(matches!(question, Question::Asked));
        match (answer.which()?, question) {
            (return_::Results(payload), Question::Asked) => self.receive_payload(payload?, limits),
            // The RPC system drops these results unread.
            (return_::Results(_) | return_::Canceled(()), Question::GivenUp)
            | (return_::Exception(_), _) => Ok(()),
            _ => unknown_kind("an answer"),
        }
    }

    fn receive_finish(&mut self, finish: finish::Reader) -> Checked<Fate> {
        let (call, releases) = (finish.get_question_id(), finish.get_release_result_caps());
        match self.answers.get(&call) {
            Some(Answer::Open { .. }) => return Ok(Fate::Held(Held { call, releases })),
            Some(Answer::Returned { .. }) => self.end(call, releases)?,
            // Its answer said that this isn't needed.
            None => {}
        }
        Ok(Fate::Delivered)
    }

    /// Forgets a call that is answered and finished.
    fn end(&mut self, call: u32, releases: bool) -> Checked {
        if let Some(Answer::Returned { exports }) = self.answers.remove(&call)
            && releases
        {
            for id in exports {
                self.exports.release(id, 1)?;
            }
        }
        Ok(())
    }

    fn receive_resolve(&mut self, resolve: resolve::Reader, limits: &Limits) -> Checked {
        let resolve::Cap(cap) = resolve.which()? else { return Ok(()) };
        let cap = cap?;
        let (to, is_promise) = match cap.which()? {
            cap_descriptor::SenderPromise(to) => (to, true),
            cap_descriptor::SenderHosted(to) => (to, self.imports.get(&to) == Some(&true)),
            _ => (0, false),
        };
        if is_promise {
            self.chains.resolve(resolve.get_promise_id(), to, limits)?;
        }
        self.receive_cap(cap, limits)
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

    /// The peer doesn't know `Resolve`, and lets go of the capability in it.
    fn receive_echo(&mut self, echo: message::Reader) -> Checked {
        if let Ok(message::Resolve(resolve)) = echo.which()
            && let resolve::Cap(cap) = resolve?.which()?
            && let cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id) =
                cap?.which()?
        {
            self.exports.release(id, 1)?;
        }
        Ok(())
    }

    fn receive_payload(&mut self, payload: payload::Reader, limits: &Limits) -> Checked {
        let caps = payload.get_cap_table()?;
        if caps.len() as usize > limits.capabilities {
            let (count, max) = (caps.len(), limits.capabilities);
            let reason = format!("{count} capabilities in one message; the limit is {max}");
            return Refusal::over(Limit::Capabilities, reason);
        }
        caps.iter().try_for_each(|cap| self.receive_cap(cap, limits))
    }

    fn receive_cap(&mut self, cap: cap_descriptor::Reader, limits: &Limits) -> Checked {
        match cap.which()? {
            cap_descriptor::None(()) => Ok(()),
            cap_descriptor::SenderHosted(id) => self.import(id, false, limits),
            cap_descriptor::SenderPromise(id) => self.import(id, true, limits),
            cap_descriptor::ReceiverHosted(id) => self.exports.check(id),
            cap_descriptor::ReceiverAnswer(answer) => check_path(answer?, limits),
            cap_descriptor::ThirdPartyHosted(_) => unknown_kind("a capability of a third party"),
        }
    }

    fn import(&mut self, id: u32, is_promise: bool, limits: &Limits) -> Checked {
        self.imports.entry(id).or_insert(is_promise);
        if self.imports.len() > limits.imports {
            let reason = "too many capabilities of the peer are held here";
            return Refusal::over(Limit::Imports, reason);
        }
        Ok(())
    }

    fn check_target(&self, target: message_target::Reader, limits: &Limits) -> Checked {
        match target.which()? {
            message_target::ImportedCap(id) => self.exports.check(id),
            message_target::PromisedAnswer(answer) => check_path(answer?, limits),
        }
    }

    fn send_return(&mut self, answer: return_::Reader) -> capnp::Result<Option<Message>> {
        let call = answer.get_answer_id();
        let mut exports = Vec::new();
        if let return_::Results(payload) = answer.which()? {
            self.exports.add_all(payload?, |id| exports.push(id))?;
        }
        let Some(Answer::Open { bytes, finish }) = self.answers.remove(&call) else {
            return Ok(None);
        };
        self.open -= 1;
        self.open_bytes -= bytes;
        // The RPC system forgets the call by itself if it needs no `Finish`.
        if !answer.get_no_finish_needed() {
            self.answers.insert(call, Answer::Returned { exports });
        }
        let Some(Finish { message, releases }) = finish else { return Ok(None) };
        // It is delivered before any other message.
        if let Err(Refusal::Malformed(error)) = self.end(call, releases) {
            return Err(error);
        }
        Ok(Some(message))
    }
}

/// The RPC system copies a path, which may seem far longer than its message is.
fn check_path(answer: promised_answer::Reader, limits: &Limits) -> Checked {
    let steps = answer.get_transform()?.len();
    if steps <= u32::from(limits.nesting) {
        return Ok(());
    }
    Refusal::over(Limit::Nesting, format!("a path of {steps} steps into an answer is refused"))
}

/// Whatever kind the peer gave, for calls on their way it is a lost connection.
fn ended_by(abort: exception::Reader) -> Error {
    let reason = abort.get_reason().and_then(|reason| Ok(reason.to_string()?));
    Error::disconnected(reason.unwrap_or_else(|_| "the peer gave no reason that is text".into()))
}

fn unknown_kind<T>(what: &str) -> Checked<T> {
    Refusal::over(Limit::UnknownKind, format!("{what} of a kind that is not in use"))
}

#[cfg(test)]
impl Tables {
    /// Calls that are not finished, how many of these are finished and wait for their answer, what
    /// each side holds, and promises that are part of a chain.
    pub(super) fn counts(&self) -> super::Counts {
        let held = |answer: &&Answer| matches!(answer, Answer::Open { finish: Some(_), .. });
        super::Counts {
            answers: self.answers.len(),
            held: self.answers.values().filter(held).count(),
            questions: self.questions.len(),
            exports: self.exports.len(),
            imports: self.imports.len(),
            chained: self.chains.len(),
        }
    }
}
