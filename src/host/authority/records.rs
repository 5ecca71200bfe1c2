//! The records of grants, each in the storage of its target, where the class doesn't see them.
//!
//! Invariants:
//! - A grant is in force if its record is there, it isn't revoked or over, and the grant on which
//!   it depends is in force. So a revocation takes away one record; the grants that depended on it
//!   are dead, and swept later.
//! - A grant that is said to be in force was looked up, or is a live one that was never cut.

use std::ops::Bound;
use std::rc::Rc;
use std::time::Duration;

use capstead_client::sturdyref::{GrantId, TargetId};
use tokio::time::{Instant, MissedTickBehavior};

use crate::error::{Result, failed};
use crate::host::base::right::WITHOUT_GRANT;
use crate::host::base::right::{GrantRef, LiveGrant, MayGive};
use crate::host::engine::shares::{self, Change, Share};
use crate::host::state::vat::Vat;
use crate::id::ObjectId;
use crate::limits::GRANT_DEPTH_MAX;
use crate::storage::{Page, PageSize, Range, Space};
use crate::sturdyref::{Grant, Parent};

/// Grants that are looked at before other tasks of the thread get their turn again.
pub(super) const SWEPT_AT_ONCE: usize = 256;

/// The state of a grant, as far as it is known here.
pub(in crate::host) enum Standing {
    InForce(Rc<LiveGrant>),
    /// It was revoked, or is over.
    Dead,
    /// It depends on this one, which another host has.
    DependsOn(GrantRef),
}

/// # Errors
/// When the operating system has no randomness to give.
pub(in crate::host) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| failed(format!("no randomness: {error}")))?;
    Ok(bytes)
}

/// # Errors
/// When it isn't the id of an object or a namespace.
pub(in crate::host) fn target(bytes: &[u8]) -> Result<ObjectId> {
    bytes.try_into().map(ObjectId::from_bytes).map_err(|_| failed("an object id has 16 bytes"))
}

pub(in crate::host) fn target_id(id: ObjectId) -> TargetId {
    TargetId::from_bytes(*id.as_bytes())
}

pub(in crate::host) fn object_id(target: TargetId) -> ObjectId {
    ObjectId::from_bytes(*target.as_bytes())
}

/// A grant's record.
///
/// # Errors
/// When the storage can't be read.
pub(in crate::host) fn get(vat: &Vat, grant_ref: GrantRef) -> Result<Option<Grant>> {
    let GrantRef { target, grant } = grant_ref;
    let record = vat.turns.store().get(target, Space::Grants, grant.as_bytes())?;
    record.map(|record| Grant::decode(&record)).transpose()
}

/// Tells whether a grant of a target of this host is in force.
///
/// # Errors
/// When the storage can't be read.
pub(in crate::host) fn standing(
    vat: &Vat,
    grant_ref: GrantRef,
    owns: &dyn Fn(ObjectId) -> bool,
) -> Result<Standing> {
    standing_within(vat, grant_ref, owns, GRANT_DEPTH_MAX)
}

/// As [`standing`], with so many grants at most in a row. Records of an archive may form a circle,
/// and are dead then.
fn standing_within(
    vat: &Vat,
    grant_ref: GrantRef,
    owns: &dyn Fn(ObjectId) -> bool,
    most: u8,
) -> Result<Standing> {
    let Some(left) = most.checked_sub(1) else { return Ok(Standing::Dead) };
    if let Some(live) = vat.live_grants.get(grant_ref) {
        return Ok(Standing::InForce(live));
    }
    let target = grant_ref.target;
    if !owns(target) {
        return Ok(Standing::DependsOn(grant_ref));
    }
    let grant = get(vat, grant_ref)?.filter(|grant| grant.is_valid_at(vat.clock.now_ms()));
    let Some(grant) = grant else { return Ok(Standing::Dead) };
    let before = ancestors(vat, target, &grant)?;
    let parent = depends(target, &grant).map(|parent| standing_within(vat, parent, owns, left));
    let parent = match parent.transpose()? {
        None => None,
        Some(Standing::InForce(parent)) => Some(parent),
        Some(standing) => return Ok(standing),
    };
    let may_give = MayGive { independent: grant.allows_independent, depth: grant.depth, before };
    Ok(Standing::InForce(vat.live_grants.add(grant_ref, parent, may_give)))
}

/// The grants that a grant was made from, the nearest first, as far as they are known; behind them
/// stands [`WITHOUT_GRANT`] if the first was made by somebody without one.
///
/// # Errors
/// When the storage can't be read.
fn ancestors(vat: &Vat, target: ObjectId, grant: &Grant) -> Result<Vec<GrantId>> {
    let (mut before, mut next) = (Vec::new(), Some(grant.clone()));
    for _ in 0..=GRANT_DEPTH_MAX {
        let Some(grant) = next.take() else { break };
        before.extend(grant.parent.id());
        if grant.by_holder {
            before.push(WITHOUT_GRANT);
        }
        match grant.parent {
            // Older versions wrote down the parent alone, whose own record says the rest.
            Parent::Own(id) if grant.before.is_empty() => {
                next = get(vat, GrantRef::new(target, id))?;
            }
            _ => before.extend(grant.before),
        }
    }
    Ok(before)
}

/// Tells whether a grant of `target` was made from `from`, directly or not.
///
/// # Errors
/// When the storage can't be read.
pub(in crate::host) fn was_made_from(
    vat: &Vat,
    target: ObjectId,
    grant: &Grant,
    from: GrantRef,
) -> Result<bool> {
    let (mut at, mut grant) = (target, grant.clone());
    for _ in 0..=GRANT_DEPTH_MAX {
        let Some(parent) = made_from(at, &grant) else { break };
        if parent == from || grant.before.contains(&from.grant) {
            return Ok(true);
        }
        let Some(record) = get(vat, parent)? else {
            // Another host has it, or it was revoked. If it is in use here, its parents are known.
            let live = vat.live_grants.get(parent);
            return Ok(
                live.is_some_and(|live| live.with_parents().any(|live| live.grant_ref == from))
            );
        };
        (at, grant) = (parent.target, record);
    }
    Ok(false)
}

/// Some grants of a target behind `after`, in the order of their ids.
///
/// # Errors
/// When the storage can't be read.
pub(in crate::host) fn list_behind(
    vat: &Vat,
    target: ObjectId,
    after: Option<GrantId>,
    count: usize,
) -> Result<Vec<(GrantId, Grant)>> {
    let behind = |after: GrantId| Bound::Excluded(after.as_bytes().to_vec());
    let range = Range { start: after.map_or(Bound::Unbounded, behind), ..Range::all() };
    let size = PageSize { entries: count, bytes: usize::MAX };
    let page = vat.turns.store().records(target, Space::Grants, &range, size)?;
    page_entries(&page)
        .map(|(key, record)| {
            let id = key.try_into().map_err(|_| failed("a grant's id has 16 bytes"))?;
            let mut grant = Grant::decode(record)?;
            let grant_ref = GrantRef::new(target, GrantId::from_bytes(id));
            let restored = vat.live_grants.restored(grant_ref);
            grant.restored_ms = restored.unwrap_or(grant.restored_ms);
            Ok((GrantId::from_bytes(id), grant))
        })
        .collect()
}

/// Writes records of a target in one turn of the server's own. A `None` deletes, and takes the
/// grant out of the shares in which it counts.
pub(in crate::host) fn write<'a>(
    vat: &Vat,
    target: ObjectId,
    records: impl IntoIterator<Item = (&'a GrantId, Option<Vec<u8>>)>,
) -> Result<()> {
    vat.write_of_server(target, || {
        records.into_iter().try_for_each(|(id, record)| match record {
            Some(record) => {
                let mut store = vat.turns.store_mut();
                store.put_record(target, Space::Grants, id.as_bytes(), &record)?;
                Ok(())
            }
            None => delete(vat, GrantRef::new(target, *id)),
        })
    })
}

/// Deletes a grant in the open turn of its target.
pub(in crate::host) fn delete(vat: &Vat, grant_ref: GrantRef) -> Result<()> {
    let GrantRef { target, grant: id } = grant_ref;
    let Some(grant) = get(vat, grant_ref)? else { return Ok(()) };
    let lineage = shares::without_roots(vat, ancestors(vat, target, &grant)?);
    let mut store = vat.turns.store_mut();
    let length = store.length(target, Space::Grants, id.as_bytes())?.unwrap_or_default();
    store.delete_record(target, Space::Grants, id.as_bytes())?;
    shares::change(&mut store, target, &lineage, Change::Less(Share::grant(length)))
}

/// Regularly writes down which grants were restored, and looks at the clock. The task ends with the
/// vat.
pub(in crate::host) fn note_restores(vat: &Rc<Vat>, every: Duration) {
    let vat = Rc::downgrade(vat);
    tokio::task::spawn_local(async move {
        let mut ticks = tokio::time::interval_at(Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(vat) = vat.upgrade() else { return };
            vat.live_grants.sweeps.clock_shows(vat.clock.now_ms());
            vat.retention.watch();
            for some in vat.live_grants.take_restored().chunks(SWEPT_AT_ONCE) {
                write_restored(&vat, some);
                tokio::task::yield_now().await;
            }
        }
    });
}

/// Writes down when these grants were restored.
pub(in crate::host) fn write_restored(vat: &Vat, some: &[(GrantRef, u64)]) {
    for (grant_ref, restored_ms) in some {
        // A grant that was revoked since has no record any more.
        let Ok(Some(grant)) = get(vat, *grant_ref) else { continue };
        let record = Grant { restored_ms: *restored_ms, ..grant }.encode();
        if let Err(error) = write(vat, grant_ref.target, [(&grant_ref.grant, Some(record))]) {
            tracing::debug!(%error, "the last use of a grant wasn't written down");
        }
    }
}

/// The grant from which another one was made.
fn made_from(target: ObjectId, grant: &Grant) -> Option<GrantRef> {
    match grant.parent {
        Parent::None => None,
        Parent::Own(id) => Some(GrantRef::new(target, id)),
        Parent::OfNamespace(namespace, id) => Some(GrantRef::new(object_id(namespace), id)),
    }
}

/// The grant on which another one depends.
pub(super) fn depends(target: ObjectId, grant: &Grant) -> Option<GrantRef> {
    if grant.independent { None } else { made_from(target, grant) }
}

fn page_entries(page: &Page) -> impl Iterator<Item = (&[u8], &[u8])> {
    (0..).map_while(|at| page.get(at))
}
