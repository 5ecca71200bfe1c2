//! Messages of the peer that wait until fewer of its calls are open, in the order in which they came.
//!
//! Only a `Return` may overtake what waits, because a call that began may need it to come to its
//! end. Even that one waits if it speaks of something that is still on its way in the queue.

use super::limits::Refusal;
use super::scatter::ByNumber;
use crate::wire::{Incoming, cost};
use capnp_rpc::rpc_capnp::{cap_descriptor, message, payload, resolve, return_};
use std::collections::VecDeque;

/// What a message costs beside its bytes.
const MESSAGE_BYTES: usize = 256;

/// Room that is kept when the queue runs empty.
const MESSAGES_KEPT: usize = 16;

#[derive(Default)]
pub(super) struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// Numbers of calls that wait, of promises that what waits resolves, and of promises that it names.
    calls: Numbers,
    resolved: Numbers,
    promises: Numbers,
}

struct Waiting {
    message: Incoming,
    bytes: usize,
    kind: Kind,
    /// The promises of the peer that it names.
    promises: Vec<u32>,
}

/// What a later `Return` may speak of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Call(u32),
    Bootstrap(u32),
    Resolve(u32),
    Other,
}

/// Numbers, and how often each is there.
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

    pub(super) fn push(&mut self, message: Incoming, caps_max: usize) -> Result<(), Refusal> {
        let mut promises = Vec::new();
        let kind = match message.get_root::<message::Reader>()?.which() {
            Ok(message::Call(call)) => {
                let call = call?;
                add_promises(call.get_params()?, caps_max, &mut promises)?;
                Kind::Call(call.get_question_id())
            }
            Ok(message::Bootstrap(bootstrap)) => Kind::Bootstrap(bootstrap?.get_question_id()),
            Ok(message::Resolve(resolve)) => {
                let resolve = resolve?;
                if let resolve::Cap(cap) = resolve.which()? {
                    promises.extend(promise(cap?)?);
                }
                Kind::Resolve(resolve.get_promise_id())
            }
            Ok(message::Return(answer)) => {
                if let return_::Results(payload) = answer?.which()? {
                    add_promises(payload?, caps_max, &mut promises)?;
                }
                Kind::Other
            }
            _ => Kind::Other,
        };
        match kind {
            Kind::Call(id) | Kind::Bootstrap(id) => self.calls.add(id),
            Kind::Resolve(id) => self.resolved.add(id),
            Kind::Other => {}
        }
        for &id in &promises {
            self.promises.add(id);
        }
        let bytes = cost(&message) + MESSAGE_BYTES;
        self.bytes += bytes;
        self.waiting.push_back(Waiting { message, bytes, kind, promises });
        Ok(())
    }

    /// The next message, unless it is a call and these wait.
    pub(super) fn pop(&mut self, calls: Calls) -> Option<Incoming> {
        let stays = |kind| calls == Calls::Wait && matches!(kind, Kind::Call(_));
        if stays(self.waiting.front()?.kind) {
            return None;
        }
        let Waiting { message, bytes, kind, promises } = self.waiting.pop_front()?;
        self.bytes -= bytes;
        match kind {
            Kind::Call(id) | Kind::Bootstrap(id) => self.calls.remove(id),
            Kind::Resolve(id) => self.resolved.remove(id),
            Kind::Other => {}
        }
        for &id in &promises {
            self.promises.remove(id);
        }
        if self.waiting.is_empty() {
            let room = std::mem::take(&mut self.waiting);
            *self = Self { waiting: room, ..Self::default() };
            self.waiting.shrink_to(MESSAGES_KEPT);
        }
        Some(message)
    }

    /// Whether an answer speaks of a call that waits, or of a number that a waiting `Resolve` means
    /// otherwise, or of a promise as if it were none, of which the RPC system doesn't know yet.
    pub(super) fn concerns(
        &self,
        answer: return_::Reader,
        caps_max: usize,
        is_known: impl Fn(u32) -> bool,
    ) -> Result<bool, Refusal> {
        let return_::Results(payload) = answer.which()? else { return Ok(false) };
        let caps = payload?.get_cap_table()?;
        if caps.len() as usize > caps_max {
            // It is refused when it is delivered.
            return Ok(false);
        }
        for cap in caps {
            let waits = match cap.which()? {
                cap_descriptor::SenderHosted(id) => {
                    self.resolved.has(id) || self.promises.has(id) && !is_known(id)
                }
                cap_descriptor::SenderPromise(id) => self.resolved.has(id),
                cap_descriptor::ReceiverAnswer(answer) => self.calls.has(answer?.get_question_id()),
                _ => false,
            };
            if waits {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn add_promises(
    payload: payload::Reader,
    caps_max: usize,
    promises: &mut Vec<u32>,
) -> capnp::Result<()> {
    // What has more is refused when it is delivered.
    for cap in payload.get_cap_table()?.iter().take(caps_max) {
        promises.extend(promise(cap)?);
    }
    Ok(())
}

fn promise(cap: cap_descriptor::Reader) -> capnp::Result<Option<u32>> {
    Ok(match cap.which()? {
        cap_descriptor::SenderPromise(id) => Some(id),
        _ => None,
    })
}
