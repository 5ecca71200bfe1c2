//! Files that must not be changed from outside while they are in use: their names lead to them, and
//! they don't get shorter.
//!
//! A file that was replaced or unlinked still accepts writes, and all of these are missing after a
//! restart. So code that acknowledges a write checks the files first.

use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::storage::error::io_error;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::disk;

/// All watched files of the process. A handler uses them to explain why a page can't be read.
static ALL: Mutex<Vec<Weak<Watched>>> = Mutex::new(Vec::new());

/// Some files as they were when first seen.
pub(crate) struct Watched(Vec<File>);

struct File {
    path: PathBuf,
    identity: (u64, u64),
    /// The greatest length seen so far.
    bytes: AtomicU64,
}

impl Watched {
    /// # Errors
    /// `Io` when a file can't be inspected.
    pub(crate) fn new(paths: impl IntoIterator<Item = PathBuf>) -> Result<Arc<Self>> {
        let file = |path: PathBuf| {
            let found = fs::metadata(&path).map_err(io_error("look at", &path))?;
            Ok(File { identity: identity(&found), bytes: AtomicU64::new(found.len()), path })
        };
        let watched = Arc::new(Self(paths.into_iter().map(file).collect::<Result<_>>()?));
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|watched| watched.strong_count() > 0);
        all.push(Arc::downgrade(&watched));
        Ok(watched)
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.0.iter().map(|file| file.path.clone()).collect()
    }

    /// # Errors
    /// `FileChanged` when a file was replaced, is gone or got shorter; `Io` when one can't be
    /// inspected.
    pub(crate) fn check(&self) -> Result<()> {
        self.0.iter().try_for_each(File::check)
    }
}

/// The change to one of the process's watched files, if there is one.
pub(crate) fn file_changed() -> Option<StorageError> {
    let all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().filter_map(Weak::upgrade).find_map(|watched| watched.check().err())
}

/// The full disk of one of the process's watched files, if there is one.
pub(crate) fn no_space() -> Option<StorageError> {
    let all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    let files = all.iter().filter_map(Weak::upgrade);
    files.flat_map(|watched| watched.paths()).find_map(|path| disk::no_space(&path))
}

impl File {
    fn check(&self) -> Result<()> {
        let changed = |what| Err(StorageError::FileChanged { path: self.path.clone(), what });
        let found = match fs::metadata(&self.path) {
            Ok(found) => found,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return changed("is gone");
            }
            Err(error) => return Err(io_error("look at", &self.path)(error)),
        };
        if identity(&found) != self.identity {
            return changed("was replaced by another one");
        }
        // Several threads check, and a late one may hold a length from before the file grew.
        let seen = self.bytes.load(Ordering::Acquire);
        if found.len() < seen && fs::metadata(&self.path).is_ok_and(|found| found.len() < seen) {
            return changed("was cut short");
        }
        self.bytes.fetch_max(found.len(), Ordering::AcqRel);
        Ok(())
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|file| &file.path)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_replaced_gone_or_cut_short_is_named() {
        let change: [(fn(&std::path::Path), _); 3] = [
            (|path| fs::remove_file(path).unwrap(), "is gone"),
            (
                |path| {
                    fs::copy(path, path.with_extension("new")).unwrap();
                    fs::rename(path.with_extension("new"), path).unwrap();
                },
                "was replaced",
            ),
            (
                |path| fs::File::options().write(true).open(path).unwrap().set_len(1).unwrap(),
                "cut short",
            ),
        ];
        for (change, what) in change {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("file");
            fs::write(&path, "four").unwrap();
            let watched = Watched::new([path.clone()]).unwrap();
            fs::write(&path, "longer").unwrap();
            watched.check().unwrap();
            change(&path);
            let error = watched.check().unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("/file\""), "{error}");
        }
    }
}
