//! The exact order of keys up to the greatest length, compared with a sorted map, and a check that
//! deleted keys leave nothing behind.

use std::ops::ControlFlow;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::keys::{Pick, Short, key, pick, value};
use super::listing::{Listing, Wish, wish};
use super::{Backend, Map, Opened, cases, usage};
use crate::id::{ObjectId, Shard};
use crate::storage::lmdb::layout::Usage;
use crate::storage::log::batch::WriteSet;
use crate::storage::log::block::ShardBlock;
use crate::storage::log::reads::Reads;
use crate::storage::log::shard_log::{Claim, Outcome};
use crate::storage::range::Direction;
use crate::storage::space::Space;

const OBJECT: ObjectId = ObjectId::from_bytes([1; 16]);
const SHARD: Shard = Shard(0x0101);

#[derive(Clone, Debug)]
enum Change {
    Put(Pick, Short),
    Delete(Pick),
    Clear,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        20 => (pick(), value()).prop_map(|(key, value)| Change::Put(key, value)),
        8 => pick().prop_map(Change::Delete),
        1 => Just(Change::Clear),
    ]
}

pub(super) fn lists_are_those_of_a_map_and_no_record_is_left_over<B: Backend>() {
    let changes = vec(vec(change(), 1..30), 1..4);
    let strategy = (changes, vec(wish(), 12), any::<bool>());
    let check = |(changes, wishes, clears): (Vec<Vec<Change>>, Vec<Wish>, bool)| {
        let backend = B::make();
        let mut writer = Writer::new(&backend);
        let mut map = Map::new();
        for changes in changes {
            writer.write(|set| {
                for change in changes {
                    make(change, set, &mut map);
                }
            });
            backend.check_records(OBJECT, Space::Data, &map);
        }
        for listing in wishes.into_iter().map(|wish| wish.listing(&map)) {
            check_list(&*writer.opened.reads, &listing, &map);
        }
        for direction in [Direction::Up, Direction::Down] {
            check_list(&*writer.opened.reads, &Listing::all(direction), &map);
        }
        // No store wrote the values, so none has edges.
        let expected = Usage { references: 0, ..usage(&map) };
        assert_eq!(writer.opened.reads.count(OBJECT).unwrap(), expected);
        writer.write(|set| {
            if clears {
                set.clear(Space::Data);
            } else {
                for key in map.keys() {
                    set.delete(Space::Data, key).unwrap();
                }
            }
        });
        backend.check_records(OBJECT, Space::Data, &Map::new());
        Ok(())
    };
    TestRunner::new(cases(40)).run(&strategy, check).unwrap();
}

fn make(change: Change, set: &mut WriteSet, map: &mut Map) {
    match change {
        Change::Put(pick, Short(value)) => {
            let key = pick.key(map);
            set.put(Space::Data, &key, &value).unwrap();
            map.insert(key, value);
        }
        Change::Delete(pick) => {
            let key = pick.key(map);
            set.delete(Space::Data, &key).unwrap();
            map.remove(&key);
        }
        Change::Clear => {
            set.clear(Space::Data);
            map.clear();
        }
    }
}

fn check_list(reads: &dyn Reads, listing: &Listing, map: &Map) {
    let mut found = Vec::new();
    let mut keep = |key: &[u8], value: &[u8]| {
        found.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    };
    reads.scan(OBJECT, Space::Data, &listing.range, &mut keep).unwrap();
    let expected = listing.expected(map);
    let same = found.iter().map(|(key, value)| (&key[..], &value[..])).eq(expected.iter().copied());
    assert!(same, "{} keys, and {} were expected of {listing:?}", found.len(), expected.len());
    for (key, value) in expected {
        assert_eq!(reads.get(OBJECT, Space::Data, key).unwrap().as_deref(), Some(value));
        assert_eq!(reads.length(OBJECT, Space::Data, key).unwrap(), Some(value.len()));
    }
}

/// Enough keys to fill pages of the engine, next to the keys of another space.
pub(super) fn clearing_many_keys_leaves_none<B: Backend>() {
    let check = |keys: Vec<Vec<u8>>| {
        let backend = B::make();
        let mut writer = Writer::new(&backend);
        let map: Map = keys.into_iter().map(|key| (key, vec![9; 200])).collect();
        for space in [Space::Grants, Space::Data] {
            writer.write(|set| {
                for (key, value) in &map {
                    set.put(space, key, value).unwrap();
                }
            });
        }
        writer.write(|set| set.clear(Space::Data));
        backend.check_records(OBJECT, Space::Data, &Map::new());
        backend.check_records(OBJECT, Space::Grants, &map);
        Ok(())
    };
    TestRunner::new(cases(3)).run(&vec(key(), 400), check).unwrap();
}

/// Writes blocks with writes of one object.
struct Writer {
    opened: Opened,
    claim: Claim,
}

impl Writer {
    fn new<B: Backend>(backend: &B) -> Self {
        let mut opened = backend.open();
        let claim = opened.log.claim(SHARD).unwrap();
        Self { opened, claim }
    }

    fn write(&mut self, fill: impl FnOnce(&mut WriteSet)) {
        let mut set = WriteSet::new(OBJECT);
        fill(&mut set);
        let Claim { epoch, link: previous } = self.claim;
        let block = ShardBlock { shard: SHARD, epoch, previous, writes: vec![set] };
        let outcomes = self.opened.log.append(&[block]);
        let [Outcome::Position(link)] = outcomes[..] else { panic!("{outcomes:?}") };
        self.claim.link = link;
    }
}
