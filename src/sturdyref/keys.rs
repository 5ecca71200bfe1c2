//! The cluster's identity and the keys that sign its references.
//!
//! The identity never changes: references name the cluster by the hash of its public key. Signing
//! keys have ids of their own, so that they can be replaced while older references stay valid.

use std::fmt;

use capstead_client::sturdyref::{
    Caveats, ClusterId, GrantId, KeyId, NextSecret, Payload, Refused, Sturdyref, Target, Verified,
};
use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// What PKCS #8 has before the seed of an Ed25519 key.
const ED25519_PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

use super::Seal;

/// All private keys of a cluster. They wipe themselves, and are never printed.
pub(crate) struct KeyRing {
    cluster: SigningKey,
    /// The last one signs; all of them count when a reference is checked. Never empty.
    signing: Vec<SigningKey>,
}

impl KeyRing {
    /// # Panics
    /// When there is no signing key.
    pub(crate) fn new(cluster: SigningKey, signing: Vec<SigningKey>) -> Self {
        assert!(!signing.is_empty(), "a cluster has at least one signing key");
        Self { cluster, signing }
    }

    /// The key by which the servers of this cluster prove what they are, in the form of PKCS #8.
    pub(crate) fn cluster_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        let mut pkcs8 = Zeroizing::new(Vec::with_capacity(ED25519_PKCS8.len() + 32));
        pkcs8.extend(ED25519_PKCS8);
        pkcs8.extend(self.cluster.as_bytes());
        pkcs8
    }

    /// What references and clients call this cluster.
    pub(crate) fn cluster(&self) -> ClusterId {
        ClusterId::of(&self.cluster.verifying_key())
    }

    /// What seals the references that objects store.
    pub(crate) fn seal(&self) -> Seal {
        Seal::new(self.cluster.as_bytes())
    }

    /// # Errors
    /// When the reference is not a good one of this cluster at `now_ms`.
    pub(crate) fn verify(&self, reference: &Sturdyref, now_ms: u64) -> Result<Verified, Refused> {
        let keys = |id: KeyId| {
            let mut keys = self.signing.iter().map(SigningKey::verifying_key);
            keys.find(|key| KeyId::of(key) == id)
        };
        reference.verify(&self.cluster(), keys, now_ms)
    }

    /// The root reference to `target`: the same one each time, so that it can be printed at every
    /// start and need not be kept anywhere. Its next key is derived from the cluster's identity.
    pub(crate) fn root_reference(&self, target: Target, grant: GrantId) -> Sturdyref {
        let mut seed = Sha256::new();
        seed.update(b"capstead root next key v1");
        seed.update(self.cluster.as_bytes());
        seed.update(grant.as_bytes());
        self.mint(target, grant, Caveats::none(), &NextSecret::from_seed(seed.finalize().into()))
    }

    /// Signs a reference with the newest key. `next` must be fresh, or derived from a secret.
    pub(crate) fn mint(
        &self,
        target: Target,
        grant: GrantId,
        caveats: Caveats,
        next: &NextSecret,
    ) -> Sturdyref {
        let key = self.signing.last().expect("checked in `new`");
        let payload = Payload {
            cluster: self.cluster(),
            key: KeyId::of(&key.verifying_key()),
            target,
            grant,
            caveats,
            next: next.public(),
        };
        let signature = key.sign(&payload.signed_bytes()).to_bytes();
        Sturdyref::assemble(&payload, &signature, next)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("signing_keys", &self.signing.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use capstead_client::sturdyref::TargetId;

    use super::*;
    use crate::sturdyref::root_grant;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn reference(keys: &KeyRing) -> Sturdyref {
        keys.root_reference(Target::Namespace(TargetId::from_bytes([7; 16])), root_grant("Counter"))
    }

    #[test]
    fn a_root_reference_is_the_same_each_time_and_verifies() {
        let keys = KeyRing::new(key(1), vec![key(2)]);
        let first = reference(&keys);
        assert_eq!(first.expose_bytes(), reference(&keys).expose_bytes());
        assert_eq!(
            keys.verify(&first, 0).unwrap().target,
            Target::Namespace(TargetId::from_bytes([7; 16]))
        );
    }

    #[test]
    fn an_older_signing_key_still_counts_and_a_foreign_cluster_does_not() {
        let old = reference(&KeyRing::new(key(1), vec![key(2)]));
        assert!(KeyRing::new(key(1), vec![key(2), key(3)]).verify(&old, 0).is_ok());
        assert!(KeyRing::new(key(1), vec![key(3)]).verify(&old, 0).is_err());
        assert!(KeyRing::new(key(4), vec![key(2)]).verify(&old, 0).is_err());
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(
            format!("{:?}", KeyRing::new(key(1), vec![key(2)])),
            "KeyRing { signing_keys: 1, .. }"
        );
    }
}
