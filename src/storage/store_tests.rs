//! What a store does that only it knows of: when it forgets, and what it refuses before it writes.
//!
//! What it must read, count and report is in `conformance`. It never touches a disk.

use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::storage::model::MemoryLog;

const ONE: ObjectId = ObjectId::from_bytes([1; 16]);
const TWO: ObjectId = ObjectId::from_bytes([2; 16]);

fn start(log: &MemoryLog) -> (Store, Receiver<()>) {
    let (progress, progressed) = channel();
    let on_progress = Box::new(move || progress.send(()).unwrap_or_default());
    let (log, reads) = (Box::new(log.clone()), Rc::new(log.clone()));
    (Store::new("test", log, reads, Room::endless(), on_progress).unwrap(), progressed)
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
