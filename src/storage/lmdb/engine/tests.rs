//! The promises of one environment: counted openings, the latch, walks, damaged keys, formats.

use super::*;
use crate::storage::range::Direction;

const MAP: usize = 1 << 20;
const PAGE: usize = 4_096;

impl Changes<'_> {
    /// Stores bytes without a checksum of their own, as a failing disk would.
    pub(crate) fn put_raw(&mut self, key: &[u8], stored: &[u8]) {
        self.txn.put(self.database, &key, &stored, WriteFlags::empty()).unwrap();
    }

    /// The bytes under `key`, including the checksum.
    pub(crate) fn get_raw(&self, key: &[u8]) -> Vec<u8> {
        self.txn.get(self.database, &key).unwrap().to_vec()
    }
}

#[test]
fn every_opening_is_counted_and_keeps_the_data() {
    let dir = tempfile::tempdir().unwrap();
    for incarnation in 1..4 {
        let env = Environment::open(dir.path(), Kind::Objects, MAP).unwrap();
        assert_eq!(env.incarnation(), incarnation);
        if incarnation == 1 {
            env.write(|changes| changes.put(b"key", b"value")).unwrap();
        }
        let found = env.read(|snapshot| Ok(snapshot.get(b"key")?.map(<[u8]>::to_vec)));
        assert_eq!(found.unwrap().unwrap(), b"value");
    }
}

#[test]
fn the_first_failed_write_is_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    let env = Environment::open(dir.path(), Kind::Objects, MAP).unwrap();
    let full = env.write(|changes| changes.put(b"large", &vec![0; 2 * MAP])).unwrap_err();
    assert!(matches!(*full, StorageError::MapFull));
    let after = env.write(|changes| changes.put(b"small", b"")).unwrap_err();
    assert!(Arc::ptr_eq(&full, &after));
    let left = env.read(|snapshot| Ok(snapshot.get(b"large")?.is_some()));
    assert!(!left.unwrap());
}

#[test]
fn a_walk_sees_its_range_in_order_and_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let env = Environment::open(dir.path(), Kind::Objects, MAP).unwrap();
    env.write(|changes| {
        (b'a'..=b'h').try_for_each(|key| changes.put(&[key, key], &[key]))?;
        changes.delete_some(b"c", u64::MAX)?;
        assert!(changes.has_any(b"d")? && !changes.has_any(b"c")?);
        Ok(())
    })
    .unwrap();
    let walk = |from: &[u8], until: Option<&[u8]>, direction| {
        let mut seen = String::new();
        let visit = |_: &[u8], record: &[u8]| {
            seen.push(char::from(record[0]));
            Ok(if seen.len() == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        let walked = env.read(|snapshot| snapshot.walk((from, until), direction, visit)).unwrap();
        (seen, walked.is_break())
    };
    let check = |from: &str, until: Option<&str>, direction, expected: &str| {
        let (seen, broke) = walk(from.as_bytes(), until.map(str::as_bytes), direction);
        assert_eq!((seen.as_str(), broke), (expected, expected.len() == 4));
    };
    check("b", Some("e"), Direction::Up, "bd");
    check("b", Some("e"), Direction::Down, "db");
    check("bc", Some("ee"), Direction::Up, "d");
    check("f", None, Direction::Down, "hgf");
    check("a", None, Direction::Up, "abde");
    check("b", Some("z"), Direction::Down, "hgfe");
    check("i", None, Direction::Up, "");
}

/// A damaged key isn't simply missing, and neither is a key to which a damaged page doesn't lead.
#[test]
fn a_key_is_missing_only_between_whole_records_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let env = Environment::open(dir.path(), Kind::Objects, MAP).unwrap();
    let keys: Vec<String> = (0..300).map(|n| format!("the key {n:03} of all")).collect();
    env.write(|changes| keys.iter().try_for_each(|key| changes.put(key.as_bytes(), &[7; 50])))
        .unwrap();
    drop(env);
    let data = dir.path().join("data.mdb");
    let whole = std::fs::read(&data).unwrap();
    let places = |key: &String| {
        let at = |at: usize| &whole[at..at + key.len()] == key.as_bytes();
        (0..whole.len() - key.len()).filter(|place| at(*place)).collect::<Vec<_>>()
    };
    let is_in_a_branch = |place: &usize| whole[place / PAGE * PAGE + 10] == 1;
    let in_branches = keys.iter().flat_map(places).filter(is_in_a_branch);
    let places: Vec<usize> = in_branches.chain(places(&keys[150])).collect();
    assert!(places.iter().any(is_in_a_branch) && !places.iter().all(is_in_a_branch));
    for (place, to) in places.iter().flat_map(|place| [(place, b'0'), (place, b'9')]) {
        let mut changed = whole.clone();
        changed[place + 8] = to;
        std::fs::write(&data, &changed).unwrap();
        let env = Environment::open(dir.path(), Kind::Objects, MAP).unwrap();
        let get = |key: &[u8]| env.read(|snapshot| Ok(snapshot.get(key)?.map(<[u8]>::len)));
        for key in &keys {
            let found = get(key.as_bytes());
            assert!(!matches!(found, Ok(None)), "{key} after {to} at {place}");
        }
        let length = env.read(|snapshot| snapshot.length(keys[150].as_bytes()));
        assert!(!matches!(length, Ok(None)), "{to} at {place}");
        assert!(matches!(get(b"the last key"), Ok(None)), "elsewhere all is well");
    }
}

#[test]
fn another_kind_or_format_inside_is_refused_and_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let env = Environment::open(dir.path(), Kind::Objects, MAP).unwrap();
    let newer = [layout::FORMAT + 1, 0, 0];
    env.write(|changes| changes.put(&ENVIRONMENT_KEY, &newer)).unwrap();
    drop(env);
    let data = std::fs::read(dir.path().join("data.mdb")).unwrap();
    let refused = Environment::open(dir.path(), Kind::Objects, MAP).unwrap_err();
    assert!(matches!(refused, StorageError::Format { found: 5, known: 4 }));
    let refused = Environment::open(dir.path(), Kind::Config, MAP).unwrap_err();
    assert!(matches!(refused, StorageError::NotOurs(_)));
    assert_eq!(std::fs::read(dir.path().join("data.mdb")).unwrap(), data);
}
