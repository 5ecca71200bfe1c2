//! The cluster as the objects of one host need it. The host's agent implements it, so that nothing
//! here knows how hosts speak to each other.

use std::rc::Rc;
use std::sync::Arc;

use capnp::private::capability::ClientHook;
use capstead_client::sturdyref::{Caveats, GrantId, Sturdyref};
use futures::future::LocalBoxFuture;

use super::slot::ObjectSpec;
use crate::error::Result;
use crate::host::base::right::{GrantRef, Right};
use crate::id::{ObjectId, Shard};
pub(in crate::host) use crate::schema::cluster_capnp::Existence;
use crate::sturdyref::KeyRing;

/// The ways from a host to all objects of its cluster, its own among them.
pub(in crate::host) trait Cluster {
    /// The keys of the cluster, as they are now.
    fn keys(&self) -> Arc<KeyRing>;

    /// The text of a reference, with the server's listener as the hint.
    ///
    /// # Errors
    /// Before the host joined its supervisor.
    fn text(&self, reference: &Sturdyref) -> Result<String>;

    /// Tells whether this host has the objects of a shard.
    fn owns(&self, shard: Shard) -> bool;

    /// The capability to an object, wherever it lives. Another host's is a promise.
    ///
    /// # Errors
    /// Before the host joined its supervisor, if another host has the object.
    fn object(
        &self,
        spec: &ObjectSpec,
        existence: Existence,
        right: &Right,
    ) -> Result<Box<dyn ClientHook>>;

    /// The promise of a capability that the owner of the object gives, if the grant is in force.
    ///
    /// # Errors
    /// Before the host joined its supervisor.
    fn object_elsewhere(
        &self,
        spec: &ObjectSpec,
        existence: Existence,
        grant: Option<GrantRef>,
        caveats: &Caveats,
    ) -> Result<Box<dyn ClientHook>>;

    /// The capability to an object that exists, durably; none if it doesn't.
    fn existing(
        self: Rc<Self>,
        spec: ObjectSpec,
        right: Right,
    ) -> LocalBoxFuture<'static, Result<Option<Box<dyn ClientHook>>>>;

    /// Tells whether a grant is in force, whichever host has it.
    ///
    /// # Errors
    /// When the storage can't be read, or the host that knows can't be asked.
    fn is_in_force(self: Rc<Self>, grant_ref: GrantRef) -> LocalBoxFuture<'static, Result<bool>>;

    /// Soon removes the dead grants of an object of this host, since there is little room for
    /// another.
    fn sweep_dead_grants(&self, object: ObjectId);

    /// Has every host cut what was made from a grant of this one's, and waits for those that are
    /// cut off.
    fn cut_everywhere(
        self: Rc<Self>,
        target: ObjectId,
        grant: GrantId,
    ) -> LocalBoxFuture<'static, Result<()>>;

    /// Writes down the times of all restores that aren't written down yet.
    fn write_restores(&self);

    /// Makes the grants of those namespaces of this host that have none.
    ///
    /// # Errors
    /// When the storage can't be read or written.
    fn write_root_grants(&self) -> Result<()>;
}
