//! The keys of objects' records: the way to store a key of up to 2,048 bytes in an engine that
//! takes 511.
//!
//! A key of at most 480 bytes is stored as it is:
//!
//! > shard (2) ‖ object id (16) ‖ space (1) ‖ key
//!
//! For a longer key, a *link* is stored instead, under the first 480 bytes and a zero byte. It says
//! that keys continue from there, and has an empty record. The rest is stored under a *node*, whose
//! name is a hash of the link's whole key:
//!
//! > shard (2) ‖ object id (16) ‖ space + 128 (1) ‖ node (16) ‖ the rest of the key
//!
//! If the rest has more than 460 bytes, it is a link again. So a link sorts right after the key
//! that is just its 480 bytes, and before every greater key. A walk through the records in order,
//! which descends into each link on the way, sees all keys in the order of their bytes.
//!
//! The times at which alarms are due are in one order for all objects, and so outside of these:
//!
//! > `ffff00` ‖ key (14)
//!
//! Such a key is shorter than all keys of objects, by which it is told from them.
//!
//! **Invariants:** a link exists if and only if a key continues from it. Nothing here reads or
//! writes: it only computes the engine's keys.

use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use super::log_shard;
use crate::id::ObjectId;
use crate::storage::error::Result;
use crate::storage::space::Space;

const OBJECT_BYTES: usize = 2 + ObjectId::LEN;
const SPACE_AT: usize = OBJECT_BYTES;
const PREFIX_BYTES: usize = SPACE_AT + 1;
const NODE_BYTES: usize = 16;
/// The most bytes of a key, or of its beginning, directly in a space.
const FIRST_BYTES: usize = 480;
/// The most bytes of the rest of a key, or of its beginning, directly under a node.
const REST_BYTES: usize = 460;
/// The byte after the beginning of longer keys.
const LINK: u8 = 0;
/// Added to the number of a space for the records under its nodes.
const NODES: u8 = 128;
/// The beginning of the keys of all times at which alarms are due: behind the last shard's meta
/// record and before its objects, which are no part of an object's records.
pub(crate) const DUE_PREFIX: [u8; 3] = [0xff, 0xff, 0];
const NODE_DOMAIN: &[u8] = b"capstead long key v1";

/// A key of the engine. Most are short, and need no allocation.
pub(crate) type EngineKey = SmallVec<[u8; 64]>;

/// A group of records whose keys have everything before in common: the top of a space, or one of
/// its nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    prefix: SmallVec<[u8; 48]>,
    direct: usize,
}

/// The meaning of an engine key in its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step<'a> {
    /// The end of a key: its record is the value.
    Record(&'a [u8]),
    /// The part of longer keys that is stored in this level.
    Link(&'a [u8]),
}

/// One key of an object: the links that lead to it, and its record.
#[derive(Clone, Debug)]
pub(crate) struct RecordPath {
    /// The outermost first; empty except for long keys.
    pub(crate) links: Vec<EngineKey>,
    /// The key of the value.
    pub(crate) record: EngineKey,
}

impl Level {
    /// All keys of one space of an object.
    pub(crate) fn top(object: ObjectId, space: Space) -> Self {
        let mut prefix = SmallVec::from_slice(&object_prefix(object));
        prefix.push(space as u8);
        Self { prefix, direct: FIRST_BYTES }
    }

    /// The beginning of every engine key of this level.
    pub(crate) fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// The engine key for the remaining part of a key in this level, with the next level and the
    /// rest if that isn't all.
    fn split<'a>(&self, key: &'a [u8]) -> (EngineKey, Option<(Self, &'a [u8])>) {
        let mut engine = EngineKey::from_slice(&self.prefix);
        let Some((head, rest)) =
            key.split_at_checked(self.direct).filter(|(_, rest)| !rest.is_empty())
        else {
            engine.extend_from_slice(key);
            return (engine, None);
        };
        engine.extend_from_slice(head);
        engine.push(LINK);
        let below = self.below(&engine);
        (engine, Some((below, rest)))
    }

    /// The level to which a link of this one leads.
    pub(crate) fn below(&self, link: &[u8]) -> Self {
        let mut prefix = SmallVec::from_slice(&self.prefix[..SPACE_AT]);
        prefix.push(self.prefix[SPACE_AT] | NODES);
        let hash = Sha256::new().chain_update(NODE_DOMAIN).chain_update(link).finalize();
        prefix.extend_from_slice(&hash[..NODE_BYTES]);
        Self { prefix, direct: REST_BYTES }
    }

    /// The meaning of an engine key of this level.
    pub(crate) fn step<'a>(&self, engine: &'a [u8]) -> Step<'a> {
        let key = &engine[self.prefix.len()..];
        if key.len() > self.direct { Step::Link(&key[..self.direct]) } else { Step::Record(key) }
    }

    /// The part of `key` that is stored in this level.
    pub(crate) fn head<'a>(&self, key: &'a [u8]) -> &'a [u8] {
        &key[..key.len().min(self.direct)]
    }
}

impl RecordPath {
    /// Refuses the keys that [`Space::check_key`] refuses.
    pub(crate) fn new(object: ObjectId, space: Space, key: &[u8]) -> Result<Self> {
        space.check_key(key)?;
        if space == Space::Due {
            return Ok(Self { links: Vec::new(), record: due_key(key) });
        }
        let mut links = Vec::new();
        let (mut record, mut below) = Level::top(object, space).split(key);
        while let Some((level, rest)) = below {
            links.push(record);
            (record, below) = level.split(rest);
        }
        Ok(Self { links, record })
    }
}

/// The engine key of a time at which an alarm is due, or of the first part of one.
pub(crate) fn due_key(key: &[u8]) -> EngineKey {
    let mut engine = EngineKey::from_slice(&DUE_PREFIX);
    engine.extend_from_slice(key);
    engine
}

/// The beginning of every engine key of an object.
pub(crate) fn object_prefix(object: ObjectId) -> [u8; OBJECT_BYTES] {
    let mut prefix = [0; OBJECT_BYTES];
    prefix[..2].copy_from_slice(&log_shard(object).0.to_be_bytes());
    prefix[2..].copy_from_slice(object.as_bytes());
    prefix
}

/// The object to which the record under an engine key belongs, if it is an object's.
pub(crate) fn object_of(engine: &[u8]) -> Option<ObjectId> {
    engine.get(2..OBJECT_BYTES)?.try_into().ok().map(ObjectId::from_bytes)
}

/// The beginnings of the engine keys of a space's records: first those at its top, then those under
/// its nodes.
pub(crate) fn space_prefixes(object: ObjectId, space: Space) -> [Vec<u8>; 2] {
    let top = Level::top(object, space).prefix.to_vec();
    let mut nodes = top.clone();
    nodes[SPACE_AT] |= NODES;
    [top, nodes]
}

/// The beginning of every engine key of a link's level.
pub(crate) fn below_prefix(link: &[u8]) -> SmallVec<[u8; 48]> {
    let level = Level { prefix: SmallVec::from_slice(&link[..PREFIX_BYTES]), direct: 0 };
    level.below(link).prefix
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: ObjectId = ObjectId::from_bytes([7; 16]);

    fn path(key: &[u8]) -> RecordPath {
        RecordPath::new(OBJECT, Space::Data, key).unwrap()
    }

    #[test]
    fn a_short_key_is_stored_as_it_is() {
        let path = path(b"name");
        let mut expected = vec![7; 18];
        expected.push(1);
        expected.extend_from_slice(b"name");
        assert_eq!((path.record.as_slice(), path.links.len()), (expected.as_slice(), 0));
    }

    #[test]
    fn every_engine_key_of_the_longest_key_fits_the_engine() {
        for length in [480, 481, 940, 941, 1_400, 1_401, 1_860, 1_861, 2_048] {
            let path = path(&vec![0xff; length]);
            assert_eq!(path.links.len(), (length - 480).div_ceil(460), "{length}");
            assert!(path.links.iter().chain([&path.record]).all(|key| key.len() <= 511));
        }
    }

    #[test]
    fn a_link_sorts_after_its_own_bytes_and_before_all_that_is_greater() {
        let short = path(&[5; 480]).record;
        let long = path(&[5; 481]);
        let mut greater = [5; 480];
        greater[479] = 6;
        assert!(short < long.links[0] && long.links[0] < path(&greater).record);
        assert_eq!(long.links[0], path(&[[5; 480].as_slice(), b"\xff"].concat()).links[0]);
    }

    #[test]
    fn a_level_tells_links_from_records() {
        let long = path(&[9; 1_000]);
        let top = Level::top(OBJECT, Space::Data);
        assert_eq!(top.step(&long.links[0]), Step::Link(&[9; 480]));
        let below = top.below(&long.links[0]);
        assert_eq!(below.prefix(), below_prefix(&long.links[0]).as_slice());
        assert_eq!(below.step(&long.links[1]), Step::Link(&[9; 460]));
        let last = below.below(&long.links[1]);
        assert_eq!(last.step(&long.record), Step::Record(&[9; 60]));
    }

    /// A walk over the objects must pass them by.
    #[test]
    fn due_times_are_in_the_order_of_their_keys_and_look_like_no_object() {
        let due = |object, key| {
            let path = RecordPath::new(ObjectId::from_bytes([object; 16]), Space::Due, key);
            path.unwrap().record
        };
        let (first, second) = (due(9, &[1; 14]), due(7, &[2; 14]));
        assert!(first < second && object_of(&first).is_none());
        let last = RecordPath::new(ObjectId::from_bytes([0xff; 16]), Space::Header, b"").unwrap();
        assert!([0xff, 0xff].as_slice() < first.as_slice() && second < last.record);
        for length in [0, 13, 15] {
            let key = vec![1; length];
            assert!(RecordPath::new(OBJECT, Space::Due, &key).is_err(), "{length}");
        }
    }

    #[test]
    fn nodes_of_other_links_spaces_and_objects_have_other_names() {
        let one = path(&[1; 500]).record;
        let mut other = vec![1; 500];
        other[0] = 2;
        let object =
            RecordPath::new(ObjectId::from_bytes([8; 16]), Space::Data, &[1; 500]).unwrap();
        let space = RecordPath::new(OBJECT, Space::Grants, &[1; 500]).unwrap();
        for different in [path(&other).record, object.record, space.record] {
            assert_ne!(one[PREFIX_BYTES..35], different[PREFIX_BYTES..35]);
        }
    }

    /// The example of docs/storage-format.md.
    #[test]
    fn the_nodes_of_a_long_key_have_these_names() {
        let mut id = [0xaa; 16];
        id[..2].copy_from_slice(&[3, 4]);
        let path = RecordPath::new(ObjectId::from_bytes(id), Space::Data, &[b'k'; 1_000]).unwrap();
        let node = |key: &EngineKey| u128::from_be_bytes(key[19..35].try_into().unwrap());
        assert_eq!(node(&path.links[1]), 0x82b5_7518_9fab_7ec6_d526_73e9_09d3_a9ad);
        assert_eq!(node(&path.record), 0x2609_06d8_3464_f909_5bb5_c674_3f3d_ebfe);
        let lengths = [&path.links[0], &path.links[1], &path.record].map(SmallVec::len);
        assert_eq!(lengths, [500, 496, 95]);
    }
}
