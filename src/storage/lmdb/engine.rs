//! The only file that names LMDB, with `bulk`, which has its names from here.
//!
//! The Rust binding is unsound from safe code in places: iterators that outlive their cursor,
//! slices that outlive a write, a map resized under a transaction. So only owned bytes leave this
//! file, and borrows that end with their closure; never a cursor, iterator or transaction. The map
//! is never resized and never written to directly.
//!
//! **Invariants:** every record is checked when it is read, and a damaged one is never returned. No
//! write transaction follows the first failed one: the content of the disk is then unknown, and a
//! second sync could report success for pages that the first one lost.

mod bulk;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use ::lmdb::{
    Cursor as _, Database, Environment as Lmdb, EnvironmentFlags, Error, RoTransaction,
    RwTransaction, Transaction, WriteFlags,
};

pub(crate) use self::bulk::Bulk;
use crate::limits::MAP_BYTES;
use crate::storage::error::{Result, StorageError, io_error};
use crate::storage::lmdb::dir::{Age, DATA, EnvironmentDir, LMDB_LOCK, MARKER, random_name};
use crate::storage::lmdb::disk;
use crate::storage::lmdb::held::{HeldSnapshots, Holding, Recall};
use crate::storage::lmdb::layout::{
    self, CHECKSUM_BYTES, ENVIRONMENT_KEY, EnvironmentRecord, Kind,
};
use crate::storage::lmdb::owned::Owner;
use crate::storage::lmdb::watched::Watched;
use crate::storage::range::Direction;

/// Two for the vat thread, which may read while it visits, one for commits, and some for tools.
const READERS_MAX: u32 = 64;
/// This process's open files by number.
const OPEN_FILES: &str = "/proc/self/fd";
/// Only the server's own account may read or write the data.
const FILE_MODE: u32 = 0o600;

// Moves of a cursor, as LMDB's interface numbers them; the binding doesn't export them.
const LAST: u32 = 6;
const NEXT: u32 = 8;
const PREVIOUS: u32 = 12;
/// Moves to the first key that is not less than the given one.
const NOT_LESS: u32 = 17;

/// An engine key and its record, if the cursor found one.
type Found<'a> = Option<(&'a [u8], &'a [u8])>;

/// Makes the environment in `path`, an empty or absent directory, in advance: if it is missing
/// later, it is known to be lost.
///
/// # Errors
/// As for opening it.
pub(crate) fn make(path: &Path, kind: Kind) -> Result<()> {
    Environment::open(path, kind, MAP_BYTES).map(drop)
}

/// An LMDB environment, open and locked until its last handle is dropped.
pub(crate) struct Environment {
    // The fields are dropped in this order: the lock of the directory goes last.
    lmdb: Lmdb,
    database: Database,
    incarnation: u64,
    map_bytes: u64,
    page_bytes: u64,
    failure: OnceLock<Arc<StorageError>>,
    snapshots: HeldSnapshots,
    files: Arc<Watched>,
    dir: EnvironmentDir,
}

impl Environment {
    /// Opens or makes the environment in `path`, and durably counts this opening.
    ///
    /// # Errors
    /// Those of [`EnvironmentDir::open`]; `Format`, `CorruptRecord` when the data isn't what the
    /// directory says: it is unchanged. `Lmdb`, `NoSpace`: the opening may have been counted.
    pub(crate) fn open(path: &Path, kind: Kind, map_bytes: usize) -> Result<Self> {
        Self::open_or_make(path, kind, map_bytes).map_err(|error| disk::explained(error, path))
    }

    fn open_or_make(path: &Path, kind: Kind, map_bytes: usize) -> Result<Self> {
        let mut dir = EnvironmentDir::open(path, kind)?;
        // Lets a signal handler explain why a page of LMDB's new files has no block on disk.
        let _opening = Watched::new([dir.path().join(MARKER)])?;
        // Readers belong to transactions, not threads; other flags keep their safest values.
        let (lmdb, database) = open(dir.path(), EnvironmentFlags::NO_TLS, map_bytes)?;
        let incarnation = count_opening(&lmdb, database, kind, dir.age())?;
        dir.complete()?;
        let files = [MARKER, DATA, LMDB_LOCK];
        Self::opened((lmdb, database), incarnation, map_bytes, &files, dir)
    }

    /// Opens the environment in `path`, which is complete and belongs to `owner`, without changing
    /// any file. Every write fails.
    ///
    /// # Errors
    /// Those of [`EnvironmentDir::open_to_read`], `CorruptRecord`, `Format`, `Lmdb`.
    pub(crate) fn open_to_read(
        path: &Path,
        kind: Kind,
        map_bytes: usize,
        owner: Owner,
    ) -> Result<Self> {
        let dir = EnvironmentDir::open_to_read(path, kind, owner)?;
        // LMDB's lock file may not be writable; the directory's lock keeps writers away.
        let flags =
            EnvironmentFlags::NO_TLS | EnvironmentFlags::READ_ONLY | EnvironmentFlags::NO_LOCK;
        let data = dir.path().join(DATA);
        let file = owner.open(&data).map_err(io_error("open", &data))?;
        // LMDB opens files by name, and the data's name may lead elsewhere by then.
        let itself = format!("{OPEN_FILES}/{}", file.as_raw_fd());
        let (lmdb, database) = if Path::new(OPEN_FILES).is_dir() {
            open(Path::new(&itself), flags | EnvironmentFlags::NO_SUB_DIR, map_bytes)?
        } else {
            open(dir.path(), flags, map_bytes)?
        };
        let record = {
            let txn = lmdb.begin_ro_txn().map_err(failed("begin a read"))?;
            let found = checked(&ENVIRONMENT_KEY, txn.get(database, &ENVIRONMENT_KEY))?;
            let found = found.ok_or_else(|| layout::damaged(&ENVIRONMENT_KEY))?;
            EnvironmentRecord::decode(found, kind)?
        };
        Self::opened((lmdb, database), record.incarnation, map_bytes, &[MARKER, DATA], dir)
    }

    fn opened(
        (lmdb, database): (Lmdb, Database),
        incarnation: u64,
        map_bytes: usize,
        files: &[&str],
        dir: EnvironmentDir,
    ) -> Result<Self> {
        let files = Watched::new(files.iter().map(|name| dir.path().join(name)))?;
        let page_bytes = lmdb.stat().map_err(failed("read the page size"))?.page_size().into();
        let (map_bytes, failure) = (map_bytes as u64, OnceLock::new());
        let snapshots = HeldSnapshots::default();
        Ok(Self {
            lmdb,
            database,
            incarnation,
            map_bytes,
            page_bytes,
            failure,
            snapshots,
            files,
            dir,
        })
    }

    /// The directory with its files.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The number of times that the environment was opened, this time included.
    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The address space for the data, in bytes.
    pub(crate) fn map_bytes(&self) -> u64 {
        self.map_bytes
    }

    /// The bytes left of it after the last page; 0 if LMDB can't say.
    pub(crate) fn bytes_unmapped(&self) -> u64 {
        let used = |last: usize| (last as u64 + 1) * self.page_bytes;
        let last = self.lmdb.info().map_or(u64::MAX, |info| used(info.last_pgno()));
        self.map_bytes.saturating_sub(last)
    }

    /// The snapshots that are held for long.
    pub(crate) fn snapshots(&self) -> &HeldSnapshots {
        &self.snapshots
    }

    /// From now on, as long as the result exists, a snapshot counts as held. It must be begun
    /// before the next write.
    ///
    /// # Errors
    /// LMDB can't read its list of free pages.
    pub(crate) fn hold(&self, recall: Arc<Recall>) -> Result<Holding<'_>> {
        Ok(self.snapshots.hold(recall, self.bytes_free()?))
    }

    /// Bytes of free pages before the last page that can be used again, as far as that is known.
    ///
    /// # Errors
    /// LMDB can't read its list of free pages.
    pub(crate) fn bytes_reusable(&self) -> Result<u64> {
        Ok(self.snapshots.reusable(self.bytes_free()?))
    }

    fn bytes_free(&self) -> Result<u64> {
        let pages = self.lmdb.freelist().map_err(failed("count the free pages"))?;
        Ok(pages as u64 * self.page_bytes)
    }

    /// The bytes of one page.
    pub(crate) fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    /// The bytes of the pages in use.
    ///
    /// # Errors
    /// LMDB can't say.
    pub(crate) fn bytes_used(&self) -> Result<u64> {
        let taken = self.map_bytes - self.bytes_unmapped();
        Ok(taken.saturating_sub(self.bytes_free()?))
    }

    /// The number of records.
    ///
    /// # Errors
    /// LMDB can't say.
    pub(crate) fn entries(&self) -> Result<u64> {
        Ok(self.lmdb.stat().map_err(failed("count the records"))?.entries() as u64)
    }

    /// Checks that the files are as they must be.
    ///
    /// # Errors
    /// `FileChanged`, `Io`.
    pub(crate) fn check_files(&self) -> Result<()> {
        self.files.check()
    }

    /// Runs `body` on a snapshot of the state committed when it began.
    pub(crate) fn read<T>(&self, body: impl FnOnce(&Snapshot<'_>) -> Result<T>) -> Result<T> {
        let txn = self.lmdb.begin_ro_txn().map_err(failed("begin a read"))?;
        body(&Snapshot { txn, database: self.database })
    }

    /// Makes all writes of `body` durable, or none. `body` must not call this again.
    ///
    /// # Errors
    /// Any error, of `body` or of the disk, ends all writing: this and all later calls return that
    /// first error, and it is unknown which writes of this call the disk has.
    pub(crate) fn write<T>(
        &self,
        body: impl FnOnce(&mut Changes<'_>) -> Result<T>,
    ) -> std::result::Result<T, Arc<StorageError>> {
        if let Some(failure) = self.failure.get() {
            return Err(failure.clone());
        }
        // Checked before, because pages cut from a file can't be read; and after, because writes to
        // a file without a name must not be acknowledged.
        let committed = self.files.check().and_then(|()| {
            let written = commit(&self.lmdb, self.database, body)?;
            self.files.check().map(|()| written)
        });
        let explained = |error| Arc::new(disk::explained(error, self.dir.path()));
        committed.map_err(|error| self.failure.get_or_init(|| explained(error)).clone())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("incarnation", &self.incarnation)
            .finish_non_exhaustive()
    }
}

fn open(path: &Path, flags: EnvironmentFlags, map_bytes: usize) -> Result<(Lmdb, Database)> {
    let lmdb = Lmdb::new()
        .set_flags(flags)
        .set_map_size(map_bytes)
        .set_max_readers(READERS_MAX)
        .open_with_permissions(path, FILE_MODE)
        .map_err(failed("open the environment"))?;
    let database = lmdb.open_db(None).map_err(failed("open the database"))?;
    Ok((lmdb, database))
}

/// The committed state of one moment.
pub(crate) struct Snapshot<'a> {
    txn: RoTransaction<'a>,
    database: Database,
}

impl Snapshot<'_> {
    /// The record under `key`.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<&[u8]>> {
        match checked(key, self.txn.get(self.database, &key))? {
            Some(record) => Ok(Some(record)),
            None => self.check_missing(key).map(|()| None),
        }
    }

    /// The length of the record under `key`, which isn't checked for damage.
    pub(crate) fn length(&self, key: &[u8]) -> Result<Option<usize>> {
        match self.txn.get(self.database, &key) {
            Ok(stored) => Ok(Some(stored.len().saturating_sub(CHECKSUM_BYTES))),
            Err(Error::NotFound) => self.check_missing(key).map(|()| None),
            Err(error) => Err(failed("get")(error)),
        }
    }

    /// Believes that a key is missing only if the records around its place are whole and in order:
    /// a damaged key would still be there, and a damaged page would lead elsewhere.
    fn check_missing(&self, key: &[u8]) -> Result<()> {
        let cursor = self.txn.open_ro_cursor(self.database).map_err(failed("open a cursor"))?;
        let go = |key: Option<&[u8]>, step| found(cursor.get(key, None, step));
        let after = go(Some(key), NOT_LESS)?;
        let before = go(None, if after.is_some() { PREVIOUS } else { LAST })?;
        for (near, stored) in after.into_iter().chain(before) {
            layout::verify(near, stored)?;
        }
        let is_between = after.is_none_or(|(after, _)| after > key)
            && before.is_none_or(|(before, _)| before < key);
        if is_between { Ok(()) } else { Err(layout::damaged(key)) }
    }

    /// Visits the records from `from` up to and without `until`, in key order or in reverse, until
    /// `visit` breaks off, which is returned.
    pub(crate) fn walk(
        &self,
        (from, until): (&[u8], Option<&[u8]>),
        direction: Direction,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        let cursor = self.txn.open_ro_cursor(self.database).map_err(failed("open a cursor"))?;
        let go = |key: Option<&[u8]>, step| found(cursor.get(key, None, step));
        let first = || go(Some(from), NOT_LESS);
        let last = || match until {
            Some(until) if go(Some(until), NOT_LESS)?.is_some() => go(None, PREVIOUS),
            _ => go(None, LAST),
        };
        // The beginning is looked up last, because the cursor continues from there.
        let is_down = direction == Direction::Down;
        let (end, begin) = if is_down { (first()?, last()?) } else { (last()?, first()?) };
        let (Some((end, _)), Some(mut at)) = (end, begin) else {
            return Ok(ControlFlow::Continue(()));
        };
        if end != at.0 && (end > at.0) == is_down {
            return Ok(ControlFlow::Continue(()));
        }
        let step = if is_down { PREVIOUS } else { NEXT };
        loop {
            let (key, stored) = at;
            let Some(record) = layout::whole(key, stored) else { return Err(layout::damaged(key)) };
            if visit(key, record)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            // Within one snapshot a key stays at its address, so no bytes are compared.
            if std::ptr::eq(key.as_ptr(), end.as_ptr()) {
                break;
            }
            at = match cursor.get(None, None, step) {
                Ok((Some(key), stored)) => (key, stored),
                other => match found(other)? {
                    Some(next) => next,
                    None => break,
                },
            };
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// The one write transaction in progress.
pub(crate) struct Changes<'a> {
    txn: RwTransaction<'a>,
    database: Database,
}

impl Changes<'_> {
    /// The record under `key`, with the changes so far.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<&[u8]>> {
        checked(key, self.txn.get(self.database, &key))
    }

    /// Stores `record` with its checksum.
    pub(crate) fn put(&mut self, key: &[u8], record: &[u8]) -> Result<()> {
        let length = CHECKSUM_BYTES + record.len();
        let slot = self
            .txn
            .reserve(self.database, &key, length, WriteFlags::empty())
            .map_err(failed("put"))?;
        layout::fill(slot, key, record);
        Ok(())
    }

    /// Removes the record under `key`, if there is one.
    pub(crate) fn delete(&mut self, key: &[u8]) -> Result<()> {
        match self.txn.del(self.database, &key, None) {
            Ok(()) | Err(Error::NotFound) => Ok(()),
            Err(error) => Err(failed("delete")(error)),
        }
    }

    /// Tells whether any key begins with `prefix`.
    pub(crate) fn has_any(&self, prefix: &[u8]) -> Result<bool> {
        let cursor = self.txn.open_ro_cursor(self.database).map_err(failed("open a cursor"))?;
        let first = found(cursor.get(Some(prefix), None, NOT_LESS))?;
        Ok(first.is_some_and(|(key, _)| key.starts_with(prefix)))
    }

    /// Removes keys that begin with `prefix`, the first ones, at least one and until they have
    /// copied about `most` bytes of pages; returns the bytes copied, and whether all are removed.
    pub(crate) fn delete_some(&mut self, prefix: &[u8], most: u64) -> Result<(u64, bool)> {
        let mut cursor = self.txn.open_rw_cursor(self.database).map_err(failed("open a cursor"))?;
        let (mut at, mut copied) = (cursor.get(Some(prefix), None, NOT_LESS), 0);
        // No borrow from the cursor is used after the deletion.
        while let Some((key, record)) = found(at)?.filter(|(key, _)| key.starts_with(prefix)) {
            if copied >= most {
                return Ok((copied, false));
            }
            // Neighbours share their page, which may be half full; each has a place of 16 bytes.
            copied += 2 * (key.len() + record.len() + 16) as u64;
            cursor.del(WriteFlags::empty()).map_err(failed("delete"))?;
            at = cursor.get(None, None, NEXT);
        }
        Ok((copied, true))
    }
}

fn commit<T>(
    lmdb: &Lmdb,
    database: Database,
    body: impl FnOnce(&mut Changes<'_>) -> Result<T>,
) -> Result<T> {
    let txn = lmdb.begin_rw_txn().map_err(failed("begin a write"))?;
    let mut changes = Changes { txn, database };
    let result = body(&mut changes)?;
    changes.txn.commit().map_err(failed("commit"))?;
    Ok(result)
}

fn count_opening(lmdb: &Lmdb, database: Database, kind: Kind, age: Age) -> Result<u64> {
    commit(lmdb, database, |changes| {
        let mut record = match (changes.get(&ENVIRONMENT_KEY)?, age) {
            (Some(record), _) => EnvironmentRecord::decode(record, kind)?,
            (None, Age::New) => EnvironmentRecord::new(random_name()?),
            (None, Age::Existing) => return Err(layout::damaged(&ENVIRONMENT_KEY)),
        };
        record.incarnation += 1;
        changes.put(&ENVIRONMENT_KEY, &record.encode(kind))?;
        Ok(record.incarnation)
    })
}

fn checked<'a>(key: &[u8], found: ::lmdb::Result<&'a [u8]>) -> Result<Option<&'a [u8]>> {
    match found {
        Ok(stored) => layout::verify(key, stored).map(Some),
        Err(Error::NotFound) => Ok(None),
        Err(error) => Err(failed("get")(error)),
    }
}

/// The record that a cursor moved to; wherever it stands, there is a key.
#[inline]
fn found<'a>(moved: ::lmdb::Result<(Option<&'a [u8]>, &'a [u8])>) -> Result<Found<'a>> {
    match moved {
        Ok((Some(key), stored)) => Ok(Some((key, stored))),
        Ok((None, _)) | Err(Error::NotFound) => Ok(None),
        Err(error) => Err(failed("move a cursor")(error)),
    }
}

fn failed(action: &'static str) -> impl Fn(Error) -> StorageError {
    move |error| match error {
        Error::MapFull => StorageError::MapFull,
        Error::Other(code) => {
            let source = Box::new(io::Error::from_raw_os_error(code));
            StorageError::Lmdb { action, source }
        }
        error => StorageError::Lmdb { action, source: Box::new(error) },
    }
}
