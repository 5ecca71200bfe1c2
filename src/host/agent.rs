//! The host's side of `cluster.capnp`: it joins a supervisor, answers for its own shards, and asks
//! the router for all others.
//!
//! It never makes a reference; it checks those that others present, and only here does a grant count.

use std::cell::OnceCell;
use std::ops::RangeInclusive;
use std::rc::Rc;

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use capstead_client::sturdyref::{Refused, Sturdyref, Target, TargetId, TextReference};

use super::admin::Custodian;
use super::header::Header;
use super::namespace::Served;
use super::slot::Birth;
use super::vat::Vat;
use crate::clock::Clock;
use crate::error::{Result, disconnected, failed};
use crate::id::{ObjectId, Pool, Shard};
use crate::membrane;
use crate::schema::admin_capnp::host_admin;
pub(super) use crate::schema::cluster_capnp::Existence;
use crate::schema::cluster_capnp::{birth, host, router, supervisor};
use crate::schema::restorer_capnp::{namespace, restorer};
use crate::storage::Space;
use crate::sturdyref::{Grant, Keys, root_grant};

/// What the supervisor told this host.
pub(crate) struct Joined {
    shards: Vec<RangeInclusive<u16>>,
    router: router::Client,
    restorer: restorer::Client,
}

/// One host as its supervisor knows it. Others hold it by its [`Agent::client`].
pub(crate) struct Agent {
    vat: Rc<Vat>,
    keys: Keys,
    clock: Clock,
    joined: OnceCell<Joined>,
    admin: OnceCell<host_admin::Client>,
}

impl Agent {
    pub(crate) fn new(vat: Rc<Vat>, keys: Keys, clock: Clock) -> Rc<Self> {
        let agent =
            Rc::new(Self { vat, keys, clock, joined: OnceCell::new(), admin: OnceCell::new() });
        agent.vat.set_agent(&agent);
        agent
    }

    /// The capability by which a supervisor holds this host.
    pub(crate) fn client(self: &Rc<Self>) -> host::Client {
        membrane::serve(self.clone())
    }

    /// What clients get from this host's listener as the bootstrap capability.
    pub(crate) fn restorer(self: &Rc<Self>) -> restorer::Client {
        membrane::serve(self.clone())
    }

    /// Offers the host to a supervisor and takes the shards that it is given.
    ///
    /// # Errors
    /// When the supervisor refuses or can't be reached, or the root grants can't be written.
    pub(crate) async fn join(
        self: &Rc<Self>,
        supervisor: &supervisor::Client,
        number: u16,
        address: &str,
    ) -> Result<()> {
        let mut request = supervisor.join_request();
        let mut params = request.get();
        params.set_number(number);
        params.set_host(self.client());
        params.set_address(address);
        let reply = request.send().promise.await?;
        let reply = reply.get()?;
        let shards = reply.get_shards()?.iter();
        let shards = shards.map(|range| range.get_first()..=range.get_last()).collect();
        let restorer = supervisor.restorer_request().send().pipeline.get_restorer();
        let joined = Joined { shards, router: reply.get_router()?, restorer };
        self.joined.set(joined).map_err(|_| failed("this host has joined already"))?;
        self.write_root_grants()?;
        self.vat.flush().await.map_err(Into::into)
    }

    /// Every namespace has one grant from the start, so that its reference can be revoked.
    fn write_root_grants(&self) -> Result<()> {
        for class in self.vat.classes() {
            let id = ObjectId::namespace(Pool::default(), class.name);
            let grant = root_grant(class.name);
            if !self.owns(id.home_shard()) || self.grant(id, grant.as_bytes())?.is_some() {
                continue;
            }
            let record = Grant::root(self.clock.now_ms()).encode();
            self.vat.write_system(id, Space::Grants, grant.as_bytes(), &record)?;
        }
        Ok(())
    }

    fn grant(&self, id: ObjectId, grant: &[u8]) -> Result<Option<Grant>> {
        let record = self.vat.store.borrow().get(id, Space::Grants, grant)?;
        record.map(|record| Grant::decode(&record)).transpose()
    }

    fn joined(&self) -> Result<&Joined> {
        self.joined.get().ok_or_else(|| disconnected("this host has not joined a supervisor yet"))
    }

    fn owns(&self, shard: Shard) -> bool {
        let shards = self.joined.get().map(|joined| &joined.shards);
        shards.is_some_and(|shards| shards.iter().any(|range| range.contains(&shard.0)))
    }

    /// One of this host's own shards in `pool`, chosen at random.
    pub(super) fn any_shard(&self, pool: Pool) -> Result<Shard> {
        let shards = self.joined()?.shards.iter().flat_map(Clone::clone).map(Shard);
        let shards: Vec<Shard> = shards.filter(|shard| shard.pool() == pool).collect();
        let random = getrandom::u32().map_err(|error| failed(format!("no randomness: {error}")))?;
        let nth = (random as usize).checked_rem(shards.len());
        nth.map(|nth| shards[nth]).ok_or_else(|| failed("this host owns no shard of the pool"))
    }

    /// The capability to an object, wherever it lives. Another host's is a promise.
    pub(super) fn object(
        &self,
        birth: &Birth,
        existence: Existence,
    ) -> Result<Box<dyn ClientHook>> {
        if self.owns(birth.id.home_shard()) {
            return Ok(self.vat.facet(birth));
        }
        let request = self.object_request(birth, existence)?;
        Ok(request.send().pipeline.get_object().as_cap())
    }

    /// The capability to an object that exists.
    pub(super) async fn existing(&self, birth: &Birth) -> Result<Option<Box<dyn ClientHook>>> {
        if self.owns(birth.id.home_shard()) {
            return Ok(self.vat.exists(birth.id)?.then(|| self.vat.facet(birth)));
        }
        let reply = self.object_request(birth, Existence::Required)?.send().promise.await?;
        let object = reply.get()?.get_object();
        if object.is_null() { Ok(None) } else { object.get_as_capability().map(Some) }
    }

    fn object_request(
        &self,
        birth: &Birth,
        existence: Existence,
    ) -> Result<
        capnp::capability::Request<router::object_params::Owned, router::object_results::Owned>,
    > {
        let mut request = self.joined()?.router.object_request();
        let mut params = request.get();
        params.set_existence(existence);
        let mut params = params.init_birth();
        params.set_id(birth.id.as_bytes());
        params.set_class(birth.class.name);
        if let Some(key) = &birth.key {
            params.set_key(&**key);
        }
        Ok(request)
    }

    fn birth(&self, birth: birth::Reader<'_>) -> Result<Birth> {
        let id = birth.get_id()?.try_into().map_err(|_| failed("an object id has 16 bytes"))?;
        let id = ObjectId::from_bytes(id);
        let class = self.vat.class(birth.get_class()?.to_str()?)?;
        let key = if birth.has_key() { Some(birth.get_key()?.to_str()?.into()) } else { None };
        Ok(Birth { id, class, key })
    }

    /// Checks a reference and gives what it refers to. Nothing wakes.
    pub(super) fn restore_bytes(self: &Rc<Self>, bytes: &[u8]) -> Result<Box<dyn ClientHook>> {
        let restored = self.check(bytes).and_then(|target| match target {
            Target::Namespace(id) => self.restore_namespace(object_id(id)),
            Target::Object(id) => self.restore_object(object_id(id)),
        });
        let metrics = &self.vat.metrics;
        match &restored {
            Ok(_) => metrics.restores_total.add(1),
            Err(_) => metrics.restores_refused_total.add(1),
        }
        restored
    }

    fn check(&self, bytes: &[u8]) -> Result<Target> {
        let now = self.clock.now_ms();
        let verified = Sturdyref::from_bytes(bytes)
            .and_then(|reference| self.keys.current().verify(&reference, now))
            .inspect_err(|refused| tracing::debug!(reason = refused.reason(), "refused"))?;
        let (Target::Namespace(id) | Target::Object(id)) = verified.target;
        let id = object_id(id);
        if !self.owns(id.home_shard()) {
            return Err(disconnected("another host owns the object now: locate it again"));
        }
        match self.grant(id, verified.grant.as_bytes())? {
            Some(grant) if grant.is_valid_at(now) => Ok(verified.target),
            _ => Err(refused()),
        }
    }

    fn restore_namespace(self: &Rc<Self>, id: ObjectId) -> Result<Box<dyn ClientHook>> {
        let is_it = |name| ObjectId::namespace(Pool::default(), name) == id;
        let class = self.vat.classes().find(|class| is_it(class.name)).cloned();
        let class = class.ok_or_else(refused)?;
        let served: namespace::Client =
            membrane::serve(Rc::new(Served { agent: self.clone(), class }));
        Ok(served.into_client_hook())
    }

    fn restore_object(&self, id: ObjectId) -> Result<Box<dyn ClientHook>> {
        let header = self.vat.store.borrow().get(id, Space::Header, &[])?;
        let header = header.ok_or_else(refused)?;
        let header = Header::decode(&header)?;
        let (class, key) = (self.vat.class(header.class)?, header.key.map(Into::into));
        Ok(self.vat.facet(&Birth { id, class, key }))
    }
}

fn object_id(target: TargetId) -> ObjectId {
    ObjectId::from_bytes(*target.as_bytes())
}

/// The one answer to every reference that isn't good, whatever is wrong with it.
fn refused() -> capnp::Error {
    Refused::by_grant().into()
}

impl host::Server for Agent {
    async fn object(
        self: Rc<Self>,
        params: host::ObjectParams,
        mut results: host::ObjectResults,
    ) -> Result<()> {
        let params = params.get()?;
        let birth = self.birth(params.get_birth()?)?;
        if !self.owns(birth.id.home_shard()) {
            return Err(disconnected("another host owns the object now"));
        }
        if params.get_existence()? == Existence::Any || self.vat.exists(birth.id)? {
            results.get().init_object().set_as_capability(self.vat.facet(&birth));
        }
        Ok(())
    }

    async fn restore(
        self: Rc<Self>,
        params: host::RestoreParams,
        mut results: host::RestoreResults,
    ) -> Result<()> {
        let restored = self.restore_bytes(params.get()?.get_sturdy_ref()?)?;
        results.get().init_cap().set_as_capability(restored);
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
}

/// What the operator's tools reach of this host.
impl Agent {
    fn admin(&self) -> Result<host_admin::Client> {
        let joined = self.joined()?;
        let make = || Custodian::serve(self.vat.clone(), joined.shards.clone());
        Ok(self.admin.get_or_init(make).clone())
    }
}

impl restorer::Server for Agent {
    async fn restore(
        self: Rc<Self>,
        params: restorer::RestoreParams,
        mut results: restorer::RestoreResults,
    ) -> Result<()> {
        let text = params.get()?.get_sturdy_ref()?.to_str().unwrap_or_default();
        let reference = TextReference::parse(text)?;
        let (Target::Object(id) | Target::Namespace(id)) = reference.reference().target();
        if self.owns(object_id(id).home_shard()) {
            let restored = self.restore_bytes(reference.reference().expose_bytes())?;
            results.get().init_cap().set_as_capability(restored);
            return Ok(());
        }
        let mut request = self.joined()?.restorer.restore_request();
        request.get().set_sturdy_ref(text);
        let reply = request.send().promise.await?;
        results.get().init_cap().set_as(reply.get()?.get_cap())
    }

    async fn locate(
        self: Rc<Self>,
        params: restorer::LocateParams,
        mut results: restorer::LocateResults,
    ) -> Result<()> {
        let mut request = self.joined()?.restorer.locate_request();
        request.get().set_sturdy_ref(params.get()?.get_sturdy_ref()?);
        let reply = request.send().promise.await?;
        results.get().set_address(reply.get()?.get_address()?);
        Ok(())
    }
}
