//! The committed request: the tool's message, followed by a hash of the texts that it was made
//! from.
//!
//! Readers of Cap'n Proto messages stop at the end of the message, so the hash after it does no
//! harm. Nothing here interprets the message.

use crate::Error;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// A SHA-256 of the schemas' texts, in order.
pub(crate) type Hash = [u8; 32];

/// The content of a request file.
pub(crate) struct Request {
    message: Vec<u8>,
    hash: Hash,
}

impl Request {
    pub(crate) fn belongs_to(&self, hash: &Hash) -> bool {
        self.hash == *hash
    }

    pub(crate) fn message(&self) -> &[u8] {
        &self.message
    }

    pub(crate) fn into_message(self) -> Vec<u8> {
        self.message
    }
}

/// Hashes the texts of `files`, each preceded by its length.
///
/// Carriage returns are left out, because a checkout on Windows may add them.
pub(crate) fn hash(files: &[PathBuf]) -> Result<Hash, Error> {
    let mut hash = Sha256::new();
    for path in files {
        let mut text = std::fs::read(path).map_err(|cause| Error::at("read", path, cause))?;
        text.retain(|&byte| byte != b'\r');
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(&text);
    }
    Ok(hash.finalize().into())
}

/// Reads a request file; `None` if there is none, or if it is too short to be one.
pub(crate) fn read(path: &Path) -> Result<Option<Request>, Error> {
    let mut message = match std::fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::at("read", path, error)),
    };
    let Some(&hash) = message.last_chunk() else { return Ok(None) };
    message.truncate(message.len() - size_of::<Hash>());
    Ok(Some(Request { message, hash }))
}

/// Writes a request file, unless it already has this content.
pub(crate) fn write(path: &Path, message: &[u8], hash: &Hash) -> Result<(), Error> {
    let content = [message, hash].concat();
    if std::fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    std::fs::write(path, content).map_err(|cause| Error::at("write", path, cause))
}
