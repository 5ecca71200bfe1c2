//! The host's side of `cluster.capnp`: it joins a supervisor, answers for its own shards, and asks
//! the router for all others.
//!
//! It never makes a reference. It checks those that others present, and grants are looked up here
//! alone.

use std::cell::OnceCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use capnp::private::capability::ClientHook;
use capstead_client::sturdyref::{Caveats, GrantId, Sturdyref, Target, TextReference};
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::check_queue::CheckQueue;
use super::membership::Membership;
use super::restore::VerifiedCache;
use crate::error::{Result, disconnected, failed, not_begun};
use crate::host::authority::calls::grant_id;
use crate::host::authority::records::{self, object_id};
use crate::host::authority::sweep;
use crate::host::engine::cluster::{Cluster, Existence};
use crate::host::engine::cut;
use crate::host::engine::right::{GrantRef, Right, revoked};
use crate::host::engine::slot::ObjectSpec;
use crate::host::engine::vat::Vat;
use crate::host::operator::admin::HostAdmin;
use crate::id::{ObjectId, Pool, Shard};
use crate::membrane;
use crate::schema::admin_capnp::host_admin;
use crate::schema::cluster_capnp::{authority, birth, host, router};
use crate::schema::restorer_capnp::restorer;
use crate::sturdyref::{KeyRing, Keys};

/// One host as its supervisor knows it. Others hold it by its [`Agent::client`].
pub(crate) struct Agent {
    pub(in crate::host) vat: Rc<Vat>,
    keys: Keys,
    pub(in crate::host) verified: VerifiedCache,
    pub(super) checks: Rc<CheckQueue>,
    pub(in crate::host) membership: OnceCell<Membership>,
    admin: OnceCell<host_admin::Client>,
}

impl Agent {
    pub(crate) fn new(vat: Rc<Vat>, keys: Keys) -> Rc<Self> {
        let (verified, checks) = (VerifiedCache::default(), Rc::default());
        let (membership, admin) = (OnceCell::new(), OnceCell::new());
        let agent = Rc::new(Self { vat, keys, verified, checks, membership, admin });
        let weak: Weak<Self> = Rc::downgrade(&agent);
        agent.vat.set_agent(weak);
        agent
    }

    /// The capability by which a supervisor holds this host.
    pub(crate) fn client(self: &Rc<Self>) -> host::Client {
        membrane::serve(self.clone())
    }

    /// The bootstrap capability that clients get from this host's listener.
    pub(crate) fn restorer(self: &Rc<Self>) -> restorer::Client {
        membrane::serve(self.clone())
    }

    pub(in crate::host) fn membership(&self) -> Result<&Membership> {
        self.membership
            .get()
            .ok_or_else(|| disconnected("this host has not joined a supervisor yet"))
    }

    /// One of this host's own shards in `pool`, chosen at random.
    pub(in crate::host) fn any_shard(&self, pool: Pool) -> Result<Shard> {
        let shards = self.membership()?.shards.iter().flat_map(Clone::clone).map(Shard);
        let shards: Vec<Shard> = shards.filter(|shard| shard.pool() == pool).collect();
        let random = getrandom::u32().map_err(|error| failed(format!("no randomness: {error}")))?;
        let nth = (random as usize).checked_rem(shards.len());
        nth.map(|nth| shards[nth]).ok_or_else(|| failed("this host owns no shard of the pool"))
    }

    /// The capability to an object that exists.
    pub(in crate::host) async fn find(
        &self,
        spec: &ObjectSpec,
        right: &Right,
    ) -> Result<Option<Box<dyn ClientHook>>> {
        if self.owns(spec.id.home_shard()) {
            return Ok(self.is_there(spec).await?.then(|| self.vat.facet(spec, right.clone())));
        }
        let grant_ref = right.grant.as_ref().map(|grant| grant.grant_ref);
        let request =
            self.object_request(spec, Existence::Required, grant_ref, &right.caveats())?;
        let reply = request.send().promise.await?;
        let object = reply.get()?.get_object();
        if object.is_null() { Ok(None) } else { object.get_as_capability().map(Some) }
    }

    /// Tells whether an object of this host exists, once the answer is durable.
    async fn is_there(&self, spec: &ObjectSpec) -> Result<bool> {
        let is_there = self.vat.exists(spec.id)?;
        self.vat.turns.durable_of(spec.id).await?;
        Ok(is_there)
    }

    fn object_request(
        &self,
        spec: &ObjectSpec,
        existence: Existence,
        grant: Option<GrantRef>,
        caveats: &Caveats,
    ) -> Result<
        capnp::capability::Request<router::object_params::Owned, router::object_results::Owned>,
    > {
        let mut request = self.membership()?.router().object_request();
        let mut params = request.get();
        params.set_existence(existence);
        let mut born = params.reborrow().init_birth();
        born.set_id(spec.id.as_bytes());
        born.set_class(spec.class.name);
        if let Some(name) = &spec.name {
            born.set_name(&**name);
        }
        let mut by = params.init_by();
        if let Some(GrantRef { target, grant }) = grant {
            by.set_target(target.as_bytes());
            by.set_grant(grant.as_bytes());
        }
        if !caveats.is_none() {
            by.set_caveats(&caveats.encode());
        }
        Ok(request)
    }

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
}

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

    fn make_room(&self, object: ObjectId) {
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
/// thread's queues by now, a few hops of tasks away from its connections.
pub(crate) async fn pass_on_replies() {
    const HOPS: usize = 256;
    for _ in 0..HOPS {
        tokio::task::yield_now().await;
    }
}

/// The calls by which the operator's tools reach this host.
impl Agent {
    fn admin(&self) -> Result<host_admin::Client> {
        let membership = self.membership()?;
        let make =
            || HostAdmin::serve(self.vat.clone(), membership.shards.clone(), self.keys.clone());
        Ok(self.admin.get_or_init(make).clone())
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
