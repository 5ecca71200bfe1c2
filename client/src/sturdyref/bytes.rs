//! The bytes of a reference, read from front to back, and the public keys in them.

use super::PublicKey;
use super::refused::{Flaw, Refused};

/// The refusal of bytes that are not laid out as a reference.
pub(super) const LAYOUT: Refused = Refused::because(Flaw::Layout);

/// Bytes that are read from front to back.
pub(super) struct Bytes<'a> {
    pub(super) all: &'a [u8],
    pub(super) at: usize,
    /// A read asked for more bytes than there were.
    pub(super) ran_out: bool,
}

impl<'a> Bytes<'a> {
    pub(super) fn new(all: &'a [u8]) -> Self {
        Self { all, at: 0, ran_out: false }
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Refused> {
        let taken = self.all[self.at..].get(..length);
        self.ran_out |= taken.is_none();
        let taken = taken.ok_or(LAYOUT)?;
        self.at += length;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Refused> {
        self.take(N)?.try_into().map_err(|_| LAYOUT)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Refused> {
        self.array::<1>().map(|[byte]| byte)
    }
    pub(super) fn key(&mut self) -> Result<PublicKey, Refused> {
        key(self.array()?)
    }
}

/// Takes the bytes of a public key that proves something. Each coordinate has one accepted
/// encoding, and points of small order are refused. The existence of a point for the coordinate is
/// checked only when something is proved by it.
pub(super) fn key(bytes: [u8; 32]) -> Result<PublicKey, Refused> {
    if is_sound(&bytes) { Ok(PublicKey(bytes)) } else { Err(LAYOUT) }
}

pub(super) fn is_sound(key: &[u8; 32]) -> bool {
    // A coordinate of 2^255 - 19 or more, without the sign bit, is a second encoding of a smaller
    // one.
    let [low, middle @ .., high] = key;
    let is_reduced = *low < 0xed || high & 0x7f < 0x7f || middle.iter().any(|byte| *byte < 0xff);
    let mut coordinate = *key;
    coordinate[31] &= 0x7f;
    is_reduced && !OF_SMALL_ORDER.contains(&coordinate)
}

/// The coordinates of the eight points of small order, without the sign bit: with such a key one
/// signature fits many messages.
const OF_SMALL_ORDER: [[u8; 32]; 5] = [
    [0; 32],
    {
        let mut one = [0; 32];
        one[0] = 1;
        one
    },
    {
        let mut minus_one = [0xff; 32];
        (minus_one[0], minus_one[31]) = (0xec, 0x7f);
        minus_one
    },
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98,
        0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53,
        0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67,
        0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac,
        0x03, 0x7a,
    ],
];
