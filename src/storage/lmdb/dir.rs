//! The directory of one environment: is it ours, in our format, and free?
//!
//! One small marker file answers all of that before LMDB sees the directory, because opening an
//! LMDB environment already changes files, and because a foreign data file can crash the process.
//! The marker is locked while the environment is open. So an environment has one user, and LMDB
//! finds no other readers in its table when it opens.
//!
//! **Invariants:** the marker says "complete" only once the environment holds its own record. A
//! directory that is refused is not changed in any way.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::storage::error::{Result, StorageError, io_error};
use crate::storage::lmdb::layout::{FORMAT, Kind};
use crate::storage::lmdb::owned::{Owner, patiently};

pub(super) const MARKER: &str = "CAPSTEAD";
/// The file with an environment's data.
pub(crate) const DATA: &str = "data.mdb";
/// The file by which LMDB coordinates readers and writers.
pub(super) const LMDB_LOCK: &str = "lock.mdb";
/// Longer than any marker of ours: reading this much shows whether a file is a marker.
const MARKER_BYTES_MAX: u64 = 64;

/// A new name for an environment or a log; never all zeros.
///
/// # Errors
/// `Io`: the operating system has no random bytes.
pub(crate) fn random_name() -> Result<[u8; 16]> {
    let mut name = [0; 16];
    let failed = io_error("read random bytes from", Path::new("the system"));
    getrandom::fill(&mut name).map_err(|error| failed(io::Error::other(error)))?;
    name[0] |= 1;
    Ok(name)
}

/// Tells whether an environment was made before, or is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// It never served anything, so it may be made now.
    New,
    /// It was complete once.
    Existing,
}

/// The way in which an environment is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Access {
    /// For reading and writing; the environment is created if it is missing.
    #[default]
    Full,
    /// For reading: nothing on the disk changes, so a full or read-only disk will do.
    Read,
}

/// A directory that is locked for us alone until this is dropped.
#[derive(Debug)]
pub(crate) struct EnvironmentDir {
    path: PathBuf,
    marker: File,
    age: Age,
    text: String,
}

impl EnvironmentDir {
    /// Finds or creates the directory, and locks it.
    ///
    /// # Errors
    /// `NotADirectory`, `NotOurs`, `Format`, `InUse`, `DataMissing`: the directory is unchanged.
    /// `Io`: it may have been created, and is empty except for the marker.
    pub(crate) fn open(path: &Path, kind: Kind) -> Result<Self> {
        if path.exists() && !path.is_dir() {
            return Err(StorageError::NotADirectory(path.to_owned()));
        }
        fs::create_dir_all(path).map_err(io_error("create", path))?;
        let owner = Owner::ours();
        owner.check_folder(path).map_err(io_error("open", path))?;
        let mut marker = open_marker(path, owner)?;
        lock(&marker, path)?;
        let text = marker_text(kind, u64::from(FORMAT));
        let mut found = Vec::new();
        let read = (&mut marker).take(MARKER_BYTES_MAX).read_to_end(&mut found);
        read.map_err(io_error("read", path))?;
        let age = judge(path, kind, &found)?;
        Ok(Self { path: path.to_owned(), marker, age, text })
    }

    /// Locks a complete directory, and changes nothing.
    ///
    /// # Errors
    /// As for [`check_complete`], and `InUse`.
    pub(crate) fn open_to_read(path: &Path, kind: Kind, owner: Owner) -> Result<Self> {
        check_complete(path, kind, owner)?;
        let marker = path.join(MARKER);
        let marker = owner.open(&marker).map_err(io_error("open", &marker))?;
        lock(&marker, path)?;
        let text = marker_text(kind, u64::from(FORMAT));
        Ok(Self { path: path.to_owned(), marker, age: Age::Existing, text })
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The age of the environment.
    pub(crate) fn age(&self) -> Age {
        self.age
    }

    /// Records permanently that the environment is complete, and that the directory has its files.
    pub(crate) fn complete(&mut self) -> Result<()> {
        let failed = io_error("complete", &self.path);
        self.sync_names().map_err(&failed)?;
        if self.age == Age::New {
            self.marker.set_len(0).map_err(&failed)?;
            self.marker.write_all(self.text.as_bytes()).map_err(&failed)?;
            self.marker.sync_all().map_err(&failed)?;
            self.age = Age::Existing;
        }
        Ok(())
    }

    /// LMDB syncs its files but not their names.
    fn sync_names(&self) -> io::Result<()> {
        let path = self.path.canonicalize()?;
        File::open(&path)?.sync_all()?;
        path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    }
}

/// Checks, without changing anything, that the directory holds a complete environment of user
/// `owner`; returns the path of its data.
///
/// # Errors
/// `MarkerMissing`, `NotOurs`, `Format`, `DataMissing`, `Io`.
pub(crate) fn check_complete(path: &Path, kind: Kind, owner: Owner) -> Result<PathBuf> {
    owner.check_folder(path).map_err(io_error("open", path))?;
    let marker = path.join(MARKER);
    let file = match owner.open(&marker) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StorageError::MarkerMissing(path.to_owned()));
        }
        file => file.map_err(io_error("open", &marker))?,
    };
    let mut found = Vec::new();
    file.take(MARKER_BYTES_MAX).read_to_end(&mut found).map_err(io_error("read", &marker))?;
    match judge(path, kind, &found)? {
        Age::Existing => Ok(path.join(DATA)),
        Age::New => Err(StorageError::MarkerMissing(path.to_owned())),
    }
}

/// Records durably that the environment in `path`, which was filled by other means, is complete.
pub(super) fn write_marker(path: &Path, kind: Kind) -> Result<()> {
    let marker = path.join(MARKER);
    let failed = io_error("complete", &marker);
    let mut file =
        OpenOptions::new().write(true).create_new(true).open(&marker).map_err(&failed)?;
    file.write_all(marker_text(kind, u64::from(FORMAT)).as_bytes()).map_err(&failed)?;
    file.sync_all().map_err(&failed)?;
    File::open(path).and_then(|folder| folder.sync_all()).map_err(failed)
}

fn lock(marker: &File, path: &Path) -> Result<()> {
    let locked = patiently(|| match marker.try_lock() {
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(source)) => Some(Err(io_error("lock", path)(source))),
        Ok(()) => Some(Ok(())),
    });
    locked.unwrap_or_else(|| Err(StorageError::InUse(path.to_owned())))
}

fn open_marker(path: &Path, owner: Owner) -> Result<File> {
    let marker = path.join(MARKER);
    let failed = io_error("open", &marker);
    let mut options = OpenOptions::new();
    options.read(true).write(true).append(true);
    if marker.symlink_metadata().is_ok() {
        return owner.open_with(&mut options, &marker).map_err(failed);
    }
    if fs::read_dir(path).map_err(&failed)?.next().is_some() {
        return Err(StorageError::NotOurs(path.to_owned()));
    }
    owner.open_with(options.create(true), &marker).map_err(failed)
}

fn marker_text(kind: Kind, format: u64) -> String {
    let kind = match kind {
        Kind::Objects => "objects",
        Kind::Config => "config",
    };
    format!("capstead {kind} format {format}\n")
}

/// The marker's meaning for the directory.
fn judge(path: &Path, kind: Kind, found: &[u8]) -> Result<Age> {
    let known = u64::from(FORMAT);
    let text = marker_text(kind, known);
    if found == text.as_bytes() {
        let data = path.join(DATA).exists();
        return if data {
            Ok(Age::Existing)
        } else {
            Err(StorageError::DataMissing(path.to_owned()))
        };
    }
    // The process crashed while the environment was being made: nothing was served from it.
    if text.as_bytes().starts_with(found) {
        return Ok(Age::New);
    }
    let number = std::str::from_utf8(found).ok().and_then(|found| {
        let number: u64 = found.trim_end().rsplit(' ').next()?.parse().ok()?;
        (found == marker_text(kind, number)).then_some(number)
    });
    match number {
        Some(found) => Err(StorageError::Format { found, known }),
        None => Err(StorageError::NotOurs(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn files(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    fn check(name: &str, content: &str, expected: impl Fn(&StorageError) -> bool) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name), content).unwrap();
        let before = files(dir.path());
        let error = EnvironmentDir::open(dir.path(), Kind::Objects).unwrap_err();
        assert!(expected(&error), "{error}");
        assert_eq!(files(dir.path()), before);
    }

    #[test]
    fn foreign_newer_and_half_lost_directories_are_refused_untouched() {
        use StorageError as E;
        check("data.mdb", "x", |error| matches!(error, E::NotOurs(_)));
        check("notes.txt", "", |error| matches!(error, E::NotOurs(_)));
        check(MARKER, "something else", |error| matches!(error, E::NotOurs(_)));
        check(MARKER, "capstead config format 4\n", |error| matches!(error, E::NotOurs(_)));
        check(MARKER, "capstead objects format 4\n", |error| matches!(error, E::DataMissing(_)));
        check(MARKER, "capstead objects format 23\n", |error| {
            matches!(error, E::Format { found: 23, known: 4 })
        });
    }

    #[test]
    fn a_file_is_no_directory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = EnvironmentDir::open(file.path(), Kind::Objects).unwrap_err();
        assert!(matches!(error, StorageError::NotADirectory(_)));
    }

    #[test]
    fn a_directory_has_one_user_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = EnvironmentDir::open(dir.path(), Kind::Objects).unwrap();
        let second = EnvironmentDir::open(dir.path(), Kind::Objects);
        assert!(matches!(second, Err(StorageError::InUse(_))));
        drop(first);
        EnvironmentDir::open(dir.path(), Kind::Objects).unwrap();
    }

    #[test]
    fn a_directory_whose_making_was_cut_short_is_new() {
        for text in ["", "capst"] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(MARKER), text).unwrap();
            let mut made = EnvironmentDir::open(dir.path(), Kind::Objects).unwrap();
            assert_eq!(made.age(), Age::New);
            made.complete().unwrap();
            let text = fs::read_to_string(dir.path().join(MARKER)).unwrap();
            assert_eq!(text, "capstead objects format 4\n");
        }
    }
}
