//! The capabilities of ours that the peer holds, with how many references to each.
//!
//! The numbers are the RPC system's, which gives out the smallest that is free.

use super::limits::{Limit, Refusal};
use capnp_rpc::rpc_capnp::{cap_descriptor, payload};

#[derive(Default)]
pub(super) struct Exports {
    /// By number; 0 is free.
    references: Vec<u32>,
    held: usize,
}

impl Exports {
    /// How many are held.
    pub(super) fn len(&self) -> usize {
        self.held
    }

    /// Adds what a message gives away, and names each.
    pub(super) fn add_all(
        &mut self,
        payload: payload::Reader,
        mut each: impl FnMut(u32),
    ) -> capnp::Result<()> {
        for cap in payload.get_cap_table()? {
            if let Some(id) = self.add(cap)? {
                each(id);
            }
        }
        Ok(())
    }

    /// Adds a capability, if it is one of ours.
    pub(super) fn add(&mut self, cap: cap_descriptor::Reader) -> capnp::Result<Option<u32>> {
        let (cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id)) = cap.which()?
        else {
            return Ok(None);
        };
        let at = id as usize;
        if at >= self.references.len() {
            self.references.resize(at + 1, 0);
        }
        self.held += usize::from(self.references[at] == 0);
        self.references[at] += 1;
        Ok(Some(id))
    }

    /// The peer lets go of so many references.
    pub(super) fn release(&mut self, id: u32, count: u32) -> Result<(), Refusal> {
        let references = self.references.get_mut(id as usize).filter(|held| **held > 0);
        let Some((references, rest)) =
            references.and_then(|held| held.checked_sub(count).map(|rest| (held, rest)))
        else {
            let reason = "a capability was released that the peer doesn't hold";
            return Refusal::over(Limit::UnknownCapability, reason);
        };
        *references = rest;
        self.held -= usize::from(rest == 0);
        Ok(())
    }

    /// The peer speaks of one.
    pub(super) fn check(&self, id: u32) -> Result<(), Refusal> {
        if self.references.get(id as usize).is_some_and(|references| *references > 0) {
            return Ok(());
        }
        let reason = "a capability was named that the peer doesn't hold";
        Refusal::over(Limit::UnknownCapability, reason)
    }
}
