//! Many writes of one turn, applied in steps.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use tempfile::TempDir;

use super::*;
use crate::id::{Epoch, ObjectId};
use crate::limits::MAP_BYTES;
use crate::storage::log::batch::WriteSet;
use crate::storage::log::block::ShardBlock;
use crate::storage::log::entry::{Draft, Head};
use crate::storage::position::{Link, Position};
use crate::storage::range::Direction;
use crate::storage::space::Space;

const OBJECT: ObjectId = ObjectId::from_bytes([3; 16]);
const HEAD: Head = Head {
    nonce: [9; 16],
    incarnation: 1,
    number: 1,
    durable: 0,
    segment: 1,
    previous: [0; 16],
    identity: [8; 16],
};

/// The records of the class's space that remain after these writes, made in one entry.
fn applied(set: WriteSet, most: u64) -> (BTreeMap<Vec<u8>, Vec<u8>>, usize) {
    let dir = tempfile::tempdir().unwrap();
    let env = Environment::open(dir.path(), Kind::Objects, MAP_BYTES).unwrap();
    let mut draft = Draft::new();
    let (shard, epoch, previous) = (OBJECT.home_shard(), Epoch(1), Link::default());
    draft.add(&ShardBlock { shard, epoch, previous, writes: vec![set] }).unwrap();
    let entries = [(draft.finish(&HEAD), End { number: 1, ..End::default() })];
    let mut work = Work::of(&entries).unwrap();
    let mut transactions = 1;
    let page = env.page_bytes();
    while !env.write(|changes| work.go_on(changes, (page, most), None)).unwrap().is_done {
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

/// Entries of three objects, each of which is cleared at times.
fn entries(count: u64, random: &mut u64) -> Vec<(Entry, End)> {
    let mut next = |below: u64| {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*random >> 33) % below
    };
    let entry = |number| {
        let mut draft = Draft::new();
        for _ in 0..=next(2) {
            let object = ObjectId::from_bytes([next(3) as u8; 16]);
            let mut set = WriteSet::new(object);
            for _ in 0..=next(20) {
                let key = [&[7; 900][..next(2) as usize * 900], &[next(12) as u8]].concat();
                match next(9) {
                    0 => set.clear(Space::Data),
                    1 => set.delete(Space::Data, &key).unwrap(),
                    _ => set.put(Space::Data, &key, &number_bytes(number, next(99))).unwrap(),
                }
            }
            let (shard, epoch) = (object.home_shard(), Epoch(1));
            let previous = Link { position: Position(number), ..Link::default() };
            draft.add(&ShardBlock { shard, epoch, previous, writes: vec![set] }).unwrap();
        }
        let head = Head { number, ..HEAD };
        (draft.finish(&head), End { number, ..End::default() })
    };
    (1..=count).map(entry).collect()
}

fn number_bytes(number: u64, more: u64) -> Vec<u8> {
    [number, more].map(u64::to_be_bytes).concat()
}

/// An environment with a log, and nothing applied.
fn begun(dir: &TempDir) -> Environment {
    let env = Environment::open(dir.path(), Kind::Objects, 1 << 26).unwrap();
    let state = LogState { nonce: HEAD.nonce, applied: End::default() };
    env.write(|changes| set_log(changes, None, Some(state))).unwrap();
    env
}

/// All records of the environment but its own, of all objects or of one.
fn records(env: &Environment, of: Option<ObjectId>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut found = BTreeMap::new();
    let _ = env
        .read(|snapshot| {
            snapshot.walk((&[0, 0], None), Direction::Up, |key, value| {
                if of.is_none_or(|object| key.get(2..18) == Some(object.as_bytes())) {
                    found.insert(key.to_vec(), value.to_vec());
                }
                Ok(ControlFlow::Continue(()))
            })
        })
        .unwrap();
    found
}

fn recorded(env: &Environment) -> u64 {
    crate::storage::log::opening::record_of(env).unwrap().log.unwrap().applied.number
}

/// Each object has its writes in their order, those that aren't cleared don't wait, nothing is
/// recorded too early, and after a crash the log completes what is there.
#[test]
fn entries_beside_clearings_give_the_same_records_as_one_after_the_other() {
    let mut random = 1;
    let metrics = Metrics::default();
    let (mut put_off, mut crashes) = (0, 0);
    for _ in 0..20 {
        let all = entries(30, &mut random);
        let [one_by_one, beside, after] = [(), (), ()].map(|()| tempfile::tempdir().unwrap());
        let (expected, env, crashed) = (begun(&one_by_one), begun(&beside), begun(&after));
        let (nonce, delay) = (HEAD.nonce, Duration::ZERO);
        let target = |env| Target { env, nonce, metrics: &metrics, low: 0, clearing: 1, delay };
        let mut sweeps = Sweeps::default();
        let mut last_recorded = 0;
        for (at, entry) in all.chunks(1).enumerate() {
            target(&expected).apply(entry).unwrap();
            target(&env).apply_beside(entry, Some(&mut sweeps)).unwrap();
            let is_aside = |object| sweeps.objects().any(|aside| aside == object);
            for object in (0..3).map(|byte| ObjectId::from_bytes([byte; 16])) {
                if is_aside(object) {
                    put_off += 1;
                } else {
                    assert_eq!(records(&env, Some(object)), records(&expected, Some(object)));
                }
            }
            if sweeps.is_empty() {
                last_recorded = at as u64 + 1;
            }
            assert_eq!(recorded(&env), last_recorded);
            if at == 20 {
                // The state that a killed process leaves.
                for (key, value) in records(&env, None) {
                    crashed.write(|changes| changes.put(&key, &value)).unwrap();
                }
                crashes += u64::from(last_recorded <= 20);
                target(&crashed).apply(&all[last_recorded as usize..]).unwrap();
            }
            if at % 3 == 0 && !sweeps.is_empty() {
                target(&env).sweep(&mut sweeps).unwrap();
                last_recorded = if sweeps.is_empty() { at as u64 + 1 } else { last_recorded };
            }
        }
        while !sweeps.is_empty() {
            target(&env).sweep(&mut sweeps).unwrap();
        }
        assert_eq!(recorded(&env), 30);
        let expected = records(&expected, None);
        assert_eq!(records(&env, None), expected);
        assert_eq!(records(&crashed, None), expected);
    }
    assert!(put_off > 100 && crashes > 10, "{put_off} {crashes}");
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
