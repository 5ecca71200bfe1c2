//! The files of the log on one machine: segments, which are filled from the first to the last.
//!
//! A segment is written with zeros and synced before the first entry goes into it. So a sync of
//! data alone makes an entry durable, since neither the length of the file nor its blocks change.
//! The next segment is made by a thread of its own while the present one fills; the first is small,
//! and each is twice as long as the one before, up to a limit.
//!
//! **Invariants:** nothing is written over an entry. A segment is removed only when the environment
//! durably has every entry in it and a later one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crate::storage::error::{Result, StorageError, io_error};
use crate::storage::lmdb::disk::Disk;
use crate::storage::lmdb::owned::Owner;
use crate::storage::lmdb::watched::Watched;
use crate::storage::log::entry::Entry;

const PREFIX: &str = "segment-";
const FIRST_BYTES: u64 = 1 << 20;
const BYTES_MAX: u64 = 32 << 20;
/// A segment takes at most this fraction of the free room, unless it is of the first length.
const ROOM_FRACTION: u64 = 16;
/// Only the server's own account may read or write the data.
const FILE_MODE: u32 = 0o600;
const ZEROS: &[u8] = &[0; 64 << 10];

/// The number of the first segment of every log.
pub(super) const FIRST: u64 = 1;

/// The segments of a log that is being written.
#[derive(Debug)]
pub(super) struct Segments {
    dir: PathBuf,
    current: Segment,
    /// Makes the next one; `None` only while they are exchanged.
    next: Option<JoinHandle<Result<Segment>>>,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    file: File,
    bytes: u64,
    /// The end of its last entry.
    at: u64,
    watched: Arc<Watched>,
}

impl Segments {
    /// Makes the first segment in `dir`, which must hold none.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(super) fn begin(dir: &Path) -> Result<Self> {
        let current = make(dir, FIRST, FIRST_BYTES)?;
        let next = make_ahead(dir, FIRST + 1, FIRST_BYTES * 2)?;
        Ok(Self { dir: dir.to_owned(), current, next: Some(next) })
    }

    /// Makes the entry durable; returns the number of its segment.
    ///
    /// # Errors
    /// `Io`, `NoSpace`, `FileChanged`: it is unknown whether the disk has the entry, and no other
    /// may follow.
    pub(super) fn append(&mut self, entry: &Entry) -> Result<u64> {
        let bytes = entry.as_bytes();
        if self.current.bytes - self.current.at < bytes.len() as u64 {
            self.advance(bytes.len() as u64)?;
        }
        let segment = &mut self.current;
        let path = || path(&self.dir, segment.number);
        segment
            .file
            .write_all_at(bytes, segment.at)
            .and_then(|()| segment.file.sync_data())
            .map_err(|error| io_error("write", &path())(error))?;
        segment.watched.check()?;
        segment.at += bytes.len() as u64;
        Ok(segment.number)
    }

    /// Goes to the next segment with room for this many bytes.
    fn advance(&mut self, needed: u64) -> Result<()> {
        let made = self.next.take().map(JoinHandle::join);
        let Some(Ok(made)) = made else {
            return Err(StorageError::Panicked("no segment of the log was made".to_owned()));
        };
        let made = made?;
        self.current =
            if made.bytes >= needed { made } else { make(&self.dir, made.number + 1, needed)? };
        let number = self.current.number + 1;
        self.next = Some(make_ahead(&self.dir, number, self.current.bytes * 2)?);
        Ok(())
    }
}

impl Drop for Segments {
    /// The directory may be given away afterwards, so nothing is made in it any more.
    fn drop(&mut self) {
        if let Some(next) = self.next.take() {
            let _ = next.join();
        }
    }
}

fn make_ahead(dir: &Path, number: u64, wanted: u64) -> Result<JoinHandle<Result<Segment>>> {
    let dir = dir.to_owned();
    let name = "log-segments".to_owned();
    let failed = io_error("start the thread", Path::new(&name));
    let made = move || {
        let room = Disk::of(&dir).map_or(0, |disk| disk.left / ROOM_FRACTION);
        let room = room - room % FIRST_BYTES;
        make(&dir, number, wanted.min(BYTES_MAX).min(room.max(FIRST_BYTES)))
    };
    Builder::new().name(name.clone()).spawn(made).map_err(failed)
}

/// Makes a segment of this many bytes, durably.
fn make(dir: &Path, number: u64, bytes: u64) -> Result<Segment> {
    let path = path(dir, number);
    let made = || -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(FILE_MODE);
        let file = Owner::ours().open_with(&mut options, &path)?;
        let mut at = 0;
        while at < bytes {
            let length = (bytes - at).min(ZEROS.len() as u64);
            file.write_all_at(&ZEROS[..length as usize], at)?;
            at += length;
        }
        file.sync_all()?;
        File::open(dir)?.sync_all()?;
        Ok(file)
    };
    let file = made().map_err(io_error("make", &path))?;
    Ok(Segment { number, file, bytes, at: 0, watched: Watched::new([path])? })
}

/// The path of a segment.
pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{number}"))
}

/// The numbers of the segments in `dir`, in their order.
///
/// # Errors
/// `Io`.
pub(super) fn list(dir: &Path) -> Result<Vec<u64>> {
    let failed = io_error("list", dir);
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(&failed)? {
        let name = entry.map_err(&failed)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        numbers.extend(number.filter(|number| path(dir, *number).ends_with(&name)));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Removes the segments with smaller numbers than `first`.
///
/// # Errors
/// `Io`: some may be left.
pub(super) fn remove_before(dir: &Path, first: u64) -> Result<()> {
    for number in list(dir)?.into_iter().take_while(|number| *number < first) {
        let path = path(dir, number);
        fs::remove_file(&path).map_err(io_error("remove", &path))?;
    }
    Ok(())
}
