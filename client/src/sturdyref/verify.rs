//! The checks that a reference is genuine and still valid: cheap ones first, the claimed time among
//! them, then signatures.
//!
//! A point of the curve is decoded only when a signature by it is due, and only after the signature
//! before it proved good. So a peer without a genuine reference costs no more than one check.
//!
//! A refusal doesn't tell callers which check failed. Revocation is not known here: the grant's
//! record is at the target.

use super::bytes;
use super::codec::{self, Proof};
use super::refused::{Flaw, Refused};
use super::{Caveats, ClusterId, GrantId, KeyId, NextSecret, PayloadHash, Sturdyref, Target};
use ed25519_dalek::{Signature, Verifier, VerifyingKey};

/// The contents of a genuine reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The thing that the reference stands for.
    pub target: Target,
    /// The record at the target that must still exist.
    pub grant: GrantId,
    /// All its restrictions together. **The holders' proofs are not checked yet**:
    /// [`check_proofs`](Sturdyref::check_proofs) does that.
    pub caveats: Caveats,
    /// The identity of the reference.
    pub payload: PayloadHash,
}

impl Sturdyref {
    /// Checks everything that can be checked without the target: that the reference belongs to
    /// `cluster`, is signed by one of its `keys` and was narrowed by its holders only, and that it
    /// is still valid at `now_ms`, in milliseconds since the start of 1970 in UTC.
    ///
    /// # Errors
    /// The reference was refused. The reason is for logs only.
    pub fn verify(
        &self,
        cluster: &ClusterId,
        keys: impl Fn(KeyId) -> Option<VerifyingKey>,
        now_ms: u64,
    ) -> Result<Verified, Refused> {
        let payload = &self.layout.payload;
        if payload.cluster != *cluster {
            return Err(Refused::because(Flaw::Cluster));
        }
        let key = keys(payload.key).ok_or(Refused::because(Flaw::Key))?;
        let caveats = self.claimed_caveats()?;
        // A changed time breaks a signature, so the time may be looked at first.
        if caveats.not_after_ms().is_some_and(|last| now_ms > last) {
            return Err(Refused::because(Flaw::Expired));
        }
        self.verify_payload(&key)?;
        self.verify_links()?;
        self.verify_proof()?;
        Ok(Verified {
            target: payload.target,
            grant: payload.grant,
            caveats,
            payload: self.payload_hash(),
        })
    }

    /// Checks that the links and the proof fit together. That takes no key of the cluster, and a
    /// text that was altered on its way seldom passes. The target's owner checks the rest.
    ///
    /// # Errors
    /// A holder's signature or proof is wrong.
    pub(crate) fn check_holders_part(&self) -> Result<(), Refused> {
        self.verify_links()?;
        self.verify_proof()
    }

    /// All restrictions together, as the reference claims them; none of it is verified.
    ///
    /// # Errors
    /// It has a critical caveat of a kind that this version doesn't know.
    pub fn claimed_caveats(&self) -> Result<Caveats, Refused> {
        let links = self.layout.links.iter().map(|link| &link.caveats);
        links.fold(self.layout.payload.caveats.clone(), |all, link| all.and(link)).understood()
    }

    fn verify_payload(&self, key: &VerifyingKey) -> Result<(), Refused> {
        let end = self.layout.payload_end;
        let message = [codec::PAYLOAD_DOMAIN, &self.bytes[..end]].concat();
        self.verify_signature(key, &message, end)
    }

    fn verify_links(&self) -> Result<(), Refused> {
        let mut key = self.layout.payload.next;
        for link in &self.layout.links {
            let signed = &self.bytes[link.start..link.signature_at];
            let links_at = self.layout.links_at();
            let message = codec::link_message(&self.bytes, links_at, link.start, signed);
            self.verify_signature(&key.point()?, &message, link.signature_at)?;
            key = link.next;
        }
        Ok(())
    }

    fn verify_proof(&self) -> Result<(), Refused> {
        let last = self.layout.last_next();
        match self.layout.proof {
            Proof::Open => {
                let holds = self.secret().is_some_and(|secret| secret.public() == *last);
                if holds { Ok(()) } else { Err(Refused::because(Flaw::Proof)) }
            }
            Proof::Sealed => {
                let at = self.layout.proof_at;
                let message = codec::seal_message(&self.bytes[..at]);
                let proved =
                    last.point().and_then(|last| self.verify_signature(&last, &message, at + 1));
                proved.map_err(|_| Refused::because(Flaw::Proof))
            }
        }
    }

    /// Verifies the signature that starts at `at`.
    fn verify_signature(
        &self,
        key: &VerifyingKey,
        message: &[u8],
        at: usize,
    ) -> Result<(), Refused> {
        let signature = self.bytes[at..].first_chunk().ok_or(bytes::LAYOUT)?;
        let is_good = is_signed(key, message, signature);
        if is_good { Ok(()) } else { Err(Refused::because(Flaw::Signature)) }
    }

    /// The secret of the last next key, if the reference isn't sealed.
    pub(super) fn secret(&self) -> Option<NextSecret> {
        match self.layout.proof {
            Proof::Open => {
                self.bytes[self.layout.proof_at + 1..].first_chunk().copied().map(NextSecret)
            }
            Proof::Sealed => None,
        }
    }
}

/// Tells whether the signature of the message is by this key, and strictly so: no point of small
/// order is in it. Its encoding shows that, and the check compares encodings. So its point is never
/// decoded, which would take a tenth of all time.
pub(super) fn is_signed(key: &VerifyingKey, message: &[u8], signature: &[u8; 64]) -> bool {
    let point: &[u8; 32] = signature.first_chunk().expect("64 bytes begin with 32");
    bytes::is_sound(key.as_bytes())
        && bytes::is_sound(point)
        && key.verify(message, &Signature::from_bytes(signature)).is_ok()
}
