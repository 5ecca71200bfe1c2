//! A hasher for the numbers of the protocol, which a peer chooses.
//!
//! A secret odd factor, and the upper half of the product: cheaper than the standard hasher, which is
//! paid for twice in each call. It is for numbers only.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};

/// By number of the peer's.
pub(super) type ByNumber<T> = HashMap<u32, T, Scatter>;

/// Numbers of the peer's.
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
