//! All that the agent does for others: for the objects of its host, for the supervisor and other
//! hosts by `cluster.capnp`, and for clients by the `Restorer` of the listener.

use std::rc::Rc;
use std::sync::Arc;

use capnp::private::capability::ClientHook;
use capstead_client::sturdyref::{Caveats, GrantId, Sturdyref, Target, TextReference};
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::agent::Agent;
use crate::error::{Result, disconnected, not_begun};
use crate::host::authority::calls::grant_id;
use crate::host::authority::records::{self, object_id};
use crate::host::authority::sweep;
use crate::host::base::right::{GrantRef, Right, revoked};
use crate::host::engine::cut;
use crate::host::operator::admin::HostAdmin;
use crate::host::state::cluster::{Cluster, Existence};
use crate::host::state::slot::ObjectSpec;
use crate::id::{ObjectId, Shard};
use crate::schema::admin_capnp::host_admin;
use crate::schema::cluster_capnp::{authority, birth, host};
use crate::schema::restorer_capnp::restorer;
use crate::sturdyref::KeyRing;

impl Cluster for Agent {
    fn keys(&self) -> Arc<KeyRing> {
        self.keys.current()
    }

    fn text(&self, reference: &Sturdyref) -> Result<String> {
        self.membership()?.hint.text(reference)
    }

    fn owns(&self, shard: Shard) -> bool {
        let shards = self.membership.get().map(|membership| &membership.shards);
        shards.is_some_and(|shards| shards.iter().any(|range| range.contains(&shard.0)))
    }

    fn object(
        &self,
        spec: &ObjectSpec,
        existence: Existence,
        right: &Right,
    ) -> Result<Box<dyn ClientHook>> {
        if self.owns(spec.id.home_shard()) {
            return Ok(self.vat.facet(spec, right.clone()));
        }
        let grant_ref = right.grant.as_ref().map(|grant| grant.grant_ref);
        self.object_elsewhere(spec, existence, grant_ref, &right.caveats())
    }

    fn object_elsewhere(
        &self,
        spec: &ObjectSpec,
        existence: Existence,
        grant: Option<GrantRef>,
        caveats: &Caveats,
    ) -> Result<Box<dyn ClientHook>> {
        let request = self.object_request(spec, existence, grant, caveats)?;
        Ok(request.send().pipeline.get_object().as_cap())
    }

    fn existing(
        self: Rc<Self>,
        spec: ObjectSpec,
        right: Right,
    ) -> LocalBoxFuture<'static, Result<Option<Box<dyn ClientHook>>>> {
        async move { self.find(&spec, &right).await }.boxed_local()
    }

    fn is_in_force(self: Rc<Self>, grant_ref: GrantRef) -> LocalBoxFuture<'static, Result<bool>> {
        async move { Ok(self.hold(grant_ref).await?.is_some()) }.boxed_local()
    }

    fn sweep_dead_grants(&self, object: ObjectId) {
        sweep::sweep_for_room(&self.vat, object);
    }

    fn cut_everywhere(
        self: Rc<Self>,
        target: ObjectId,
        grant: GrantId,
    ) -> LocalBoxFuture<'static, Result<()>> {
        async move { self.cut_on_all(target, grant).await }.boxed_local()
    }

    fn write_restores(&self) {
        records::write_restored(&self.vat, &self.vat.live_grants.take_restored());
    }

    fn write_root_grants(&self) -> Result<()> {
        self.make_root_grants()
    }
}

impl host::Server for Agent {
    async fn object(
        self: Rc<Self>,
        params: host::ObjectParams,
        mut results: host::ObjectResults,
    ) -> Result<()> {
        let params = params.get()?;
        let spec = self.spec(params.get_birth()?)?;
        if !self.owns(spec.id.home_shard()) {
            return Err(not_begun(disconnected("another host owns the object now")));
        }
        let right = self.right(params.get_by()?).await?;
        if params.get_existence()? == Existence::Any || self.is_there(&spec).await? {
            results.get().init_object().set_as_capability(self.vat.facet(&spec, right));
        }
        Ok(())
    }

    async fn restore(
        self: Rc<Self>,
        params: host::RestoreParams,
        mut results: host::RestoreResults,
    ) -> Result<()> {
        let reference = Sturdyref::from_bytes(params.get()?.get_sturdy_ref()?);
        self.wait_for_turn(reference.as_ref().ok()).await;
        let restored = self.restore_here(reference).await?;
        results.get().init_cap().set_as_capability(restored);
        Ok(())
    }

    async fn challenge(
        self: Rc<Self>,
        params: host::ChallengeParams,
        mut results: host::ChallengeResults,
    ) -> Result<()> {
        let reference = Sturdyref::from_bytes(params.get()?.get_sturdy_ref()?);
        self.wait_for_turn(reference.as_ref().ok()).await;
        let begun = Agent::challenge(&self, reference)?;
        results.get().set_challenge(&begun.0);
        results.get().set_restoration(begun.1);
        Ok(())
    }

    async fn check(self: Rc<Self>, params: host::CheckParams, _: host::CheckResults) -> Result<()> {
        let bytes = params.get()?.get_sturdy_ref()?;
        self.wait_for_turn(Sturdyref::from_bytes(bytes).ok().as_ref()).await;
        Agent::check(&self, bytes).await
    }

    async fn in_force(
        self: Rc<Self>,
        params: host::InForceParams,
        mut results: host::InForceResults,
    ) -> Result<()> {
        let params = params.get()?;
        let grant_ref =
            GrantRef::new(records::target(params.get_target()?)?, grant_id(params.get_grant()?)?);
        let Some(live) = self.hold(grant_ref).await? else { return Ok(()) };
        // Grants of other targets are looked up where they are.
        let own = live.with_parents().filter(|live| live.grant_ref.target == grant_ref.target);
        let chain: Vec<_> = own.collect();
        let mut list = results.get().init_chain(chain.len() as u32);
        for (at, live) in (0..).zip(chain.iter().rev()) {
            let mut one = list.reborrow().get(at);
            one.set_grant(live.grant_ref.grant.as_bytes());
            one.set_independent(live.may_give.independent);
            one.set_depth(live.may_give.depth);
            let mut before = one.init_before(live.may_give.before.len() as u32);
            for (at, id) in (0..).zip(&live.may_give.before) {
                before.set(at, id.as_bytes());
            }
        }
        Ok(())
    }

    async fn cut(self: Rc<Self>, params: host::CutParams, _: host::CutResults) -> Result<()> {
        let params = params.get()?;
        let target = records::target(params.get_target()?)?;
        let grants = params.get_grants()?.iter().map(|grant| grant_id(grant?));
        cut::cut(&self.vat, target, &grants.collect::<Result<Vec<_>>>()?);
        Ok(())
    }

    async fn admin(
        self: Rc<Self>,
        _: host::AdminParams,
        mut results: host::AdminResults,
    ) -> Result<()> {
        results.get().set_admin(Agent::admin(&self)?);
        Ok(())
    }

    async fn sync(self: Rc<Self>, _: host::SyncParams, _: host::SyncResults) -> Result<()> {
        pass_on_replies().await;
        Ok(())
    }
}

/// Lets replies that have come from other hosts go on to their callers. All of them are in this
/// thread's queues by now, a few tasks away from its connections.
pub(crate) async fn pass_on_replies() {
    const YIELDS: usize = 256;
    for _ in 0..YIELDS {
        tokio::task::yield_now().await;
    }
}

impl restorer::Server for Agent {
    async fn restore(
        self: Rc<Self>,
        params: restorer::RestoreParams,
        mut results: restorer::RestoreResults,
    ) -> Result<()> {
        let text = params.get()?.get_sturdy_ref()?;
        let reference = self.read(text).await?;
        let (Target::Object(id) | Target::Namespace(id)) = reference.reference().target();
        if self.owns(object_id(id).home_shard()) {
            let restored = self.restore_here(Ok(reference.into_reference())).await?;
            results.get().init_cap().set_as_capability(restored);
            return Ok(());
        }
        let mut request = self.membership()?.restorer().restore_request();
        request.get().set_sturdy_ref(text);
        let reply = request.send().promise.await?;
        results.get().init_cap().set_as(reply.get()?.get_cap())
    }

    async fn locate(
        self: Rc<Self>,
        params: restorer::LocateParams,
        mut results: restorer::LocateResults,
    ) -> Result<()> {
        let text = params.get()?.get_sturdy_ref()?;
        self.read(text).await?;
        let mut request = self.membership()?.restorer().locate_request();
        request.get().set_sturdy_ref(text);
        let reply = request.send().promise.await?;
        results.get().set_address(reply.get()?.get_address()?);
        Ok(())
    }

    async fn challenge(
        self: Rc<Self>,
        params: restorer::ChallengeParams,
        mut results: restorer::ChallengeResults,
    ) -> Result<()> {
        let text = params.get()?.get_sturdy_ref()?;
        let reference = self.read(text).await?;
        let (Target::Object(id) | Target::Namespace(id)) = reference.reference().target();
        if self.owns(object_id(id).home_shard()) {
            let begun = Agent::challenge(&self, Ok(reference.into_reference()))?;
            results.get().set_challenge(&begun.0);
            results.get().set_restoration(begun.1);
            return Ok(());
        }
        let mut request = self.membership()?.restorer().challenge_request();
        request.get().set_sturdy_ref(text);
        let reply = request.send().promise.await?;
        results.get().set_challenge(reply.get()?.get_challenge()?);
        results.get().set_restoration(reply.get()?.get_restoration()?);
        Ok(())
    }
}

impl Agent {
    /// The right that another host vouches for, once its grant was found in force.
    async fn right(&self, by: authority::Reader<'_>) -> Result<Right> {
        let caveats =
            if by.has_caveats() { Caveats::decode(by.get_caveats()?)? } else { Caveats::none() };
        if !by.has_grant() {
            return Ok(Right::new(None, caveats));
        }
        let grant_ref =
            GrantRef::new(records::target(by.get_target()?)?, grant_id(by.get_grant()?)?);
        let grant = self.hold(grant_ref).await?.ok_or_else(revoked)?;
        Ok(Right::new(Some(grant), caveats))
    }

    /// The reference of a text that somebody shows, when the turn of its check has come. One of
    /// another cluster, or with an unknown key, is refused at once.
    async fn read(&self, text: capnp::text::Reader<'_>) -> Result<TextReference> {
        let reference = TextReference::parse(text.to_str().unwrap_or_default())?;
        self.claimed(reference.reference())?;
        self.wait_for_turn(Some(reference.reference())).await;
        Ok(reference)
    }

    fn spec(&self, spec: birth::Reader<'_>) -> Result<ObjectSpec> {
        let id = records::target(spec.get_id()?)?;
        let class = self.vat.objects.class(spec.get_class()?.to_str()?)?;
        let name = if spec.has_name() { Some(spec.get_name()?.to_str()?.into()) } else { None };
        Ok(ObjectSpec { id, class, name })
    }

    /// The capability for the operator's tools.
    fn admin(&self) -> Result<host_admin::Client> {
        let membership = self.membership()?;
        let make =
            || HostAdmin::serve(self.vat.clone(), membership.shards.clone(), self.keys.clone());
        Ok(self.admin.get_or_init(make).clone())
    }
}
