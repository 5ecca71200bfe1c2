//! Values that hold references: encrypted, so that they mean something only where they were stored.
//!
//! An object keeps a capability as a value in its own storage, and can read the value's bytes. They
//! tell neither the object nor anyone else anything: without the cluster's secret they can't be
//! read or made, and a copy under another key or in another object can't be read either. This file
//! knows no storage and no capability; nonces are arguments.
//!
//! A value: magic (8) ‖ version (1) ‖ nonce (24) ‖ length (4, big-endian) ‖ encrypted (length) ‖
//! message. XChaCha20-Poly1305 encrypts a list of citations. The message, which may be empty, is a
//! Cap'n Proto message in which the index of a capability is an index in the list.

use std::fmt;

use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::Citation;
use crate::cursor::Cursor;
use crate::id::{ObjectId, ObjectIds};

/// The beginning of values that hold references. It is random, so no other value has it by chance.
const MAGIC: [u8; 8] = [0x3b, 0x36, 0x59, 0x16, 0xf9, 0xff, 0xfe, 0x68];
const VERSION: u8 = 1;
const NONCE_AT: usize = MAGIC.len() + 1;
const TAG_BYTES: usize = 16;

/// Fresh random bytes for one encryption.
pub(crate) type Nonce = [u8; 24];

/// An object's name in its requests for citations: the receivers don't learn which object it is.
pub(crate) type OwnerToken = [u8; 32];

/// The cluster's key for stored references. It wipes itself, and is never printed.
pub(crate) struct ReferenceCipher(Zeroizing<[u8; 32]>);

/// A value that was decrypted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReferenceValue<'a> {
    /// The references in it.
    pub(crate) citations: Vec<Citation>,
    /// The struct that contains them; empty for a single reference.
    pub(crate) message: &'a [u8],
}

/// Tells whether the value looks like one that holds references.
pub(crate) fn holds_references(value: &[u8]) -> bool {
    value.starts_with(&MAGIC)
}

impl ReferenceCipher {
    /// The cipher of the cluster with this secret seed.
    pub(crate) fn new(cluster: &[u8; 32]) -> Self {
        Self(Zeroizing::new(hash(&[b"capstead stored reference key v1", cluster])))
    }

    /// The value that `owner` stores under `key` for these references.
    pub(crate) fn encrypt(
        &self,
        owner: ObjectId,
        key: &[u8],
        citations: &[Citation],
        message: &[u8],
        nonce: Nonce,
    ) -> Vec<u8> {
        let encrypted = self.encrypt_list(citations, &value_data(owner, key, message), nonce);
        let mut value =
            Vec::with_capacity(NONCE_AT + nonce.len() + 4 + encrypted.len() + message.len());
        value.extend(MAGIC);
        value.push(VERSION);
        value.extend(nonce);
        value.extend((encrypted.len() as u32).to_be_bytes());
        value.extend(encrypted);
        value.extend(message);
        value
    }

    /// The citations in a value, if `owner` stores it under `key`; `None` when the value wasn't
    /// encrypted for both.
    pub(crate) fn decrypt<'a>(
        &self,
        owner: ObjectId,
        key: &[u8],
        value: &'a [u8],
    ) -> Option<ReferenceValue<'a>> {
        let mut bytes = Cursor::new(value.strip_prefix(&MAGIC)?);
        let Some(VERSION) = bytes.byte() else { return None };
        let nonce = bytes.array()?;
        let length = u32::from_be_bytes(bytes.array()?);
        let encrypted = bytes.slice(usize::try_from(length).ok()?)?;
        let message = bytes.rest();
        let citations = self.decrypt_list(encrypted, &value_data(owner, key, message), &nonce)?;
        Some(ReferenceValue { citations, message })
    }

    /// The objects that a value refers to, if `owner` stores it under `key`; none if the value
    /// wasn't encrypted for both.
    pub(crate) fn targets(&self, owner: ObjectId, key: &[u8], value: &[u8]) -> ObjectIds {
        // Most values hold no references.
        if !holds_references(value) {
            return ObjectIds::NONE;
        }
        let citations = self.decrypt(owner, key, value).map(|value| value.citations);
        citations.iter().flatten().map(|citation| citation.target).collect()
    }

    /// The name that stands for `owner` outside its host.
    pub(crate) fn token(&self, owner: ObjectId) -> OwnerToken {
        hash(&[b"capstead owner token v1", &*self.0, owner.as_bytes()])
    }

    /// Encrypts a citation on its way to the host of the object that `owner` stands for.
    pub(crate) fn encrypt_citation(
        &self,
        owner: &OwnerToken,
        citation: &Citation,
        nonce: Nonce,
    ) -> Vec<u8> {
        let encrypted =
            self.encrypt_list(std::slice::from_ref(citation), &citation_data(owner), nonce);
        [&nonce[..], &encrypted].concat()
    }

    /// The citation that was sent to the object that `owner` stands for; `None` when the bytes
    /// aren't one, or are for another object.
    pub(crate) fn decrypt_citation(&self, owner: &OwnerToken, bytes: &[u8]) -> Option<Citation> {
        let (nonce, encrypted) = bytes.split_first_chunk()?;
        let citations = self.decrypt_list(encrypted, &citation_data(owner), nonce)?;
        <[Citation; 1]>::try_from(citations).ok().map(|[citation]| citation)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.0).into())
    }

    fn encrypt_list(&self, citations: &[Citation], data: &[u8], nonce: Nonce) -> Vec<u8> {
        let mut bytes = Vec::new();
        for citation in citations {
            citation.encode(&mut bytes);
        }
        let tag =
            self.cipher().encrypt_in_place_detached(XNonce::from_slice(&nonce), data, &mut bytes);
        bytes.extend(tag.expect("a list of citations is shorter than 256 GiB"));
        bytes
    }

    fn decrypt_list(&self, encrypted: &[u8], data: &[u8], nonce: &Nonce) -> Option<Vec<Citation>> {
        let (bytes, tag) = encrypted.split_last_chunk::<TAG_BYTES>()?;
        let mut bytes = bytes.to_vec();
        let (nonce, tag) = (XNonce::from_slice(nonce), Tag::from_slice(tag));
        self.cipher().decrypt_in_place_detached(nonce, data, &mut bytes, tag).ok()?;
        Citation::decode_all(&bytes)
    }
}

/// The data that a value's encryption is bound to.
fn value_data(owner: ObjectId, key: &[u8], message: &[u8]) -> Vec<u8> {
    let (key, message) = (hash(&[key]), hash(&[message]));
    [b"capstead stored reference v1", &owner.as_bytes()[..], &key, &message].concat()
}

/// The data that the encryption of a citation on its way is bound to.
fn citation_data(owner: &OwnerToken) -> Vec<u8> {
    [b"capstead citation v1", &owner[..]].concat()
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

impl fmt::Debug for ReferenceCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReferenceCipher").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::sturdyref::citation::tests::citation;

    const OWNER: ObjectId = ObjectId::from_bytes([1; 16]);
    const OTHER: ObjectId = ObjectId::from_bytes([2; 16]);

    fn cipher() -> ReferenceCipher {
        ReferenceCipher::new(&[7; 32])
    }

    proptest! {
        #[test]
        fn a_value_is_read_by_its_owner_under_its_key_alone(
            citations in vec(citation(), 0..3), message in vec(any::<u8>(), 0..40), nonce: Nonce,
        ) {
            let value = cipher().encrypt(OWNER, b"key", &citations, &message, nonce);
            let ids: ObjectIds = citations.iter().map(|citation| citation.target).collect();
            prop_assert_eq!(cipher().targets(OWNER, b"key", &value), ids);
            let decrypted = cipher().decrypt(OWNER, b"key", &value).unwrap();
            prop_assert_eq!(decrypted, ReferenceValue { citations, message: &message });
            for (owner, key) in [(OTHER, &b"key"[..]), (OWNER, b"kez"), (OWNER, b"")] {
                prop_assert_eq!(cipher().decrypt(owner, key, &value), None);
                prop_assert!(cipher().targets(owner, key, &value).is_empty());
            }
            prop_assert_eq!(ReferenceCipher::new(&[8; 32]).decrypt(OWNER, b"key", &value), None);
        }

        #[test]
        fn a_citation_is_read_by_whom_it_was_made_for_alone(citation in citation(), nonce: Nonce) {
            let (owner, other) = (cipher().token(OWNER), cipher().token(OTHER));
            let bytes = cipher().encrypt_citation(&owner, &citation, nonce);
            prop_assert_eq!(cipher().decrypt_citation(&other, &bytes), None);
            prop_assert_eq!(cipher().decrypt_citation(&owner, &bytes[..bytes.len() - 1]), None);
            prop_assert_eq!(cipher().decrypt_citation(&owner, &bytes), Some(citation));
        }

        #[test]
        fn random_bytes_are_never_read(bytes in vec(any::<u8>(), 0..200)) {
            let value = [&MAGIC[..], &[VERSION], &bytes].concat();
            prop_assert_eq!(cipher().decrypt(OWNER, b"key", &value), None);
            prop_assert_eq!(cipher().decrypt_citation(&[0; 32], &bytes), None);
        }
    }

    #[test]
    fn every_changed_bit_and_every_missing_byte_is_found_out() {
        let citation = Citation {
            target: OTHER,
            class: "Counter".to_owned(),
            name: None,
            authority: crate::sturdyref::Authority::Binding,
            caveats: Vec::new(),
        };
        let mut value = cipher().encrypt(OWNER, b"key", &[citation], b"message", [9; 24]);
        assert!(cipher().decrypt(OWNER, b"key", &value).is_some());
        for bit in 0..value.len() * 8 {
            value[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(cipher().decrypt(OWNER, b"key", &value), None, "bit {bit}");
            value[bit / 8] ^= 1 << (bit % 8);
        }
        for end in 0..value.len() {
            assert_eq!(cipher().decrypt(OWNER, b"key", &value[..end]), None, "{end} bytes");
        }
    }

    #[test]
    fn a_token_says_nothing_without_the_secret_and_debug_nothing_at_all() {
        assert_ne!(cipher().token(OWNER), ReferenceCipher::new(&[8; 32]).token(OWNER));
        assert_eq!(format!("{:?}", cipher()), "ReferenceCipher { .. }");
    }
}
