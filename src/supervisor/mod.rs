//! The supervisor: it knows which host owns which shard, and routes references to their owners.
//!
//! It never looks into the messages that it forwards, holds no object, and talks to hosts only
//! through `cluster.capnp`.

mod directory;
mod placement;
mod router;

pub(crate) use placement::{owner_of, shards_of};
pub(crate) use router::Supervisor;
