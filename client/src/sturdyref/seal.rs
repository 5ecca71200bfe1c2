//! The offline operations of a holder on a reference: narrowing and sealing.
//!
//! Neither asks a server, and neither can widen anything.

use super::refused::Flaw;
use super::{Caveats, NextSecret, Refused, Sturdyref, codec};
use crate::sturdyref_capnp::{LINKS_MAX, PROOF_OPEN, PROOF_SEALED};
use ed25519_dalek::Signer;
use zeroize::Zeroize;

impl Sturdyref {
    /// A reference to the same target, restricted by `caveats` as well. It never allows more than
    /// this one.
    ///
    /// # Errors
    /// This reference is sealed, or has been narrowed 16 times already. The system has no random
    /// bytes.
    pub fn narrow(&self, caveats: &Caveats) -> capnp::Result<Self> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)
            .map_err(|cause| capnp::Error::failed(format!("no random bytes: {cause}")))?;
        let next = NextSecret::from_seed(seed);
        seed.zeroize();
        Ok(self.narrow_with(caveats, &next)?)
    }

    /// Adds a link with `caveats` and the given next key.
    pub(super) fn narrow_with(
        &self,
        caveats: &Caveats,
        next: &NextSecret,
    ) -> Result<Self, Refused> {
        let secret = self.secret().ok_or(Refused::because(Flaw::Sealed))?;
        if self.layout.links.len() >= usize::from(LINKS_MAX) {
            return Err(Refused::because(Flaw::TooManyLinks));
        }
        let (links_at, start) = (self.layout.links_at(), self.layout.proof_at);
        let mut link = Vec::new();
        caveats.encode_into(&mut link);
        link.extend(next.public().as_bytes());
        let message = codec::link_message(&self.bytes, links_at, start, &link);
        let signature = secret.signing_key().sign(&message);

        // Room for all bytes at once: growing would leave a copy of the secret behind in a smaller
        // block.
        let mut bytes = Vec::with_capacity(self.bytes.len() + link.len() + 64);
        bytes.extend(&self.bytes[..start]);
        bytes[links_at] += 1;
        bytes.extend(link);
        bytes.extend(signature.to_bytes());
        bytes.push(PROOF_OPEN);
        bytes.extend(next.0);
        Self::parse_owned(bytes)
    }

    /// The same reference without the secret: nobody who gets it can narrow it further, or remove a
    /// narrowing. A sealed reference is returned unchanged.
    #[must_use]
    pub fn seal(&self) -> Self {
        let Some(secret) = self.secret() else { return self.clone() };
        let before = &self.bytes[..self.layout.proof_at];
        let signature = secret.signing_key().sign(&codec::seal_message(before));
        let mut bytes = before.to_vec();
        bytes.push(PROOF_SEALED);
        bytes.extend(signature.to_bytes());
        Self::parse_owned(bytes).expect("a sound reference with another proof is sound")
    }
}
