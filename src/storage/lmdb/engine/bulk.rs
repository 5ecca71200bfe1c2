//! An environment that is made at once, in the order of its keys, for a compaction.

use std::path::Path;

use super::{
    Database, EnvironmentFlags, FILE_MODE, Lmdb, Transaction as _, WriteFlags, failed, layout,
};
use crate::storage::error::Result;
use crate::storage::lmdb::layout::CHECKSUM_BYTES;

/// A new environment that is filled from its first key to its last, and used only afterwards.
pub(crate) struct Bulk {
    lmdb: Lmdb,
    database: Database,
}

impl Bulk {
    /// Makes an environment's files in `path`, an empty directory, without a marker.
    ///
    /// # Errors
    /// LMDB can't make them.
    pub(crate) fn make(path: &Path, map_bytes: usize) -> Result<Self> {
        let lmdb = Lmdb::new()
            // The data isn't relied on before `finish`, which syncs once.
            .set_flags(EnvironmentFlags::NO_TLS | EnvironmentFlags::NO_SYNC)
            .set_map_size(map_bytes)
            .open_with_permissions(path, FILE_MODE)
            .map_err(failed("make the environment"))?;
        let database = lmdb.open_db(None).map_err(failed("open the database"))?;
        Ok(Self { lmdb, database })
    }

    /// Adds records, each with a key greater than all that are there.
    ///
    /// # Errors
    /// A key isn't greater than the last one, or LMDB fails: the environment must be discarded.
    pub(crate) fn append<'a>(
        &self,
        records: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<()> {
        let mut txn = self.lmdb.begin_rw_txn().map_err(failed("begin a write"))?;
        for (key, record) in records {
            let slot = txn
                .reserve(self.database, &key, CHECKSUM_BYTES + record.len(), WriteFlags::APPEND)
                .map_err(failed("append"))?;
            layout::fill(slot, key, record);
        }
        txn.commit().map_err(failed("commit"))
    }

    /// Makes all of it durable; returns the number of records.
    ///
    /// # Errors
    /// That failed: the environment must be discarded.
    pub(crate) fn finish(self) -> Result<u64> {
        self.lmdb.sync(true).map_err(failed("sync"))?;
        Ok(self.lmdb.stat().map_err(failed("count the records"))?.entries() as u64)
    }
}
