//! The way from a reference to a live capability: the owner's checks, the grant last.
//!
//! Invariants:
//! - Nothing wakes, and every refusal but `revoked:` is the same error.
//! - `revoked:` is said only of a reference whose signatures are good, whose time isn't over, and
//!   whose holders have proved that they are.

use std::cell::Cell;
use std::rc::Rc;

use capnp::private::capability::ClientHook;
use capstead_client::sturdyref::{Refused, Sturdyref, Target, Verified};
use zeroize::Zeroizing;

use super::agent::Agent;
use super::check_queue::Familiarity;
use super::namespace_facet::NamespaceFacet;
use crate::error::{Result, disconnected, failed};
use crate::host::authority::calls::grant_id;
use crate::host::authority::records::{self, Standing, object_id, random};
use crate::host::base::header::Header;
use crate::host::base::right::{GrantRef, LiveGrant, MayGive, Right, revoked};
use crate::host::state::cluster::Cluster;
use crate::host::state::slot::ObjectSpec;
use crate::id::{ObjectId, Pool};
use crate::limits::PROOF_SECS;
use crate::membrane;
use crate::schema::restorer_capnp::restoration;
use crate::storage::Space;

impl Agent {
    /// Checks that a reference claims to be one of this cluster: the only check that costs nothing.
    pub(in crate::host) fn claimed(&self, reference: &Sturdyref) -> Result<()> {
        if self.keys().claims(reference) {
            return Ok(());
        }
        tracing::debug!(reason = "it belongs to another cluster, or its key is unknown", "refused");
        self.vat.metrics.restores_refused_total.add(1);
        Err(refused())
    }

    /// Checks everything but the holders' proofs and the grant.
    fn verify(
        &self,
        reference: std::result::Result<Sturdyref, Refused>,
    ) -> Result<(Sturdyref, Verified)> {
        let verified = reference.and_then(|reference| {
            let verified =
                self.verified.verify(&self.keys(), &reference, self.vat.clock.now_ms())?;
            Ok((reference, verified))
        });
        let (reference, verified) = verified
            .inspect_err(|refused| tracing::debug!(reason = refused.reason(), "refused"))?;
        let (Target::Namespace(id) | Target::Object(id)) = verified.target;
        if !self.owns(object_id(id).home_shard()) {
            return Err(disconnected("another host owns the object now: locate it again"));
        }
        Ok((reference, verified))
    }

    /// Waits until the reference may be checked: it is perhaps a stranger that shows it.
    /// Said at the start of a call.
    pub(super) async fn wait_for_turn(&self, reference: Option<&Sturdyref>) {
        let (caller, keys) = (membrane::caller(), self.keys());
        let shown = match reference {
            Some(reference) if self.verified.knows(&keys, reference) => Familiarity::Known,
            _ => Familiarity::Unknown,
        };
        self.checks.turn(caller, shown, &self.vat.fault).await;
    }

    /// Checks a reference and gives what it refers to. Nothing wakes.
    #[cfg(test)]
    pub(in crate::host) async fn restore_bytes(
        self: &Rc<Self>,
        bytes: &[u8],
    ) -> Result<Box<dyn ClientHook>> {
        self.restore_here(Sturdyref::from_bytes(bytes)).await
    }

    /// Checks a reference that was read already, and gives what it refers to. Nothing wakes.
    pub(in crate::host) async fn restore_here(
        self: &Rc<Self>,
        reference: std::result::Result<Sturdyref, Refused>,
    ) -> Result<Box<dyn ClientHook>> {
        let restored = match self.verify(reference) {
            Ok((_, verified)) if verified.caveats.holders().is_empty() => {
                self.redeem(verified).await
            }
            Ok(_) => Err(refused()),
            Err(error) => Err(error),
        };
        self.count(restored)
    }

    /// Checks a reference, and makes nothing.
    pub(in crate::host) async fn check(&self, bytes: &[u8]) -> Result<()> {
        let checked = match self.verify(Sturdyref::from_bytes(bytes)) {
            // Only those who prove to be its holders learn whether its grant is in force.
            Ok((_, verified)) if !verified.caveats.holders().is_empty() => Ok(()),
            Ok((_, verified)) => {
                let (Target::Namespace(id) | Target::Object(id)) = verified.target;
                let live = self.hold(GrantRef::new(object_id(id), verified.grant)).await;
                live.and_then(|live| live.map(drop).ok_or_else(revoked))
            }
            Err(error) => Err(error),
        };
        checked.inspect_err(|_| self.vat.metrics.restores_refused_total.add(1))
    }

    /// Begins to restore a reference that takes proofs, and refuses any other. Its grant is looked
    /// up when the proofs are there: only its holders learn whether it is in force.
    pub(in crate::host) fn challenge(
        self: &Rc<Self>,
        reference: std::result::Result<Sturdyref, Refused>,
    ) -> Result<([u8; 32], restoration::Client)> {
        let begun = self.verify(reference).and_then(|(reference, verified)| {
            let takes_proof = !verified.caveats.holders().is_empty();
            takes_proof.then_some(reference).ok_or_else(refused)
        });
        let reference = begun.inspect_err(|_| self.vat.metrics.restores_refused_total.add(1))?;
        let challenge = random()?;
        let until = self.vat.clock.now_ms().saturating_add(PROOF_SECS * 1000);
        let bytes = Zeroizing::new(reference.expose_bytes().to_vec());
        let reference = Cell::new(Some(bytes));
        let waiting = Restoration { agent: self.clone(), reference, challenge, until };
        Ok((challenge, membrane::serve(Rc::new(waiting))))
    }

    fn count(&self, restored: Result<Box<dyn ClientHook>>) -> Result<Box<dyn ClientHook>> {
        let metrics = &self.vat.metrics;
        match &restored {
            Ok(_) => metrics.restores_total.add(1),
            Err(_) => metrics.restores_refused_total.add(1),
        }
        restored
    }

    async fn redeem(self: &Rc<Self>, verified: Verified) -> Result<Box<dyn ClientHook>> {
        let (Target::Namespace(id) | Target::Object(id)) = verified.target;
        let grant_ref = GrantRef::new(object_id(id), verified.grant);
        let live = self.hold(grant_ref).await?.ok_or_else(revoked)?;
        live.was_restored(self.vat.clock.now_ms());
        let right = Right::new(Some(live), verified.caveats);
        match verified.target {
            Target::Namespace(_) => self.namespace(grant_ref.target, right),
            Target::Object(_) => {
                let Some(spec) = self.spec_of(grant_ref.target)? else {
                    self.vat.flush().await?;
                    return Err(revoked());
                };
                Ok(self.vat.facet(&spec, right))
            }
        }
    }

    /// The grant, in use from now on; none if it isn't in force. Its revocation is durable then, so
    /// that nobody is told of one that a crash takes back.
    ///
    /// # Errors
    /// When the storage can't be read, or the host that knows can't be reached.
    pub(in crate::host) async fn hold(&self, grant_ref: GrantRef) -> Result<Option<Rc<LiveGrant>>> {
        let live = self.find_live(grant_ref).await?;
        if live.is_none() {
            self.vat.turns.outside_turns().await;
            self.vat.flush().await?;
        }
        Ok(live)
    }

    async fn find_live(&self, grant_ref: GrantRef) -> Result<Option<Rc<LiveGrant>>> {
        let owns = |id: ObjectId| self.owns(id.home_shard());
        // The answers of other hosts are kept until the grants that depend on them are there.
        let mut said: Vec<Rc<LiveGrant>> = Vec::new();
        loop {
            let other = match records::standing(&self.vat, grant_ref, &owns)? {
                Standing::InForce(live) => return Ok(Some(live)),
                Standing::Dead => return Ok(None),
                Standing::DependsOn(other) => other,
            };
            if said.iter().any(|live| live.grant_ref == other) {
                return Ok(None); // it was cut since
            }
            match self.ask(other).await? {
                Some(live) => said.push(live),
                None => return Ok(None),
            }
        }
    }

    /// Another host's grant, with those that it depends on; none if it isn't in force.
    async fn ask(&self, other: GrantRef) -> Result<Option<Rc<LiveGrant>>> {
        let mut request = self.membership()?.router().in_force_request();
        request.get().set_target(other.target.as_bytes());
        request.get().set_grant(other.grant.as_bytes());
        let asked = self.vat.live_grants.moment();
        let reply = request.send().promise.await?;
        let mut live = None;
        for one in reply.get()?.get_chain()? {
            let grant_ref = GrantRef::new(other.target, grant_id(one.get_grant()?)?);
            // A cut since the answer was made is known here already.
            if self.vat.live_grants.was_cut_since(grant_ref, asked) {
                return Ok(None);
            }
            let before = one.get_before()?.iter().map(|before| grant_id(before?));
            let before = before.collect::<Result<_>>()?;
            let (independent, depth) = (one.get_independent(), one.get_depth());
            let may_give = MayGive { independent, depth, before };
            live = Some(self.vat.live_grants.add(grant_ref, live, may_give));
        }
        Ok(live)
    }

    fn namespace(self: &Rc<Self>, id: ObjectId, right: Right) -> Result<Box<dyn ClientHook>> {
        let is_it = |name| ObjectId::namespace(Pool::default(), name) == id;
        let class = self.vat.objects.classes().find(|class| is_it(class.name)).cloned();
        let class = class.ok_or_else(refused)?;
        Ok(NamespaceFacet::wrap(self.clone(), class, right))
    }

    /// The identity of an object, if it exists.
    pub(in crate::host) fn spec_of(&self, id: ObjectId) -> Result<Option<ObjectSpec>> {
        let header = self.vat.turns.store().get(id, Space::Header, &[])?;
        let Some(header) = header else { return Ok(None) };
        let header = Header::decode(&header)?;
        let (class, name) = (self.vat.objects.class(header.class)?, header.name.map(Into::into));
        Ok(Some(ObjectSpec { id, class, name }))
    }
}

/// The one answer to every reference that isn't good, whatever is wrong with it.
fn refused() -> capnp::Error {
    Refused::by_grant().into()
}

/// A restoration that waits for the holders' proofs.
struct Restoration {
    agent: Rc<Agent>,
    /// The bytes of the reference, until the one attempt takes them.
    reference: Cell<Option<Zeroizing<Vec<u8>>>>,
    challenge: [u8; 32],
    /// The last millisecond in which a proof is taken.
    until: u64,
}

impl restoration::Server for Restoration {
    async fn finish(
        self: Rc<Self>,
        params: restoration::FinishParams,
        mut results: restoration::FinishResults,
    ) -> Result<()> {
        let reference = self.reference.take();
        let reference = reference.filter(|_| self.agent.vat.clock.now_ms() <= self.until);
        let reference = reference
            .ok_or_else(|| failed("this challenge was used, or is too old: ask for another one"))?;
        let reference = Sturdyref::from_bytes(&reference)?;
        let signatures = params.get()?.get_signatures()?.iter();
        let signatures = signatures.map(|signature| {
            signature?.try_into().map_err(|_| capnp::Error::from(Refused::by_grant()))
        });
        let signatures = signatures.collect::<Result<Vec<[u8; 64]>>>()?;
        self.agent.wait_for_turn(Some(&reference)).await;
        let restored = match self.agent.verify(Ok(reference.clone())) {
            Ok((_, verified)) => match reference.check_proofs(&self.challenge, &signatures) {
                Ok(()) => self.agent.redeem(verified).await,
                Err(refused) => Err(refused.into()),
            },
            Err(error) => Err(error),
        };
        let restored = self.agent.count(restored)?;
        results.get().init_cap().set_as_capability(restored);
        Ok(())
    }
}
