//! The file system under a directory: its free room, and the errors that mean it has none.
//!
//! LMDB reports a partial write as an error of the disk, and a page of a new file without a block
//! on disk ends in a signal. Both look like a broken disk, so no operator would think of making
//! room.

use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::storage::error::{Result, StorageError, io_error};

/// A disk with less free room can't take what the storage writes at once.
const FULL_BELOW_BYTES: u64 = 1 << 20;

/// The size of a file system, and its free room, in bytes.
pub(in crate::storage) struct Disk {
    pub(in crate::storage) total: u64,
    pub(in crate::storage) left: u64,
}

impl Disk {
    /// The file system of a directory or file.
    ///
    /// # Errors
    /// `Io` when the system can't say.
    pub(in crate::storage) fn of(path: &Path) -> Result<Self> {
        let stat = rustix::fs::statvfs(path)
            .map_err(|error| io_error("measure the disk of", path)(error.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Self { total: bytes(stat.f_blocks), left: bytes(stat.f_bavail) })
    }

    /// Checks that this many bytes can be written below a directory.
    ///
    /// # Errors
    /// `NoSpace`; `Io` when the system gives no answer.
    pub(in crate::storage) fn check_room(path: &Path, needed: u64) -> Result<()> {
        let left = Self::of(path)?.left;
        if left >= needed {
            return Ok(());
        }
        Err(StorageError::NoSpace { path: path.to_owned(), left, needed })
    }
}

/// The error of opening or writing an environment below `path`, or `NoSpace` if a full disk was its
/// cause, or `MapSize`.
pub(in crate::storage) fn explained(error: StorageError, path: &Path) -> StorageError {
    let source = match &error {
        StorageError::Io { source, .. } => Some(source),
        StorageError::Lmdb { source, .. } => source.downcast_ref::<io::Error>(),
        _ => None,
    };
    let code = source.and_then(io::Error::raw_os_error);
    if code == Some(Errno::NOMEM.raw_os_error()) {
        return StorageError::MapSize;
    }
    let is_full = source.is_some_and(is_full);
    if !is_full && code != Some(Errno::IO.raw_os_error()) {
        return error;
    }
    let full = if is_full { full(path, u64::MAX) } else { no_space(path) };
    full.unwrap_or(error)
}

/// Tells whether an error of the system says that the disk has no room.
pub(in crate::storage) fn is_full(error: &io::Error) -> bool {
    let full = [Errno::NOSPC, Errno::DQUOT].map(|errno| Some(errno.raw_os_error()));
    full.contains(&error.raw_os_error())
}

/// The error for a write below `path`, if its disk is full now.
pub(in crate::storage) fn no_space(path: &Path) -> Option<StorageError> {
    full(path, FULL_BELOW_BYTES)
}

fn full(path: &Path, below: u64) -> Option<StorageError> {
    let (left, needed) = (Disk::of(path).ok()?.left, FULL_BELOW_BYTES);
    (left < below).then(|| StorageError::NoSpace { path: path.to_owned(), left, needed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_with_room_is_not_called_full() {
        let dir = tempfile::tempdir().unwrap();
        let failed = |code: Errno| StorageError::Lmdb {
            action: "commit",
            source: Box::new(io::Error::from(code)),
        };
        let said = |error| explained(error, dir.path()).to_string();
        assert!(said(failed(Errno::IO)).contains("LMDB failed to commit"));
        assert!(said(failed(Errno::NOSPC)).contains("no space is left"));
        assert!(said(StorageError::MapFull).contains("--map-size"));
        Disk::check_room(dir.path(), 1).unwrap();
        let refused = Disk::check_room(dir.path(), u64::MAX).unwrap_err().to_string();
        assert!(refused.contains("18446744073709551615 are needed"), "{refused}");
    }
}
