//! The storage of one host: objects' records, made durable in groups, in order, or not at all.
//!
//! The vat thread writes through a [`Store`]: the writes of one turn become a write set, which is
//! data. The commit thread takes all submitted write sets, groups them by shard into blocks, and
//! appends these to the shards' [`log`]. On one machine that log is a file in front of LMDB, to
//! which another thread moves the records later.
//!
//! The threads here are plain ones; no code here knows of tasks, capabilities or the network. The
//! storage never reports a write as durable before the disk has, and never continues after the disk
//! failed.

pub(crate) mod archive;
mod config;
mod error;
pub(crate) mod lmdb;
pub(crate) mod log;
mod position;
mod range;
mod space;
pub(crate) mod store;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use self::config::{CasOutcome, ConfigStore, LocalConfig};
pub(crate) use self::error::{Result, StorageError};
pub(crate) use self::lmdb::check::check;
pub(crate) use self::lmdb::compact::Compacted;
pub(crate) use self::lmdb::dir::{Access, DATA};
pub(crate) use self::lmdb::engine::make;
pub(crate) use self::lmdb::held::Recall;
pub(crate) use self::lmdb::layout::{Kind, Usage};
pub(crate) use self::lmdb::owned::Owner;
#[cfg(test)]
pub(crate) use self::lmdb::room::Room;
pub(crate) use self::lmdb::watched::{Watched, file_changed, no_space};
pub(crate) use self::log::committer::Ticket;
pub(crate) use self::log::local::LogOptions;
pub(crate) use self::log::opening::compact;
pub(crate) use self::log::reads::Reads;
pub(crate) use self::log::segments::files as log_files;
pub(crate) use self::range::{Direction, Range};
pub(crate) use self::space::Space;
pub(crate) use self::store::account::{Account, ClassAccount};
pub(crate) use self::store::due::{Due, DueAlarms, TIME_MS_MAX};
pub(crate) use self::store::identity::Presence;
pub(crate) use self::store::page::{Page, PageSize};
pub(crate) use self::store::{Before, Store, StoreOptions};
