//! Calls that a peer reflects: it was called on a promise that turned out to be something of ours, or ended
//! a method of its own by a tail call to us.
//!
//! It sends us a call whose results it doesn't want (`sendResultsTo.yourself`), and says of the call that
//! it was to answer that the answer is the result of that one (`takeFromOtherQuestion`). Every
//! implementation in C++ does so unasked. capnp-rpc can't: so it sees an ordinary call, and the guard
//! makes of its `Return` the one that our own call gets, as the peer would have sent it.
//!
//! **Invariant:** our call gets its `Return` before the `Finish` of the reflected call lets go of
//! what is in it.

use super::limits::{Limit, Limits, Refusal};
use super::patch::{Patches, RECEIVER_HOSTED, SENDER_HOSTED};
use super::scatter::ByNumber;
use crate::wire::{Incoming, Segments, cost};
use capnp::Error;
use capnp::message::{Builder, HeapAllocator, Reader};
use capnp_rpc::rpc_capnp::{cap_descriptor, message, return_};

/// See the head of the file.
#[derive(Default)]
pub(super) struct Reflections {
    calls: ByNumber<Reflected>,
    /// References that the RPC system counts and the peer doesn't, by its capabilities: their names are
    /// in results of ours that came to ourselves.
    surplus: ByNumber<u32>,
    /// Of the results that wait for the peer to say whose they are.
    bytes: usize,
}

/// A reflected call, until it is answered and finished.
#[derive(Default)]
struct Reflected {
    asker: Asker,
    results: Option<Incoming>,
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
    /// The call of ours was told something else.
    Nobody,
}

/// Results and the call of ours that gets them.
pub(super) struct Answered {
    pub(super) call: u32,
    pub(super) results: Incoming,
}

impl Reflections {
    pub(super) fn begin(&mut self, call: u32) {
        self.calls.insert(call, Reflected::default());
    }

    pub(super) fn has(&self, call: u32) -> bool {
        self.calls.contains_key(&call)
    }

    /// Bytes of results that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The peer says that the results of `from` are those of our call.
    pub(super) fn take_from(&mut self, from: u32, call: u32) -> Result<Option<Answered>, Refusal> {
        let results = self.ask(from, Asker::Call(call))?;
        Ok(results.map(|results| Answered { call, results }))
    }

    /// The peer says that the results of `from` are those of a call that has its answer.
    pub(super) fn give_nobody(&mut self, from: u32) -> Result<(), Refusal> {
        self.ask(from, Asker::Nobody).map(drop)
    }

    fn ask(&mut self, from: u32, asker: Asker) -> Result<Option<Incoming>, Refusal> {
        let unknown = |one: &&mut Reflected| one.asker == Asker::Unknown;
        let Some(reflected) = self.calls.get_mut(&from).filter(unknown) else {
            let reason = "an answer is to be that of a call that has none to give";
            return Refusal::over(Limit::UnknownCapability, reason);
        };
        reflected.asker = asker;
        let results = reflected.results.take();
        self.bytes -= results.as_ref().map_or(0, cost);
        Ok(results)
    }

    /// The RPC system answers a reflected call.
    pub(super) fn answer(&mut self, call: u32, results: Incoming) -> Option<Answered> {
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

    /// The peer finishes a reflected call, or it was none.
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

    /// The RPC system is about to have these results.
    pub(super) fn delivers(&mut self, results: &Incoming) -> capnp::Result<()> {
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

    /// The references that the peer counts of so many that the RPC system lets go of, which are
    /// all.
    pub(super) fn released(&mut self, id: u32, count: u32) -> u32 {
        count.saturating_sub(self.surplus.remove(&id).unwrap_or_default())
    }
}

/// A `Return` of ours as the peer would send it.
pub(super) fn turned(
    message: &Builder<HeapAllocator>,
    limits: &Limits,
) -> Result<Incoming, Refusal> {
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
) -> Result<Incoming, Refusal> {
    let mut patches = Patches::default();
    if let Ok(message::Return(answer)) = results.get_root::<message::Reader>()?.which() {
        patches.call(answer?, call)?;
    }
    Ok(patches.apply(results, limits.reader_options()))
}
