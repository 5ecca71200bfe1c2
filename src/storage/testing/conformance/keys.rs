//! Random keys that often coincide, and that meet the limits between the parts of long keys.
//!
//! They consist of few bytes and have few lengths, so that many are equal, or begin alike.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::{Map, REFERS};
use crate::limits::KEY_BYTES_MAX;

/// The least byte, one in the middle, and the greatest.
const BYTES: [u8; 3] = [0x00, b'a', 0xff];

/// Lengths around those at which a key gets another part, and the greatest length.
const LENGTHS: [usize; 16] = [
    479, 480, 481, 482, 939, 940, 941, 942, 1_399, 1_400, 1_401, 1_860, 1_861, 2_046, 2_047, 2_048,
];

/// A key within the limits.
pub(super) fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![3 => short_key(), 4 => long_key()]
}

/// A key that no class may use.
pub(super) fn wrong_key() -> impl Strategy<Value = Pick> {
    select(vec![0, KEY_BYTES_MAX + 1]).prop_map(|length| Pick::Any(Short(vec![b'a'; length])))
}

fn short_key() -> impl Strategy<Value = Vec<u8>> {
    vec(select(&BYTES[..]), 1..=3)
}

fn long_key() -> impl Strategy<Value = Vec<u8>> {
    let changed = proptest::option::weighted(0.4, (select(&LENGTHS[..]), select(&BYTES[..])));
    (select(&BYTES[..]), select(&LENGTHS[..]), changed).prop_map(|(byte, length, changed)| {
        let mut key = vec![byte; length];
        if let Some((at, byte)) = changed {
            // The place one after the last byte stands for the last byte.
            key[at.min(length) - 1] = byte;
        }
        key
    })
}

/// A value: most are short, some fill pages of the engine, and some refer to other objects.
pub(super) fn value() -> impl Strategy<Value = Short> {
    let length = prop_oneof![4 => 0..20usize, 1 => 3_000..9_000usize];
    let plain = (length, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]);
    let refers = (0..3usize, any::<u8>()).prop_map(|(ids, half)| {
        let mut value = vec![half; 2 + 16 * ids];
        value[0] = REFERS;
        value
    });
    prop_oneof![2 => plain, 1 => refers].prop_map(Short)
}

/// Bytes that a failed test shows only by their length and ends.
#[derive(Clone)]
pub(super) struct Short(pub(super) Vec<u8>);

impl fmt::Debug for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends = self.0.len().min(3);
        let (first, last) = (&self.0[..ends], &self.0[self.0.len() - ends..]);
        write!(f, "{} bytes {}..{}", self.0.len(), first.escape_ascii(), last.escape_ascii())
    }
}

/// A key that is already present, or any key.
#[derive(Clone, Debug)]
pub(super) enum Pick {
    Any(Short),
    /// One of the present keys; if there is none, the other.
    Present(Index, Short),
}

pub(super) fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![
        key().prop_map(|key| Pick::Any(Short(key))),
        (any::<Index>(), key()).prop_map(|(index, key)| Pick::Present(index, Short(key))),
    ]
}

impl Pick {
    pub(super) fn key(self, present: &Map) -> Vec<u8> {
        match self {
            Self::Any(key) => key.0,
            Self::Present(_, key) if present.is_empty() => key.0,
            Self::Present(index, _) => {
                present.keys().nth(index.index(present.len())).cloned().unwrap()
            }
        }
    }
}
