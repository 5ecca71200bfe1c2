//! The proof of the holders that a reference is bound to: it shows that the client that restores it
//! has their secrets.
//!
//! A proof is good for one challenge and one reference, bit by bit. It says nothing about the
//! reference itself, which is verified separately.

use super::refused::Flaw;
use super::verify::is_signed;
use super::{ClusterId, PublicKey, Refused, Sturdyref};
use capnp::Error;
use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};

const HOLDER_DOMAIN: &[u8] = b"capstead holder proof v1";

/// The message that a holder signs to restore the reference with these bytes in this cluster.
pub fn proof_message(cluster: &ClusterId, reference: &[u8], challenge: &[u8; 32]) -> Vec<u8> {
    let reference = Sha256::digest(reference);
    [HOLDER_DOMAIN, cluster.as_bytes(), &reference[..], challenge].concat()
}

impl Sturdyref {
    /// The signatures that answer `challenge`: one for each holder that the reference names, in the
    /// ascending order of their keys. Keys in `keys` that the reference doesn't name are not used.
    ///
    /// # Errors
    /// One of its holders is not among `keys`. The reference has a critical caveat of an unknown
    /// kind.
    pub fn prove(&self, challenge: &[u8; 32], keys: &[SigningKey]) -> capnp::Result<Vec<[u8; 64]>> {
        let caveats = self.claimed_caveats()?;
        let message = self.proof_message(challenge);
        let prove = |holder: &PublicKey| {
            let key = keys.iter().find(|key| PublicKey::from(key.verifying_key()) == *holder);
            let key = key.ok_or_else(|| missing(holder.as_bytes()))?;
            Ok(key.sign(&message).to_bytes())
        };
        caveats.holders().iter().map(prove).collect()
    }

    /// Checks that `signatures` are those that [`prove`](Self::prove) gives: exactly one for each
    /// holder, in the ascending order of their keys.
    ///
    /// # Errors
    /// The proof was refused.
    pub fn check_proofs(
        &self,
        challenge: &[u8; 32],
        signatures: &[[u8; 64]],
    ) -> Result<(), Refused> {
        const REFUSED: Refused = Refused::because(Flaw::Holder);
        let caveats = self.claimed_caveats()?;
        if caveats.holders().len() != signatures.len() {
            return Err(REFUSED);
        }
        let message = self.proof_message(challenge);
        for (holder, signature) in caveats.holders().iter().zip(signatures) {
            let holder = holder.point().map_err(|_| REFUSED)?;
            if !is_signed(&holder, &message, signature) {
                return Err(REFUSED);
            }
        }
        Ok(())
    }

    fn proof_message(&self, challenge: &[u8; 32]) -> Vec<u8> {
        proof_message(&self.cluster(), &self.bytes, challenge)
    }
}

fn missing(holder: &[u8]) -> Error {
    let holder = super::hex(holder);
    Error::failed(format!(
        "the reference takes a proof of the holder {holder}, whose key is missing"
    ))
}
