//! Reads of the records that the environment of a local log has.

use std::sync::{Arc, MutexGuard};

use crate::id::ObjectId;
use crate::metrics::Metrics;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::engine::{Environment, Snapshot};
use crate::storage::lmdb::held::Recall;
use crate::storage::lmdb::layout::keys::RecordPath;
use crate::storage::lmdb::layout::{ENVIRONMENT_KEY, Usage, damaged};
use crate::storage::lmdb::scan;
use crate::storage::log::applied::Applied;
use crate::storage::log::reads::{Reads, VisitObject};
use crate::storage::range::{Range, Visit};
use crate::storage::space::Space;

/// Reads the records that the log has applied. The vat thread owns it; it keeps the environment
/// open.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    env: Arc<Environment>,
    applied: Arc<Applied>,
    metrics: Arc<Metrics>,
}

impl Reader {
    /// A reader of the environment behind a log.
    pub(super) fn new(env: Arc<Environment>, applied: Arc<Applied>, metrics: Arc<Metrics>) -> Self {
        Self { env, applied, metrics }
    }

    /// Runs `body`, on any thread, on a snapshot of the environment that has everything which is
    /// durable by now. It waits until that is applied.
    ///
    /// # Errors
    /// `Latched` when it can't be applied; those of `body`.
    pub(crate) fn snapshot<T>(&self, body: impl FnOnce(&Snapshot<'_>) -> Result<T>) -> Result<T> {
        let between = self.caught_up()?;
        self.env.read(|snapshot| {
            drop(between);
            body(snapshot)
        })
    }

    /// The same, for a `body` that may take long. It has to end soon when it is called back.
    ///
    /// # Errors
    /// As for `snapshot`.
    pub(crate) fn long_snapshot<T>(
        &self,
        recall: &Arc<Recall>,
        body: impl FnOnce(&Snapshot<'_>) -> Result<T>,
    ) -> Result<T> {
        let between = self.caught_up()?;
        if self.applied.count() > 0 {
            // The engine keeps the pages that its last write freed before a snapshot, too: now that
            // is a write that freed few.
            let written = self.env.write(|changes| {
                let record = changes.get(&ENVIRONMENT_KEY)?.map(<[u8]>::to_vec);
                changes.put(&ENVIRONMENT_KEY, &record.ok_or_else(|| damaged(&ENVIRONMENT_KEY))?)
            });
            written.map_err(StorageError::Latched)?;
        }
        let _until_it_ends = self.env.hold(recall.clone())?;
        self.env.read(|snapshot| {
            drop(between);
            body(snapshot)
        })
    }

    /// Waits until everything is applied that is durable by now. As long as the result exists,
    /// nothing else is.
    fn caught_up(&self) -> Result<MutexGuard<'_, ()>> {
        self.applied.catch_up()?;
        let between = self.applied.between();
        match self.applied.failure() {
            Some(failure) => Err(StorageError::Latched(failure.clone())),
            None => Ok(between),
        }
    }

    /// The environment itself, to inspect the engine's own records.
    #[cfg(test)]
    pub(crate) fn environment(&self) -> &Arc<Environment> {
        &self.env
    }
}

// Each read takes a fresh snapshot: keeping one would need a reference into this struct itself.
impl Reads for Reader {
    fn check_files(&self) -> Result<()> {
        self.env.check_files()?;
        self.applied.check_file()
    }

    fn get(&self, object: ObjectId, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let path = RecordPath::new(object, space, key)?;
        self.metrics.storage_reads_total.add(1);
        self.env.read(|snapshot| Ok(snapshot.get(&path.record)?.map(<[u8]>::to_vec)))
    }

    fn identity(&self, object: ObjectId) -> Result<[Option<Vec<u8>>; 2]> {
        let header = RecordPath::new(object, Space::Header, &[])?.record;
        let usage = RecordPath::new(object, Space::Usage, &[])?.record;
        self.metrics.storage_reads_total.add(1);
        self.env.read(|snapshot| {
            let Some(header) = snapshot.get(&header)?.map(<[u8]>::to_vec) else {
                return Ok([None, None]);
            };
            Ok([Some(header), snapshot.get(&usage)?.map(<[u8]>::to_vec)])
        })
    }

    fn get_many(
        &self,
        object: ObjectId,
        space: Space,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>> {
        self.metrics.storage_reads_total.add(keys.len() as u64);
        self.env.read(|snapshot| {
            let get = |key: &&[u8]| {
                let path = RecordPath::new(object, space, key)?;
                Ok(snapshot.get(&path.record)?.map(<[u8]>::to_vec))
            };
            keys.iter().map(get).collect()
        })
    }

    fn length(&self, object: ObjectId, space: Space, key: &[u8]) -> Result<Option<usize>> {
        let path = RecordPath::new(object, space, key)?;
        self.metrics.storage_reads_total.add(1);
        self.env.read(|snapshot| snapshot.length(&path.record))
    }

    fn scan(
        &self,
        object: ObjectId,
        space: Space,
        range: &Range,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        self.metrics.storage_reads_total.add(1);
        self.env.read(|snapshot| scan::scan(snapshot, object, space, range, visit))
    }

    fn due(&self, from: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        self.metrics.storage_reads_total.add(1);
        self.env.read(|snapshot| scan::due(snapshot, from, visit))
    }

    fn objects(&self, visit: &mut VisitObject<'_>) -> Result<()> {
        self.env.read(|snapshot| {
            let mut last = None;
            while let Some(object) = scan::next_object(snapshot, last)? {
                last = Some(object);
                let header = RecordPath::new(object, Space::Header, &[])?.record;
                let Some(header) = snapshot.get(&header)? else { continue };
                let record = RecordPath::new(object, Space::Usage, &[])?.record;
                let usage = match snapshot.get(&record)? {
                    Some(bytes) => Usage::decode(bytes).ok_or_else(|| damaged(&record))?,
                    None => self.count(object)?,
                };
                visit(object, header, usage);
            }
            Ok(())
        })
    }
}
