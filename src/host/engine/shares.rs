//! Shares: the amount that each grant, with those that were made from it, made the server keep in
//! one object.
//!
//! Without them the holder of one reference could use up the request ids and the quota of an
//! object, so that nobody else could call it. The grants made below a root grant of a class count
//! in no share of the root, which is the operator's own. But the gateway calls by it for every
//! client of its port, so the request ids of those who call by the root itself have one share. And
//! so has all that is kept for holders of capabilities without a grant: their request ids, the
//! grants that they had made, and what is kept for those grants.
//!
//! They lie in the object's own storage: under the id of a grant stand the number of grants (4),
//! the number of request ids (4), and the bytes of both (8), big-endian, as long as one isn't 0.
//!
//! **Invariant:** a share is no more than what is kept for its grant. An import begins all shares
//! of an object anew, so it may be less: what was there before counts for nobody, and never below
//! 0.

use capstead_client::sturdyref::GrantId;

use crate::error::{Reason, Result, failed};
use crate::host::base::right::{Right, WITHOUT_GRANT};
use crate::host::state::instance::Instance;
use crate::host::state::vat::Vat;
use crate::id::ObjectId;
use crate::limits::{SHARE_GRANTS_MAX, SHARE_IDS_MAX, SHARES_OF_QUOTA};
use crate::storage::{Space, Store};

/// An amount that is kept for a grant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::host) struct Share {
    pub(in crate::host) grants: u32,
    pub(in crate::host) ids: u32,
    pub(in crate::host) bytes: u64,
}

/// A change of a share.
#[derive(Clone, Copy, Debug)]
pub(in crate::host) enum Change {
    More(Share),
    Less(Share),
}

impl Share {
    /// One grant with a record of this length.
    pub(in crate::host) fn grant(record: usize) -> Self {
        Self { grants: 1, ids: 0, bytes: record as u64 }
    }

    /// Checks that there may be another grant.
    ///
    /// # Errors
    /// `too-many-grants:`, `over-quota:`.
    pub(in crate::host) fn check_grants(self, limit: u64) -> Result<()> {
        if self.grants >= SHARE_GRANTS_MAX {
            return Err(Reason::TooManyGrants.error(format_args!(
                "{SHARE_GRANTS_MAX} grants of the same object or namespace were made \
                 from yours, or from one that yours was made from; revoke some first"
            )));
        }
        self.check_bytes(limit)
    }

    /// Tells whether it is time to look for what can be removed.
    pub(in crate::host) fn is_half_full(self, limit: u64) -> bool {
        self.grants >= SHARE_GRANTS_MAX / 2 || self.bytes >= limit / SHARES_OF_QUOTA / 2
    }

    /// Tells whether there may be another request id, as far as their number goes.
    pub(in crate::host) fn has_room_for_id(self) -> bool {
        self.ids < SHARE_IDS_MAX
    }

    /// Checks that more bytes may be kept in an object that has this limit.
    ///
    /// # Errors
    /// `over-quota:`.
    pub(in crate::host) fn check_bytes(self, limit: u64) -> Result<()> {
        let max = limit / SHARES_OF_QUOTA;
        if self.bytes < max {
            return Ok(());
        }
        Err(Reason::OverQuota.error(format_args!(
            "the object keeps {} bytes of grants, request ids and replies for your grant or \
             one that it was made from, and may keep {max}; revoke grants, or wait until ids are forgotten",
            self.bytes
        )))
    }

    fn changed(self, change: Change) -> Self {
        match change {
            Change::More(more) => Self {
                grants: self.grants.saturating_add(more.grants),
                ids: self.ids.saturating_add(more.ids),
                bytes: self.bytes.saturating_add(more.bytes),
            },
            Change::Less(less) => Self {
                grants: self.grants.saturating_sub(less.grants),
                ids: self.ids.saturating_sub(less.ids),
                bytes: self.bytes.saturating_sub(less.bytes),
            },
        }
    }

    fn encode(self) -> Option<[u8; 16]> {
        let mut record = [0; 16];
        record[..4].copy_from_slice(&self.grants.to_be_bytes());
        record[4..8].copy_from_slice(&self.ids.to_be_bytes());
        record[8..].copy_from_slice(&self.bytes.to_be_bytes());
        (self != Self::default()).then_some(record)
    }

    fn decode(record: &[u8]) -> Result<Self> {
        let parse = || {
            let (grants, rest) = record.split_first_chunk()?;
            let (ids, rest) = rest.split_first_chunk()?;
            let bytes = u64::from_be_bytes(rest.try_into().ok()?);
            Some(Self { grants: u32::from_be_bytes(*grants), ids: u32::from_be_bytes(*ids), bytes })
        };
        parse().ok_or_else(|| failed("the share of a grant is of a newer format, or damaged"))
    }
}

/// The share of a grant.
///
/// # Errors
/// When the storage can't be read.
pub(in crate::host) fn share(store: &Store, object: ObjectId, grant: GrantId) -> Result<Share> {
    let record = store.get(object, Space::Shares, grant.as_bytes())?;
    record.map_or(Ok(Share::default()), |record| Share::decode(&record))
}

/// Changes the share of each of these grants, in the open turn of the object.
///
/// # Errors
/// When the storage can't be read or written.
pub(in crate::host) fn change(
    store: &mut Store,
    object: ObjectId,
    grants: &[GrantId],
    change: Change,
) -> Result<()> {
    for grant in grants {
        let before = share(store, object, *grant)?;
        let key = grant.as_bytes();
        match before.changed(change).encode() {
            Some(record) => store.put_record(object, Space::Shares, key, &record)?,
            // An imported grant has no share.
            None if before == Share::default() => continue,
            None => store.delete_record(object, Space::Shares, key)?,
        };
    }
    Ok(())
}

/// As [`change`], in the instance's present turn. Something else must be written in it as well.
pub(in crate::host) fn change_in_turn(
    instance: &Instance,
    grants: &[GrantId],
    by: Change,
) -> Result<()> {
    change(&mut instance.vat.turns.store_mut(), instance.spec.id, grants, by)
}

/// The grants in whose shares the request ids of the holder of `right` count: a root's own if it
/// comes by nothing else, and that of all who have no grant if it comes by none.
pub(in crate::host) fn lineage_of_ids(vat: &Vat, right: &Right) -> Vec<GrantId> {
    let lineage = lineage(vat, right);
    match &right.grant {
        _ if !lineage.is_empty() => lineage,
        Some(_) => right.lineage().collect(),
        None => vec![WITHOUT_GRANT],
    }
}

/// The grants in whose shares counts what is kept for the holder of `right`.
pub(in crate::host) fn lineage(vat: &Vat, right: &Right) -> Vec<GrantId> {
    without_roots(vat, right.lineage())
}

/// Those of these grants that have shares for what is made from them.
pub(in crate::host) fn without_roots(
    vat: &Vat,
    grants: impl IntoIterator<Item = GrantId>,
) -> Vec<GrantId> {
    grants.into_iter().filter(|grant| !vat.objects.is_root(grant)).collect()
}

/// The refusal of a call with an id when those that are kept for its grant are too many.
pub(in crate::host) fn too_many_ids() -> capnp::Error {
    Reason::TooManyRequestIds.error(format_args!(
        "the object keeps {SHARE_IDS_MAX} request ids for this grant or one that it was made from, \
         and the oldest are still needed; the call has not happened: make it by another grant, or \
         again when the oldest are forgotten"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_come_back_as_they_were_and_none_is_left_of_nothing() {
        let share = Share { grants: 1, ids: 2, bytes: 1 << 40 };
        assert_eq!(Share::decode(&share.encode().unwrap()).unwrap(), share);
        assert_eq!(share.changed(Change::Less(share)).encode(), None);
        assert_eq!(Share::default().changed(Change::Less(share)), Share::default());
        assert!(Share::decode(&[0; 15]).is_err() && Share::decode(&[0; 17]).is_err());
    }

    #[test]
    fn a_quarter_of_the_quota_is_the_bound_of_bytes() {
        let share = |bytes| Share { bytes, ..Share::default() };
        share(24).check_bytes(100).unwrap();
        let refused = share(25).check_bytes(100).unwrap_err().extra;
        assert!(refused.starts_with("over-quota:") && refused.contains("may keep 25"), "{refused}");
    }
}
