//! Sturdyrefs: bytes that stand for an object and survive restarts. Possession is the right to use
//! one.
//!
//! `schema/sturdyref.capnp` describes the layout byte by byte. Each reference has exactly one
//! encoding: the bytes that are parsed are the bytes that were signed. The code is pure: time and
//! keys are arguments. Nothing here mints authority: assembling a reference takes a signature by
//! the cluster's key. No `Debug` or `Display` in here prints a secret; only methods that say so in
//! their names do.

mod bytes;
mod caveats;
mod codec;
mod holder;
mod methods;
mod refused;
mod seal;
mod text;
mod verify;

/// A holder's keys.
pub use crate::interface::Method;
pub use caveats::Caveats;
pub use ed25519_dalek::{SigningKey, VerifyingKey};
pub use holder::proof_message;
pub use methods::Methods;
pub use refused::Refused;
pub(crate) use text::is_loopback;
pub use text::{TextReference, is_address};
pub use verify::Verified;

use codec::Layout;
use sha2::{Digest, Sha256};
use std::fmt;
use zeroize::Zeroize;

macro_rules! identity {
    ($($(#[$doc:meta])* $name:ident($length:literal)),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; $length]);

        impl $name {
            /// Takes the bytes as they are.
            pub const fn from_bytes(bytes: [u8; $length]) -> Self {
                Self(bytes)
            }

            /// The bytes as they appear in a reference.
            pub const fn as_bytes(&self) -> &[u8; $length] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), hex(&self.0))
            }
        }
    )*};
}

identity! {
    /// The identity of a reference's cluster: a hash of the cluster's public key, so that a client
    /// can authenticate the cluster from the reference alone.
    ClusterId(32),
    /// The identity of one of the cluster's signing keys: the start of a hash of the public key.
    KeyId(8),
    /// An identity within the cluster: an object's, or a namespace's. It is no authority.
    TargetId(16),
    /// The record at the target that keeps a reference valid. It is no authority.
    GrantId(16),
    /// The identity of a reference, the same after every narrowing: the hash of its payload.
    PayloadHash(32),
    /// An Ed25519 public key as it appears in a reference. It may not correspond to a point of the
    /// curve.
    PublicKey(32),
}

impl PublicKey {
    /// The curve point of this key. Decoding it takes some microseconds, so this is done only when
    /// a signature or a proof is verified with the key.
    fn point(&self) -> Result<VerifyingKey, Refused> {
        #[cfg(test)]
        POINTS_READ.set(POINTS_READ.get() + 1);
        VerifyingKey::from_bytes(&self.0).map_err(|_| bytes::LAYOUT)
    }
}

impl From<VerifyingKey> for PublicKey {
    fn from(key: VerifyingKey) -> Self {
        Self(key.to_bytes())
    }
}

#[cfg(test)]
thread_local! {
    static POINTS_READ: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl ClusterId {
    /// The id of the cluster with this public key.
    pub fn of(cluster: &VerifyingKey) -> Self {
        Self(codec::hash(b"capstead cluster v1", cluster.as_bytes()))
    }
}

impl KeyId {
    /// The id of this public signing key.
    pub fn of(signing: &VerifyingKey) -> Self {
        let hash = codec::hash(b"capstead signing key v1", signing.as_bytes());
        let mut id = [0; 8];
        id.copy_from_slice(&hash[..8]);
        Self(id)
    }
}

/// The object or namespace that a reference stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// One object.
    Object(TargetId),
    /// All objects of one class.
    Namespace(TargetId),
}

/// The part of a reference that the cluster signs: everything in it before a holder narrows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The cluster that the reference belongs to.
    pub cluster: ClusterId,
    /// The key that signs this payload.
    pub key: KeyId,
    /// The thing that the reference stands for.
    pub target: Target,
    /// The record that keeps the reference valid.
    pub grant: GrantId,
    /// The restrictions of the reference.
    pub caveats: Caveats,
    /// The public half of a fresh key; only the holder gets its secret half.
    pub next: PublicKey,
}

impl Payload {
    /// The payload's bytes as they appear in the reference.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode_payload(self)
    }

    /// The bytes that the signing key signs: the payload after its domain.
    pub fn signed_bytes(&self) -> Vec<u8> {
        [codec::PAYLOAD_DOMAIN, &self.encode()[..]].concat()
    }
}

/// The secret half of the last next key, with which a holder narrows a reference.
///
/// It is wiped from memory when dropped, and never printed.
pub struct NextSecret([u8; 32]);

impl NextSecret {
    /// Takes the 32 bytes of an Ed25519 seed. They must be fresh random bytes.
    pub const fn from_seed(seed: [u8; 32]) -> Self {
        Self(seed)
    }

    /// The public half, for the payload.
    pub fn public(&self) -> PublicKey {
        self.signing_key().verifying_key().into()
    }

    fn signing_key(&self) -> ed25519_dalek::SigningKey {
        ed25519_dalek::SigningKey::from_bytes(&self.0)
    }
}

impl Drop for NextSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for NextSecret {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("NextSecret(hidden)")
    }
}

/// A reference with a sound layout; [`verify`](Self::verify) tells whether it is genuine.
///
/// Its bytes are a secret: they are wiped when it is dropped.
#[derive(Clone)]
pub struct Sturdyref {
    /// Invariant: `layout` was parsed from exactly these bytes.
    bytes: Vec<u8>,
    layout: Layout,
}

impl Sturdyref {
    /// Puts a reference together from a payload, the signature over its
    /// [`signed_bytes`](Payload::signed_bytes), and the secret half of its next key.
    pub fn assemble(payload: &Payload, signature: &[u8; 64], next: &NextSecret) -> Self {
        let mut bytes = payload.encode();
        bytes.extend(signature);
        bytes.push(0);
        bytes.push(crate::sturdyref_capnp::PROOF_OPEN);
        bytes.extend(next.0);
        Self::parse_owned(bytes).expect("what is assembled from sound parts is sound")
    }

    /// Reads the bytes of a reference.
    ///
    /// # Errors
    /// The bytes are not laid out exactly as a reference is.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Refused> {
        Self::parse_owned(bytes.to_vec())
    }

    /// The bytes, **which are secret**: anyone who has them can use the reference.
    pub fn expose_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The cluster that the reference claims to belong to.
    pub fn cluster(&self) -> ClusterId {
        self.layout.payload.cluster
    }

    /// The signing key that the reference claims to be signed by.
    pub fn signing_key(&self) -> KeyId {
        self.layout.payload.key
    }

    /// The thing that the reference claims to stand for.
    pub fn target(&self) -> Target {
        self.layout.payload.target
    }

    /// The identity of this reference. Narrowing and sealing don't change it.
    pub fn payload_hash(&self) -> PayloadHash {
        PayloadHash(Sha256::digest(&self.bytes[..self.layout.payload_end]).into())
    }

    /// Tells whether the reference is sealed, so that its holder can't narrow it further.
    pub fn is_sealed(&self) -> bool {
        matches!(self.layout.proof, codec::Proof::Sealed)
    }

    fn parse_owned(mut bytes: Vec<u8>) -> Result<Self, Refused> {
        match codec::parse(&bytes) {
            Ok(layout) => Ok(Self { bytes, layout }),
            Err(refused) => {
                bytes.zeroize();
                Err(refused)
            }
        }
    }
}

impl Drop for Sturdyref {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl fmt::Debug for Sturdyref {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Sturdyref")
            .field("payload", &self.payload_hash())
            .field("target", &self.target())
            .field("links", &self.layout.links.len())
            .field("sealed", &self.is_sealed())
            .finish_non_exhaustive()
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes what is written to it");
        text
    })
}

#[cfg(test)]
mod tests;
