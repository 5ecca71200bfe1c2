//! The files in `keys/`: the cluster's key, and those that sign references.
//!
//! Each file holds the 32 bytes of a key in hex and a line feed; a signing key's file then holds
//! the time at which it was made, in milliseconds since 1970. The highest number signs, and no
//! number is given twice while it is the highest, but that of a key revoked on a full disk.
//! A file gets its name once its bytes are on disk, so that a crash leaves a whole key or none, and
//! at worst a file under a temporary name, which is never read and which the next key replaces.
//!
//! **Invariants:** every file has mode 0600, or is refused. The bytes that were read are wiped from
//! memory, and never printed.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;

use capstead_client::sturdyref::KeyId;
use ed25519_dalek::SigningKey;
use zeroize::Zeroizing;

use super::private::{self, Trust};
use super::{Secrets, data, failed, sync, write_private};
use crate::clock::Clock;
use crate::server::error::ServerError;
use crate::sturdyref::KeyRing;

const CLUSTER: &str = "cluster";
const SIGNING_PREFIX: &str = "signing-";
/// The file in which a key is written before it gets its name.
const NEW: &str = "new";

const DAMAGED: &str = "is damaged; restore the directory from a backup";

/// A key that signs references, as its file has it.
pub(crate) struct Signing {
    number: u32,
    /// When it was made, in milliseconds since the start of 1970; 0 if its file doesn't say.
    pub(crate) created_ms: u64,
    key: SigningKey,
}

impl Signing {
    pub(crate) fn id(&self) -> KeyId {
        KeyId::of(&self.key.verifying_key())
    }

    /// Makes a new key in this folder, which signs from now on. It is durable on return.
    ///
    /// # Errors
    /// When it can't be written: the key may or may not be there, and is whole if it is.
    pub(in crate::server) fn add(keys: &Path) -> Result<(), ServerError> {
        let number = signing_numbers(keys)?.last().map_or(Some(1), |last| last.checked_add(1));
        let number =
            number.ok_or_else(|| data(keys, "has the highest number for a key already"))?;
        let (new, path) = (keys.join(NEW), keys.join(signing_name(number)));
        let write = || {
            // Left by an attempt that was cut short.
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            write_private(&new, &fresh(Some(Clock::real().now_ms()))?)?;
            fs::rename(&new, &path)?;
            sync(keys)
        };
        write().map_err(failed(&path, "make the key"))
    }

    /// Writes a new key over this one, which needs no room on the disk. The new one signs from now
    /// on if this one did, and that is durable on return. Both have the same length, within one
    /// sector, so a crash leaves one of the two.
    ///
    /// # Errors
    /// When it can't be written: the file has one of the two keys, or is damaged.
    pub(in crate::server) fn replace(&self, keys: &Path) -> Result<(), ServerError> {
        let path = keys.join(signing_name(self.number));
        let write = || {
            let text = fresh(Some(Clock::real().now_ms()))?;
            let file = File::options().write(true).open(&path)?;
            file.write_all_at(&text, 0)?;
            file.sync_all()
        };
        write().map_err(failed(&path, "replace the key"))
    }

    /// Removes the key for good; at least one other must remain. The removal is durable on return.
    ///
    /// # Errors
    /// When it can't be removed: the key may or may not be there.
    pub(in crate::server) fn remove(&self, keys: &Path) -> Result<(), ServerError> {
        let path = keys.join(signing_name(self.number));
        fs::remove_file(&path).and_then(|()| sync(keys)).map_err(failed(&path, "remove the key"))
    }
}

/// Makes the folder with the first keys of a new cluster.
pub(super) fn make(keys: &Path) -> io::Result<()> {
    let cluster = fresh(None)?;
    let signing = fresh(Some(Clock::real().now_ms()))?;
    put(keys, &vec![(CLUSTER.to_owned(), cluster), (signing_name(1), signing)])
}

/// Makes the folder with keys that existed before. Only files with known names are written.
pub(super) fn put(keys: &Path, secrets: &Secrets) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(keys)?;
    for (name, text) in secrets {
        if name == CLUSTER || signing_number(name).is_some() {
            write_private(&keys.join(name), text)?;
        }
    }
    sync(keys)
}

/// All files with keys.
pub(super) fn secrets(keys: &Path, trust: Trust) -> Result<Secrets, ServerError> {
    private::check_below(keys, trust)?;
    let signing = signing_numbers(keys)?.into_iter().map(signing_name);
    let read = |name: String| {
        let text = private::read(&keys.join(&name), trust)?;
        Ok((name, text))
    };
    std::iter::once(CLUSTER.to_owned()).chain(signing).map(read).collect()
}

/// The keys in the form in which the server uses them.
pub(super) fn ring(keys: &Path, trust: Trust) -> Result<KeyRing, ServerError> {
    private::check_below(keys, trust)?;
    let (cluster, _) = read(&keys.join(CLUSTER), trust)?;
    let signing = signing(keys, trust)?.into_iter().map(|signing| signing.key);
    Ok(KeyRing::new(cluster, signing.collect()))
}

/// The keys that sign, the oldest first. There is at least one.
pub(super) fn signing(keys: &Path, trust: Trust) -> Result<Vec<Signing>, ServerError> {
    private::check_below(keys, trust)?;
    let numbers = signing_numbers(keys)?;
    if numbers.is_empty() {
        let reason =
            "is missing, and no other signing key is there; restore the directory from a backup";
        return Err(data(&keys.join(signing_name(1)), reason));
    }
    let read = |number| {
        let (key, created_ms) = read(&keys.join(signing_name(number)), trust)?;
        Ok(Signing { number, created_ms, key })
    };
    numbers.into_iter().map(read).collect()
}

fn signing_name(number: u32) -> String {
    format!("{SIGNING_PREFIX}{number}")
}

fn signing_number(name: &str) -> Option<u32> {
    let number = name.strip_prefix(SIGNING_PREFIX)?.parse().ok()?;
    (signing_name(number) == name).then_some(number)
}

/// The numbers of the signing keys, in ascending order.
fn signing_numbers(keys: &Path) -> Result<Vec<u32>, ServerError> {
    let mut numbers: Vec<_> =
        super::names(keys)?.iter().filter_map(|name| signing_number(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The content of a new key's file.
fn fresh(created_ms: Option<u64>) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).map_err(|error| io::Error::other(error.to_string()))?;
    let mut text = to_hex(&seed);
    text.extend(created_ms.into_iter().flat_map(|ms| format!("{ms}\n").into_bytes()));
    Ok(text)
}

/// A key, and the time at which it was made.
fn read(path: &Path, trust: Trust) -> Result<(SigningKey, u64), ServerError> {
    let text = private::read(path, trust)?;
    let text = std::str::from_utf8(&text).map_err(|_| data(path, DAMAGED))?;
    let mut lines = text.lines();
    let seed = lines.next().and_then(from_hex);
    let created_ms = lines.next().map_or(Some(0), |line| line.parse().ok());
    match (seed, created_ms, lines.next()) {
        (Some(seed), Some(created_ms), None) => Ok((SigningKey::from_bytes(&seed), created_ms)),
        _ => Err(data(path, DAMAGED)),
    }
}

/// Reserves room for the text that follows, so that no copy is left behind in memory.
fn to_hex(bytes: &[u8; 32]) -> Zeroizing<Vec<u8>> {
    const FILE_BYTES_MAX: usize = 128;
    let mut text = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX));
    for byte in bytes {
        text.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
    }
    text.push(b'\n');
    text
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
