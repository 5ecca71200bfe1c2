//! The log of each shard: the interface, the log on one machine, and the thread that appends to it.

pub(crate) mod applied;
mod applier;
mod apply;
pub(crate) mod batch;
pub(crate) mod block;
pub(crate) mod committer;
mod entry;
pub(crate) mod local;
pub(crate) mod opening;
pub(crate) mod reader;
pub(crate) mod reads;
mod recovery;
pub(crate) mod segments;
pub(crate) mod shard_log;
