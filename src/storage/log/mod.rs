//! The log of each shard: the interface, the log on one machine, and the thread that appends to it.

pub(crate) mod batch;
pub(crate) mod committer;
pub(crate) mod local;
pub(crate) mod reads;
pub(crate) mod shard_log;
