//! The promises of a config store: versions, swaps that see each other, and observers.

use std::sync::{Arc, Mutex};

use super::Backend;
use crate::limits::{CONFIG_KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::storage::config::{CasOutcome, ConfigStore, Versioned};
use crate::storage::error::StorageError;

/// Stores a value that must be stored; returns its version.
fn stored(store: &dyn ConfigStore, key: &str, expected: Option<u64>, value: &[u8]) -> u64 {
    let outcome = store.compare_and_swap(key, expected, value).unwrap();
    let CasOutcome::Stored(version) = outcome else { panic!("{outcome:?}") };
    assert!(version > expected.unwrap_or(0), "versions grow");
    let now = Versioned { version, value: value.to_vec() };
    assert_eq!(store.get(key).unwrap(), Some(now));
    version
}

fn conflicts(store: &dyn ConfigStore, expected: Option<u64>, present: Option<u64>) {
    let outcome = store.compare_and_swap("k", expected, b"other").unwrap();
    assert_eq!(outcome, CasOutcome::Conflict(present));
}

pub(super) fn a_swap_needs_the_present_version<B: Backend>() {
    let mut backend = B::make();
    let store = backend.open_config();
    assert_eq!(store.get("k").unwrap(), None);
    conflicts(&*store, Some(1), None);
    conflicts(&*store, Some(0), None);
    assert_eq!(store.get("k").unwrap(), None);
    let first = stored(&*store, "k", None, b"b");
    for wrong in [None, Some(0), Some(first + 1)] {
        conflicts(&*store, wrong, Some(first));
        let value = store.get("k").unwrap();
        assert_eq!(value, Some(Versioned { version: first, value: b"b".to_vec() }));
    }
    let second = stored(&*store, "k", Some(first), b"");
    conflicts(&*store, Some(first), Some(second));
    assert_eq!(store.get("l").unwrap(), None);
    stored(&*store, "l", None, b"d");
    stored(&*store, "k", Some(second), b"e");
}

pub(super) fn values_and_versions_survive<B: Backend>() {
    let mut backend = B::make();
    let mut last = None;
    for value in 0..3 {
        let store = backend.open_config();
        assert_eq!(store.get("k").unwrap().map(|present| present.version), last);
        last = Some(stored(&*store, "k", last, &[value]));
    }
    let present = last.map(|version| Versioned { version, value: vec![2] });
    assert_eq!(backend.open_config().get("k").unwrap(), present);
}

pub(super) fn observers_see_what_is_there_and_what_changes_under_their_prefix_alone<B: Backend>() {
    type Seen = Arc<Mutex<Vec<(String, Vec<u8>, u64)>>>;
    let mut backend = B::make();
    let store = backend.open_config();
    stored(&*store, "map/2", None, b"two");
    let first = stored(&*store, "map/1", None, b"one");
    stored(&*store, "mao", None, b"before");
    stored(&*store, "mapless", None, b"after");
    let watch = |prefix| {
        let seen = Seen::default();
        let told = seen.clone();
        let tell = move |key: &str, now: &Versioned| {
            told.lock().unwrap().push((key.to_owned(), now.value.clone(), now.version));
        };
        store.watch(prefix, Box::new(tell)).unwrap();
        seen
    };
    let all = |seen: &Seen| {
        let seen = seen.lock().unwrap();
        seen.iter().map(|(key, value, _)| format!("{key}={}", value.escape_ascii())).collect()
    };
    let (map, one, everything) = (watch("map/"), watch("map/1"), watch(""));
    let check = |seen: &Seen, expected: &[&str]| {
        let seen: Vec<String> = all(seen);
        assert_eq!(seen, expected);
    };
    check(&map, &["map/1=one", "map/2=two"]);
    check(&one, &["map/1=one"]);
    check(&everything, &["mao=before", "map/1=one", "map/2=two", "mapless=after"]);
    let second = stored(&*store, "map/1", Some(first), b"1");
    stored(&*store, "map/3", None, b"three");
    stored(&*store, "ma", None, b"shorter");
    let outcome = store.compare_and_swap("map/1", Some(first), b"late").unwrap();
    assert_eq!(outcome, CasOutcome::Conflict(Some(second)));
    check(&map, &["map/1=one", "map/2=two", "map/1=1", "map/3=three"]);
    check(&one, &["map/1=one", "map/1=1"]);
    let versions: Vec<u64> = one.lock().unwrap().iter().map(|seen| seen.2).collect();
    assert_eq!(versions, [first, second]);
    assert_eq!(all(&everything)[4..], ["map/1=1", "map/3=three", "ma=shorter"].map(str::to_owned));
    drop(store);
    stored(&*backend.open_config(), "map/1", Some(second), b"later");
    assert_eq!(one.lock().unwrap().len(), 2, "a process that ended sees nothing more");
}

pub(super) fn a_swap_whose_answer_is_lost_is_resolved_by_a_read<B: Backend>() {
    let mut backend = B::make();
    let store = backend.open_config();
    let before = stored(&*store, "k", None, b"before");
    for is_made in [false, true] {
        if !backend.lose_answer(is_made) {
            return;
        }
        let outcome = store.compare_and_swap("k", Some(before), b"new").unwrap();
        assert_eq!(outcome, CasOutcome::Unknown);
        let now = store.get("k").unwrap().unwrap();
        assert_eq!((now.value == b"new", now.version > before), (is_made, is_made));
    }
}

pub(super) fn what_is_too_long_is_refused<B: Backend>() {
    let mut backend = B::make();
    let store = backend.open_config();
    let (longest, longer) =
        ("k".repeat(CONFIG_KEY_BYTES_MAX), "k".repeat(CONFIG_KEY_BYTES_MAX + 1));
    for wrong in ["", &longer] {
        let refused = |error| matches!(error, StorageError::KeyLength { .. });
        assert!(store.get(wrong).is_err_and(refused));
        assert!(store.compare_and_swap(wrong, None, b"").is_err_and(refused));
        let watched = store.watch(wrong, Box::new(|_, _| ()));
        assert_eq!(watched.is_err_and(refused), !wrong.is_empty(), "the empty prefix has all");
    }
    let value = vec![7; VALUE_BYTES_MAX + 1];
    let refused = store.compare_and_swap(&longest, None, &value);
    assert!(matches!(refused, Err(StorageError::ValueLength { .. })));
    assert_eq!(store.get(&longest).unwrap(), None);
    stored(&*store, &longest, None, &value[1..]);
}
