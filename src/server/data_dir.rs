//! The data directory: what lies where, who may use it, and whether this version can read it.
//!
//! ```text
//! capstead.data/           mode 0700 unless it was there before
//!   lock                   held by the process that uses the directory; made first
//!   keys/cluster           the cluster's identity (32 bytes, hex), mode 0600
//!   keys/signing-1 …       the keys that sign references, likewise; the highest number signs
//!   supervisor/            the placement
//!   host-0/ host-1/ …      the objects of each host
//!   admin.sock             where a server listens for its operator, while it serves
//!   format                 "capstead data 1"; has its name once all else is on disk
//! ```
//!
//! It is made in place, because a mount point can't be renamed over. From before the first part is
//! made until after `format` has its name, `lock` says that the directory is being made.
//!
//! **Invariants:** only the holder of the lock changes the directory. Parts are removed only where
//! `lock` says that they were never finished. A directory that can't be used is left exactly as it
//! was found: every part is looked at before the first one is opened.

mod keys;
mod private;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::builder::ServerError;
use crate::storage::{self, Kind, StorageError};
use crate::sturdyref::KeyRing;
pub(super) use keys::Signing;

const FORMAT: &str = "capstead data 1\n";
const FORMAT_PREFIX: &str = "capstead data ";
const FORMAT_FILE: &str = "format";
/// Where the format is written before it gets its name.
const FORMAT_NEW: &str = "format.new";
const LOCK_FILE: &str = "lock";
/// What the lock says while the directory is made; it is empty before and afterwards.
const BEING_MADE: &str = "this data directory of capstead is being made\n";
const KEYS: &str = "keys";
const SUPERVISOR: &str = "supervisor";
const ADMIN_SOCKET: &str = "admin.sock";
const HOST_PREFIX: &str = "host-";
const MAKING: &str = "make the data directory";

/// The files with a cluster's keys, by name: what they hold.
pub(crate) type Secrets = Vec<(String, Zeroizing<Vec<u8>>)>;

/// A data directory that this process alone uses, until this is dropped.
#[derive(Debug)]
pub(super) struct DataDir {
    root: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Opens the directory, and makes it first if it isn't there or is empty.
    ///
    /// # Errors
    /// When it is in use, not ours, of a newer format, incomplete or damaged: it is as it was then.
    /// When it can't be made: what there is of it is removed by the next start.
    pub(super) fn open(root: &Path, hosts: u16) -> Result<Self, ServerError> {
        match DirBuilder::new().mode(0o700).create(root) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(root, "make the data directory in its parent")(error));
            }
            _ => {}
        }
        private::check_folder(root)?;
        let lock = lock(root)?;
        let dir = Self { root: root.to_owned(), _lock: lock };
        if needs_making(root)? {
            create(root, hosts, keys::make)?;
        }
        check_format(root)?;
        dir.check_parts(hosts)?;
        // A crash may have come after the directory was whole and before the lock said so.
        if lock_text(root)? == BEING_MADE.as_bytes() {
            say(root, "").map_err(failed(root, MAKING))?;
        }
        Ok(dir)
    }

    /// Opens the directory if it was made before; none if a server uses it.
    ///
    /// # Errors
    /// When there is none, or it is not ours, of a newer format, incomplete or damaged: it is as it was.
    pub(super) fn existing(root: &Path) -> Result<Option<(Self, u16)>, ServerError> {
        if !root.join(LOCK_FILE).is_file() {
            return Err(data(root, "is no data directory of Capstead; say which with --data"));
        }
        let Some(lock) = try_lock(root)? else { return Ok(None) };
        private::check_folder(root)?;
        let dir = Self { root: root.to_owned(), _lock: lock };
        if needs_making(root)? {
            return Err(data(
                root,
                "was never finished; start a server on it, which makes it anew",
            ));
        }
        check_format(root)?;
        let hosts = (0..u16::MAX).take_while(|number| host(root, *number).exists()).count() as u16;
        dir.check_parts(hosts.max(1))?;
        Ok(Some((dir, hosts)))
    }

    /// Makes a directory for a cluster that there was before, with these keys and without objects.
    ///
    /// # Errors
    /// When it is there and not empty, then it is as it was; or when it can't be made.
    pub(super) fn remake(root: &Path, hosts: u16, secrets: &Secrets) -> Result<(), ServerError> {
        DirBuilder::new().mode(0o700).create(root).map_err(failed(root, MAKING))?;
        let lock = lock(root)?;
        let dir = Self { root: root.to_owned(), _lock: lock };
        create(root, hosts, |path| keys::put(path, secrets))?;
        dir.keys().map(drop)
    }

    /// The files with the keys.
    ///
    /// # Errors
    /// When one can't be read.
    pub(super) fn secrets(&self) -> Result<Secrets, ServerError> {
        keys::secrets(&self.root.join(KEYS))
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Looks at everything, because opening one part would change it before another is refused.
    fn check_parts(&self, hosts: u16) -> Result<(), ServerError> {
        for (part, kind) in parts(&self.root, hosts) {
            if !part.is_dir() {
                return Err(data(
                    &part,
                    "is missing; restore the directory from a backup, or start with the number \
                     of --hosts that it was made with",
                ));
            }
            storage::check(&part, kind).map_err(|error| data(&part, error.to_string()))?;
        }
        self.keys().map(drop)
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
        keys::ring(&self.root.join(KEYS))
    }

    /// The keys that sign, the oldest first: at least one.
    ///
    /// # Errors
    /// When one is damaged, or none is there.
    pub(super) fn signing_keys(&self) -> Result<Vec<Signing>, ServerError> {
        keys::signing(&self.root.join(KEYS))
    }

    /// Makes a new key, which signs from now on. It is durable then.
    ///
    /// # Errors
    /// When it can't be written: it is there or not, and whole if it is.
    pub(super) fn add_signing_key(&self) -> Result<(), ServerError> {
        keys::add(&self.root.join(KEYS))
    }

    /// Removes a key, which others must outlast. It is durable then.
    ///
    /// # Errors
    /// When it can't be removed: it is there or not.
    pub(super) fn remove_signing_key(&self, key: &Signing) -> Result<(), ServerError> {
        keys::remove(&self.root.join(KEYS), key)
    }
}

/// Where a server that uses the directory listens for its operator.
pub(super) fn admin_socket(root: &Path) -> PathBuf {
    root.join(ADMIN_SOCKET)
}

fn host(root: &Path, number: u16) -> PathBuf {
    root.join(format!("{HOST_PREFIX}{number}"))
}

/// Every part that is an environment, with what it is for.
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

fn foreign(root: &Path) -> ServerError {
    data(root, "is not empty and not a data directory of Capstead; choose another with --data")
}

/// The names in the directory. A name that is no text is none of ours, however it is spelt.
fn names(root: &Path) -> Result<Vec<String>, ServerError> {
    let entries = fs::read_dir(root).and_then(|entries| {
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    });
    entries.map_err(failed(root, "read the data directory"))
}

/// Takes the lock; makes its file first where the directory is empty, and nowhere else.
fn lock(root: &Path) -> Result<File, ServerError> {
    let in_use = "is in use by another process; stop that one, or choose another with --data";
    try_lock(root)?.ok_or_else(|| data(root, in_use))
}

/// As `lock`; none if another process has it.
fn try_lock(root: &Path) -> Result<Option<File>, ServerError> {
    let path = root.join(LOCK_FILE);
    let names = names(root)?;
    let mut options = OpenOptions::new();
    options.read(true);
    if names.is_empty() {
        options.write(true).create(true).mode(0o600);
    } else if !path.is_file() {
        // Looked for anew: another process may have made it since, and all else after it.
        let is_ours = names.iter().any(|name| name == FORMAT_FILE);
        let reason = "is missing; restore the directory from a backup";
        return Err(if is_ours { data(&path, reason) } else { foreign(root) });
    }
    let file = options.open(&path).map_err(failed(&path, "open the lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(failed(&path, "take the lock")(error)),
    }
}

/// What the lock says, up to a little more than any text of ours.
fn lock_text(root: &Path) -> Result<Vec<u8>, ServerError> {
    let path = root.join(LOCK_FILE);
    let most = BEING_MADE.len() as u64 + 1;
    let mut text = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(most).read_to_end(&mut text));
    read.map_err(failed(&path, "read the lock"))?;
    Ok(text)
}

/// Has the lock say `text`, durably.
fn say(root: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(root.join(LOCK_FILE))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Whether there is nothing yet, or only what a crash left of an earlier making.
fn needs_making(root: &Path) -> Result<bool, ServerError> {
    let mut names = names(root)?;
    if names.iter().any(|name| name == FORMAT_FILE) {
        return Ok(false);
    }
    names.retain(|name| name != LOCK_FILE);
    let says = lock_text(root)?;
    if names.is_empty() && BEING_MADE.as_bytes().starts_with(&says) {
        return Ok(true);
    }
    if !names.iter().all(|name| is_part(name)) {
        return Err(foreign(root));
    }
    if says == BEING_MADE.as_bytes() {
        return Ok(true);
    }
    // These may be the data of years with a file lost: nothing says that they were never finished.
    Err(if says.is_empty() {
        data(&root.join(FORMAT_FILE), "is missing; restore the directory from a backup")
    } else {
        foreign(root)
    })
}

fn is_part(name: &str) -> bool {
    let is_host = |name: &str| name.parse::<u16>().is_ok();
    [KEYS, SUPERVISOR, FORMAT_NEW].contains(&name)
        || name.strip_prefix(HOST_PREFIX).is_some_and(is_host)
}

fn check_format(root: &Path) -> Result<(), ServerError> {
    let path = root.join(FORMAT_FILE);
    match fs::read_to_string(&path) {
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

/// Makes everything, in an order in which a crash at any point leaves either a directory that says
/// that it is being made, or a whole one.
fn create(
    root: &Path,
    hosts: u16,
    put_keys: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), ServerError> {
    // Said again, it would be unsaid for a moment, and a crash then would look like lost data.
    let said =
        if lock_text(root)? == BEING_MADE.as_bytes() { Ok(()) } else { say(root, BEING_MADE) };
    let made = said
        .and_then(|()| sync(root))
        .and_then(|()| remove_unfinished(root))
        .and_then(|()| put_keys(&root.join(KEYS)));
    made.map_err(failed(root, MAKING))?;
    for (part, kind) in parts(root, hosts) {
        DirBuilder::new().mode(0o700).create(&part).map_err(failed(&part, MAKING))?;
        let failed = |error: StorageError| data(&part, format!("can't {MAKING}: {error}"));
        storage::make(&part, kind).map_err(failed)?;
    }
    let finish = || {
        write_private(&root.join(FORMAT_NEW), FORMAT.as_bytes())?;
        sync(root)?;
        fs::rename(root.join(FORMAT_NEW), root.join(FORMAT_FILE))?;
        sync(root)?;
        sync_parent(root)?;
        say(root, "")
    };
    finish().map_err(failed(root, MAKING))
}

fn remove_unfinished(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if !entry.file_name().to_str().is_some_and(is_part) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Who may not even read the parent did not make the directory in it, but was given it.
fn sync_parent(root: &Path) -> io::Result<()> {
    let root = root.canonicalize()?;
    match root.parent().map_or(Ok(()), sync) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

fn write_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}
