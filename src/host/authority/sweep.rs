//! Sweeps, which remove grants that will never be in force again.
//!
//! A sweep for a revocation removes the grants of the same target that depended on the revoked one.
//! Grants of objects that depended on a grant of their namespace are found when the object is swept
//! for another reason: one of its own is revoked, or a share gets full.

use std::collections::HashMap;
use std::rc::Rc;

use capstead_client::sturdyref::GrantId;

use super::records::{self, SWEPT_AT_ONCE, depends};
use crate::error::Result;
use crate::host::base::right::GrantRef;
use crate::host::state::vat::Vat;
use crate::id::ObjectId;
use crate::limits::{GRANT_DEPTH_MAX, OVER_GRANTS_KEPT_MS};
use crate::sturdyref::Grant;

/// The reason for a sweep, which decides how long ago the time of a grant must be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SweepReason {
    Revoked,
    Room,
}

/// The state of a grant, as far as its target knows.
enum Verdict {
    Dead,
    InForce,
    /// It depends on this one of a namespace, which may be another host's.
    DependsOn(GrantRef),
}

/// Removes what is dead of a target's grants, some at a time. The task ends when it has seen all.
pub(in crate::host) fn sweep(vat: &Rc<Vat>, target: ObjectId) {
    // Grants that a sweep under way has passed by are removed some other time.
    if vat.live_grants.sweeps.begin(target) {
        spawn_sweep(vat, target, SweepReason::Revoked);
    }
}

/// As [`sweep`], since there is little room left for more: grants whose time is over go as soon as
/// the clock can be trusted.
pub(in crate::host) fn sweep_for_room(vat: &Rc<Vat>, target: ObjectId) {
    if vat.live_grants.sweeps.begin_for_room(target) {
        spawn_sweep(vat, target, SweepReason::Room);
    }
}

fn spawn_sweep(vat: &Rc<Vat>, target: ObjectId, reason: SweepReason) {
    let vat = vat.clone();
    tokio::task::spawn_local(async move {
        if let Err(error) = sweep_all(&vat, target, reason).await {
            tracing::warn!(%error, "can't sweep grants");
        }
        vat.live_grants.sweeps.end(target);
    });
}

async fn sweep_all(vat: &Rc<Vat>, target: ObjectId, reason: SweepReason) -> Result<()> {
    let (mut deaths, mut after) = (Deaths::of(vat.clone()), None);
    loop {
        tokio::task::yield_now().await;
        if !vat.turns.has_room() {
            vat.turns.settled().await;
        }
        let some = records::list_behind(vat, target, after, SWEPT_AT_ONCE)?;
        let mut dead = Vec::new();
        let over = long_ago(vat, reason);
        for (id, grant) in &some {
            if !grant.is_revoked && deaths.is_dead_at(target, grant, over).await? {
                dead.push((id, None));
            }
        }
        if !dead.is_empty() {
            vat.turns.outside_turns().await;
            records::write(vat, target, dead)?;
        }
        let Some((last, _)) = some.last() else { return Ok(()) };
        after = Some(*last);
    }
}

/// The time at which a grant must have been over to be removed: the clock may be ahead for a
/// moment. Before it was watched for long enough, no time is over.
fn long_ago(vat: &Vat, reason: SweepReason) -> u64 {
    let long_ago = vat.clock.now_ms().saturating_sub(OVER_GRANTS_KEPT_MS);
    match (vat.live_grants.sweeps.least_ms(), reason) {
        (None, _) => 0,
        (Some(least), SweepReason::Room) => least,
        (Some(least), SweepReason::Revoked) => least.min(long_ago),
    }
}

/// Tells whether a grant will never be in force again, as far as its target knows.
///
/// # Errors
/// When the storage can't be read.
pub(in crate::host) fn is_dead(vat: &Vat, target: ObjectId, grant: &Grant) -> Result<bool> {
    Ok(matches!(verdict(vat, target, grant, vat.clock.now_ms())?, Verdict::Dead))
}

fn verdict(vat: &Vat, target: ObjectId, grant: &Grant, at_ms: u64) -> Result<Verdict> {
    if !grant.is_valid_at(at_ms) {
        return Ok(Verdict::Dead);
    }
    let mut next = depends(target, grant);
    // Records of an archive may form a circle, and are dead then.
    for _ in 0..GRANT_DEPTH_MAX {
        let Some(grant_ref) = next else { return Ok(Verdict::InForce) };
        if grant_ref.target != target {
            return Ok(Verdict::DependsOn(grant_ref));
        }
        match records::get(vat, grant_ref)? {
            Some(parent) if !parent.is_revoked => next = depends(target, &parent),
            _ => return Ok(Verdict::Dead),
        }
    }
    Ok(Verdict::Dead)
}

/// Finds out which grants are dead, also of those that depend on grants of a namespace. The answers
/// for these are remembered, since many grants depend on few.
pub(in crate::host) struct Deaths {
    vat: Rc<Vat>,
    of_namespaces: HashMap<GrantRef, bool>,
}

impl Deaths {
    pub(in crate::host) fn of(vat: Rc<Vat>) -> Self {
        Self { vat, of_namespaces: HashMap::new() }
    }

    /// Tells whether a grant will never be in force again. One of which the host that knows can't
    /// be asked may be.
    ///
    /// # Errors
    /// When the storage can't be read.
    pub(in crate::host) async fn is_dead(
        &mut self,
        target: ObjectId,
        grant: &Grant,
    ) -> Result<bool> {
        self.is_dead_at(target, grant, self.vat.clock.now_ms()).await
    }

    async fn is_dead_at(&mut self, target: ObjectId, grant: &Grant, at_ms: u64) -> Result<bool> {
        let grant_ref = match verdict(&self.vat, target, grant, at_ms)? {
            Verdict::Dead => return Ok(true),
            Verdict::InForce => return Ok(false),
            Verdict::DependsOn(grant_ref) => grant_ref,
        };
        // Caveats are inherited, so the parent may be over by the clock of this moment alone.
        if !grant.is_valid_at(self.vat.clock.now_ms()) {
            return Ok(false);
        }
        if let Some(is_dead) = self.of_namespaces.get(&grant_ref) {
            return Ok(*is_dead);
        }
        let is_dead = match self.vat.agent() {
            Ok(agent) => !agent.is_in_force(grant_ref).await.unwrap_or(true),
            Err(_) => false,
        };
        self.of_namespaces.insert(grant_ref, is_dead);
        Ok(is_dead)
    }
}

/// The grants of a list that may be in force, or left a record when they were revoked.
///
/// # Errors
/// When the storage can't be read.
pub(in crate::host) async fn without_dead(
    vat: &Rc<Vat>,
    target: ObjectId,
    grants: Vec<(GrantId, Grant)>,
) -> Result<Vec<(GrantId, Grant)>> {
    let (mut deaths, mut left) = (Deaths::of(vat.clone()), Vec::with_capacity(grants.len()));
    for (id, grant) in grants {
        if grant.is_revoked || !deaths.is_dead(target, &grant).await? {
            left.push((id, grant));
        }
    }
    Ok(left)
}
