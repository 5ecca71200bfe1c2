//! The grants of one target on their way in: those that are here stay, or give way to the archive's.
//!
//! Invariants:
//! - Where those that are here stay, nothing of the archive's is written: what was revoked stays so.
//! - A grant that is in force before and after is never cut, and goes on all the time in between.

use std::collections::HashSet;
use std::rc::Rc;

use capstead_client::sturdyref::GrantId;

use crate::error::Result;
use crate::host::granting::grant_id;
use crate::host::vat::Vat;
use crate::id::ObjectId;
use crate::sturdyref::Grant;

/// Grants that are read at a time.
const PAGE: usize = 1_000;

/// The counts of an import's grants, by their ends: each is in force before, after, or both.
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
    /// Those that are here.
    Own,
    Archives,
}

/// The grants of the target that comes in now.
pub(super) struct TargetGrants {
    target: ObjectId,
    pub(super) whose: Whose,
    /// Those of the archive, if its own give way to them.
    seen: HashSet<GrantId>,
    /// Those that were in force and aren't any more.
    pub(super) cut: Vec<GrantId>,
}

impl TargetGrants {
    /// # Errors
    /// When the storage can't be read.
    pub(super) fn begin(
        vat: &Vat,
        target: ObjectId,
        whose: Whose,
        counts: &mut Counts,
    ) -> Result<Self> {
        if whose == Whose::Own {
            each(vat, target, |_, grant| {
                counts.kept += u64::from(!vat.is_dead(target, grant)?);
                Ok(())
            })?;
        }
        Ok(Self { target, whose, seen: HashSet::new(), cut: Vec::new() })
    }

    /// A record of the archive, and whether it is to be written.
    ///
    /// # Errors
    /// When it is none, or the storage can't be read.
    pub(super) fn take(
        &mut self,
        vat: &Vat,
        (id, record): (&[u8], &[u8]),
        counts: &mut Counts,
    ) -> Result<bool> {
        let (id, now) = (grant_id(id)?, vat.clock.now_ms());
        let comes = Grant::decode(record)?.is_valid_at(now);
        let own = vat.grant((self.target, id))?;
        let was = own.is_some_and(|grant| grant.is_valid_at(now));
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

    /// The archive has no more: the records that give way, and what is left of each.
    ///
    /// # Errors
    /// When the storage can't be read.
    pub(super) fn end(
        &mut self,
        vat: &Vat,
        is_of_namespace: bool,
        counts: &mut Counts,
    ) -> Result<Vec<(GrantId, Option<Vec<u8>>)>> {
        let mut gone = Vec::new();
        if self.whose == Whose::Own {
            return Ok(gone);
        }
        let now = vat.clock.now_ms();
        let (seen, cut) = (&self.seen, &mut self.cut);
        each(vat, self.target, |id, grant| {
            if seen.contains(&id) || grant.is_revoked {
                return Ok(());
            }
            if grant.is_valid_at(now) {
                counts.revoked += 1;
                cut.push(id);
            }
            gone.push((id, grant.clone().revoked(is_of_namespace)));
            Ok(())
        })?;
        Ok(gone)
    }
}

/// Whether the target has any.
///
/// # Errors
/// When the storage can't be read.
pub(super) fn has_any(vat: &Rc<Vat>, target: ObjectId) -> Result<bool> {
    Ok(!vat.grants_behind(target, None, 1)?.is_empty())
}

fn each(
    vat: &Vat,
    target: ObjectId,
    mut look: impl FnMut(GrantId, &Grant) -> Result<()>,
) -> Result<()> {
    let mut after = None;
    loop {
        let some = vat.grants_behind(target, after, PAGE)?;
        for (id, grant) in &some {
            look(*id, grant)?;
        }
        after = match some.last() {
            Some((last, _)) if some.len() == PAGE => Some(*last),
            _ => return Ok(()),
        };
    }
}
