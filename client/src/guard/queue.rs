//! Messages of the peer that wait until fewer of its calls are open, in the order in which they came.
//!
//! Only a `Return` may overtake what waits, because a call that began may need it to come to its
//! end. Even that one waits if it speaks of something that is still on its way in the queue.

use super::limits::Refusal;
use crate::wire::Incoming;
use capnp_rpc::rpc_capnp::{cap_descriptor, message, return_};
use std::collections::VecDeque;

/// What a message costs beside its bytes.
const MESSAGE_BYTES: usize = 256;

/// Room that is kept when the queue runs empty.
const MESSAGES_KEPT: usize = 16;

#[derive(Default)]
pub(super) struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
}

struct Waiting {
    message: Incoming,
    bytes: usize,
    kind: Kind,
}

/// What a later `Return` may speak of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Call(u32),
    Bootstrap(u32),
    Resolve(u32),
    Other,
}

/// Whether calls may begin.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Calls {
    Begin,
    Wait,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What all of it costs.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, message: Incoming) -> Result<(), Refusal> {
        let kind = match message.get_root::<message::Reader>()?.which() {
            Ok(message::Call(call)) => Kind::Call(call?.get_question_id()),
            Ok(message::Bootstrap(bootstrap)) => Kind::Bootstrap(bootstrap?.get_question_id()),
            Ok(message::Resolve(resolve)) => Kind::Resolve(resolve?.get_promise_id()),
            _ => Kind::Other,
        };
        let bytes = message.size_in_words() * 8 + MESSAGE_BYTES;
        self.bytes += bytes;
        self.waiting.push_back(Waiting { message, bytes, kind });
        Ok(())
    }

    /// The next message, unless it is a call and these wait.
    pub(super) fn pop(&mut self, calls: Calls) -> Option<Incoming> {
        let stays = |kind| calls == Calls::Wait && matches!(kind, Kind::Call(_));
        if stays(self.waiting.front()?.kind) {
            return None;
        }
        let Waiting { message, bytes, .. } = self.waiting.pop_front()?;
        self.bytes -= bytes;
        if self.waiting.is_empty() {
            self.waiting.shrink_to(MESSAGES_KEPT);
        }
        Some(message)
    }

    /// Whether an answer speaks of a call that waits, or of a number that a waiting `Resolve` means
    /// otherwise.
    pub(super) fn concerns(
        &self,
        answer: return_::Reader,
        caps_max: usize,
    ) -> Result<bool, Refusal> {
        let return_::Results(payload) = answer.which()? else { return Ok(false) };
        let caps = payload?.get_cap_table()?;
        if caps.len() as usize > caps_max {
            // It is refused when it is delivered.
            return Ok(false);
        }
        for cap in caps {
            let speaks_of = match cap.which()? {
                cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id) => {
                    [Kind::Resolve(id); 2]
                }
                cap_descriptor::ReceiverAnswer(answer) => {
                    let id = answer?.get_question_id();
                    [Kind::Call(id), Kind::Bootstrap(id)]
                }
                _ => continue,
            };
            if self.waiting.iter().any(|waiting| speaks_of.contains(&waiting.kind)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
