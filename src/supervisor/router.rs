//! Routes a reference or an object id to the host that owns it. The router waits for the owner's
//! answer, so that a refusal there is a refusal here too, and passes the owner's capability on
//! unchanged.

use std::rc::Rc;

use capnp::capability::Promise;
use capstead_client::sturdyref::{Target, TextReference};
use futures::TryFutureExt;

use super::directory::{Directory, Member};
use crate::error::{Result, failed};
use crate::id::{ObjectId, Shard};
use crate::membrane;
use crate::schema::admin_capnp::host_admin;
use crate::schema::cluster_capnp::{router, supervisor};
use crate::schema::restorer_capnp::restorer;
use crate::storage::LocalConfig;

/// The supervisor of one cluster.
pub(crate) struct Supervisor {
    directory: Directory,
}

impl Supervisor {
    /// # Errors
    /// The placement can't be read or written, or was made for another number of hosts.
    pub(crate) fn open(config: &LocalConfig, hosts: u16) -> Result<Rc<Self>> {
        Ok(Rc::new(Self { directory: Directory::open(config, hosts)? }))
    }

    /// The capability that hosts and gateways hold.
    pub(crate) fn client(self: &Rc<Self>) -> supervisor::Client {
        membrane::serve(self.clone())
    }

    /// The capability that clients get as their bootstrap capability.
    pub(crate) fn restorer(self: &Rc<Self>) -> restorer::Client {
        membrane::serve(self.clone())
    }

    /// A host's link broke: it can't be reached until it joins again.
    pub(crate) fn cut_off(&self, number: u16) {
        self.directory.cut_off(number);
    }

    /// A host has ended, and won't join again.
    pub(crate) fn end(&self, number: u16) {
        self.directory.end(number);
    }

    /// Resolves when the host has joined; at once if it already has.
    pub(crate) async fn joined(&self, number: u16) {
        self.directory.joined(number).await;
    }

    /// The operator's access to all data of a host. It ends with the host's link.
    ///
    /// # Errors
    /// The host has not joined.
    pub(crate) fn host_admin(&self, number: u16) -> Result<host_admin::Client> {
        let host = self.directory.member(number)?.host;
        Ok(host.admin_request().send().pipeline.get_admin())
    }

    /// Returns when every reachable host has read all messages to it, and all messages from it are
    /// read.
    pub(crate) async fn sync(&self) {
        let hosts = self.directory.members().into_iter().flatten();
        let syncs = hosts.map(|member| member.host.sync_request().send().promise);
        // A host that ends during this has nothing to pass on.
        drop(futures::future::join_all(syncs).await);
    }

    /// The host that owns a reference's target. The reference isn't checked here: the owner does
    /// that.
    fn owner(&self, text: capnp::text::Reader<'_>) -> Result<(TextReference, Member)> {
        let reference = TextReference::parse(text.to_str().unwrap_or_default())?;
        let (Target::Object(id) | Target::Namespace(id)) = reference.reference().target();
        let member = self.directory.owner(ObjectId::from_bytes(*id.as_bytes()).home_shard())?;
        Ok((reference, member))
    }
}

impl supervisor::Server for Supervisor {
    async fn join(
        self: Rc<Self>,
        params: supervisor::JoinParams,
        mut results: supervisor::JoinResults,
    ) -> Result<()> {
        let params = params.get()?;
        let number = params.get_number();
        let address = params.get_address()?.to_string()?;
        self.directory.join(number, Member { host: params.get_host()?, address })?;
        let shards = self.directory.shards_of(number);
        let mut results = results.get();
        let mut ranges = results.reborrow().init_shards(shards.len() as u32);
        for (at, shards) in (0..).zip(shards) {
            let mut range = ranges.reborrow().get(at);
            range.set_first(*shards.start());
            range.set_last(*shards.end());
        }
        results.set_router(membrane::serve(self.clone()));
        Ok(())
    }

    async fn restorer(
        self: Rc<Self>,
        _: supervisor::RestorerParams,
        mut results: supervisor::RestorerResults,
    ) -> Result<()> {
        results.get().set_restorer(Supervisor::restorer(&self));
        Ok(())
    }
}

impl router::Server for Supervisor {
    async fn object(
        self: Rc<Self>,
        params: router::ObjectParams,
        mut results: router::ObjectResults,
    ) -> Result<()> {
        let params = params.get()?;
        let shard = shard_of(params.get_birth()?.get_id()?)?;
        let mut request = self.directory.owner(shard)?.host.object_request();
        request.get().set_birth(params.get_birth()?)?;
        request.get().set_existence(params.get_existence()?);
        request.get().set_by(params.get_by()?)?;
        // The answer may be null, which a pipelined capability couldn't express.
        let reply = request.send().promise.await?;
        results.get().init_object().set_as(reply.get()?.get_object())
    }

    async fn in_force(
        self: Rc<Self>,
        params: router::InForceParams,
        mut results: router::InForceResults,
    ) -> Result<()> {
        let params = params.get()?;
        let mut request =
            self.directory.owner(shard_of(params.get_target()?)?)?.host.in_force_request();
        request.get().set_target(params.get_target()?);
        request.get().set_grant(params.get_grant()?);
        let reply = request.send().promise.await?;
        results.get().set_chain(reply.get()?.get_chain()?)
    }

    async fn cut(self: Rc<Self>, params: router::CutParams, _: router::CutResults) -> Result<()> {
        let params = params.get()?;
        let mut cuts = Vec::new();
        for member in self.directory.members() {
            let host = match member {
                Ok(member) => member.host,
                Err(error) => {
                    cuts.push(Promise::err(error));
                    continue;
                }
            };
            let mut request = host.cut_request();
            request.get().set_target(params.get_target()?);
            request.get().set_grants(params.get_grants()?)?;
            cuts.push(Promise::from_future(request.send().promise.map_ok(drop)));
        }
        // All are told, even if one of them can't be.
        let cut = futures::future::join_all(cuts).await;
        cut.into_iter().collect()
    }
}

/// The shard of a target: its id begins with it.
fn shard_of(target: &[u8]) -> Result<Shard> {
    let shard = target.first_chunk().map(|shard| Shard(u16::from_be_bytes(*shard)));
    shard.ok_or_else(|| failed("an object id has 16 bytes"))
}

impl restorer::Server for Supervisor {
    async fn restore(
        self: Rc<Self>,
        params: restorer::RestoreParams,
        mut results: restorer::RestoreResults,
    ) -> Result<()> {
        let (reference, member) = self.owner(params.get()?.get_sturdy_ref()?)?;
        let mut request = member.host.restore_request();
        request.get().set_sturdy_ref(reference.reference().expose_bytes());
        // Awaited, so that a refusal becomes the answer to this call, not to calls on its result.
        let reply = request.send().promise.await?;
        results.get().init_cap().set_as(reply.get()?.get_cap())
    }

    async fn locate(
        self: Rc<Self>,
        params: restorer::LocateParams,
        mut results: restorer::LocateResults,
    ) -> Result<()> {
        let (reference, member) = self.owner(params.get()?.get_sturdy_ref()?)?;
        let mut request = member.host.check_request();
        request.get().set_sturdy_ref(reference.reference().expose_bytes());
        request.send().promise.await?;
        results.get().set_address(&*member.address);
        Ok(())
    }

    async fn challenge(
        self: Rc<Self>,
        params: restorer::ChallengeParams,
        mut results: restorer::ChallengeResults,
    ) -> Result<()> {
        let (reference, member) = self.owner(params.get()?.get_sturdy_ref()?)?;
        let mut request = member.host.challenge_request();
        request.get().set_sturdy_ref(reference.reference().expose_bytes());
        let reply = request.send().promise.await?;
        results.get().set_challenge(reply.get()?.get_challenge()?);
        results.get().set_restoration(reply.get()?.get_restoration()?);
        Ok(())
    }
}
