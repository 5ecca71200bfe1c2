//! Bare LMDB with the records that an increment writes: what the storage costs with nothing above.
//!
//! Beside the storage's own file this is the only one that may name LMDB, because a baseline that
//! went through the code that it is compared to would measure nothing.

use std::path::Path;

use lmdb::{Database, Environment, EnvironmentFlags, Transaction, WriteFlags};

use super::measure::{Sample, Until, drive_here};
use crate::error::{Result, failed};

/// Address space; never filled.
const MAP_BYTES: usize = 1 << 30;
/// Shard, object id, space and the key `value`.
const VALUE_KEY: [u8; 2 + 16 + 1 + 5] = [7; 24];
/// Checksum and number.
const VALUE_BYTES: usize = 4 + 8;
/// A shard's own record has its number as the key.
const SHARD_KEY: [u8; 2] = [7; 2];
/// Checksum, version, epoch, position and hash.
const SHARD_BYTES: usize = 4 + 1 + 8 + 8 + 32;

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

    /// Commits groups of so many increments of one counter, one durable transaction each; the
    /// sample counts groups.
    ///
    /// # Errors
    /// When LMDB can't.
    pub(crate) fn commit_groups(&self, group: u64, until: Until) -> Result<Sample> {
        drive_here(until, |_| self.commit(group).map_err(bare))
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
