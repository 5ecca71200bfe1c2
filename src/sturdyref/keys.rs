//! The cluster's identity and the keys that sign its references.
//!
//! The identity never changes: references name the cluster by the hash of its public key. Signing
//! keys have ids of their own, so they can be replaced while older references stay valid. All hosts
//! of a server use one key ring, which is read again for each reference, so a change takes effect
//! at once.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use capstead_client::sturdyref::{
    Caveats, ClusterId, GrantId, KeyId, NextSecret, Payload, Refused, Sturdyref, Target, Verified,
};
use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// The bytes of PKCS #8 before the seed of an Ed25519 key.
const ED25519_PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

use super::ReferenceCipher;
use crate::limits::HOLDERS_MAX;

/// All private keys of a cluster. They wipe themselves, and are never printed.
pub(crate) struct KeyRing {
    cluster: SigningKey,
    id: ClusterId,
    /// The last one signs; all of them are accepted when a reference is checked. Never empty.
    signing: Vec<(KeyId, SigningKey)>,
}

/// The key ring in force. Clones are handles to the same one, on any thread.
#[derive(Clone, Debug)]
pub(crate) struct Keys(Arc<RwLock<Arc<KeyRing>>>);

impl Keys {
    pub(crate) fn new(ring: KeyRing) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(ring))))
    }

    /// The ring as it is now; the returned one doesn't change later.
    pub(crate) fn current(&self) -> Arc<KeyRing> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the ring, on all threads before this returns.
    pub(crate) fn replace(&self, ring: KeyRing) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ring);
    }
}

impl KeyRing {
    /// # Panics
    /// When there is no signing key.
    pub(crate) fn new(cluster: SigningKey, signing: Vec<SigningKey>) -> Self {
        assert!(!signing.is_empty(), "a cluster has at least one signing key");
        let signing = signing.into_iter().map(|key| (KeyId::of(&key.verifying_key()), key));
        let id = ClusterId::of(&cluster.verifying_key());
        Self { cluster, id, signing: signing.collect() }
    }

    /// The key with which this cluster's servers prove their identity, in PKCS #8 form.
    pub(crate) fn cluster_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        let mut pkcs8 = Zeroizing::new(Vec::with_capacity(ED25519_PKCS8.len() + 32));
        pkcs8.extend(ED25519_PKCS8);
        pkcs8.extend(self.cluster.as_bytes());
        pkcs8
    }

    /// The name of this cluster in references and to clients.
    pub(crate) fn cluster(&self) -> ClusterId {
        self.id
    }

    /// The cipher of the references that objects store.
    pub(crate) fn reference_cipher(&self) -> ReferenceCipher {
        ReferenceCipher::new(self.cluster.as_bytes())
    }

    /// Tells whether the reference claims to be signed by one of these keys, without verifying
    /// that.
    pub(crate) fn claims(&self, reference: &Sturdyref) -> bool {
        reference.cluster() == self.id
            && self.signing.iter().any(|(known, _)| *known == reference.signing_key())
    }

    /// # Errors
    /// The reference is not a valid one of this cluster at `now_ms`, or names too many holders.
    pub(crate) fn verify(&self, reference: &Sturdyref, now_ms: u64) -> Result<Verified, Refused> {
        // Each of them would take a signature, and anybody can add some.
        if reference.claimed_caveats()?.holders().len() > HOLDERS_MAX {
            return Err(Refused::by_grant());
        }
        let keys = |id: KeyId| {
            let found = self.signing.iter().find(|(known, _)| *known == id);
            found.map(|(_, key)| key.verifying_key())
        };
        reference.verify(&self.cluster(), keys, now_ms)
    }

    /// The root reference to `target`. It is the same each time, so it can be printed at every
    /// start and need not be stored. Its next key is derived from the cluster's identity.
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
        let (id, key) = self.signing.last().expect("checked in `new`");
        let payload = Payload {
            cluster: self.cluster(),
            key: *id,
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
    fn a_reference_has_few_holders() {
        let keys = KeyRing::new(key(1), vec![key(2)]);
        let mut bound = reference(&keys);
        for holder in 0..=HOLDERS_MAX {
            let is_good = keys.verify(&bound, 0).is_ok();
            assert!(is_good, "{holder} holders");
            let holder = key(100 + holder as u8).verifying_key();
            bound = bound.narrow(&Caveats::none().with_holder(holder).unwrap()).unwrap();
        }
        assert!(keys.verify(&bound, 0).is_err());
    }

    #[test]
    fn all_handles_see_another_ring_at_once() {
        let keys = Keys::new(KeyRing::new(key(1), vec![key(2)]));
        let elsewhere = keys.clone();
        let old = reference(&keys.current());
        keys.replace(KeyRing::new(key(1), vec![key(2), key(3)]));
        assert!(elsewhere.current().verify(&old, 0).is_ok());
        let new = reference(&elsewhere.current());
        assert_ne!(new.expose_bytes(), old.expose_bytes());
        keys.replace(KeyRing::new(key(1), vec![key(3)]));
        assert!(elsewhere.current().verify(&old, 0).is_err());
        assert!(elsewhere.current().verify(&new, 0).is_ok());
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(
            format!("{:?}", KeyRing::new(key(1), vec![key(2)])),
            "KeyRing { signing_keys: 1, .. }"
        );
    }
}
