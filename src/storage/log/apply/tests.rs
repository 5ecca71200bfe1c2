//! Many writes of one turn, applied in steps.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::*;
use crate::id::{Epoch, ObjectId};
use crate::limits::MAP_BYTES;
use crate::storage::log::batch::WriteSet;
use crate::storage::log::block::ShardBlock;
use crate::storage::log::entry::{Draft, Head};
use crate::storage::position::Link;
use crate::storage::range::Direction;
use crate::storage::space::Space;

const OBJECT: ObjectId = ObjectId::from_bytes([3; 16]);

/// The records of the class's space that remain after these writes, made in one entry.
fn applied(set: WriteSet, most: u64) -> (BTreeMap<Vec<u8>, Vec<u8>>, usize) {
    let dir = tempfile::tempdir().unwrap();
    let env = Environment::open(dir.path(), Kind::Objects, MAP_BYTES).unwrap();
    let mut draft = Draft::new();
    let (shard, epoch, previous) = (OBJECT.home_shard(), Epoch(1), Link::default());
    draft.add(&ShardBlock { shard, epoch, previous, writes: vec![set] });
    let head = Head {
        nonce: [9; 16],
        incarnation: 1,
        number: 1,
        durable: 0,
        segment: 1,
        previous: [0; 16],
        identity: [8; 16],
    };
    let entries = [(draft.finish(&head), End { number: 1, ..End::default() })];
    let mut work = Work::of(&entries).unwrap();
    let mut transactions = 1;
    while !env.write(|changes| work.go_on(changes, env.page_bytes(), most)).unwrap() {
        transactions += 1;
    }
    let prefix = space_prefixes(OBJECT, Space::Data).into_iter().next().unwrap();
    let mut found = BTreeMap::new();
    env.read(|snapshot| {
        let _ = snapshot.walk((&prefix, None), Direction::Up, |key, value| {
            if key.starts_with(&prefix) {
                found.insert(key[prefix.len()..].to_vec(), value.to_vec());
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(())
    })
    .unwrap();
    (found, transactions)
}

/// Writes of the same keys before and after a clearing, more than are sorted together.
#[test]
fn the_last_write_of_each_key_stays_however_many_are_made() {
    for most in [1 << 20, TRANSACTION_BYTES] {
        let (mut set, mut expected) = (WriteSet::new(OBJECT), BTreeMap::new());
        let mut random = 1_u64;
        for n in 0..3 * SORTED_TOGETHER {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let key = ((random >> 33) as u16 % 5_000).to_be_bytes();
            if n == SORTED_TOGETHER + 5 {
                set.clear(Space::Data);
                expected.clear();
            } else if n % 7 == 0 {
                set.delete(Space::Data, &key).unwrap();
                expected.remove(key.as_slice());
            } else {
                set.put(Space::Data, &key, &n.to_le_bytes()).unwrap();
                expected.insert(key.to_vec(), n.to_le_bytes().to_vec());
            }
        }
        let (found, transactions) = applied(set, most);
        assert!(found == expected, "{} of {}", found.len(), expected.len());
        assert!(transactions > 1 || most == TRANSACTION_BYTES, "{transactions}");
    }
}

/// A clearing takes as many transactions as the bytes that it removes need, and no more.
#[test]
fn a_clearing_is_done_in_steps_by_bytes() {
    const RECORDS: u32 = 20_000;
    let mut set = WriteSet::new(OBJECT);
    for n in 0..RECORDS {
        set.put(Space::Data, &n.to_be_bytes(), &[7; 100]).unwrap();
    }
    let (_, filled) = applied(set.clone(), 1 << 30);
    assert_eq!(filled, 1);
    set.clear(Space::Data);
    set.put(Space::Data, b"after", b"1").unwrap();
    let bytes = u64::from(RECORDS) * 2 * (16 + 120 + 20);
    let (found, transactions) = applied(set, 1 << 20);
    assert_eq!(found.len(), 1);
    let writing = u64::from(RECORDS) * 2 * 4096 / (1 << 20);
    let clearing = transactions as u64 - writing;
    assert!((2..2 * bytes / (1 << 20)).contains(&clearing), "{transactions}, {writing} to write");
}
