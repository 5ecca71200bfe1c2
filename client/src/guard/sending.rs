//! What becomes of a message that the RPC system sends.

use super::limits::{BURST, Limit, Refusal};
use super::made::{self, Made};
use super::outgoing::Instead;
use super::pipelines::Pipelined;
use super::reflections;
use super::{Ready, State, wake};
use capnp::message::{Builder, HeapAllocator};
use capnp_rpc::rpc_capnp::message;
use std::rc::Rc;
use tokio::io::{AsyncRead, AsyncWrite};

impl<S: AsyncRead + AsyncWrite + Unpin> State<S> {
    /// Sends a message, or what goes in its place. What it returns is dropped when nothing of the
    /// connection is borrowed.
    #[must_use]
    pub(super) fn send(
        &mut self,
        message: &mut Builder<HeapAllocator>,
    ) -> Option<Rc<dyn Pipelined>> {
        let body = message.get_root_as_reader::<message::Reader>().ok()?;
        // Of what is broken the peer is told why, and nothing more.
        let is_last = matches!(body.which(), Ok(message::Abort(_)));
        if self.closing.is_some() || self.broken.is_some() && !is_last {
            return None;
        }
        self.messages += 1;
        let sent = self.replaced.instead(message).map_err(Refusal::from);
        let over = sent.and_then(|instead| match instead {
            Instead::Same => self.put(message),
            Instead::Other(other) => self.put(&other),
            Instead::Refused(other, given) => {
                self.take_back(given);
                self.put(&other)
            }
            Instead::Nothing(given) => {
                self.take_back(given);
                Ok(None)
            }
        });
        let over = over.unwrap_or_else(|refusal| {
            let error = self.refuse(refusal);
            self.break_with(error);
            None
        });
        self.check_sent();
        over
    }

    /// What the peer doesn't get, the RPC system lets go of.
    fn take_back(&mut self, given: Vec<u32>) {
        let releases = given.into_iter().map(|id| made::release(id, 1));
        self.ready.extend(releases.map(|release| Ready::Message(Box::new(Made(release)))));
    }

    fn put(
        &mut self,
        message: &Builder<HeapAllocator>,
    ) -> Result<Option<Rc<dyn Pipelined>>, Refusal> {
        let body = message.get_root_as_reader::<message::Reader>()?;
        match body.which() {
            Ok(message::Return(answer)) => {
                let call = answer?.get_answer_id();
                if let Some(finish) = self.pipelines.takes_answer(call) {
                    self.ready.extend(finish.map(Ready::Message));
                    return Ok(None);
                }
                return self.put_answer(message, call).map(Some).map(Option::flatten);
            }
            Ok(message::Release(release)) => {
                let release = release?;
                let (id, count) = (release.get_id(), release.get_reference_count());
                let counted = self.reflections.released(id, count);
                if counted > 0 {
                    self.wire.push(&made::release(id, counted));
                }
            }
            _ => self.wire.push(message),
        }
        self.tables.send(body)?;
        Ok(None)
    }

    fn put_answer(
        &mut self,
        message: &Builder<HeapAllocator>,
        call: u32,
    ) -> Result<Option<Rc<dyn Pipelined>>, Refusal> {
        self.answered += 1;
        let is_reflected = self.reflections.has(call);
        if is_reflected {
            let results = reflections::turned(message, &self.limits)?;
            self.wire.push(&made::sent_elsewhere(call));
            let answered = self.reflections.answer(call, results);
            self.ready.extend(answered.map(Ready::Reflected));
        } else {
            self.wire.push(message);
        }
        let ready = &mut self.ready;
        let over = self.pipelines.answered(call, |told| ready.push_back(Ready::Message(told)));
        let finish = self.tables.send_answer(message.get_root_as_reader()?, is_reflected)?;
        self.ready.extend(finish.map(Ready::Finish));
        self.go_on();
        Ok(over)
    }

    fn check_sent(&mut self) {
        if self.tables.exports() + self.pipelines.len() > self.limits.exports {
            self.bite(Limit::Exports, "the peer holds too many capabilities");
        }
        if self.tables.questions() > self.limits.questions {
            self.bite(Limit::Questions, "the peer leaves too many calls without an answer");
        }
        if self.reflections.bytes() > self.limits.unsent_bytes {
            self.bite(Limit::UnsentBytes, "the peer doesn't say of what its calls are the answers");
        }
        // What is made at once may be more than what may stay.
        self.check_unsent(self.limits.unsent_bytes.saturating_mul(BURST));
        if !self.ready.is_empty() || self.pauses && self.tables.waits_for_peer() {
            wake(&mut self.reader);
        }
        wake(&mut self.driver);
    }
}
