//! Changes to fields of a received message, in place: its layout stays the same.
//!
//! In a message from a peer, parts may overlap. So all changes are noted first, and the caller
//! checks the changed message afterwards, as the RPC system will see it.

use crate::limits::Rejection;
use crate::wire::ReceivedMessage;
use capnp::Error;
use capnp::message::{Reader, ReaderOptions};
use capnp::raw::get_struct_data_section;
use capnp::traits::IntoInternalStructReader;
use capnp_rpc::rpc_capnp::{call, cap_descriptor, finish, promised_answer, return_};

/// Kinds of capability, as `CapDescriptor` numbers them.
pub(super) const SENDER_HOSTED: u16 = 1;
pub(super) const RECEIVER_HOSTED: u16 = 3;

/// Changes that have not been applied yet.
#[derive(Default)]
pub(super) struct Patches(Vec<Patch>);

struct Patch {
    address: usize,
    bytes: [u8; 4],
    length: usize,
}

impl Patches {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn kind(&mut self, cap: cap_descriptor::Reader, kind: u16) -> Result<(), Rejection> {
        self.set(cap, 0, &kind.to_le_bytes())
    }

    /// Makes it a capability of the peer, with this number.
    pub(super) fn hosted(
        &mut self,
        cap: cap_descriptor::Reader,
        number: u32,
    ) -> Result<(), Rejection> {
        self.set(cap, 4, &number.to_le_bytes())?;
        self.kind(cap, SENDER_HOSTED)
    }

    /// Makes the path the root of another answer.
    pub(super) fn answer(
        &mut self,
        answer: promised_answer::Reader,
        call: u32,
    ) -> Result<(), Rejection> {
        const NOOP: u16 = 0;
        for step in answer.get_transform()? {
            if let promised_answer::op::GetPointerField(_) = step.which()? {
                self.set(step, 0, &NOOP.to_le_bytes())?;
            }
        }
        self.set(answer, 0, &call.to_le_bytes())
    }

    /// Sends the results to the caller.
    pub(super) fn results_to_caller(&mut self, call: call::Reader) -> Result<(), Rejection> {
        const CALLER: u16 = 0;
        self.set(call, 6, &CALLER.to_le_bytes())
    }

    /// Releases the capabilities in the results.
    pub(super) fn releasing(&mut self, finish: finish::Reader) {
        // The encoding XORs each value with its default, and the default here is true.
        self.clear(finish, 4, 1);
    }

    /// Requires a `Finish`.
    pub(super) fn finish_needed(&mut self, answer: return_::Reader) {
        self.clear(answer, 4, 2);
    }

    /// Makes it the answer to another call.
    pub(super) fn call(&mut self, answer: return_::Reader, call: u32) -> Result<(), Rejection> {
        self.set(answer, 0, &call.to_le_bytes())
    }

    /// The message with all changes.
    pub(super) fn apply(
        self,
        incoming: ReceivedMessage,
        options: ReaderOptions,
    ) -> ReceivedMessage {
        let mut segments = incoming.into_segments();
        for Patch { address, bytes, length } in self.0 {
            segments.patch(address, &bytes[..length]);
        }
        Reader::new(segments, options)
    }

    fn clear<'a>(&mut self, part: impl IntoInternalStructReader<'a>, at: usize, bits: u8) {
        let data = get_struct_data_section(part);
        // A field that isn't there has its default value.
        if let Some(byte) = data.get(at) {
            let address = data.as_ptr().addr() + at;
            self.0.push(Patch { address, bytes: [byte & !bits, 0, 0, 0], length: 1 });
        }
    }

    fn set<'a>(
        &mut self,
        part: impl IntoInternalStructReader<'a>,
        at: usize,
        value: &[u8],
    ) -> Result<(), Rejection> {
        let data = get_struct_data_section(part);
        if data.len() < at + value.len() {
            let reason = "a message leaves out a number that must be there";
            return Err(Error::disconnected(reason.into()).into());
        }
        let mut bytes = [0; 4];
        bytes[..value.len()].copy_from_slice(value);
        self.0.push(Patch { address: data.as_ptr().addr() + at, bytes, length: value.len() });
        Ok(())
    }
}
