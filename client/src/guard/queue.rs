//! Messages of the peer that wait until fewer of its calls are open, in the order in which they
//! came.
//!
//! Only a `Return` may overtake waiting messages, because a call that began may need it to end.
//! Even a `Return` waits if it refers to something that is still in the queue.

use super::scatter::ByNumber;
use crate::limits::Rejection;
use crate::wire::{ReceivedMessage, cost};
use capnp_rpc::rpc_capnp::{cap_descriptor, message, return_};
use std::collections::VecDeque;

/// The cost of a message in addition to its bytes.
const MESSAGE_BYTES: usize = 256;

/// The capacity that is kept when the queue runs empty.
const MESSAGES_KEPT: usize = 16;

#[derive(Default)]
pub(super) struct MessageQueue {
    /// Each in a box, so that little memory is copied when the queue grows.
    waiting: VecDeque<Box<Waiting>>,
    bytes: usize,
    /// The numbers of the waiting calls.
    calls: Numbers,
}

struct Waiting {
    message: ReceivedMessage,
    bytes: usize,
    kind: Kind,
}

/// The part of a waiting message that a later `Return` may refer to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Call(u32),
    Bootstrap(u32),
    Other,
}

/// Numbers with their counts.
#[derive(Default)]
struct Numbers(ByNumber<u32>);

impl Numbers {
    fn has(&self, number: u32) -> bool {
        self.0.contains_key(&number)
    }

    fn add(&mut self, number: u32) {
        *self.0.entry(number).or_default() += 1;
    }

    fn remove(&mut self, number: u32) {
        if let Some(times) = self.0.get_mut(&number) {
            *times -= 1;
            if *times == 0 {
                self.0.remove(&number);
            }
        }
    }
}

/// Says whether calls may begin or have to wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Calls {
    Begin,
    Wait,
}

impl MessageQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The cost of all waiting messages.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, message: ReceivedMessage) -> Result<(), Rejection> {
        let kind = match message.get_root::<message::Reader>()?.which() {
            Ok(message::Call(call)) => Kind::Call(call?.get_question_id()),
            Ok(message::Bootstrap(bootstrap)) => Kind::Bootstrap(bootstrap?.get_question_id()),
            _ => Kind::Other,
        };
        if let Kind::Call(id) | Kind::Bootstrap(id) = kind {
            self.calls.add(id);
        }
        let bytes = cost(&message) + MESSAGE_BYTES;
        self.bytes += bytes;
        self.waiting.push_back(Box::new(Waiting { message, bytes, kind }));
        Ok(())
    }

    /// The next message, unless it is a call and calls have to wait.
    pub(super) fn pop(&mut self, calls: Calls) -> Option<ReceivedMessage> {
        let stays = |kind| calls == Calls::Wait && matches!(kind, Kind::Call(_));
        if stays(self.waiting.front()?.kind) {
            return None;
        }
        let Waiting { message, bytes, kind } = *self.waiting.pop_front()?;
        self.bytes -= bytes;
        if let Kind::Call(id) | Kind::Bootstrap(id) = kind {
            self.calls.remove(id);
        }
        if self.waiting.is_empty() {
            let room = std::mem::take(&mut self.waiting);
            *self = Self { waiting: room, ..Self::default() };
            self.waiting.shrink_to(MESSAGES_KEPT);
        }
        Some(message)
    }

    /// Tells whether an answer refers to a waiting call.
    pub(super) fn concerns(
        &self,
        answer: return_::Reader,
        caps_max: usize,
    ) -> Result<bool, Rejection> {
        let payload = match answer.which()? {
            return_::Results(payload) => payload?,
            return_::TakeFromOtherQuestion(call) => return Ok(self.calls.has(call)),
            _ => return Ok(false),
        };
        let caps = payload.get_cap_table()?;
        if caps.len() as usize > caps_max {
            // Such an answer is refused when it is delivered.
            return Ok(false);
        }
        for cap in caps {
            if let cap_descriptor::ReceiverAnswer(answer) = cap.which()?
                && self.calls.has(answer?.get_question_id())
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
