//! The files of the log on one machine: segments, which are filled from the first to the last.
//!
//! Every block of a segment has been on the disk before the first entry goes into it. So a sync of
//! data alone makes an entry durable, since neither the length of the file nor its blocks change.
//! The next segment is made by a thread of its own while the present one fills; the first is small,
//! and each is twice as long as the one before, up to a limit.
//!
//! A segment that isn't needed any more becomes a spare one, and a spare one becomes the next: so a
//! log goes on when the disk is full. Entries name their segment, by which the bytes of an earlier
//! use are told from those of the present one.
//!
//! **Invariants:** nothing is written over an entry that the environment doesn't durably have, with
//! a later one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crate::storage::error::{Result, StorageError, io_error};
use crate::storage::lmdb::disk::{self, Disk};
use crate::storage::lmdb::owned::Owner;
use crate::storage::lmdb::watched::Watched;
use crate::storage::log::entry::{Entry, PAGE_BYTES};

const PREFIX: &str = "segment-";
/// Two, so that a log can go from one to the other and back.
const SPARES: [&str; 2] = ["spare-1", "spare-2"];
const FIRST_BYTES: u64 = 256 << 10;
/// The usual limit of their length.
pub(super) const BYTES_MAX: u64 = 32 << 20;
/// A segment takes at most this fraction of the free room, unless it is of the first length.
const ROOM_FRACTION: u64 = 16;
/// More than an entry takes beside its blocks: a head, the rest of a page, and a tail.
const BESIDE_BYTES: u64 = 3 * PAGE_BYTES as u64;
/// Only the server's own account may read or write the data.
const FILE_MODE: u32 = 0o600;
const ZEROS: &[u8] = &[0; 64 << 10];

/// The number of the first segment of every log.
pub(super) const FIRST: u64 = 1;

/// The segments of a log that is being written.
#[derive(Debug)]
pub(super) struct Segments {
    dir: PathBuf,
    /// The most bytes of a segment, unless one entry needs more.
    most: u64,
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
    /// Makes the first segment in `dir`, which must hold none but spare ones. None has more than
    /// `most` bytes, unless one entry needs more.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(super) fn begin(dir: &Path, most: u64) -> Result<Self> {
        let current = make(dir, FIRST, (0, FIRST_BYTES.min(most)))?;
        let next = make_ahead(dir, FIRST + 1, (current.bytes * 2).min(most))?;
        Ok(Self { dir: dir.to_owned(), most, current, next: Some(next) })
    }

    /// Finds the place for an entry of this many bytes, and a tail after it; returns the number of
    /// its segment. If no segment can be made, `release` is called, and has to give up all those
    /// before the present one.
    ///
    /// # Errors
    /// `Io`, `NoSpace`, or that of `release`: nothing was written, and nothing can be.
    pub(super) fn place(
        &mut self,
        bytes: u64,
        release: impl FnOnce() -> Result<()>,
    ) -> Result<u64> {
        let needed = bytes + PAGE_BYTES as u64;
        if self.current.bytes - self.current.at < needed {
            self.advance(needed, release)?;
        }
        Ok(self.current.number)
    }

    /// Tells whether the present segment has room for an entry with blocks of this many bytes.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.current.bytes - self.current.at >= bytes + BESIDE_BYTES
    }

    /// Makes the entry durable, at the place that was found for it.
    ///
    /// # Errors
    /// `Io`, `FileChanged`: it is unknown whether the disk has the entry, and no other may follow.
    pub(super) fn write(&mut self, entry: &Entry) -> Result<()> {
        let (bytes, segment) = (entry.as_bytes(), &mut self.current);
        let path = || path(&self.dir, segment.number);
        segment
            .file
            .write_all_at(bytes, segment.at)
            .and_then(|()| segment.file.sync_data())
            .map_err(|error| io_error("write", &path())(error))?;
        segment.watched.check()?;
        segment.at += bytes.len() as u64;
        Ok(())
    }

    /// Writes a tail after the last entry. It isn't synced: an entry that follows makes it useless,
    /// and is written over it.
    ///
    /// # Errors
    /// `Io`: no other entry may follow.
    pub(super) fn write_tail(&mut self, tail: &[u8; PAGE_BYTES]) -> Result<()> {
        let segment = &self.current;
        let written = segment.file.write_all_at(tail, segment.at);
        written.map_err(|error| io_error("write", &path(&self.dir, segment.number))(error))
    }

    /// The file that is being written.
    pub(super) fn watched(&self) -> &Arc<Watched> {
        &self.current.watched
    }

    /// Goes to the next segment with room for this many bytes.
    fn advance(&mut self, needed: u64, release: impl FnOnce() -> Result<()>) -> Result<()> {
        let number = self.current.number + 1;
        let Some(Ok(made)) = self.next.take().map(JoinHandle::join) else {
            return Err(StorageError::Panicked("no segment of the log was made".to_owned()));
        };
        self.current = match made {
            Ok(made) if made.bytes >= needed => made,
            Ok(_) => {
                give_up(&self.dir, number)?;
                match make(&self.dir, number, (needed, needed)) {
                    Err(StorageError::NoSpace { .. }) => self.released(number, needed, release)?,
                    made => made?,
                }
            }
            Err(StorageError::NoSpace { .. }) => self.released(number, needed, release)?,
            Err(error) => return Err(error),
        };
        let wanted = (self.current.bytes * 2).min(self.most);
        self.next = Some(make_ahead(&self.dir, number + 1, wanted)?);
        Ok(())
    }

    /// Makes a segment on a full disk, in the room of those that aren't needed.
    fn released(
        &self,
        number: u64,
        needed: u64,
        release: impl FnOnce() -> Result<()>,
    ) -> Result<Segment> {
        release()?;
        for (bytes, spare) in spares(&self.dir)? {
            if (1..needed).contains(&bytes) {
                fs::remove_file(&spare).map_err(io_error("remove", &spare))?;
            }
        }
        make(&self.dir, number, (needed, needed))
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
        let room = (room - room % FIRST_BYTES).max(FIRST_BYTES);
        make(&dir, number, (0, wanted.min(room)))
    };
    Builder::new().name(name.clone()).spawn(made).map_err(failed)
}

/// Makes a segment durably, of at least `needed` bytes, and of `wanted` if there is room.
fn make(dir: &Path, number: u64, (needed, wanted): (u64, u64)) -> Result<Segment> {
    let path = path(dir, number);
    let spare = spares(dir)?.into_iter().max().filter(|(bytes, _)| *bytes >= needed.max(1));
    let reuse = |spare: PathBuf| -> io::Result<(File, u64)> {
        // First, since another thread may give that name to a longer file at any time.
        fs::rename(&spare, &path)?;
        let mut options = OpenOptions::new();
        let file = Owner::ours().open_with(options.read(true).write(true), &path)?;
        // So that a segment begins with an entry of its own, or with none.
        file.write_all_at(&ZEROS[..PAGE_BYTES], 0)?;
        // A process that was killed may have left it without a sync.
        file.sync_all()?;
        let bytes = file.metadata()?.len();
        Ok((file, bytes))
    };
    let made = match spare {
        Some((bytes, spare)) if bytes >= wanted => reuse(spare),
        spare => match (create(&path, wanted), spare) {
            (Err(error), Some((_, spare))) if disk::is_full(&error) => reuse(spare),
            (created, _) => created.map(|file| (file, wanted)),
        },
    };
    let made = made.and_then(|made| File::open(dir)?.sync_all().map(|()| made));
    let explained = |error| disk::explained(io_error("make", &path)(error), dir);
    let (file, bytes) = made.map_err(explained)?;
    Ok(Segment { number, file, bytes, at: 0, watched: Watched::new([path])? })
}

/// A new file of zeros, all of whose blocks are on the disk.
fn create(path: &Path, bytes: u64) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(FILE_MODE);
    let file = Owner::ours().open_with(&mut options, path)?;
    let fill = || {
        let mut at = 0;
        while at < bytes {
            let length = (bytes - at).min(ZEROS.len() as u64);
            file.write_all_at(&ZEROS[..length as usize], at)?;
            at += length;
        }
        file.sync_all()
    };
    match fill() {
        Ok(()) => Ok(file),
        Err(error) => {
            // A part of it is of no use, and takes room.
            let _ = fs::remove_file(path);
            Err(error)
        }
    }
}

/// The path of a segment.
pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{number}"))
}

/// The numbers of the segments in `dir`, in their order, without spare ones.
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

/// All files of the log in `dir`, with the spare ones.
///
/// # Errors
/// `Io`.
pub(crate) fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let segments = list(dir)?.into_iter().map(|number| path(dir, number));
    let spares = spares(dir)?.into_iter().filter(|(bytes, _)| *bytes > 0);
    Ok(segments.chain(spares.map(|(_, path)| path)).collect())
}

/// Makes the spare segments that are missing, so that a log can begin on a disk that is full by
/// then. If it is full now, they are left out.
///
/// # Errors
/// `Io`.
pub(super) fn make_spares(dir: &Path) -> Result<()> {
    for (bytes, path) in spares(dir)? {
        if bytes > 0 {
            continue;
        }
        // A process that was killed may have left it empty.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &path)(error));
            }
            _ => {}
        }
        match create(&path, FIRST_BYTES) {
            Ok(_) => {}
            Err(error) if disk::is_full(&error) => return Ok(()),
            Err(error) => return Err(io_error("make", &path)(error)),
        }
    }
    Ok(())
}

/// Gives up the segments with smaller numbers than `first`: two become spare ones.
///
/// # Errors
/// `Io`: some may be left.
pub(super) fn give_up_before(dir: &Path, first: u64) -> Result<()> {
    let numbers = list(dir)?.into_iter().take_while(|number| *number < first);
    numbers.into_iter().try_for_each(|number| give_up(dir, number))
}

fn give_up(dir: &Path, number: u64) -> Result<()> {
    let path = path(dir, number);
    let bytes = fs::symlink_metadata(&path).map_err(io_error("look at", &path))?.len();
    let place = spares(dir)?.into_iter().min().filter(|(shorter, _)| *shorter < bytes);
    match place {
        Some((_, place)) if bytes <= BYTES_MAX => {
            fs::rename(&path, place).map_err(io_error("rename", &path))
        }
        _ => fs::remove_file(&path).map_err(io_error("remove", &path)),
    }
}

/// The places of spare segments, each with the bytes that are there.
fn spares(dir: &Path) -> Result<[(u64, PathBuf); SPARES.len()]> {
    let mut places = SPARES.map(|name| (0, dir.join(name)));
    for (bytes, path) in &mut places {
        match fs::symlink_metadata(&*path) {
            Ok(found) => *bytes = found.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("look at", path)(error)),
        }
    }
    Ok(places)
}
