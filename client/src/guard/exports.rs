//! Our capabilities that the peer holds, with the number of references to each.
//!
//! The RPC system gives out the numbers, always the smallest free one.

use crate::limits::{Limit, Rejection};
use capnp_rpc::rpc_capnp::{cap_descriptor, payload};

#[derive(Default)]
pub(super) struct Exports {
    /// By number; an entry without references is free.
    all: Vec<Export>,
    held: usize,
    bytes: usize,
}

#[derive(Clone, Copy, Default)]
struct Export {
    references: u32,
    /// The size of the call in whose answer it was first given.
    bytes: u32,
}

impl Exports {
    /// Bytes of the calls in whose answers they were given. They bound the memory kept for the
    /// capabilities, which came from those calls.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of capabilities held.
    pub(super) fn len(&self) -> usize {
        self.held
    }

    /// Adds the capabilities that the answer to a call of this many bytes gives away, and passes
    /// their numbers to `each`.
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

    /// The peer releases this many references.
    pub(super) fn release(&mut self, id: u32, count: u32) -> Result<(), Rejection> {
        let export = self.all.get_mut(id as usize).filter(|export| export.references > 0);
        let Some((export, rest)) = export
            .and_then(|export| export.references.checked_sub(count).map(|rest| (export, rest)))
        else {
            let reason = "a capability was released that the peer doesn't hold";
            return Rejection::over(Limit::UnknownCapability, reason);
        };
        export.references = rest;
        if rest == 0 {
            self.held -= 1;
            self.bytes -= export.bytes as usize;
        }
        Ok(())
    }

    /// Checks a number of a capability that the peer used.
    pub(super) fn check(&self, id: u32) -> Result<(), Rejection> {
        if self.all.get(id as usize).is_some_and(|export| export.references > 0) {
            return Ok(());
        }
        let reason = "a capability was named that the peer doesn't hold";
        Rejection::over(Limit::UnknownCapability, reason)
    }
}
