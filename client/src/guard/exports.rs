//! The capabilities of ours that the peer holds, with how many references to each.
//!
//! The numbers are the RPC system's, which gives out the smallest that is free.

use super::limits::{Limit, Refusal};
use capnp_rpc::rpc_capnp::{cap_descriptor, payload};

#[derive(Default)]
pub(super) struct Exports {
    /// By number; without references it is free.
    all: Vec<Export>,
    held: usize,
    bytes: usize,
}

#[derive(Clone, Copy, Default)]
struct Export {
    references: u32,
    /// Of the call in whose answer it was first given.
    bytes: u32,
}

impl Exports {
    /// Bytes of the calls in whose answers they were given: what is kept here of a capability was in one.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of those that are held.
    pub(super) fn len(&self) -> usize {
        self.held
    }

    /// Adds what an answer to a call of so many bytes gives away, and names each.
    pub(super) fn add_all(
        &mut self,
        payload: payload::Reader,
        bytes: usize,
        mut each: impl FnMut(u32),
    ) -> capnp::Result<()> {
        for cap in payload.get_cap_table()? {
            if let Some(id) = self.add(cap, bytes)? {
                each(id);
            }
        }
        Ok(())
    }

    /// Adds a capability, if it is one of ours.
    pub(super) fn add(
        &mut self,
        cap: cap_descriptor::Reader,
        bytes: usize,
    ) -> capnp::Result<Option<u32>> {
        let (cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id)) = cap.which()?
        else {
            return Ok(None);
        };
        let at = id as usize;
        if at >= self.all.len() {
            self.all.resize(at + 1, Export::default());
        }
        let export = &mut self.all[at];
        if export.references == 0 {
            export.bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            self.held += 1;
            self.bytes += export.bytes as usize;
        }
        export.references += 1;
        Ok(Some(id))
    }

    /// The peer lets go of so many references.
    pub(super) fn release(&mut self, id: u32, count: u32) -> Result<(), Refusal> {
        let export = self.all.get_mut(id as usize).filter(|export| export.references > 0);
        let Some((export, rest)) = export
            .and_then(|export| export.references.checked_sub(count).map(|rest| (export, rest)))
        else {
            let reason = "a capability was released that the peer doesn't hold";
            return Refusal::over(Limit::UnknownCapability, reason);
        };
        export.references = rest;
        if rest == 0 {
            self.held -= 1;
            self.bytes -= export.bytes as usize;
        }
        Ok(())
    }

    /// The peer speaks of one.
    pub(super) fn check(&self, id: u32) -> Result<(), Refusal> {
        if self.all.get(id as usize).is_some_and(|export| export.references > 0) {
            return Ok(());
        }
        let reason = "a capability was named that the peer doesn't hold";
        Refusal::over(Limit::UnknownCapability, reason)
    }
}
