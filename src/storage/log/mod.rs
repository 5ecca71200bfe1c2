//! The log of each shard: the interface, the log on one machine, and the thread that appends to it.
//!
//! `entry`, `segments` and `recovery` are a log of files. No server writes one yet: the suite of
//! all storages runs on it.

pub(crate) mod batch;
pub(crate) mod committer;
#[cfg(test)]
pub(crate) mod entry;
pub(crate) mod local;
pub(crate) mod reads;
#[cfg(test)]
pub(crate) mod recovery;
#[cfg(test)]
pub(crate) mod segments;
pub(crate) mod shard_log;
