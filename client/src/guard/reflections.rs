//! Calls that a peer reflects: we called a promise of the peer that turned out to be a capability
//! of ours, or a method of the peer's that ended in a tail call to us.
//!
//! The peer sends us a call whose results it doesn't want (`sendResultsTo.yourself`), and answers
//! our call with the result of that one (`takeFromOtherQuestion`). Every implementation in C++ does
//! this unasked. capnp-rpc can't do it, so it sees an ordinary call, and the guard turns the
//! `Return` of that call into the one that our own call gets, as the peer would have sent it.
//!
//! **Invariant:** our call gets its `Return` before the `Finish` of the reflected call releases the
//! capabilities in it.

use super::patch::{Patches, RECEIVER_HOSTED, SENDER_HOSTED};
use super::scatter::ByNumber;
use crate::limits::{Limit, Limits, Rejection};
use crate::wire::{ReceivedMessage, Segments, cost};
use capnp::Error;
use capnp::message::{Builder, HeapAllocator, Reader};
use capnp_rpc::rpc_capnp::{cap_descriptor, message, return_};

/// The reflected calls of a connection; the head of the file explains them.
#[derive(Default)]
pub(super) struct Reflections {
    calls: ByNumber<Reflected>,
    /// References that the RPC system counts and the peer doesn't, by the peer's capabilities: they
    /// were named in results of ours that came back to us.
    surplus: ByNumber<u32>,
    /// Bytes of the results that wait until the peer says which call they are for.
    bytes: usize,
}

/// A reflected call, until it is answered and finished.
#[derive(Default)]
struct Reflected {
    asker: Asker,
    results: Option<ReceivedMessage>,
    is_answered: bool,
    is_finished: bool,
}

/// The receiver of the results of a reflected call.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Asker {
    #[default]
    Unknown,
    /// A call of ours.
    Call(u32),
    /// The call of ours got another answer.
    Nobody,
}

/// Results, and the call of ours that gets them.
pub(super) struct Answered {
    pub(super) call: u32,
    pub(super) results: ReceivedMessage,
}

impl Reflections {
    pub(super) fn begin(&mut self, call: u32) {
        self.calls.insert(call, Reflected::default());
    }

    pub(super) fn has(&self, call: u32) -> bool {
        self.calls.contains_key(&call)
    }

    /// Bytes of the waiting results.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The peer answers our call with the results of its call `from`.
    pub(super) fn take_from(
        &mut self,
        from: u32,
        call: u32,
    ) -> Result<Option<Answered>, Rejection> {
        let results = self.ask(from, Asker::Call(call))?;
        Ok(results.map(|results| Answered { call, results }))
    }

    /// The peer names the results of `from` as the answer to a call that already has one.
    pub(super) fn give_nobody(&mut self, from: u32) -> Result<(), Rejection> {
        self.ask(from, Asker::Nobody).map(drop)
    }

    fn ask(&mut self, from: u32, asker: Asker) -> Result<Option<ReceivedMessage>, Rejection> {
        let unknown = |one: &&mut Reflected| one.asker == Asker::Unknown;
        let Some(reflected) = self.calls.get_mut(&from).filter(unknown) else {
            let reason = "an answer is to be that of a call that has none to give";
            return Rejection::over(Limit::UnknownCapability, reason);
        };
        reflected.asker = asker;
        let results = reflected.results.take();
        self.bytes -= results.as_ref().map_or(0, cost);
        Ok(results)
    }

    /// The RPC system answers a call that may be a reflected one.
    pub(super) fn answer(&mut self, call: u32, results: ReceivedMessage) -> Option<Answered> {
        let reflected = self.calls.get_mut(&call)?;
        reflected.is_answered = true;
        let answered = match reflected.asker {
            Asker::Call(call) => Some(Answered { call, results }),
            Asker::Nobody => None,
            Asker::Unknown => {
                self.bytes += cost(&results);
                reflected.results = Some(results);
                None
            }
        };
        self.end_if_over(call);
        answered
    }

    /// The peer finishes a call that may be a reflected one.
    pub(super) fn finish(&mut self, call: u32) {
        if let Some(reflected) = self.calls.get_mut(&call) {
            reflected.is_finished = true;
            self.end_if_over(call);
        }
    }

    fn end_if_over(&mut self, call: u32) {
        if self.calls.get(&call).is_some_and(|one| one.is_answered && one.is_finished)
            && let Some(over) = self.calls.remove(&call)
        {
            self.bytes -= over.results.as_ref().map_or(0, cost);
        }
    }

    /// Counts the references in these results, which the RPC system is about to get.
    pub(super) fn delivers(&mut self, results: &ReceivedMessage) -> capnp::Result<()> {
        if let Ok(message::Return(answer)) = results.get_root::<message::Reader>()?.which()
            && let return_::Results(payload) = answer?.which()?
        {
            for cap in payload?.get_cap_table()? {
                if let cap_descriptor::SenderHosted(id) = cap.which()? {
                    *self.surplus.entry(id).or_default() += 1;
                }
            }
        }
        Ok(())
    }

    /// The RPC system releases all its references, `count`, to a capability. Returns how many of
    /// them the peer counts.
    pub(super) fn released(&mut self, id: u32, count: u32) -> u32 {
        count.saturating_sub(self.surplus.remove(&id).unwrap_or_default())
    }
}

/// A `Return` of ours, as the peer would send it.
pub(super) fn turned(
    message: &Builder<HeapAllocator>,
    limits: &Limits,
) -> Result<ReceivedMessage, Rejection> {
    let mut segments = Segments::default();
    for segment in message.get_segments_for_output().iter() {
        segments.push(segment);
    }
    let incoming = Reader::new(segments, limits.reader_options());
    let mut patches = Patches::default();
    if let Ok(message::Return(answer)) = incoming.get_root::<message::Reader>()?.which() {
        let answer = answer?;
        // The peer waits for the `Finish` of our call.
        patches.finish_needed(answer);
        if let return_::Results(payload) = answer.which()? {
            for cap in payload?.get_cap_table()? {
                match cap.which()? {
                    cap_descriptor::SenderHosted(_) | cap_descriptor::SenderPromise(_) => {
                        patches.kind(cap, RECEIVER_HOSTED)?;
                    }
                    cap_descriptor::ReceiverHosted(_) => patches.kind(cap, SENDER_HOSTED)?,
                    cap_descriptor::None(()) => {}
                    _ => {
                        let reason = "an answer to ourselves names an answer of the peer's";
                        return Err(Error::disconnected(reason.into()).into());
                    }
                }
            }
        }
    }
    Ok(patches.apply(incoming, limits.reader_options()))
}

/// The results as the answer to our call.
pub(super) fn addressed(
    Answered { call, results }: Answered,
    limits: &Limits,
) -> Result<ReceivedMessage, Rejection> {
    let mut patches = Patches::default();
    if let Ok(message::Return(answer)) = results.get_root::<message::Reader>()?.which() {
        patches.call(answer?, call)?;
    }
    Ok(patches.apply(results, limits.reader_options()))
}
