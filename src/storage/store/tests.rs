//! The behaviour of a store that other tests can't see: when it forgets, and what it refuses before
//! it writes.
//!
//! `conformance` tests the values that it reads, counts and reports. These tests never touch a
//! disk.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::storage::lmdb::engine::Changes;
use crate::storage::lmdb::layout::keys::RecordPath;
use crate::storage::store::identity::Presence;
use crate::storage::testing::model::MemoryLog;

const ONE: ObjectId = ObjectId::from_bytes([1; 16]);
const TWO: ObjectId = ObjectId::from_bytes([2; 16]);

fn start(log: &MemoryLog) -> (Store, Receiver<()>) {
    let (progress, progressed) = channel();
    let on_progress = Box::new(move || progress.send(()).unwrap_or_default());
    let (log, reads) = (Box::new(log.clone()), Rc::new(log.clone()));
    (Store::new("test", log, reads, Room::endless(), on_progress).unwrap(), progressed)
}

fn account(store: &Store, object: ObjectId) -> Rc<Account> {
    store.account(object, Presence::Present, u64::MAX, None).unwrap()
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
    assert_eq!(store.submit_turn(), Some(ticket));
    store.commit_submitted();
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
    assert_eq!(store.submit_turn(), None);
}

/// A store on disk with a small map and a reserve.
fn small(dir: &TempDir, map: usize, reserve: u64) -> (Store, Receiver<()>) {
    let (map_bytes, reserve_bytes) = (map, Some(reserve));
    start_on(dir, LogOptions { map_bytes, reserve_bytes, ..LogOptions::default() })
}

fn start_on(dir: &TempDir, log: LogOptions) -> (Store, Receiver<()>) {
    let (progress, progressed) = channel();
    let on_progress = Box::new(move || progress.send(()).unwrap_or_default());
    let options = StoreOptions { name: "test".to_owned(), log, metrics: Arc::default() };
    (Store::open(dir.path(), options, on_progress).unwrap(), progressed)
}

/// Ends the turn, and waits until it is durable.
fn commit(store: &mut Store, progressed: &Receiver<()>) {
    let Some(ticket) = store.submit_turn() else { return };
    store.commit_submitted();
    while store.settle() < ticket {
        assert!(store.failure().is_none(), "{:?}", store.failure());
        progressed.recv().unwrap();
    }
}

/// Growth ends before the map is full, deleting still works, and then growth does again. That holds
/// also when the freed pages lie scattered, and a large value finds no room among them.
#[test]
fn low_space_refuses_growth_lets_deletes_through_and_nothing_is_ever_full() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, progressed) = small(&dir, 64 << 20, 12 << 20);
    let account = account(&store, ONE);
    let (mut count, mut low) = (0_u32, false);
    while !low {
        store.begin(account.clone());
        for _ in 0..200 {
            match put(&mut store, &account, &count.to_be_bytes(), &[7; 3_000]) {
                Ok(_) => count += 1,
                Err(StorageError::LowSpace { left, reserve }) => low = left < reserve,
                Err(error) => panic!("{error}"),
            }
        }
        commit(&mut store, &progressed);
    }
    store.begin(account.clone());
    put(&mut store, &account, &0_u32.to_be_bytes(), &[8; 3_000]).unwrap();
    commit(&mut store, &progressed);
    for first in (0..count).step_by(400) {
        store.begin(account.clone());
        for key in (first..count.min(first + 400)).step_by(2) {
            delete(&mut store, &account, &key.to_be_bytes()).unwrap();
        }
        commit(&mut store, &progressed);
    }
    // The room is there once the deletions were applied.
    store.reader().unwrap().snapshot(|_| Ok(())).unwrap();
    store.begin(account.clone());
    put(&mut store, &account, b"again", &[7; 3_000]).unwrap();
    commit(&mut store, &progressed);
    let large = vec![1; VALUE_BYTES_MAX];
    let mut refused = false;
    for n in 0..30_u8 {
        store.begin(account.clone());
        match put(&mut store, &account, &[n], &large) {
            Ok(_) => {}
            Err(StorageError::LowSpace { .. }) => refused = true,
            Err(error) => panic!("{error}"),
        }
        commit(&mut store, &progressed);
    }
    assert!(refused);
}

/// Nothing of it is in the log when the last turns are accepted.
#[test]
fn a_burst_of_large_turns_is_refused_before_the_map_is_full() {
    const VALUE: &[u8] = &[7; 1 << 20];
    let dir = tempfile::tempdir().unwrap();
    let (mut store, progressed) = small(&dir, 64 << 20, 16 << 20);
    let account = account(&store, ONE);
    let mut count = 0_u32;
    for burst in 0.. {
        let (mut is_refused, before) = (false, count);
        while !is_refused {
            store.begin(account.clone());
            for _ in 0..2 {
                match put(&mut store, &account, &count.to_be_bytes(), VALUE) {
                    Ok(_) => count += 1,
                    Err(StorageError::LowSpace { .. }) => is_refused = true,
                    Err(error) => panic!("{error}"),
                }
            }
            store.submit_turn();
            assert!(count < 80, "more was accepted than the map can hold");
        }
        if count == before {
            assert!(burst > 1 && count > 24, "{count} of 64 MiB in {burst} bursts");
            break;
        }
        store.commit_submitted();
        while store.settle() < store.last_submitted() {
            assert!(store.failure().is_none(), "{:?}", store.failure());
            progressed.recv().unwrap();
        }
        store.reader().unwrap().snapshot(|_| Ok(())).unwrap();
    }
    store.close().unwrap();
}

/// It takes several transactions, and what comes later doesn't wait for the last of them.
#[test]
fn a_clearing_of_a_large_object_holds_up_no_other() {
    const RECORDS: u32 = 400_000;
    const BACKLOG_ENTRIES: u64 = 16;
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogOptions { reserve_bytes: Some(0), ..LogOptions::default() };
    log.backlog.bytes = BACKLOG_ENTRIES * 4_096;
    // So slow that the backlog is full in between, on any machine.
    log.apply_delay = Duration::from_millis(100);
    let (mut store, progressed) = start_on(&dir, log);
    let (one, two) = (account(&store, ONE), account(&store, TWO));
    for first in (0..RECORDS).step_by(100_000) {
        store.begin(one.clone());
        for key in first..first + 100_000 {
            let before = Before::Known(None);
            store.put(&one, &key.to_be_bytes(), &[7; 100], before).unwrap();
        }
        commit(&mut store, &progressed);
    }
    store.reader().unwrap().snapshot(|_| Ok(())).unwrap();
    store.settle();
    store.begin(one.clone());
    store.clear(&one).unwrap();
    commit(&mut store, &progressed);
    let mut beside = 0_u32;
    loop {
        store.begin(two.clone());
        put(&mut store, &two, b"k", &beside.to_be_bytes()).unwrap();
        commit(&mut store, &progressed);
        if beside == 3 {
            store.begin(one.clone());
            put(&mut store, &one, b"after", b"1").unwrap();
            commit(&mut store, &progressed);
        }
        // As a host does before it starts a call.
        while store.is_full() {
            progressed.recv().unwrap();
            store.settle();
        }
        assert_eq!(get(&store, ONE, &RECORDS.saturating_sub(1).to_be_bytes()), None);
        assert_eq!(get(&store, TWO, b"k").unwrap(), beside.to_be_bytes());
        assert!(store.order.len() as u64 <= 3 * BACKLOG_ENTRIES, "{}", store.order.len());
        if beside > 10 && !store.pending.contains_key(&ONE) {
            break;
        }
        beside += 1;
    }
    assert!(u64::from(beside) > 3 * BACKLOG_ENTRIES, "only {beside} turns ended meanwhile");
    assert_eq!(get(&store, ONE, b"after").unwrap(), b"1");
    store.reader().unwrap().snapshot(|_| Ok(())).unwrap();
    store.close().unwrap();
    let (store, _progressed) = start_on(&dir, LogOptions::default());
    assert_eq!((account(&store, ONE).usage().keys, store.reads.count(ONE).unwrap().keys), (1, 1));
    assert_eq!(get(&store, TWO, b"k").unwrap(), beside.to_be_bytes());
}

/// Without a reserve the map can become full. That is a failed commit like any other, and a larger
/// map has everything that was acknowledged.
#[test]
fn a_full_map_ends_all_writing_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, progressed) = small(&dir, 1 << 20, 0);
    let one = account(&store, ONE);
    let mut durable = 0_u32;
    let failure = loop {
        store.begin(one.clone());
        put(&mut store, &one, &durable.to_be_bytes(), &[7; 3_000]).unwrap();
        let ticket = store.submit_turn().unwrap();
        store.commit_submitted();
        while store.settle() < ticket && store.failure().is_none() {
            progressed.recv().unwrap();
        }
        durable += u32::from(store.settle() >= ticket);
        if let Some(failure) = store.failure() {
            break failure;
        }
    };
    assert!(failure.to_string().contains("--map-size"), "{failure}");
    store.close().unwrap_err();
    let (mut store, progressed) = small(&dir, 1 << 24, 0);
    let one = account(&store, ONE);
    // The log may have the last turn without having said so.
    assert!([durable, durable + 1].map(u64::from).contains(&one.usage().keys));
    store.begin(one.clone());
    delete(&mut store, &one, &0_u32.to_be_bytes()).unwrap();
    commit(&mut store, &progressed);
    assert_eq!(get(&store, ONE, &1_u32.to_be_bytes()).unwrap(), [7; 3_000]);
}

#[test]
fn the_servers_records_on_their_way_are_cleared_too() {
    let log = MemoryLog::default();
    let (mut store, _progressed) = start(&log);
    let one = begin(&mut store, ONE);
    store.put_record(ONE, Space::Grants, b"grant", b"valid").unwrap();
    store.submit_turn().unwrap();
    store.begin(one);
    store.clear_records(ONE, Space::Grants).unwrap();
    store.submit_turn();
    assert_eq!(store.get(ONE, Space::Grants, b"grant").unwrap(), None);
}

/// A link's content is always the same: writing through a damaged link repairs it.
#[test]
fn a_damaged_link_does_not_end_all_writing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, progressed) = small(&dir, 1 << 24, 0);
    let one = account(&store, ONE);
    let put_long = |store: &mut Store, value: &[u8]| {
        store.begin(one.clone());
        put(store, &one, &[5; 600], value).unwrap();
        commit(store, &progressed);
    };
    put_long(&mut store, b"1");
    let path = RecordPath::new(ONE, Space::Data, &[5; 600]).unwrap();
    let damage = |changes: &mut Changes<'_>| {
        changes.put_raw(&path.links[0], b"\0\0\0\0");
        Ok(())
    };
    let reader = store.reader().unwrap();
    reader.snapshot(|_| Ok(())).unwrap();
    store.settle();
    reader.environment().write(damage).unwrap();
    put_long(&mut store, b"2");
    reader.snapshot(|_| Ok(())).unwrap();
    store.settle();
    assert_eq!(get(&store, ONE, &[5; 600]).unwrap(), b"2");
    let page = store.page(ONE, &Range::all(), PageSize { entries: 9, bytes: 99 }, Page::default());
    assert_eq!(page.unwrap().len(), 1);
}

/// All writes are there, but who closes the storage must learn that its disk is broken.
#[test]
fn a_failure_while_the_log_is_ended_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, progressed) = small(&dir, 64 << 20, 0);
    let account = begin(&mut store, ONE);
    put(&mut store, &account, b"k", b"v").unwrap();
    commit(&mut store, &progressed);
    store.reader().unwrap().snapshot(|_| Ok(())).unwrap();
    std::fs::rename(dir.path().join("data.mdb"), dir.path().join("aside")).unwrap();
    assert!(matches!(store.close(), Err(StorageError::Latched(_))));
}
