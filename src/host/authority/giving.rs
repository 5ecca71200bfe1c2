//! Grants are given and taken back.
//!
//! Invariants:
//! - Nobody gives away more than they have, or as much as would leave no room for others.
//! - Once a revocation has returned, it is durable, and nobody uses the grant on any host.

use std::rc::Rc;

use capstead_client::Terms;
use capstead_client::sturdyref::{Caveats, GrantId, NextSecret, Sturdyref, Target};

use super::records::{get, object_id, random, target_id, write};
use super::sweep;
use crate::error::{Reason, Result, failed};
use crate::host::base::right::{GrantRef, LiveGrant, Right, WITHOUT_GRANT};
use crate::host::engine::cut;
use crate::host::engine::shares::{self, Change, Share};
use crate::host::state::vat::Vat;
use crate::id::ObjectId;
use crate::limits::{GRANT_DEPTH_MAX, GRANT_LABEL_BYTES_MAX};
use crate::storage::Space;
use crate::sturdyref::{Grant, KeyRing, Parent, TargetKind};

/// The side that makes a grant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::host) enum Grantor {
    /// The operator, or the object itself.
    Owner,
    /// Somebody who holds a capability to the target, and calls it.
    Holder,
}

/// The record of a grant of `target` that is made from `parent`, with these restrictions.
///
/// # Errors
/// When the parent doesn't allow it, or there are too many before it.
fn record(
    terms: &Terms,
    caveats: Caveats,
    target: ObjectId,
    (parent, grantor): (Option<&LiveGrant>, Grantor),
    now_ms: u64,
) -> Result<Grant> {
    if terms.label().len() > GRANT_LABEL_BYTES_MAX {
        return Err(failed(format!("a grant's label has at most {GRANT_LABEL_BYTES_MAX} bytes")));
    }
    let asks = terms.is_independent() || terms.allows_independent();
    if asks && parent.is_some_and(|parent| !parent.may_give.independent) {
        return Err(no_independence());
    }
    let depth = parent.map_or(0, |parent| parent.may_give.depth.saturating_add(1));
    if depth >= GRANT_DEPTH_MAX {
        return Err(Reason::TooDeep.error(format_args!(
            "at most {GRANT_DEPTH_MAX} grants are made from each other in a row"
        )));
    }
    Ok(Grant {
        parent: parent.map_or(Parent::None, |parent| match parent.grant_ref {
            GrantRef { target: own, grant } if own == target => Parent::Own(grant),
            GrantRef { target: namespace, grant } => {
                Parent::OfNamespace(target_id(namespace), grant)
            }
        }),
        label: terms.label().to_owned(),
        caveats,
        independent: terms.is_independent(),
        allows_independent: terms.allows_independent(),
        depth,
        created_ms: now_ms,
        restored_ms: 0,
        is_revoked: false,
        by_holder: parent.is_none() && grantor == Grantor::Holder,
        before: parent.map_or_else(Vec::new, |parent| parent.may_give.before.clone()),
    })
}

/// A grant that is ready to be written.
pub(in crate::host) struct Ready {
    pub(in crate::host) id: GrantId,
    pub(in crate::host) record: Vec<u8>,
    /// The grants in whose shares it counts.
    lineage: Vec<GrantId>,
    /// The reference that it makes valid.
    pub(in crate::host) reference: Sturdyref,
}

fn no_independence() -> capnp::Error {
    Reason::NotAllowed.error("the grant that this would be made from allows none that survive it")
}

/// Prepares the grant that the holder of `right` wants to give away: no more than they have.
///
/// # Errors
/// When that is refused, or space is low; when the operating system has no randomness to give.
pub(in crate::host) fn prepare(
    vat: &Rc<Vat>,
    keys: &KeyRing,
    target: Target,
    (right, grantor): (&Right, Grantor),
    terms: &Terms,
) -> Result<Ready> {
    right.check(&vat.clock)?;
    let asks = terms.is_independent() || terms.allows_independent();
    if right.caveats().is_dependent() && asks {
        return Err(no_independence());
    }
    let mut caveats = right.narrowed(terms.restrictions())?.caveats();
    vat.turns.store().check_room()?;
    let of = match target {
        Target::Object(of) => {
            caveats = caveats.of_object();
            of
        }
        Target::Namespace(of) => of,
    };
    let parent = right.grant.as_deref();
    let grant = record(terms, caveats, object_id(of), (parent, grantor), vat.clock.now_ms())?;
    let (id, next) = (GrantId::from_bytes(random()?), NextSecret::from_seed(random()?));
    let reference = keys.mint(target, id, grant.caveats.clone(), &next);
    let lineage = if grant.by_holder { vec![WITHOUT_GRANT] } else { shares::lineage(vat, right) };
    check_shares(vat, object_id(of), &lineage)?;
    Ok(Ready { id, record: grant.encode(), lineage, reference })
}

/// Checks that the shares of these grants have room for another one.
fn check_shares(vat: &Rc<Vat>, target: ObjectId, lineage: &[GrantId]) -> Result<()> {
    let limit = vat.account_of(target)?.limit();
    for grant in lineage {
        let share = shares::share(&vat.turns.store(), target, *grant)?;
        if share.is_half_full(limit) {
            sweep::sweep_for_room(vat, target);
        }
        share.check_grants(limit)?;
    }
    Ok(())
}

/// Writes a new grant of a target in a turn of the server's own.
pub(in crate::host) fn add(vat: &Vat, target: ObjectId, ready: &Ready) -> Result<()> {
    vat.write_of_server(target, || put(vat, target, ready))
}

/// Writes a new grant in the open turn of its target.
pub(in crate::host) fn put(vat: &Vat, target: ObjectId, ready: &Ready) -> Result<()> {
    let mut store = vat.turns.store_mut();
    store.put_record(target, Space::Grants, ready.id.as_bytes(), &ready.record)?;
    let more = Change::More(Share::grant(ready.record.len()));
    shares::change(&mut store, target, &ready.lineage, more)
}

/// Takes a grant back. When it returns, that is durable, and nobody uses the grant any more on any
/// host.
///
/// # Errors
/// When there is no such grant; when another host couldn't be told, or the storage failed: then it
/// may be revoked or not.
pub(in crate::host) async fn revoke(vat: &Rc<Vat>, target: ObjectId, id: GrantId) -> Result<()> {
    vat.turns.outside_turns().await;
    let grant = get(vat, GrantRef::new(target, id))?.filter(|grant| !grant.is_revoked);
    let kind = if vat.exists(target)? { TargetKind::Object } else { TargetKind::Namespace };
    let is_known = grant.is_some();
    if let Some(grant) = grant {
        write(vat, target, [(&id, grant.revoked(kind))])?;
        vat.metrics.grants_revoked_total.add(1);
    }
    cut::cut(vat, target, &[id]);
    sweep::sweep(vat, target);
    // Other hosts tell their callers at once.
    vat.turns.flush().await?;
    let told = match vat.agent() {
        // Also if it was revoked before: a host may not have been told then.
        Ok(agent) if kind == TargetKind::Namespace => agent.cut_everywhere(target, id).await,
        // Everything that was made from an object's grant is on its own host.
        _ => Ok(()),
    };
    told?;
    if is_known { Ok(()) } else { Err(Reason::NoSuchGrant.error("there is no grant of this id")) }
}
