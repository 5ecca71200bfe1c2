//! The supervisor: which host owns which shard, and the way from a reference to its owner.
//!
//! It never looks into what it forwards, holds no object, and never talks to a host other than
//! through `cluster.capnp`.

mod directory;
mod placement;
mod router;

pub(crate) use placement::{owner_of, shards_of};
pub(crate) use router::Supervisor;
