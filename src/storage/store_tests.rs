//! What the vat thread may rely on, with a log in memory whose syncs are held back, and on disk.

use std::sync::mpsc::{Receiver, channel};

use proptest::prelude::*;
use tempfile::TempDir;

use std::collections::BTreeMap;

use super::*;
use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::storage::model::{Fault, MemoryLog};

const ONE: ObjectId = ObjectId::from_bytes([1; 16]);
const TWO: ObjectId = ObjectId::from_bytes([2; 16]);

fn start(log: &MemoryLog) -> (Store, Receiver<()>) {
    let (progress, progressed) = channel();
    let on_progress = Box::new(move || progress.send(()).unwrap_or_default());
    let (log, reads) = (Box::new(log.clone()), Rc::new(log.clone()));
    (Store::new("test", log, reads, Room::endless(), on_progress).unwrap(), progressed)
}

fn on_disk(dir: &TempDir) -> (Store, Receiver<()>) {
    let (progress, progressed) = channel();
    let on_progress = Box::new(move || progress.send(()).unwrap_or_default());
    let (name, log) = ("test".to_owned(), LogOptions::default());
    let options = StoreOptions { name, log, metrics: Arc::default() };
    (Store::open(dir.path(), options, on_progress).unwrap(), progressed)
}

fn account(store: &Store, object: ObjectId) -> Rc<Account> {
    store.account(object, true, u64::MAX, None).unwrap()
}

/// Opens a turn of an object that wasn't in use.
fn begin(store: &mut Store, object: ObjectId) -> Rc<Account> {
    let account = account(store, object);
    store.begin(account.clone());
    account
}

fn put(store: &mut Store, account: &Account, key: &[u8], value: &[u8]) -> Result<Ticket> {
    store.put(account, key, value, Before::Unknown)
}

fn delete(store: &mut Store, account: &Account, key: &[u8]) -> Result<Option<Ticket>> {
    store.delete(account, key, Before::Unknown)
}

fn write(store: &mut Store, object: ObjectId, key: &[u8], value: &[u8]) -> Ticket {
    let account = begin(store, object);
    put(store, &account, key, value).unwrap();
    let ticket = store.seal().unwrap();
    store.commit_sealed();
    ticket
}

fn get(store: &Store, object: ObjectId, key: &[u8]) -> Option<Vec<u8>> {
    store.get(object, Space::Data, key).unwrap()
}

#[test]
fn an_object_reads_its_writes_in_the_turn_while_pending_and_when_durable() {
    let log = MemoryLog::default();
    let (mut store, progressed) = start(&log);
    let held = log.hold();
    let one = begin(&mut store, ONE);
    let ticket = put(&mut store, &one, b"k", b"v").unwrap();
    assert_eq!(get(&store, ONE, b"k").unwrap(), b"v");
    assert_eq!(store.seal(), Some(ticket));
    store.commit_sealed();
    log.wait_until_held();
    assert!(store.settle() < ticket);
    assert_eq!(get(&store, ONE, b"k").unwrap(), b"v");

    drop(held);
    progressed.recv().unwrap();
    assert_eq!(store.settle(), ticket);
    assert!(store.pending.is_empty() && store.order.is_empty());
    assert_eq!(get(&store, ONE, b"k").unwrap(), b"v");
}

#[test]
fn a_pending_delete_hides_the_durable_value() {
    let log = MemoryLog::default();
    let (mut store, progressed) = start(&log);
    write(&mut store, ONE, b"k", b"v");
    progressed.recv().unwrap();
    store.settle();
    let held = log.hold();
    let one = begin(&mut store, ONE);
    delete(&mut store, &one, b"k").unwrap();
    assert_eq!(get(&store, ONE, b"k"), None);
    store.seal().unwrap();
    store.commit_sealed();
    assert_eq!(get(&store, ONE, b"k"), None);
    drop(held);
    progressed.recv().unwrap();
    store.settle();
    assert_eq!(get(&store, ONE, b"k"), None);
}

#[test]
fn a_write_is_remembered_until_the_last_turn_that_made_it_is_durable() {
    let log = MemoryLog::default();
    let (mut store, progressed) = start(&log);
    let held = log.hold();
    let first = write(&mut store, ONE, b"k", b"1");
    log.wait_until_held();
    drop(held);
    progressed.recv().unwrap();
    let held = log.hold();
    let second = write(&mut store, ONE, b"k", b"2");
    log.wait_until_held();
    assert_eq!(store.settle(), first);
    assert_eq!(get(&store, ONE, b"k").unwrap(), b"2");
    drop(held);
    progressed.recv().unwrap();
    assert_eq!(store.settle(), second);
    assert!(store.pending.is_empty());
    assert_eq!(get(&store, ONE, b"k").unwrap(), b"2");
}

#[test]
fn a_turn_that_writes_nothing_has_no_ticket() {
    let log = MemoryLog::default();
    let (mut store, _progressed) = start(&log);
    begin(&mut store, ONE);
    assert_eq!(store.turn_object(), Some(ONE));
    assert_eq!(store.seal(), None);
    assert_eq!(store.turn_object(), None);
    store.close().unwrap();
    assert!(log.groups().is_empty());
}

#[test]
fn a_discarded_turn_leaves_no_trace() {
    let log = MemoryLog::default();
    let (mut store, _progressed) = start(&log);
    let one = begin(&mut store, ONE);
    put(&mut store, &one, b"k", b"v").unwrap();
    store.discard();
    assert_eq!(get(&store, ONE, b"k"), None);
    store.close().unwrap();
    assert!(log.groups().is_empty());
}

#[test]
fn only_the_object_whose_turn_is_open_writes_and_within_the_limits() {
    let (mut store, _progressed) = start(&MemoryLog::default());
    let (one, two) = (account(&store, ONE), account(&store, TWO));
    let outside = put(&mut store, &one, b"k", b"v");
    assert!(matches!(outside, Err(StorageError::OutsideTurn { object: ONE })));
    store.begin(one.clone());
    let other = delete(&mut store, &two, b"k");
    assert!(matches!(other, Err(StorageError::OutsideTurn { object: TWO })));
    let key = vec![0; KEY_BYTES_MAX + 1];
    assert!(matches!(put(&mut store, &one, &key, b""), Err(StorageError::KeyLength { .. })));
    let value = vec![0; VALUE_BYTES_MAX + 1];
    let long = put(&mut store, &one, b"k", &value);
    assert!(matches!(long, Err(StorageError::ValueLength { .. })));
    assert_eq!(get(&store, ONE, b"k"), None);
    assert_eq!(store.seal(), None);
}

#[test]
fn objects_and_spaces_never_see_each_others_keys() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, progressed) = on_disk(&dir);
    write(&mut store, ONE, b"k", b"one");
    let check = |store: &Store| {
        assert_eq!(get(store, ONE, b"k").unwrap(), b"one");
        assert_eq!(get(store, TWO, b"k"), None);
        assert_eq!(store.get(ONE, Space::Grants, b"k").unwrap(), None);
    };
    check(&store);
    progressed.recv().unwrap();
    store.settle();
    check(&store);
    write(&mut store, TWO, b"k", b"two");
    assert_eq!(get(&store, ONE, b"k").unwrap(), b"one");
    assert_eq!(get(&store, TWO, b"k").unwrap(), b"two");
}

#[test]
fn what_was_sealed_before_shutdown_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _progressed) = on_disk(&dir);
    for n in 0..50 {
        write(&mut store, ONE, &[n], &[n]);
        write(&mut store, TWO, b"last", &[n]);
    }
    let one = begin(&mut store, ONE);
    put(&mut store, &one, b"unsealed", b"").unwrap();
    store.close().unwrap();

    let (store, _progressed) = on_disk(&dir);
    for n in 0..50 {
        assert_eq!(get(&store, ONE, &[n]).unwrap(), [n]);
    }
    assert_eq!(get(&store, TWO, b"last").unwrap(), [49]);
    assert_eq!(get(&store, ONE, b"unsealed"), None);
}

#[test]
fn after_a_failed_commit_nothing_is_written_or_becomes_durable() {
    let log = MemoryLog::default();
    let (mut store, progressed) = start(&log);
    let good = write(&mut store, ONE, b"k", b"1");
    progressed.recv().unwrap();
    log.fail_next(Fault::Unknown);
    write(&mut store, ONE, b"k", b"2");
    progressed.recv().unwrap();
    assert_eq!(store.settle(), good);
    assert!(matches!(store.failure(), Some(StorageError::Latched(_))));
    let one = begin(&mut store, ONE);
    let refused = put(&mut store, &one, b"k", b"3");
    assert!(matches!(refused, Err(StorageError::Latched(_))));
    assert!(matches!(store.close(), Err(StorageError::Latched(_))));
    assert_eq!(log.groups().len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Any mixture of turns, discards and settling reads like one map per object, and so does the
    /// disk afterwards.
    #[test]
    fn the_store_reads_like_a_map(
        turns in prop::collection::vec(
            (any::<bool>(), any::<bool>(), prop::collection::vec((0..6u8, 0..4u8), 0..6)), 0..30,
        ),
    ) {
        let log = MemoryLog::default();
        let (mut store, _progressed) = start(&log);
        let mut model = BTreeMap::new();
        for (second, discard, ops) in turns {
            let object = if second { TWO } else { ONE };
            let mut after = model.clone();
            let account = begin(&mut store, object);
            for (key, value) in ops {
                // Value 0 stands for a delete.
                if value == 0 {
                    delete(&mut store, &account, &[key]).unwrap();
                    after.remove(&(object, key));
                } else {
                    put(&mut store, &account, &[key], &[value]).unwrap();
                    after.insert((object, key), vec![value]);
                }
                prop_assert_eq!(get(&store, object, &[key]), after.get(&(object, key)).cloned());
            }
            if discard {
                store.discard();
            } else {
                store.seal();
                store.commit_sealed();
                model = after;
            }
            store.settle();
            for key in 0..6 {
                prop_assert_eq!(get(&store, object, &[key]), model.get(&(object, key)).cloned());
            }
        }
        store.close().unwrap();
        for (object, key) in [ONE, TWO].into_iter().flat_map(|id| (0..6).map(move |key| (id, key))) {
            let stored = log.get(object, Space::Data, &[key]).unwrap();
            prop_assert_eq!(stored, model.get(&(object, key)).cloned());
        }
    }
}
