//! A hasher for the protocol's numbers, which a peer chooses.
//!
//! It takes the upper half of the product with a secret odd factor. That is cheaper than the
//! standard hasher, which would run twice in each call. It is for numbers only.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};

/// A map by numbers of the peer.
pub(super) type ByNumber<T> = HashMap<u32, T, Scatter>;

/// A set of numbers of the peer.
pub(super) type NumberSet = HashSet<u32, Scatter>;

#[derive(Clone)]
pub(super) struct Scatter {
    factor: u64,
}

impl Default for Scatter {
    fn default() -> Self {
        Self { factor: RandomState::new().hash_one(0_u8) | 1 }
    }
}

impl BuildHasher for Scatter {
    type Hasher = Scattered;

    fn build_hasher(&self) -> Scattered {
        Scattered { factor: self.factor, hash: 0 }
    }
}

pub(super) struct Scattered {
    factor: u64,
    hash: u64,
}

impl Hasher for Scattered {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.hash = (self.hash ^ u64::from(number)).wrapping_mul(self.factor).rotate_left(32);
    }

    fn finish(&self) -> u64 {
        self.hash
    }
}
