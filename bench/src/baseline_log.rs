//! A bare log: the bytes of a group commit, appended to a file whose blocks are on the disk, with
//! one data sync. It is the least that a durable write can cost.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::measure::{Sample, Until, drive_here};
use capstead::Result;

/// The file's length in bytes; after the last page comes the first again.
const FILE_BYTES: u64 = 16 << 20;
/// Appends are whole pages.
const PAGE_BYTES: usize = 4_096;
/// An entry's header, in bytes.
const HEAD_BYTES: usize = 104;
/// Bytes that a put adds to its key and value: headers of its block, write set and write.
const OBJECT_BYTES: usize = 63;

/// A preallocated file that is written from front to back, again and again.
pub(crate) struct BareLog {
    file: File,
    at: Cell<u64>,
}

impl BareLog {
    /// Makes the file in an empty directory.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::create(path.join("log"))?;
        let zeros = vec![0; PAGE_BYTES];
        for at in (0..FILE_BYTES).step_by(PAGE_BYTES) {
            file.write_all_at(&zeros, at)?;
        }
        file.sync_all()?;
        Ok(Self { file, at: Cell::new(0) })
    }

    /// Appends a put to each object, all with one sync; the sample counts syncs.
    ///
    /// # Errors
    /// When the file can't be written.
    pub(crate) fn append_puts(
        &self,
        objects: &[([u8; 2], [u8; 16])],
        key: &[u8],
        value_bytes: usize,
        until: Until,
    ) -> Result<Sample> {
        drive_here(until, |n| {
            let mut bytes = vec![n as u8; HEAD_BYTES];
            for (shard, id) in objects {
                bytes.extend_from_slice(shard);
                bytes.extend_from_slice(id);
                bytes.extend_from_slice(key);
                bytes.resize(bytes.len() + OBJECT_BYTES + value_bytes, n as u8);
            }
            bytes.resize(bytes.len().next_multiple_of(PAGE_BYTES), 0);
            let length = bytes.len() as u64;
            let at = if self.at.get() + length > FILE_BYTES { 0 } else { self.at.get() };
            self.at.set(at + length);
            self.file.write_all_at(&bytes, at)?;
            Ok(self.file.sync_data()?)
        })
    }
}
