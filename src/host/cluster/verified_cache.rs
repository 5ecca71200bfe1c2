//! References whose signatures were found good lately: clients that connect again show the same
//! one, and its signatures take most of the time of a restore.
//!
//! **Invariant:** all entries were verified with exactly the keys that are in force. A reference is
//! known by all of its bytes, and its time is checked each time.

use std::cell::RefCell;
use std::sync::Arc;

use capstead_client::sturdyref::{Refused, Sturdyref, Verified};
use lru::LruCache;
use sha2::{Digest, Sha256};

use crate::sturdyref::KeyRing;

/// The most bytes of references that are remembered, places in the table included: some ten
/// thousand usual ones.
const KNOWN_BYTES_MAX: usize = 4 << 20;

/// The longest reference that is remembered. It is an eighth of the longest text; a longer one is
/// checked each time.
const KNOWN_REFERENCE_BYTES_MAX: usize = 1 << 10;

/// The bytes that the place of one takes in the table.
const KNOWN_PLACE_BYTES: usize = 256;

/// See the head of the file.
#[derive(Default)]
pub(super) struct VerifiedCache(RefCell<VerifiedTable>);

struct VerifiedTable {
    by: Option<Arc<KeyRing>>,
    bytes: usize,
    /// The entries with the memory that each takes, by the hash of the reference's bytes.
    verified: LruCache<[u8; 32], (Verified, usize)>,
}

impl Default for VerifiedTable {
    fn default() -> Self {
        Self { by: None, bytes: 0, verified: LruCache::unbounded() }
    }
}

impl VerifiedCache {
    /// Tells whether a check of the reference would compute no signature.
    pub(super) fn knows(&self, keys: &Arc<KeyRing>, reference: &Sturdyref) -> bool {
        let known = self.0.borrow();
        reference.expose_bytes().len() <= KNOWN_REFERENCE_BYTES_MAX
            && known.by.as_ref().is_some_and(|by| Arc::ptr_eq(by, keys))
            && known.verified.contains(&hash(reference))
    }

    pub(super) fn verify(
        &self,
        keys: &Arc<KeyRing>,
        reference: &Sturdyref,
        now_ms: u64,
    ) -> std::result::Result<Verified, Refused> {
        let length = reference.expose_bytes().len();
        if length > KNOWN_REFERENCE_BYTES_MAX || !keys.claims(reference) {
            return keys.verify(reference, now_ms);
        }
        let mut known = self.0.borrow_mut();
        if !known.by.as_ref().is_some_and(|by| Arc::ptr_eq(by, keys)) {
            *known = VerifiedTable { by: Some(keys.clone()), ..VerifiedTable::default() };
        }
        let hash = hash(reference);
        let is_over =
            |verified: &Verified| verified.caveats.not_after_ms().is_some_and(|last| now_ms > last);
        if let Some((verified, _)) = known.verified.get(&hash)
            && !is_over(verified)
        {
            return Ok(verified.clone());
        }
        let verified = keys.verify(reference, now_ms)?;
        // Every part of the entry stands in the reference, and takes at most twice as much in
        // memory.
        let cost = KNOWN_PLACE_BYTES + 2 * length;
        while known.bytes + cost > KNOWN_BYTES_MAX
            && let Some((_, (_, freed))) = known.verified.pop_lru()
        {
            known.bytes -= freed;
        }
        if let Some((_, before)) = known.verified.put(hash, (verified.clone(), cost)) {
            known.bytes -= before;
        }
        known.bytes += cost;
        Ok(verified)
    }
}

fn hash(reference: &Sturdyref) -> [u8; 32] {
    Sha256::digest(reference.expose_bytes()).into()
}

#[cfg(test)]
mod tests {
    use capstead_client::sturdyref::{
        Caveats, GrantId, Method, NextSecret, SigningKey, Target, TargetId,
    };

    use super::*;

    fn keys() -> Arc<KeyRing> {
        let key = |seed| SigningKey::from_bytes(&[seed; 32]);
        Arc::new(KeyRing::new(key(1), vec![key(2)]))
    }

    fn reference(keys: &KeyRing, number: u16, methods: u16) -> Sturdyref {
        let mut grant = [0; 16];
        grant[..2].copy_from_slice(&number.to_be_bytes());
        let caveats =
            Caveats::none().with_methods((0..methods).map(|at| Method::new(7, at))).unwrap();
        let target = Target::Object(TargetId::from_bytes([7; 16]));
        keys.mint(target, GrantId::from_bytes(grant), caveats, &NextSecret::from_seed([3; 32]))
    }

    #[test]
    fn what_is_remembered_is_bounded_in_bytes_and_never_long() {
        let (keys, known) = (keys(), VerifiedCache::default());
        assert!(known.verify(&keys, &reference(&keys, 0, 256), 0).is_ok());
        assert_eq!(known.0.borrow().verified.len(), 0, "it would be long");
        // One client comes again and again, beside many who come once.
        let regular = reference(&keys, 3000, 70);
        let hash: [u8; 32] = Sha256::digest(regular.expose_bytes()).into();
        known.verify(&keys, &regular, 0).unwrap();
        for number in 0..3000 {
            known.verify(&keys, &reference(&keys, number, 70), 0).unwrap();
            assert!(known.0.borrow().verified.contains(&hash), "it was used lately");
            known.verify(&keys, &regular, 0).unwrap();
            let known = known.0.borrow();
            assert!(known.bytes <= KNOWN_BYTES_MAX);
            assert!(known.bytes >= known.verified.len() * 70 * 16);
            assert!(known.verified.len() <= usize::from(number) + 2);
        }
        let before = known.0.borrow().verified.len();
        assert!((1000..3000).contains(&before), "the oldest made room at the bound");
        known.verify(&keys, &reference(&keys, 2999, 70), 0).unwrap();
        assert_eq!(known.0.borrow().verified.len(), before, "it is known");
    }
}
