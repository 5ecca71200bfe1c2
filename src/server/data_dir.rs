//! The data directory: its layout, who may use it, and whether this version can read it.
//!
//! ```text
//! capstead.data/           mode 0700 unless it was there before
//!   lock                   held by the process that uses the directory; made first
//!   keys/cluster           the cluster's identity (32 bytes, hex), mode 0600
//!   keys/signing-1 …       the keys that sign references, likewise; the highest number signs
//!   supervisor/            the placement
//!   host-0/ host-1/ …      the objects of each host
//!   importing              of which archives an import began that has not ended, if there are any
//!   admin.sock             where a server listens for its operator, while it serves
//!   format                 "capstead data 1"; has its name once all else is on disk
//! ```
//!
//! The directory is made and restored in place, because a mount point can't be renamed over. From
//! before the first part is made until after `format` has its name, `lock` says that the directory
//! is being made or restored. The remains of an unfinished making are removed and made anew. Those
//! of an unfinished restore are refused by servers and tools, because a fresh cluster in the place
//! of a restored one would look like lost data; the next `capstead restore` removes them.
//!
//! **Invariants:** only the holder of the lock changes the directory. Parts are removed only where
//! `lock` says that they were never finished. A directory that can't be used is left exactly as it
//! was found: every part is checked before the first one is opened.

mod importing;
mod keys;
mod making;
mod private;
mod watching;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::error::ServerError;
use crate::storage::lmdb::owned::{open_regular, patiently};
use crate::storage::{self, Access, Kind, Owner, StorageError};
use crate::sturdyref::KeyRing;
pub(super) use importing::ImportMark;
pub(super) use keys::Signing;
use making::{DirStage, begin, finish, found, remove_unfinished, unrestored};
pub(crate) use private::Group;
use private::Trust;
use watching::Watch;

const FORMAT: &str = "capstead data 1\n";
const FORMAT_PREFIX: &str = "capstead data ";
const FORMAT_FILE: &str = "format";
/// The file in which the format is written before it gets its name.
const FORMAT_NEW: &str = "format.new";
const LOCK_FILE: &str = "lock";
/// The text of the lock while the directory is made; it is empty before and afterwards.
const BEING_MADE: &str = "this data directory of capstead is being made\n";
/// The text of the lock while a backup is restored into the directory.
const BEING_RESTORED: &str = "this data directory of capstead is being restored\n";
const KEYS: &str = "keys";
const SUPERVISOR: &str = "supervisor";
const ADMIN_SOCKET: &str = "admin.sock";
const HOST_PREFIX: &str = "host-";
const MAKING: &str = "make the data directory";

/// The files with a cluster's keys: name and content.
pub(crate) type Secrets = Vec<(String, Zeroizing<Vec<u8>>)>;

/// A data directory that this process alone uses, until this is dropped.
#[derive(Debug)]
pub(super) struct DataDir {
    root: PathBuf,
    made: Made,
    trust: Trust,
    /// Begun for a directory that is served.
    watch: Watch,
    lock: File,
}

/// Tells which parts of a directory were made when it was opened.
#[derive(Clone, Copy, Debug, Default)]
struct Made {
    root: bool,
    /// The mark in the lock while they were made.
    parts: Option<&'static str>,
}

impl DataDir {
    /// Opens the directory, and makes it first if it isn't there or is empty.
    ///
    /// # Errors
    /// - When it is in use, not ours, of a newer format, incomplete or damaged: it is unchanged.
    /// - When it can't be made: the next start removes what exists of it.
    pub(super) fn open(root: &Path, hosts: u16, group: Group) -> Result<Self, ServerError> {
        let made = Made { root: make_root(root)?, parts: None };
        let trust = Trust::of(root, Access::Full, group);
        private::check_folder(root, trust)?;
        let lock = lock(root)?;
        let mut dir = Self { root: root.to_owned(), made, trust, watch: Watch::default(), lock };
        match found(root)? {
            DirStage::Whole => {}
            DirStage::Nothing | DirStage::Unmade => {
                dir.made.parts = Some(BEING_MADE);
                let begun = begin(root, BEING_MADE, hosts, keys::make);
                if let Err(error) = begun.and_then(|()| finish(root)) {
                    dir.unmake();
                    return Err(error);
                }
            }
            DirStage::Unrestored => return Err(unrestored(root)),
        }
        check_format(root, trust.owner)?;
        dir.check_parts(hosts)?;
        // A crash may have come after the directory was whole but before the lock said so.
        if !lock_text(root)?.is_empty() {
            say(root, "").map_err(failed(root, MAKING))?;
        }
        dir.watch.begin(root)?;
        Ok(dir)
    }

    /// Resolves when another process has changed a file that only the holder of the lock may
    /// change. The hosts watch their own files.
    pub(super) async fn changed(&self) -> Arc<StorageError> {
        self.watch.changed().await
    }

    /// Opens the directory if it was made before; none if a server uses it.
    ///
    /// # Errors
    /// When there is none, or it is not ours, of a newer format, incomplete or damaged: it is
    /// unchanged.
    pub(super) fn existing(
        root: &Path,
        access: Access,
        group: Group,
    ) -> Result<Option<(Self, u16)>, ServerError> {
        let foreign = "is no data directory of Capstead; say which with --data";
        match fs::symlink_metadata(root.join(LOCK_FILE)) {
            Ok(lock) if lock.is_file() => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(denied(root));
            }
            _ => return Err(data(root, foreign)),
        }
        let trust = Trust::of(root, access, group);
        let Some(lock) = try_lock(root)? else { return Ok(None) };
        private::check_folder(root, trust)?;
        let (root, made) = (root.to_owned(), Made::default());
        let dir = Self { root, made, trust, watch: Watch::default(), lock };
        let root = &*dir.root;
        match found(root)? {
            DirStage::Whole => {}
            DirStage::Nothing | DirStage::Unmade => {
                let reason = "was never finished; start a server on it, which makes it anew";
                return Err(data(root, reason));
            }
            DirStage::Unrestored => return Err(unrestored(root)),
        }
        check_format(root, trust.owner)?;
        let is_there = |number: &u16| host(root, *number).symlink_metadata().is_ok();
        let hosts = (0..u16::MAX).take_while(is_there).count() as u16;
        dir.check_parts(hosts.max(1))?;
        Ok(Some((dir, hosts)))
    }

    /// Checks, without changing anything, that a backup can be restored into the directory: it must
    /// be absent, empty, or hold only the remains of a start or a restore that was cut short.
    ///
    /// # Errors
    /// When it holds anything else.
    pub(super) fn check_restorable(root: &Path) -> Result<(), ServerError> {
        let is_there = root.try_exists().map_err(failed(root, "look into the directory"))?;
        let has_names = is_there && !names(root)?.is_empty();
        let is_taken = || !matches!(found(root), Ok(found) if found != DirStage::Whole);
        if has_names && (!root.join(LOCK_FILE).is_file() || is_taken()) {
            return Err(data(root, "is not empty; choose a new directory"));
        }
        Ok(())
    }

    /// Begins to restore an earlier cluster, with these keys and without objects. Until
    /// [`DataDir::finish_restore`], every attempt to open the directory is refused.
    ///
    /// # Errors
    /// - When it holds something else: it is unchanged.
    /// - When it can't be made.
    pub(super) fn begin_restore(
        root: &Path,
        hosts: u16,
        secrets: &Secrets,
    ) -> Result<Self, ServerError> {
        Self::check_restorable(root)?;
        let made = Made { root: make_root(root)?, parts: Some(BEING_RESTORED) };
        let trust = Trust::of(root, Access::Full, Group::Stranger);
        private::check_owner(root, trust)?;
        let lock = lock(root)?;
        let dir = Self { root: root.to_owned(), made, trust, watch: Watch::default(), lock };
        // Checked again, now that no other process can change it.
        Self::check_restorable(root)?;
        let begun = begin(root, BEING_RESTORED, hosts, |path| keys::put(path, secrets))
            .and_then(|()| dir.keys().map(drop));
        match begun {
            Ok(()) => Ok(dir),
            Err(error) => {
                dir.unmake();
                Err(error)
            }
        }
    }

    /// Marks the restore as finished, durably: from now on this is an ordinary data directory.
    ///
    /// # Errors
    /// When that can't be written: the mark may or may not be there.
    pub(super) fn finish_restore(&self) -> Result<(), ServerError> {
        finish(&self.root)
    }

    /// Removes what was made since the directory was opened, if it was made then: nothing has used
    /// it yet. The next attempt removes what stays.
    pub(super) fn unmake(&self) {
        let Some(mark) = self.made.parts else { return };
        let unmake = || {
            if self.root.join(FORMAT_FILE).exists() {
                say(&self.root, mark)?;
                fs::remove_file(self.root.join(FORMAT_FILE))?;
            }
            remove_unfinished(&self.root)?;
            fs::remove_file(self.root.join(LOCK_FILE))?;
            if self.made.root { fs::remove_dir(&self.root) } else { Ok(()) }
        };
        if let Err(error) = unmake() {
            let path = self.root.display();
            tracing::warn!(%error, %path, "a part of what was made is left: the next attempt removes it");
        }
    }

    /// Tells whether an import of the archive with this hash began and has not ended.
    ///
    /// # Errors
    /// When that can't be read.
    pub(super) fn is_importing(&self, archive: &[u8]) -> Result<bool, ServerError> {
        importing::is_marked(&self.root, archive)
    }

    /// Records durably whether the archive is being imported. Marks of other archives stay as they
    /// are.
    ///
    /// # Errors
    /// When there are too many marks, or this one can't be written: the old or the new state is on
    /// disk.
    pub(super) fn mark_import(&self, hash: &[u8], state: ImportMark) -> Result<(), ServerError> {
        importing::mark(&self.root, hash, state)
    }

    /// The files with the keys.
    ///
    /// # Errors
    /// When one can't be read.
    pub(super) fn secrets(&self) -> Result<Secrets, ServerError> {
        private::check_folder(&self.root, self.trust)?;
        keys::secrets(&self.root.join(KEYS), self.trust)
    }

    /// The device and inode number of the held lock; see [`identity`].
    ///
    /// # Errors
    /// When the system can't say.
    pub(super) fn identity(&self) -> io::Result<(u64, u64)> {
        self.lock.metadata().map(|lock| (lock.dev(), lock.ino()))
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Checks all parts first, because opening one would change it before another is refused.
    fn check_parts(&self, hosts: u16) -> Result<(), ServerError> {
        for (part, kind) in parts(&self.root, hosts) {
            if !part.is_dir() {
                return Err(data(
                    &part,
                    "is missing; start with the number of --hosts that the data were made with, or, \
                     if that was this one, restore the directory from a backup",
                ));
            }
            private::check_below(&part, self.trust)?;
            let owner = self.trust.owner;
            storage::check(&part, kind, owner).map_err(|error| data(&part, error.to_string()))?;
            let of_log =
                storage::log_files(&part).map_err(|error| data(&part, error.to_string()))?;
            let mut files = of_log.into_iter().chain([part.join(storage::DATA)]);
            files.try_for_each(|file| private::check_below(&file, self.trust))?;
        }
        self.keys().map(drop)
    }

    /// The user who owns all of it.
    pub(super) fn owner(&self) -> Owner {
        self.trust.owner
    }

    pub(super) fn host(&self, number: u16) -> PathBuf {
        host(&self.root, number)
    }

    pub(super) fn supervisor(&self) -> PathBuf {
        self.root.join(SUPERVISOR)
    }

    /// # Errors
    /// When a key is missing or damaged.
    pub(super) fn keys(&self) -> Result<KeyRing, ServerError> {
        keys::ring(&self.root.join(KEYS), self.trust)
    }

    /// The keys that sign, the oldest first: at least one.
    ///
    /// # Errors
    /// When one is damaged, none is there, or others can reach any key, as at a start.
    pub(super) fn signing_keys(&self) -> Result<Vec<Signing>, ServerError> {
        private::check_folder(&self.root, self.trust)?;
        self.keys()?;
        keys::signing(&self.root.join(KEYS), self.trust)
    }

    /// Changes the files of the keys by [`Signing::add`], `replace` or `remove`. The watch over the
    /// files knows that it is our own change.
    ///
    /// # Errors
    /// Those of `change`.
    pub(super) fn change_keys(
        &self,
        change: impl FnOnce(&Path) -> Result<(), ServerError>,
    ) -> Result<(), ServerError> {
        let changed = change(&self.root.join(KEYS));
        self.watch.renew(&self.root)?;
        changed
    }
}

/// The socket on which a server that uses the directory listens for its operator.
pub(super) fn admin_socket(root: &Path) -> PathBuf {
    root.join(ADMIN_SOCKET)
}

/// The owner of the directory, who must own everything in it.
pub(super) fn owner_of(root: &Path) -> io::Result<Owner> {
    fs::metadata(root).map(|metadata| Owner::of(&metadata))
}

/// The directory as its server and its operator know it: the device and inode number of its lock.
pub(super) fn identity(root: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(root.join(LOCK_FILE)).map(|lock| (lock.dev(), lock.ino()))
}

fn host(root: &Path, number: u16) -> PathBuf {
    root.join(format!("{HOST_PREFIX}{number}"))
}

/// Every part that is an environment, with its kind.
fn parts(root: &Path, hosts: u16) -> impl Iterator<Item = (PathBuf, Kind)> {
    let hosts = (0..hosts).map(|number| (host(root, number), Kind::Objects));
    hosts.chain([(root.join(SUPERVISOR), Kind::Config)])
}

fn data(path: &Path, reason: impl Into<String>) -> ServerError {
    ServerError::Data { path: path.to_owned(), reason: reason.into() }
}

fn failed(path: &Path, doing: &str) -> impl Fn(io::Error) -> ServerError {
    move |error| data(path, format!("can't {doing}: {error}"))
}

/// The error for a directory that this process may not even list.
fn denied(root: &Path) -> ServerError {
    data(root, "can't be looked into (permission denied): run this as the owner of the directory")
}

fn foreign(root: &Path) -> ServerError {
    data(root, "is not empty and not a data directory of Capstead; choose another with --data")
}

/// The names in the directory, except the one that every fresh file system of Linux has. A name
/// that is not valid text is none of ours, whatever its bytes.
fn names(root: &Path) -> Result<Vec<String>, ServerError> {
    let entries = fs::read_dir(root).and_then(|entries| {
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .filter(|name: &io::Result<String>| !matches!(name, Ok(name) if name == "lost+found"))
            .collect()
    });
    entries.map_err(failed(root, "read the data directory"))
}

/// Makes the directory if it is missing, and tells whether it did.
fn make_root(root: &Path) -> Result<bool, ServerError> {
    match DirBuilder::new().mode(0o700).create(root) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(failed(root, "make the data directory in its parent")(error)),
    }
}

/// Takes the lock; makes its file first where the directory is empty, and nowhere else.
fn lock(root: &Path) -> Result<File, ServerError> {
    let in_use = "is in use by another process; stop that one, or choose another with --data";
    let taken = patiently(|| try_lock(root).transpose());
    taken.unwrap_or_else(|| Err(data(root, in_use)))
}

/// Takes the lock as `lock` does; none if another process has it.
fn try_lock(root: &Path) -> Result<Option<File>, ServerError> {
    let path = root.join(LOCK_FILE);
    let names = names(root)?;
    let mut options = OpenOptions::new();
    options.read(true);
    if names.is_empty() {
        options.write(true).create(true).mode(0o600);
    } else if path.symlink_metadata().is_err() {
        // Looked up again: another process may have made it since, and everything else after it.
        let is_ours = names.iter().any(|name| name == FORMAT_FILE);
        let reason = "is missing; restore the directory from a backup";
        return Err(if is_ours { data(&path, reason) } else { foreign(root) });
    }
    let file = owner_of(root)
        .and_then(|owner| owner.open_with(&mut options, &path))
        .map_err(failed(&path, "open the lock"))?;
    match file.try_lock() {
        // Its previous holder may have removed the file, and then the lock keeps no process out.
        Ok(()) => Ok(Some(file).filter(|file| is_at(file, &path))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(failed(&path, "take the lock")(error)),
    }
}

/// Tells whether this name still leads to the file.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let (ours, named) = (file.metadata().map(identity), fs::metadata(path).map(identity));
    matches!((ours, named), (Ok(ours), Ok(named)) if ours == named)
}

/// The text of the lock. It reads slightly more than the longest text of ours.
fn lock_text(root: &Path) -> Result<Vec<u8>, ServerError> {
    let path = root.join(LOCK_FILE);
    let most = BEING_RESTORED.len() as u64 + 1;
    let mut text = Vec::new();
    let file = open_regular(OpenOptions::new().read(true), &path);
    let read = file.and_then(|file| file.take(most).read_to_end(&mut text));
    read.map_err(failed(&path, "read the lock"))?;
    Ok(text)
}

/// Writes `text` into the lock, durably.
fn say(root: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = open_regular(options.write(true).truncate(true), &root.join(LOCK_FILE))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn check_format(root: &Path, owner: Owner) -> Result<(), ServerError> {
    let (path, mut format) = (root.join(FORMAT_FILE), String::new());
    let most = 2 * FORMAT.len() as u64;
    let read = owner.open(&path).and_then(|file| file.take(most).read_to_string(&mut format));
    match read.map(|_| format) {
        Ok(format) if format == FORMAT => Ok(()),
        Ok(format) if format.starts_with(FORMAT_PREFIX) => Err(data(
            root,
            format!(
                "was written by another version (it says {:?}, this version reads {:?}); use that \
                 version",
                format.trim_end(),
                FORMAT.trim_end()
            ),
        )),
        Ok(_) => Err(data(&path, "is damaged; restore the directory from a backup")),
        Err(error) => Err(failed(&path, "read the format")(error)),
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn write_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

#[cfg(test)]
mod tests;
