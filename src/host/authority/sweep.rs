//! Grants that will never be in force again, and how they are removed.

use std::rc::Rc;

use capstead_client::sturdyref::GrantId;

use super::grants::{SWEPT_AT_ONCE, depends};
use crate::error::Result;
use crate::host::engine::vat::Vat;
use crate::id::ObjectId;
use crate::limits::OVER_GRANTS_KEPT_MS;
use crate::sturdyref::Grant;

impl Vat {
    /// Removes what is dead of a target's grants, some at a time. The task ends when it has seen all.
    pub(in crate::host) fn sweep(self: &Rc<Self>, target: ObjectId) {
        if !self.grants.swept.borrow_mut().insert(target) {
            return; // what it has passed by is removed some other time
        }
        let vat = self.clone();
        tokio::task::spawn_local(async move {
            let mut after = None;
            loop {
                tokio::task::yield_now().await;
                if vat.store.borrow().is_full() {
                    vat.settled().await;
                }
                match vat.sweep_some(target, after) {
                    Ok(Some(last)) => after = Some(last),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(%error, "can't sweep grants");
                        break;
                    }
                }
            }
            vat.grants.swept.borrow_mut().remove(&target);
        });
    }

    /// Tells whether a grant will never be in force again.
    ///
    /// # Errors
    /// When the storage can't be read.
    pub(in crate::host) fn is_dead(&self, target: ObjectId, grant: &Grant) -> Result<bool> {
        self.was_dead(target, grant, self.clock.now_ms())
    }

    /// Tells whether it was so at that time.
    fn was_dead(&self, target: ObjectId, grant: &Grant, at_ms: u64) -> Result<bool> {
        if !grant.is_valid_at(at_ms) {
            return Ok(true);
        }
        let mut next = depends(target, grant);
        // A grant of a namespace may be another host's, and is looked up when it counts.
        while let Some(of) = next.filter(|of| of.0 == target) {
            match self.grant(of)? {
                Some(parent) if !parent.is_revoked => next = depends(target, &parent),
                _ => return Ok(true),
            }
        }
        Ok(false)
    }

    fn sweep_some(&self, target: ObjectId, after: Option<GrantId>) -> Result<Option<GrantId>> {
        let some = self.grants_behind(target, after, SWEPT_AT_ONCE)?;
        let mut dead = Vec::new();
        // The clock may be ahead for a moment: what is over by it alone is kept for a while.
        let long_ago = self.clock.now_ms().saturating_sub(OVER_GRANTS_KEPT_MS);
        for (id, grant) in &some {
            if !grant.is_revoked && self.was_dead(target, grant, long_ago)? {
                dead.push((id, None));
            }
        }
        if !dead.is_empty() {
            self.write_grants(target, dead)?;
        }
        Ok(some.last().map(|(id, _)| *id))
    }
}
