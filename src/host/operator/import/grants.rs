//! The grants of one target on their way in: those that are here stay, or give way to the
//! archive's.
//!
//! Invariants:
//! - If those that are here stay, nothing of the archive's is written: what was revoked stays so.
//! - A grant that is in force before and after is never cut, and goes on all the time in between.

use std::collections::HashSet;
use std::rc::Rc;

use capstead_client::sturdyref::GrantId;

use crate::error::Result;
use crate::host::authority::calls::grant_id;
use crate::host::authority::records;
use crate::host::authority::sweep::Deaths;
use crate::host::base::right::GrantRef;
use crate::host::state::vat::Vat;
use crate::id::ObjectId;
use crate::sturdyref::{Grant, TargetKind};

/// Grants that are read before others of the vat's thread have their turn.
const PAGE: usize = 1_000;

/// The counts of an import's grants, by their ends: each is in force before, after, or both, as far
/// as its own record says. The grants that it depends on may come later, or be on another host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Before and after.
    pub(super) kept: u64,
    /// After alone.
    pub(super) brought: u64,
    /// In the archive alone.
    pub(super) left_out: u64,
    /// Before alone.
    pub(super) revoked: u64,
}

/// The side whose grants a target has in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The grants that are here.
    Own,
    Archives,
}

/// The grants of the target that comes in now.
pub(super) struct TargetGrants {
    deaths: Deaths,
    target: ObjectId,
    pub(super) whose: Whose,
    /// The grants of the archive, if the target's own give way to them.
    seen: HashSet<GrantId>,
    /// The grants that were in force and aren't any more once the next batch is written.
    pub(super) cut: Vec<GrantId>,
    /// The grant behind which the search for those that give way goes on.
    after: Option<GrantId>,
}

/// Grants that give way, and what is left of the record of each.
pub(super) type Gone = Vec<(GrantId, Option<Vec<u8>>)>;

impl TargetGrants {
    /// # Errors
    /// When the storage can't be read.
    pub(super) async fn begin(
        vat: &Rc<Vat>,
        target: ObjectId,
        whose: Whose,
        counts: &mut Counts,
    ) -> Result<Self> {
        let mut deaths = Deaths::of(vat.clone());
        if whose == Whose::Own {
            counts.kept += in_force(vat, target, &mut deaths).await?;
        }
        Ok(Self { deaths, target, whose, seen: HashSet::new(), cut: Vec::new(), after: None })
    }

    /// Takes a record of the archive. True if it is to be written.
    ///
    /// # Errors
    /// When it is no grant, or the storage can't be read.
    pub(super) async fn take(
        &mut self,
        vat: &Vat,
        (id, record): (&[u8], &[u8]),
        counts: &mut Counts,
    ) -> Result<bool> {
        let (id, now) = (grant_id(id)?, vat.clock.now_ms());
        let comes = Grant::decode(record)?.is_valid_at(now);
        let own = records::get(vat, GrantRef::new(self.target, id))?;
        let was = match own.filter(|grant| !grant.is_revoked) {
            Some(grant) => !self.deaths.is_dead(self.target, &grant).await?,
            None => false,
        };
        match (self.whose, was, comes) {
            (Whose::Own, false, true) => counts.left_out += 1,
            (Whose::Own, ..) | (Whose::Archives, false, false) => {}
            (Whose::Archives, true, true) => counts.kept += 1,
            (Whose::Archives, false, true) => counts.brought += 1,
            (Whose::Archives, true, false) => {
                counts.revoked += 1;
                self.cut.push(id);
            }
        }
        if self.whose == Whose::Archives {
            self.seen.insert(id);
        }
        Ok(self.whose == Whose::Archives)
    }

    /// Some of the records that give way once the archive has no more: about `bytes` of them, and
    /// fewer if these are the last.
    ///
    /// # Errors
    /// When the storage can't be read.
    pub(super) async fn give_way(
        &mut self,
        vat: &Vat,
        target: TargetKind,
        bytes: usize,
        counts: &mut Counts,
    ) -> Result<(Gone, usize)> {
        let (mut gone, mut length) = (Gone::new(), 0);
        while self.whose == Whose::Archives && length < bytes {
            let some = records::list_behind(vat, self.target, self.after, PAGE)?;
            let Some((last, _)) = some.last() else { break };
            self.after = Some(*last);
            for (id, grant) in some {
                if self.seen.contains(&id) || grant.is_revoked {
                    continue;
                }
                if !self.deaths.is_dead(self.target, &grant).await? {
                    counts.revoked += 1;
                    self.cut.push(id);
                }
                let left = grant.revoked(target);
                length += id.as_bytes().len() + left.as_ref().map_or(0, Vec::len);
                gone.push((id, left));
            }
            tokio::task::yield_now().await;
        }
        Ok((gone, length))
    }
}

/// The number of those that are in force.
async fn in_force(vat: &Vat, target: ObjectId, deaths: &mut Deaths) -> Result<u64> {
    let (mut count, mut after) = (0, None);
    loop {
        let some = records::list_behind(vat, target, after, PAGE)?;
        for (_, grant) in &some {
            count += u64::from(!deaths.is_dead(target, grant).await?);
        }
        match some.last() {
            Some((last, _)) if some.len() == PAGE => after = Some(*last),
            _ => return Ok(count),
        }
        tokio::task::yield_now().await;
    }
}

/// Tells whether the target has any.
///
/// # Errors
/// When the storage can't be read.
pub(super) fn has_any(vat: &Rc<Vat>, target: ObjectId) -> Result<bool> {
    Ok(!records::list_behind(vat, target, None, 1)?.is_empty())
}
