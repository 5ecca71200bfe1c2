//! Values with references as docs/storage-format.md describes them, opened without the server's
//! code.

use std::fs;
use std::path::Path;

use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};

const MAGIC: [u8; 8] = [0x3b, 0x36, 0x59, 0x16, 0xf9, 0xff, 0xfe, 0x68];

/// The key that opens the stored references of one cluster.
pub(crate) struct Key([u8; 32]);

impl Key {
    /// Derives it from the keys in a data directory.
    pub(crate) fn of(data: &Path) -> Self {
        let seed = fs::read_to_string(data.join("keys/cluster")).expect("the cluster has a key");
        Self(hash(&[b"capstead stored reference key v1", &bytes(seed.trim())]))
    }

    /// The ids to which a value refers; `None` if it has no references, or was sealed elsewhere.
    pub(crate) fn targets(&self, owner: &[u8], key: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        let rest = value.strip_prefix(&MAGIC)?.strip_prefix(&[1])?;
        let (nonce, rest) = rest.split_at(24);
        let length = u32::from_be_bytes(rest[..4].try_into().expect("four bytes")) as usize;
        let (sealed, message) = rest[4..].split_at(length);
        let (citations, tag) = sealed.split_at(length - 16);
        let (key, message) = (hash(&[key]), hash(&[message]));
        let data = [b"capstead stored reference v1", owner, &key, &message].concat();
        let mut citations = citations.to_vec();
        let cipher = XChaCha20Poly1305::new((&self.0).into());
        let (nonce, tag) = (XNonce::from_slice(nonce), Tag::from_slice(tag));
        cipher.decrypt_in_place_detached(nonce, &data, &mut citations, tag).ok()?;
        Some(targets(&citations))
    }
}

/// The ids in a list of citations.
fn targets(mut rest: &[u8]) -> Vec<u8> {
    let mut targets = Vec::new();
    while let Some((version, citation)) = rest.split_first() {
        assert_eq!(*version, 1);
        targets.extend(&citation[..16]);
        let mut at = 16;
        at += 1 + usize::from(citation[at]);
        at += match citation[at] {
            0 => 1,
            _ => 3 + usize::from(u16::from_be_bytes([citation[at + 1], citation[at + 2]])),
        };
        at += if citation[at] == 0 { 1 } else { 33 };
        let caveats = citation[at..at + 4].try_into().expect("four bytes");
        rest = &citation[at + 4 + u32::from_be_bytes(caveats) as usize..];
    }
    targets
}

/// Decodes hexadecimal.
fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("it is hexadecimal");
    (0..hex.len()).step_by(2).map(digits).collect()
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    Sha256::digest(parts.concat()).into()
}
