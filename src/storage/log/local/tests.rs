//! The log with its environment: failures, crashes, and damage.

use tempfile::TempDir;

use super::*;
use crate::id::ObjectId;
use crate::storage::lmdb::engine::Changes;
use crate::storage::lmdb::held::Recall;
use crate::storage::lmdb::layout::Usage;
use crate::storage::lmdb::layout::keys::RecordPath;
use crate::storage::log::batch::WriteSet;
use crate::storage::log::opening::compact;
use crate::storage::log::reads::Reads as _;
use crate::storage::space::Space;

const OBJECT: ObjectId = ObjectId::from_bytes([3; 16]);
const SHARD: Shard = Shard(0x0303);
const MAP: usize = 1 << 20;

fn start(dir: &TempDir) -> (LocalLog, Reader) {
    let options = LogOptions { map_bytes: MAP, ..LogOptions::default() };
    open(dir.path(), options, Arc::default()).unwrap()
}

fn put(object: ObjectId, key: &[u8], value: &[u8]) -> WriteSet {
    let mut set = WriteSet::new(object);
    set.put(Space::Data, key, value).unwrap();
    set
}

fn block(claim: Claim, set: WriteSet) -> ShardBlock {
    let shard = set.object().home_shard();
    ShardBlock { shard, epoch: claim.epoch, previous: claim.link, writes: vec![set] }
}

fn append(log: &mut LocalLog, block: ShardBlock) -> Option<Link> {
    match log.append(&[block]).as_slice() {
        [Outcome::Position(link)] => Some(*link),
        [Outcome::Fenced] => None,
        other => panic!("{other:?}"),
    }
}

fn get(reader: &Reader, key: &[u8]) -> Option<Vec<u8>> {
    reader.get(OBJECT, Space::Data, key).unwrap()
}

#[test]
fn only_what_was_applied_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _reader) = start(&dir);
    let claim = log.claim(SHARD).unwrap();
    let fenced = Claim { epoch: Epoch(0), ..claim };
    let other = put(ObjectId::from_bytes([4; 16]), b"k", b"1");
    log.append(&[block(fenced, other), block(claim, put(OBJECT, b"k", b"1"))]);
    assert_eq!(log.metrics.turns_committed_total.get(), 1);
    assert_eq!(log.metrics.commits_total.get(), 1);
}

/// The log holds it all the same, and a larger map receives it.
#[test]
fn a_failed_apply_ends_all_appending_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, reader) = start(&dir);
    let claim = log.claim(SHARD).unwrap();
    let large = vec![0; 2 * MAP];
    let link = append(&mut log, block(claim, put(OBJECT, b"k", &large))).unwrap();
    assert!(matches!(reader.snapshot(|_| Ok(())), Err(StorageError::Latched(_))));
    let small = block(Claim { link, ..claim }, put(OBJECT, b"k", b"1"));
    assert!(matches!(log.append(&[small])[..], [Outcome::Failed(_)]));
    assert_eq!(get(&reader, b"k"), None);
    assert_eq!(log.metrics.commits_total.get(), 1);
    drop((log, reader));
    let options = LogOptions { map_bytes: 8 * MAP, ..LogOptions::default() };
    let (log, reader) = open(dir.path(), options, Arc::default()).unwrap();
    assert_eq!(get(&reader, b"k").unwrap(), large);
    assert_eq!(log.last(SHARD).unwrap(), link);
}

/// Copies the files as a killed process leaves them.
fn killed(dir: &TempDir) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        if file.file_name() != "lock.mdb" {
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
    }
    copy
}

#[test]
fn what_only_the_log_has_is_there_after_a_crash_for_writers_readers_and_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let backlog = Backlog { bytes: u64::MAX, age: Duration::from_hours(1) };
    let options = LogOptions { map_bytes: MAP, backlog, ..LogOptions::default() };
    let (mut log, reader) = open(dir.path(), options, Arc::default()).unwrap();
    let claim = log.claim(SHARD).unwrap();
    let link = append(&mut log, block(claim, put(OBJECT, b"k", b"1"))).unwrap();
    let claim = Claim { link, ..claim };
    append(&mut log, block(claim, put(OBJECT, b"l", b"2"))).unwrap();
    assert_eq!(get(&reader, b"l"), None, "nothing was applied yet");
    for access in [Access::Full, Access::Read] {
        let copy = killed(&dir);
        let options = LogOptions { access, ..options };
        let (_log, reader) = open(copy.path(), options, Arc::default()).unwrap();
        assert_eq!((get(&reader, b"k"), get(&reader, b"l")).1.unwrap(), b"2");
    }
    let parent = tempfile::tempdir().unwrap();
    let host = parent.path().join("host-0");
    std::fs::rename(killed(&dir).keep(), &host).unwrap();
    compact(&host, MAP, &mut |_, _| ()).unwrap();
    let (_log, after) = open(&host, options, Arc::default()).unwrap();
    assert_eq!(get(&after, b"l").unwrap(), b"2");
    drop((log, reader));
    assert!(segments::list(dir.path()).unwrap().is_empty(), "an end in order leaves no log");
}

#[test]
fn a_lost_log_and_a_lost_segment_are_named_and_nothing_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _reader) = start(&dir);
    let claim = log.claim(SHARD).unwrap();
    append(&mut log, block(claim, put(OBJECT, b"k", b"1"))).unwrap();
    let copy = killed(&dir);
    std::fs::remove_file(copy.path().join("segment-1")).unwrap();
    let error = open(copy.path(), LogOptions::default(), Arc::default()).unwrap_err();
    assert!(matches!(error, StorageError::LogDamaged { .. }), "{error}");
}

/// A log whose applier waits for an hour.
fn start_behind(dir: &TempDir) -> (LocalLog, Reader) {
    let backlog = Backlog { bytes: u64::MAX, age: Duration::from_hours(1) };
    let options = LogOptions { map_bytes: MAP, backlog, ..LogOptions::default() };
    open(dir.path(), options, Arc::default()).unwrap()
}

/// Before that it can't be told from an entry that was being written.
#[test]
fn damage_of_the_last_entry_is_found_once_the_log_has_rested() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _reader) = start_behind(&dir);
    let mut claim = log.claim(SHARD).unwrap();
    for (entry, rests) in [(1, false), (2, true), (3, false), (4, true)] {
        claim.link = append(&mut log, block(claim, put(OBJECT, b"k", &[entry]))).unwrap();
        if rests {
            log.rest();
        }
        for at in [0, 70, 130] {
            let copy = killed(&dir);
            let path = copy.path().join("segment-1");
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[(usize::from(entry) - 1) * 4_096 + at] ^= 4;
            std::fs::write(&path, bytes).unwrap();
            match open(copy.path(), LogOptions::default(), Arc::default()) {
                Ok((_log, reader)) => {
                    assert!(!rests, "byte {at} of entry {entry}");
                    let before = entry.checked_sub(1).filter(|before| *before > 0);
                    assert_eq!(get(&reader, b"k"), before.map(|before| vec![before]));
                }
                Err(error) => {
                    assert!(rests, "{error}");
                    let named = matches!(error, StorageError::LogDamaged { entry: named, .. }
                        if named == u64::from(entry));
                    assert!(named, "{error}");
                }
            }
        }
    }
}

#[test]
fn a_segment_of_another_environment_is_named_and_nothing_is_changed() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ours, _reader) = start_behind(&dir);
    let (theirs, _their_reader) = start_behind(&other);
    for mut log in [ours, theirs] {
        let claim = log.claim(SHARD).unwrap();
        append(&mut log, block(claim, put(OBJECT, b"k", b"1"))).unwrap();
        // Its end would apply everything.
        std::mem::forget(log);
    }
    for (access, number) in [(Access::Full, 1), (Access::Full, 9), (Access::Read, 1)] {
        let copy = killed(&dir);
        let named = copy.path().join(format!("segment-{number}"));
        std::fs::copy(other.path().join("segment-1"), &named).unwrap();
        let options = LogOptions { access, ..LogOptions::default() };
        let error = open(copy.path(), options, Arc::default()).unwrap_err();
        let StorageError::LogOfAnother { path } = &error else { panic!("{error}") };
        assert_eq!(*path, named);
        let kept = std::fs::read(&named).unwrap();
        assert!(kept == std::fs::read(other.path().join("segment-1")).unwrap());
    }
}

#[test]
fn a_damaged_value_is_named_and_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, reader) = start(&dir);
    let claim = log.claim(SHARD).unwrap();
    append(&mut log, block(claim, put(OBJECT, b"k\xff", b"value"))).unwrap();
    reader.snapshot(|_| Ok(())).unwrap();
    let key = RecordPath::new(OBJECT, Space::Data, b"k\xff").unwrap().record;
    let damage = |changes: &mut Changes<'_>| {
        let mut stored = changes.get_raw(&key);
        stored[6] ^= 1;
        changes.put_raw(&key, &stored);
        Ok(())
    };
    log.env.write(damage).unwrap();
    let error = reader.get(OBJECT, Space::Data, b"k\xff").unwrap_err();
    let StorageError::Corrupt { object, space: 1, key } = error else { panic!("{error}") };
    assert_eq!((object, key.as_str()), (OBJECT, "k\\xff"));
}

/// The disk may not have it, so nobody may see it, and no other entry follows it.
#[test]
fn an_entry_that_the_log_may_not_have_is_never_applied() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, reader) = start(&dir);
    let claim = log.claim(SHARD).unwrap();
    let link = append(&mut log, block(claim, put(OBJECT, b"k", b"1"))).unwrap();
    let (segment, aside) = (dir.path().join("segment-1"), dir.path().join("aside"));
    std::fs::rename(&segment, &aside).unwrap();
    let claim = Claim { link, ..claim };
    let lost = block(claim, put(OBJECT, b"k", b"2"));
    assert!(matches!(log.append(&[lost])[..], [Outcome::Failed(_)]));
    std::fs::rename(&aside, &segment).unwrap();
    let later = block(claim, put(OBJECT, b"k", b"3"));
    assert!(matches!(log.append(&[later])[..], [Outcome::Failed(_)]));
    drop(log);
    assert_eq!(get(&reader, b"k").unwrap(), b"1");
}

#[test]
fn a_segment_that_is_a_link_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _reader) = start(&dir);
    let claim = log.claim(SHARD).unwrap();
    append(&mut log, block(claim, put(OBJECT, b"k", b"1"))).unwrap();
    let copy = killed(&dir);
    let (segment, aside) = (copy.path().join("segment-1"), copy.path().join("aside"));
    std::fs::rename(&segment, &aside).unwrap();
    std::os::unix::fs::symlink(&aside, &segment).unwrap();
    for access in [Access::Read, Access::Full] {
        let options = LogOptions { access, ..LogOptions::default() };
        let error = open(copy.path(), options, Arc::default()).unwrap_err().to_string();
        assert!(error.contains("could not read") && error.contains("segment-1"), "{error}");
    }
}

/// Enough records that a map of 8 MiB has no room for a copy of all.
const RECORDS: u32 = 4_000;

/// A write of all records in one turn, in an order that goes back and forth over the pages.
fn overwrite(value: u8) -> WriteSet {
    let mut set = WriteSet::new(OBJECT);
    for number in 0..RECORDS {
        let key = (number * 2_743 % RECORDS).to_be_bytes();
        set.put(Space::Data, &key, &[value; 1_000]).unwrap();
    }
    set
}

fn start_nearly_full(dir: &TempDir) -> (LocalLog, Reader, Claim) {
    let backlog = Backlog { bytes: 8, age: Duration::from_hours(1) };
    let options = LogOptions { map_bytes: 8 << 20, backlog, ..LogOptions::default() };
    let (mut log, reader) = open(dir.path(), options, Arc::default()).unwrap();
    let claim = log.claim(SHARD).unwrap();
    (log, reader, claim)
}

// One transaction for all of them used to need a copy of every page, and ended the process.
#[test]
fn a_turn_that_overwrites_everything_needs_no_room_for_a_second_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, reader, mut claim) = start_nearly_full(&dir);
    for value in 1..4 {
        claim.link = append(&mut log, block(claim, overwrite(value))).unwrap();
        reader.snapshot(|_| Ok(())).unwrap();
        for number in 0..RECORDS {
            assert_eq!(get(&reader, &number.to_be_bytes()).unwrap(), [value; 1_000]);
        }
    }
    assert!(log.metrics.applies_total.get() > 30, "it was applied in parts");
    let mut clear = WriteSet::new(OBJECT);
    clear.clear(Space::Data);
    append(&mut log, block(claim, clear)).unwrap();
    reader.snapshot(|_| Ok(())).unwrap();
    assert_eq!(get(&reader, &0_u32.to_be_bytes()), None);
    assert_eq!(reader.count(OBJECT).unwrap(), Usage::default());
}

/// A turn may be applied in parts: no snapshot is taken in between.
#[test]
fn a_snapshot_and_the_applying_of_a_turn_wait_for_each_other() {
    const MOMENT: Duration = Duration::from_millis(100);
    let dir = tempfile::tempdir().unwrap();
    let (mut log, reader, mut claim) = start_nearly_full(&dir);
    let (tell, told) = std::sync::mpsc::sync_channel(9);
    log.applied.observe(Arc::new(move || tell.send(()).unwrap()));
    claim.link = append(&mut log, block(claim, put(OBJECT, b"k", b"1"))).unwrap();
    told.recv().unwrap();
    let applied = log.applied.clone();
    let between = applied.between();
    append(&mut log, block(claim, put(OBJECT, b"k", b"2"))).unwrap();
    assert!(told.recv_timeout(MOMENT).is_err(), "it is applied while a snapshot is taken");
    drop(between);
    told.recv().unwrap();
    let between = applied.between();
    let (seen, see) = std::sync::mpsc::channel();
    let looking = thread::spawn(move || {
        reader.snapshot(|_| Ok(())).unwrap();
        seen.send(()).unwrap();
    });
    assert!(see.recv_timeout(MOMENT).is_err(), "a snapshot is taken while a turn is applied");
    drop(between);
    see.recv().unwrap();
    looking.join().unwrap();
}

/// An export that stands still keeps the pages that overwrites free, until there is no other room.
#[test]
fn a_snapshot_that_is_held_is_called_back_before_the_map_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, reader, mut claim) = start_nearly_full(&dir);
    claim.link = append(&mut log, block(claim, overwrite(1))).unwrap();
    reader.snapshot(|_| Ok(())).unwrap();
    let (called, call) = std::sync::mpsc::channel();
    let recall = Recall::new(move || called.send(()).unwrap());
    let (begun, begin) = std::sync::mpsc::channel();
    let exporter = reader.clone();
    let export = thread::spawn(move || {
        exporter.long_snapshot(&recall, |snapshot| {
            let key = RecordPath::new(OBJECT, Space::Data, &0_u32.to_be_bytes()).unwrap().record;
            begun.send(()).unwrap();
            let was_called = call.recv_timeout(Duration::from_secs(20)).is_ok();
            Ok((was_called, snapshot.get(&key)?.map(<[u8]>::to_vec)))
        })
    });
    begin.recv().unwrap();
    for value in 2..5 {
        claim.link = append(&mut log, block(claim, overwrite(value))).unwrap();
    }
    reader.snapshot(|_| Ok(())).unwrap();
    assert_eq!(get(&reader, &9_u32.to_be_bytes()).unwrap(), [4; 1_000]);
    let (was_called, seen) = export.join().unwrap().unwrap();
    assert!(was_called && seen.unwrap() == [1; 1_000]);
}

/// The variable with the directory in which a process clears an object.
const CLEAR: &str = "CAPSTEAD_CLEAR";
/// This name, as the test's process is told it.
const CLEARING: &str = "storage::log::local::tests::clearing_takes_memory_that_does_not_grow";
/// The memory that clearing may take. The records of the object are many times as long.
const CLEAR_BYTES: u64 = 12 << 20;

/// The bytes of memory of its own that this process has, as `RLIMIT_DATA` counts them.
fn data_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmData:")?.strip_suffix("kB"));
    kib.unwrap().trim().parse::<u64>().unwrap() << 10
}

/// A clear is one record of the log, and is applied in parts.
#[test]
fn clearing_takes_memory_that_does_not_grow() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let options = LogOptions { map_bytes: 1 << 30, ..LogOptions::default() };
    if let Some(dir) = std::env::var_os(CLEAR) {
        let (mut log, reader) = open(Path::new(&dir), options, Arc::default()).unwrap();
        let claim = log.claim(SHARD).unwrap();
        let small = append(&mut log, block(claim, put(OBJECT, b"k", b"1"))).unwrap();
        reader.snapshot(|_| Ok(())).unwrap();
        let most = Some(data_bytes() + CLEAR_BYTES);
        let limit = Rlimit { current: most, ..getrlimit(Resource::Data) };
        setrlimit(Resource::Data, limit).unwrap();
        let mut clear = WriteSet::new(OBJECT);
        clear.clear(Space::Data);
        append(&mut log, block(Claim { link: small, ..claim }, clear)).unwrap();
        reader.snapshot(|_| Ok(())).unwrap();
        assert_eq!(reader.count(OBJECT).unwrap(), Usage::default());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut log, reader) = open(dir.path(), options, Arc::default()).unwrap();
    let mut claim = log.claim(SHARD).unwrap();
    for value in 0..10_u8 {
        let mut set = WriteSet::new(OBJECT);
        for number in 0..10_000_u32 {
            let key = [&[value], &number.to_be_bytes()[..]].concat();
            set.put(Space::Data, &key, &[value; 1_000]).unwrap();
        }
        claim.link = append(&mut log, block(claim, set)).unwrap();
    }
    reader.snapshot(|_| Ok(())).unwrap();
    drop((log, reader));
    let mut process = std::process::Command::new(std::env::current_exe().unwrap());
    let ended = process.args(["--exact", CLEARING]).env(CLEAR, dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && said.contains("1 passed"), "{said}");
}

/// A process that is killed while it makes them may leave one empty.
#[test]
fn spare_segments_are_ready_before_the_first_write_and_an_empty_one_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let length = |name| std::fs::metadata(dir.path().join(name)).unwrap().len();
    drop(start(&dir));
    let ready = length("spare-1");
    assert!(ready > 0 && length("spare-2") == ready);
    std::fs::write(dir.path().join("spare-1"), b"").unwrap();
    drop(start(&dir));
    assert_eq!(length("spare-1"), ready);
}
