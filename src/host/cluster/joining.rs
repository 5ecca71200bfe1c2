//! The ways in which a host joins its supervisor, and tells all others of its cluster that a grant
//! was revoked.
//!
//! **Invariant:** a revocation is answered when every host was told, also one that was cut off
//! meanwhile.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

use capnp::ErrorKind;
use capstead_client::sturdyref::GrantId;

use super::agent::Agent;
use super::membership::{ListenerHint, Membership, Others};
use crate::clock::monotonic;
use crate::error::{Result, failed};
use crate::host::authority::records;
use crate::host::base::right::GrantRef;
use crate::host::state::cluster::Cluster;
use crate::id::{ObjectId, Pool};
use crate::limits::RESTORED_FLUSH_SECS;
use crate::schema::cluster_capnp::supervisor;
use crate::sturdyref::{Grant, root_grant};

/// The time for which a revocation waits for a host that is cut off, in seconds: one that doesn't
/// come back soon has ended, and the server with it.
const CUT_SECS: u64 = 10;

/// The time between two tries of such a host.
const CUT_AGAIN: Duration = Duration::from_millis(20);

impl Agent {
    /// Offers the host, whose clients reach it at `address`, to a supervisor and takes the shards
    /// that it is given.
    ///
    /// # Errors
    /// When the supervisor refuses or can't be reached, or the root grants can't be written.
    pub(crate) async fn join(
        self: &Rc<Self>,
        supervisor: &supervisor::Client,
        number: u16,
        address: String,
        hint: ListenerHint,
    ) -> Result<()> {
        let (shards, others) = self.offer(supervisor, number, &address).await?;
        let membership = Membership { number, shards, address, hint, others: RefCell::new(others) };
        self.membership.set(membership).map_err(|_| failed("this host has joined already"))?;
        self.make_root_grants()?;
        records::note_restores(&self.vat, Duration::from_secs(RESTORED_FLUSH_SECS));
        self.vat.flush().await.map_err(Into::into)
    }

    /// Offers the host again, over another link, with all that it is and has.
    ///
    /// # Errors
    /// When the supervisor refuses or can't be reached, or didn't know this host before.
    pub(crate) async fn join_again(self: &Rc<Self>, supervisor: &supervisor::Client) -> Result<()> {
        let membership = self.membership()?;
        let (shards, others) =
            self.offer(supervisor, membership.number, &membership.address).await?;
        if shards != membership.shards {
            return Err(failed("the supervisor has given the shards of this host away"));
        }
        drop(membership.others.replace(others));
        Ok(())
    }

    /// The link broke: no other host is reached before this one has joined again.
    pub(crate) fn cut_off(&self) {
        if let Some(membership) = self.membership.get() {
            drop(membership.others.replace(Others::none(membership.number)));
        }
    }

    async fn offer(
        self: &Rc<Self>,
        supervisor: &supervisor::Client,
        number: u16,
        address: &str,
    ) -> Result<(Vec<RangeInclusive<u16>>, Others)> {
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
        Ok((shards, Others { router: reply.get_router()?, restorer }))
    }

    /// Every namespace has one grant from the start, so that its reference can be revoked.
    pub(in crate::host) fn make_root_grants(&self) -> Result<()> {
        for class in self.vat.objects.classes() {
            let id = ObjectId::namespace(Pool::default(), class.name);
            let grant = root_grant(class.name);
            if !self.owns(id.home_shard()) {
                continue;
            }
            let record = match records::get(&self.vat, GrantRef::new(id, grant))? {
                // No operator ever said so: roots of earlier versions allowed it unasked.
                Some(root) if root.allows_independent => {
                    Grant { allows_independent: false, ..root }.encode()
                }
                Some(_) => continue,
                None => Grant::root(self.vat.clock.now_ms()).encode(),
            };
            records::write(&self.vat, id, [(&grant, Some(record))])?;
        }
        Ok(())
    }

    /// Has every host cut what was made from a grant of this one's, and waits for those that are
    /// cut off.
    pub(in crate::host) async fn cut_on_all(&self, target: ObjectId, grant: GrantId) -> Result<()> {
        let began = monotonic();
        loop {
            match self.cut_once(target, grant).await {
                // Telling a host twice does no harm.
                Err(error)
                    if error.kind == ErrorKind::Disconnected
                        && began.elapsed() < Duration::from_secs(CUT_SECS) =>
                {
                    tokio::time::sleep(CUT_AGAIN).await;
                }
                told => return told,
            }
        }
    }

    async fn cut_once(&self, target: ObjectId, grant: GrantId) -> Result<()> {
        let mut request = self.membership()?.router().cut_request();
        request.get().set_target(target.as_bytes());
        request.get().init_grants(1).set(0, grant.as_bytes());
        request.send().promise.await.map(drop)
    }
}
