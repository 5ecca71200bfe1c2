//! One host among those of its cluster: it finds its own objects, and asks the router for all
//! others.
//!
//! It never makes a reference. It checks those that others present, and grants are looked up here
//! alone.

use std::cell::OnceCell;
use std::rc::{Rc, Weak};

use capnp::private::capability::ClientHook;
use capstead_client::sturdyref::Caveats;

use super::check_queue::CheckQueue;
use super::membership::Membership;
use super::verified_cache::VerifiedCache;
use crate::error::{Result, disconnected, failed};
use crate::host::base::right::{GrantRef, Right};
use crate::host::state::cluster::{Cluster, Existence};
use crate::host::state::slot::ObjectSpec;
use crate::host::state::vat::Vat;
use crate::id::{Pool, Shard};
use crate::membrane;
use crate::schema::admin_capnp::host_admin;
use crate::schema::cluster_capnp::{host, router};
use crate::schema::restorer_capnp::restorer;
use crate::sturdyref::Keys;

/// One host as its supervisor knows it. Others hold it by its [`Agent::client`].
pub(crate) struct Agent {
    pub(in crate::host) vat: Rc<Vat>,
    pub(super) keys: Keys,
    pub(super) verified: VerifiedCache,
    pub(super) checks: Rc<CheckQueue>,
    pub(in crate::host) membership: OnceCell<Membership>,
    pub(super) admin: OnceCell<host_admin::Client>,
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
    pub(super) async fn is_there(&self, spec: &ObjectSpec) -> Result<bool> {
        let is_there = self.vat.exists(spec.id)?;
        self.vat.turns.durable_of(spec.id).await?;
        Ok(is_there)
    }

    pub(super) fn object_request(
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
}
