//! Bare LMDB with the records that an increment writes: the cost of the storage with nothing above
//! it.
//!
//! Besides the storage's own file, only this one may name LMDB, because a baseline that used the
//! code with which it is compared would measure nothing.

use std::hint::black_box;
use std::path::Path;

use lmdb::{Cursor, Database, Environment, EnvironmentFlags, Transaction, WriteFlags};

use super::measure::{Sample, Until, drive_here};
use capstead::{Result, failed};

/// Address space, which is never filled.
const MAP_BYTES: usize = 1 << 30;
/// Shard, object id and space.
const PREFIX_BYTES: usize = 2 + 16 + 1;
/// The key `value`.
const VALUE_KEY: [u8; PREFIX_BYTES + 5] = [7; PREFIX_BYTES + 5];
const CHECKSUM_BYTES: usize = 4;
/// Checksum and number.
const VALUE_BYTES: usize = CHECKSUM_BYTES + 8;
/// A shard's own record has the shard's number as the key.
const SHARD_KEY: [u8; 2] = [7; 2];
/// Checksum, version, epoch, position and hash.
const SHARD_BYTES: usize = CHECKSUM_BYTES + 1 + 8 + 8 + 32;

/// An environment with the storage's flags.
pub(crate) struct BareLmdb {
    environment: Environment,
    database: Database,
}

impl BareLmdb {
    /// Makes it in an empty directory.
    ///
    /// # Errors
    /// When LMDB can't.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let environment = Environment::new()
            .set_flags(EnvironmentFlags::NO_TLS)
            .set_map_size(MAP_BYTES)
            .open(path)
            .map_err(bare)?;
        let database = environment.open_db(None).map_err(bare)?;
        Ok(Self { environment, database })
    }

    /// Commits groups of `group` increments of one counter, one durable transaction each; the
    /// sample counts groups.
    ///
    /// # Errors
    /// When LMDB can't.
    pub(crate) fn commit_groups(&self, group: u64, until: Until) -> Result<Sample> {
        drive_here(until, |_| self.commit(group).map_err(bare))
    }

    /// Commits a put to each object, all in one durable transaction, with the records of their
    /// shards as the storage has them. An object is given as its shard and its id; the sample
    /// counts transactions.
    ///
    /// # Errors
    /// When LMDB can't.
    pub(crate) fn commit_puts(
        &self,
        objects: &[([u8; 2], [u8; 16])],
        key: &[u8],
        value_bytes: usize,
        until: Until,
    ) -> Result<Sample> {
        let value = vec![7; CHECKSUM_BYTES + value_bytes];
        let commit = |n: u64| {
            let mut transaction = self.environment.begin_rw_txn()?;
            for (shard, id) in objects {
                let key = [shard.as_slice(), id, &[1], key].concat();
                transaction.put(self.database, &key, &value, WriteFlags::empty())?;
                let meta = [n as u8; SHARD_BYTES];
                transaction.put(self.database, shard, &meta, WriteFlags::empty())?;
            }
            transaction.commit()
        };
        drive_here(until, |n| commit(n).map_err(bare))
    }

    /// Stores a list: the keys of one object with their values.
    ///
    /// # Errors
    /// When LMDB can't.
    pub(crate) fn fill(&self, entries: u32, value_bytes: usize) -> Result<()> {
        let fill = || {
            let mut transaction = self.environment.begin_rw_txn()?;
            let value = vec![7; CHECKSUM_BYTES + value_bytes];
            for n in 0..entries {
                let key = [[7; PREFIX_BYTES].as_slice(), &u64::from(n).to_be_bytes()].concat();
                transaction.put(self.database, &key, &value, WriteFlags::empty())?;
            }
            transaction.commit()
        };
        fill().map_err(bare)
    }

    /// Visits the whole list with a cursor, again and again; the sample counts lists.
    ///
    /// # Errors
    /// When LMDB can't, or the list isn't whole.
    pub(crate) fn list(&self, entries: u32, until: Until) -> Result<Sample> {
        drive_here(until, |_| {
            let transaction = self.environment.begin_ro_txn().map_err(bare)?;
            let mut cursor = transaction.open_ro_cursor(self.database).map_err(bare)?;
            let mut count = 0;
            for entry in cursor.iter_start() {
                black_box(entry.map_err(bare)?);
                count += 1;
            }
            if count == entries { Ok(()) } else { Err(failed("the bare list isn't whole")) }
        })
    }

    fn commit(&self, group: u64) -> lmdb::Result<()> {
        let mut transaction = self.environment.begin_rw_txn()?;
        for number in 0..group {
            let value = [number as u8; VALUE_BYTES];
            transaction.put(self.database, &VALUE_KEY, &value, WriteFlags::empty())?;
        }
        let shard = [group as u8; SHARD_BYTES];
        transaction.put(self.database, &SHARD_KEY, &shard, WriteFlags::empty())?;
        transaction.commit()
    }
}

fn bare(error: lmdb::Error) -> capnp::Error {
    failed(format!("the bare LMDB: {error}"))
}
