//! The promises of a config store: versions, swaps that see each other, and observers.

use std::sync::{Arc, Mutex};

use super::Backend;
use crate::limits::{CONFIG_KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::storage::config::{CasOutcome, ConfigStore, Versioned};
use crate::storage::error::StorageError;

fn swap(store: &dyn ConfigStore, expected: Option<u64>, value: &[u8]) -> CasOutcome {
    store.compare_and_swap("k", expected, value).unwrap()
}

pub(super) fn a_swap_needs_the_present_version<B: Backend>() {
    let mut backend = B::make();
    let store = backend.open_config();
    let swap = |expected, value| swap(&*store, expected, value);
    assert_eq!(store.get("k").unwrap(), None);
    assert_eq!(swap(Some(1), b"a"), CasOutcome::Conflict(None));
    assert_eq!(swap(Some(0), b"a"), CasOutcome::Conflict(None));
    assert_eq!(store.get("k").unwrap(), None);
    assert_eq!(swap(None, b"b"), CasOutcome::Stored(1));
    for wrong in [None, Some(0), Some(2)] {
        assert_eq!(swap(wrong, b"c"), CasOutcome::Conflict(Some(1)));
        assert_eq!(store.get("k").unwrap(), Some(Versioned { version: 1, value: b"b".to_vec() }));
    }
    assert_eq!(swap(Some(1), b""), CasOutcome::Stored(2));
    assert_eq!(store.get("k").unwrap(), Some(Versioned { version: 2, value: Vec::new() }));
    assert_eq!(store.get("l").unwrap(), None);
    assert_eq!(store.compare_and_swap("l", None, b"d").unwrap(), CasOutcome::Stored(1));
}

pub(super) fn values_and_versions_survive<B: Backend>() {
    let mut backend = B::make();
    for version in 0..3 {
        let store = backend.open_config();
        let expected = (version > 0).then_some(version);
        assert_eq!(store.get("k").unwrap().map(|present| present.version), expected);
        assert_eq!(swap(&*store, expected, &[version as u8]), CasOutcome::Stored(version + 1));
    }
    let present = Versioned { version: 3, value: vec![2] };
    assert_eq!(backend.open_config().get("k").unwrap(), Some(present));
}

pub(super) fn observers_see_later_changes_of_their_key_alone<B: Backend>() {
    let mut backend = B::make();
    let store = backend.open_config();
    assert_eq!(swap(&*store, None, b"before"), CasOutcome::Stored(1));
    let seen = Arc::new(Mutex::new(Vec::new()));
    for observer in [1, 2] {
        let seen = seen.clone();
        let tell = move |now: &Versioned| seen.lock().unwrap().push((observer, now.clone()));
        store.watch("k", Box::new(tell)).unwrap();
    }
    store.compare_and_swap("other", None, b"x").unwrap();
    assert_eq!(swap(&*store, None, b"conflict"), CasOutcome::Conflict(Some(1)));
    assert!(seen.lock().unwrap().is_empty());
    let expected = |version, value: &[u8]| {
        let now = Versioned { version, value: value.to_vec() };
        [(1, now.clone()), (2, now)]
    };
    assert_eq!(swap(&*store, Some(1), b"one"), CasOutcome::Stored(2));
    assert_eq!(swap(&*store, Some(2), b"two"), CasOutcome::Stored(3));
    assert_eq!(*seen.lock().unwrap(), [expected(2, b"one"), expected(3, b"two")].concat());
    drop(store);
    swap(&*backend.open_config(), Some(3), b"later");
    assert_eq!(seen.lock().unwrap().len(), 4);
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
        assert!(store.watch(wrong, Box::new(|_| ())).is_err_and(refused));
    }
    let value = vec![7; VALUE_BYTES_MAX + 1];
    let refused = store.compare_and_swap(&longest, None, &value);
    assert!(matches!(refused, Err(StorageError::ValueLength { .. })));
    assert_eq!(store.get(&longest).unwrap(), None);
    let stored = store.compare_and_swap(&longest, None, &value[1..]).unwrap();
    assert_eq!(stored, CasOutcome::Stored(1));
    assert_eq!(store.get(&longest).unwrap().unwrap().value, value[1..]);
}
