//! The data directory: what lies where, who may use it, and whether this version can read it.
//!
//! ```text
//! capstead.data/           mode 0700
//!   format                 "capstead data 1", written with everything else before it has its name
//!   lock                   held by the process that uses the directory
//!   keys/cluster           the cluster's identity (32 bytes, hex), mode 0600
//!   keys/signing-1         the first signing key, likewise
//!   supervisor/            the placement
//!   host-0/ host-1/ …      the objects of each host
//! ```
//!
//! **Invariant:** a directory that can't be used is left exactly as it was found.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use zeroize::Zeroizing;

use super::builder::ServerError;
use crate::sturdyref::KeyRing;

const FORMAT: &str = "capstead data 1\n";
const FORMAT_PREFIX: &str = "capstead data ";
const CLUSTER_KEY: &str = "cluster";
const SIGNING_KEY: &str = "signing-1";

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
    /// When it is in use, not ours, of a newer format or incomplete: it is as it was then.
    pub(super) fn open(root: &Path, hosts: u16) -> Result<Self, ServerError> {
        if is_absent_or_empty(root)? {
            create(root, hosts)?;
        }
        check_format(root)?;
        let dir = Self { root: root.to_owned(), _lock: lock(root)? };
        let parts = (0..hosts).map(|number| dir.host(number)).chain([dir.supervisor()]);
        for part in parts {
            if !part.is_dir() {
                return Err(data(
                    &part,
                    "is missing; restore the directory from a backup, or start with the number \
                     of --hosts that it was made with",
                ));
            }
        }
        // Now, because opening the storage would change the directory.
        dir.keys()?;
        Ok(dir)
    }

    pub(super) fn host(&self, number: u16) -> PathBuf {
        host(&self.root, number)
    }

    pub(super) fn supervisor(&self) -> PathBuf {
        self.root.join("supervisor")
    }

    /// # Errors
    /// When a key is missing or damaged.
    pub(super) fn keys(&self) -> Result<KeyRing, ServerError> {
        let read = |name| read_key(&self.root.join("keys").join(name));
        Ok(KeyRing::new(read(CLUSTER_KEY)?, vec![read(SIGNING_KEY)?]))
    }
}

fn host(root: &Path, number: u16) -> PathBuf {
    root.join(format!("host-{number}"))
}

fn data(path: &Path, reason: impl Into<String>) -> ServerError {
    ServerError::Data { path: path.to_owned(), reason: reason.into() }
}

fn failed(path: &Path, doing: &str) -> impl Fn(io::Error) -> ServerError {
    move |error| data(path, format!("can't {doing}: {error}"))
}

fn is_absent_or_empty(root: &Path) -> Result<bool, ServerError> {
    match fs::read_dir(root) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(failed(root, "read the data directory")(error)),
    }
}

fn check_format(root: &Path) -> Result<(), ServerError> {
    let path = root.join("format");
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
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(data(
            root,
            "is not empty and not a data directory of Capstead; choose another with --data",
        )),
        Err(error) => Err(failed(&path, "read the format")(error)),
    }
}

fn lock(root: &Path) -> Result<File, ServerError> {
    let path = root.join("lock");
    let file = File::open(&path).map_err(failed(&path, "open the lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(data(
            root,
            "is in use by another process; stop that one, or choose another with --data",
        )),
        Err(TryLockError::Error(error)) => Err(failed(&path, "take the lock")(error)),
    }
}

/// Everything is made under another name and gets its own at once, so that a crash leaves either no
/// data directory or a whole one.
fn create(root: &Path, hosts: u16) -> Result<(), ServerError> {
    let parent = match root.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let name = root.file_name().ok_or_else(|| data(root, "is not a name for a directory"))?;
    let unfinished = parent.join(format!(".{}.unfinished", name.to_string_lossy()));
    let doing = "make the data directory";
    match fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed(&unfinished, "remove what a crash left")(error));
        }
        _ => {}
    }
    fill(&unfinished, hosts).map_err(failed(&unfinished, doing))?;
    fs::rename(&unfinished, root).map_err(failed(root, doing))?;
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed(parent, doing))
}

fn fill(root: &Path, hosts: u16) -> io::Result<()> {
    let keys = root.join("keys");
    let supervisor = root.join("supervisor");
    let parts = (0..hosts).map(|number| host(root, number));
    for part in [root.to_owned(), keys.clone(), supervisor].into_iter().chain(parts) {
        DirBuilder::new().mode(0o700).create(part)?;
    }
    for name in [CLUSTER_KEY, SIGNING_KEY] {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(|error| io::Error::other(error.to_string()))?;
        write_private(&keys.join(name), to_hex(&seed).as_bytes())?;
    }
    write_private(&root.join("lock"), b"")?;
    write_private(&root.join("format"), FORMAT.as_bytes())?;
    File::open(&keys)?.sync_all()?;
    File::open(root)?.sync_all()
}

fn write_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

fn read_key(path: &Path) -> Result<SigningKey, ServerError> {
    let text = fs::read_to_string(path).map_err(failed(path, "read the key"))?;
    let text = Zeroizing::new(text);
    match from_hex(text.trim_end()) {
        Some(seed) => Ok(SigningKey::from_bytes(&seed)),
        None => Err(data(path, "is damaged; restore the directory from a backup")),
    }
}

fn to_hex(bytes: &[u8; 32]) -> Zeroizing<String> {
    Zeroizing::new(bytes.iter().map(|byte| format!("{byte:02x}")).chain(["\n".into()]).collect())
}

fn from_hex(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = Zeroizing::new([0; 32]);
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = (digit(0)? << 4 | digit(1)?) as u8;
    }
    Some(bytes)
}
