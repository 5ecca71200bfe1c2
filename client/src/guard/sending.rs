//! The handling of a message that the RPC system sends.

use super::kept::Released;
use super::made::{self, MadeMessage};
use super::outgoing::{self, Instead};
use super::pipelines::Pipelines;
use super::reflections;
use super::tables::AnswerTo;
use super::{GuardState, Ready, wake};
use crate::limits::{BURST, Limit, Rejection};
use capnp::message::{Builder, HeapAllocator};
use capnp_rpc::rpc_capnp::{message, return_};
use std::cell::RefCell;
use tokio::io::{AsyncRead, AsyncWrite};

const WORD: usize = 8;

/// A result of this many bytes isn't sent if its caller has said that it isn't needed. For a
/// smaller one the check costs more.
const UNWANTED_BYTES: usize = 4 << 10;

impl<S: AsyncRead + AsyncWrite + Unpin> GuardState<S> {
    /// Sends a message, or its replacement.
    ///
    /// The RPC system is borrowed during this, so the pipeline of an answered call is dropped only
    /// after its poll: see [`GuardState::drop_answered`].
    pub(super) fn send(&mut self, message: &mut Builder<HeapAllocator>) {
        // On a broken connection the peer is told the reason, and nothing else.
        if self.closing.is_some() || self.broken.is_some() && !is_abort(message) {
            return;
        }
        self.messages += 1;
        if let Err(refusal) = self.send_checked(message) {
            let error = self.refuse(refusal);
            self.break_with(error);
        }
        self.check_sent();
    }

    /// Drops the pipelines of answered calls. Neither the RPC system nor the state may be borrowed,
    /// because dropping a capability in them may send a release.
    pub(crate) fn drop_answered(state: &RefCell<Self>) {
        loop {
            let answered = state.borrow_mut().pipelines.take_answered();
            if answered.is_none() {
                break;
            }
        }
    }

    fn send_checked(&mut self, message: &mut Builder<HeapAllocator>) -> Result<(), Rejection> {
        let bytes = message.size_in_words().saturating_mul(WORD);
        // Usually this is the only read of it.
        let body = message.get_root_as_reader()?;
        if bytes >= UNWANTED_BYTES
            && let Some(mut unwanted) = self.unwanted(body)?
        {
            return self.put(&mut unwanted);
        }
        match self.replaced.instead(body, bytes)? {
            Instead::Same => {
                if self.note(message, body)? {
                    self.put_noted(message)
                } else {
                    Ok(())
                }
            }
            Instead::Hosted => {
                outgoing::host_promises(message)?;
                self.put(message)
            }
            Instead::Other(mut other) => self.put(&mut other),
            Instead::Refused(mut other, given) => {
                self.take_back(given);
                self.put(&mut other)
            }
            Instead::Nothing(given) => {
                self.take_back(given);
                Ok(())
            }
        }
    }

    /// The replacement of a large answer that isn't needed. `None` for all other answers, and for
    /// one with capabilities, which have to be accounted for.
    fn unwanted(&self, body: message::Reader) -> Result<Option<Builder<HeapAllocator>>, Rejection> {
        let Ok(message::Return(answer)) = body.which() else { return Ok(None) };
        let answer = answer?;
        let call = answer.get_answer_id();
        if !self.tables.is_finished(call) || self.reflections.has(call) || Pipelines::is_own(call) {
            return Ok(None);
        }
        let return_::Results(payload) = answer.which()? else { return Ok(None) };
        let has_caps = !payload?.get_cap_table()?.is_empty();
        Ok((!has_caps).then(|| made::unwanted(answer)))
    }

    /// Makes the RPC system release the capabilities that the peer doesn't get.
    fn take_back(&mut self, given: Vec<u32>) {
        let releases = given.into_iter().map(|id| made::release(id, 1));
        self.ready.extend(releases.map(|release| Ready::Message(Box::new(MadeMessage(release)))));
    }

    fn put(&mut self, message: &mut Builder<HeapAllocator>) -> Result<(), Rejection> {
        if self.note(message, message.get_root_as_reader()?)? {
            self.put_noted(message)?;
        }
        Ok(())
    }

    fn put_noted(&mut self, message: &mut Builder<HeapAllocator>) -> Result<(), Rejection> {
        if self.kept.change(message)? {
            self.wire.push(message);
            if self.limits.tells_hops {
                self.tell_origin(message)?;
                self.ask_for_receipt(message, message.size_in_words().saturating_mul(WORD))?;
            }
        }
        Ok(())
    }

    /// Notes the changes that a message makes. Returns whether it goes to the peer.
    fn note(
        &mut self,
        message: &Builder<HeapAllocator>,
        body: message::Reader,
    ) -> Result<bool, Rejection> {
        match body.which() {
            Ok(message::Return(answer)) => {
                let answer = answer?;
                let call = answer.get_answer_id();
                if Pipelines::is_own(call) {
                    let finish = self.pipelines.own_answered(call);
                    self.ready.extend(finish.map(Ready::Message));
                    return Ok(false);
                }
                self.note_answer(message, answer)
            }
            Ok(message::Release(release)) => {
                let release = release?;
                self.tables.send(body)?;
                self.put_release(release.get_id(), release.get_reference_count());
                Ok(false)
            }
            Ok(message::Call(call)) => {
                let call = call?;
                self.tables.send_call(call)?;
                self.kept.note_call(call)?;
                Ok(true)
            }
            other => {
                if let Ok(message::Bootstrap(bootstrap)) = other {
                    self.kept.note_number(bootstrap?.get_question_id());
                }
                self.tables.send(body)?;
                Ok(true)
            }
        }
    }

    fn put_release(&mut self, id: u32, count: u32) {
        let counted = self.reflections.released(id, count);
        match self.kept.release(id) {
            Some(Released::Last(call)) => self.wire.push(&made::finish_and_keep(call)),
            None if counted > 0 => self.wire.push(&made::release(id, counted)),
            Some(Released::Kept) | None => {}
        }
    }

    fn note_answer(
        &mut self,
        message: &Builder<HeapAllocator>,
        answer: return_::Reader,
    ) -> Result<bool, Rejection> {
        self.answered += 1;
        let call = answer.get_answer_id();
        let is_reflected = self.reflections.has(call);
        if is_reflected {
            let results = reflections::turned(message, &self.limits)?;
            let answered = self.reflections.answer(call, results);
            self.ready.extend(answered.map(Ready::Reflected));
        }
        let to = if is_reflected { AnswerTo::OurCall } else { AnswerTo::Peer };
        let ready = &mut self.ready;
        self.pipelines.answered(call, |told| ready.push_back(Ready::Message(told)));
        let finish = self.tables.send_answer(answer, to)?;
        self.ready.extend(finish.map(Ready::Finish));
        if self.is_stranger {
            if self.tables.has_served() {
                self.was_served();
            }
            // A message may have waited for this answer.
            wake(&mut self.reader);
        }
        if is_reflected {
            self.callers.forget(call);
            self.wire.push(&made::sent_elsewhere(call));
        } else {
            self.kept.note_answer(answer)?;
        }
        self.go_on();
        Ok(!is_reflected)
    }

    fn check_sent(&mut self) {
        self.count_pending();
        if self.tables.exports() + self.pipelines.len() > self.limits.exports {
            self.bite(Limit::Exports, "the peer holds too many capabilities");
        }
        if self.tables.questions() > self.limits.questions {
            self.bite(Limit::Questions, "the peer leaves too many calls without an answer");
        }
        if self.reflections.bytes() > self.limits.unsent_bytes {
            self.bite(Limit::UnsentBytes, "the peer doesn't say of what its calls are the answers");
        }
        // A burst may exceed the limit for bytes that stay unread.
        self.check_unsent(self.limits.unsent_bytes.saturating_mul(BURST));
        if !self.ready.is_empty() || self.pauses && self.tables.waits_for_peer() {
            wake(&mut self.reader);
        }
        wake(&mut self.driver);
    }
}

fn is_abort(message: &Builder<HeapAllocator>) -> bool {
    let body = message.get_root_as_reader::<message::Reader>();
    body.is_ok_and(|body| matches!(body.which(), Ok(message::Abort(_))))
}
