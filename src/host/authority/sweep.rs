//! Grants that will never be in force again, and how they are removed.
//!
//! A revocation removes those of its own target that depended on it. Those of objects that depended on a
//! grant of their namespace are found when an object is swept for another reason: when one of its own is
//! revoked, or when a share gets full.

use std::collections::HashMap;
use std::rc::Rc;

use capstead_client::sturdyref::GrantId;

use super::grants::{SWEPT_AT_ONCE, depends};
use crate::error::Result;
use crate::host::engine::right::Of;
use crate::host::engine::vat::Vat;
use crate::id::ObjectId;
use crate::limits::OVER_GRANTS_KEPT_MS;
use crate::sturdyref::Grant;

/// The reason for a sweep, which decides how long ago the time of a grant must be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Revoked,
    Room,
}

/// The state of a grant, as far as its target knows.
enum Known {
    Dead,
    InForce,
    /// It depends on this one of a namespace, which may be another host's.
    DependsOn(Of),
}

impl Vat {
    /// Removes what is dead of a target's grants, some at a time. The task ends when it has seen all.
    pub(in crate::host) fn sweep(self: &Rc<Self>, target: ObjectId) {
        // What a sweep that is under way has passed by is removed some other time.
        if self.grants.sweeps.begin(target) {
            self.spawn_sweep(target, Why::Revoked);
        }
    }

    /// As [`sweep`](Self::sweep), since there is little room left for more: grants whose time is over go
    /// as soon as the clock can be trusted.
    pub(in crate::host) fn sweep_for_room(self: &Rc<Self>, target: ObjectId) {
        if self.grants.sweeps.begin_for_room(target) {
            self.spawn_sweep(target, Why::Room);
        }
    }

    fn spawn_sweep(self: &Rc<Self>, target: ObjectId, why: Why) {
        let vat = self.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = vat.sweep_all(target, why).await {
                tracing::warn!(%error, "can't sweep grants");
            }
            vat.grants.sweeps.end(target);
        });
    }

    async fn sweep_all(self: &Rc<Self>, target: ObjectId, why: Why) -> Result<()> {
        let (mut deaths, mut after) = (Deaths::of(self.clone()), None);
        loop {
            tokio::task::yield_now().await;
            if self.store.borrow().is_full() {
                self.settled().await;
            }
            let some = self.grants_behind(target, after, SWEPT_AT_ONCE)?;
            let mut dead = Vec::new();
            let over = self.long_ago(why);
            for (id, grant) in &some {
                if !grant.is_revoked && deaths.is_dead_at(target, grant, over).await? {
                    dead.push((id, None));
                }
            }
            if !dead.is_empty() {
                self.outside_turns().await;
                self.write_grants(target, dead)?;
            }
            let Some((last, _)) = some.last() else { return Ok(()) };
            after = Some(*last);
        }
    }

    /// The time at which a grant must have been over to be removed: the clock may be ahead for a moment.
    fn long_ago(&self, why: Why) -> u64 {
        let long_ago = self.clock.now_ms().saturating_sub(OVER_GRANTS_KEPT_MS);
        match (self.grants.sweeps.least_ms(), why) {
            (None, _) => long_ago,
            (Some(least), Why::Room) => least,
            (Some(least), Why::Revoked) => least.min(long_ago),
        }
    }

    /// Tells whether a grant will never be in force again, as far as its target knows.
    ///
    /// # Errors
    /// When the storage can't be read.
    pub(in crate::host) fn is_dead(&self, target: ObjectId, grant: &Grant) -> Result<bool> {
        Ok(matches!(self.known(target, grant, self.clock.now_ms())?, Known::Dead))
    }

    fn known(&self, target: ObjectId, grant: &Grant, at_ms: u64) -> Result<Known> {
        if !grant.is_valid_at(at_ms) {
            return Ok(Known::Dead);
        }
        let mut next = depends(target, grant);
        while let Some(of) = next {
            if of.0 != target {
                return Ok(Known::DependsOn(of));
            }
            match self.grant(of)? {
                Some(parent) if !parent.is_revoked => next = depends(target, &parent),
                _ => return Ok(Known::Dead),
            }
        }
        Ok(Known::InForce)
    }
}

/// Which grants are dead, with those that depend on grants of a namespace. What is known of these is
/// remembered: many grants depend on few.
pub(in crate::host) struct Deaths {
    vat: Rc<Vat>,
    of_namespaces: HashMap<Of, bool>,
}

impl Deaths {
    pub(in crate::host) fn of(vat: Rc<Vat>) -> Self {
        Self { vat, of_namespaces: HashMap::new() }
    }

    /// Tells whether a grant will never be in force again. One of which the host that knows can't be asked
    /// may be.
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
        let of = match self.vat.known(target, grant, at_ms)? {
            Known::Dead => return Ok(true),
            Known::InForce => return Ok(false),
            Known::DependsOn(of) => of,
        };
        // Caveats are inherited, so the parent may be over by the clock of this moment alone.
        if !grant.is_valid_at(self.vat.clock.now_ms()) {
            return Ok(false);
        }
        if let Some(is_dead) = self.of_namespaces.get(&of) {
            return Ok(*is_dead);
        }
        let is_dead = match self.vat.agent() {
            Ok(agent) => !agent.is_in_force(of).await.unwrap_or(true),
            Err(_) => false,
        };
        self.of_namespaces.insert(of, is_dead);
        Ok(is_dead)
    }
}

/// Those of a list that may be in force, or left a record when they were revoked.
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
