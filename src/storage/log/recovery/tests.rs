//! Logs that are cut, torn, damaged and mixed up in every place, and what is read of them.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::id::{Epoch, ObjectId, Shard};
use crate::limits::VALUE_BYTES_MAX;
use crate::storage::log::batch::WriteSet;
use crate::storage::log::block::ShardBlock;
use crate::storage::log::entry::Draft;
use crate::storage::log::segments::Segments;
use crate::storage::position::Link;
use crate::storage::space::Space;

const NONCE: [u8; 16] = [9; 16];
const IDENTITY: Identity = [4; 16];

/// A log of entries with values of these lengths.
struct Log {
    dir: TempDir,
    ends: Vec<End>,
    /// The place of each entry: its segment, and its first byte there and the byte after it.
    places: Vec<(u64, usize, usize)>,
}

fn draft(number: u64, length: usize) -> Draft {
    let put = |length| {
        let mut set = WriteSet::new(ObjectId::from_bytes([1; 16]));
        set.put(Space::Data, b"k", &vec![number as u8; length]).unwrap();
        set
    };
    let whole = std::iter::repeat_n(VALUE_BYTES_MAX, length / VALUE_BYTES_MAX);
    let writes = whole.chain([length % VALUE_BYTES_MAX]).map(put).collect();
    let (epoch, previous_link) = (Epoch(2), Link::default());
    let block = ShardBlock { shard: Shard(1), epoch, previous: previous_link, writes };
    let mut draft = Draft::new();
    draft.add(&block).unwrap();
    draft
}

fn entry(number: u64, previous: Sum, length: usize, segment: u64) -> Entry {
    let (durable, previous) = (number - 1, previous);
    draft(number, length).finish(&Head { number, durable, segment, previous, ..HEAD })
}

const HEAD: Head = Head {
    nonce: NONCE,
    incarnation: 2,
    number: 0,
    durable: 0,
    segment: 0,
    previous: [0; 16],
    identity: IDENTITY,
};

/// The tail that follows this entry.
fn tail(of: &End) -> [u8; PAGE_BYTES] {
    let End { number, sum: previous, segment } = *of;
    Head { number, durable: number, segment, previous, ..HEAD }.tail()
}

fn made(lengths: &[usize]) -> Log {
    let dir = tempfile::tempdir().unwrap();
    let mut segments = Segments::begin(dir.path(), segments::BYTES_MAX).unwrap();
    let (mut ends, mut places) = (Vec::<End>::new(), Vec::<(u64, usize, usize)>::new());
    for (number, length) in (1..).zip(lengths) {
        let previous = ends.last().map_or(Sum::default(), |end| end.sum);
        let bytes = draft(number, *length).length();
        let segment = segments.place(bytes, || panic!("there is room")).unwrap();
        let entry = entry(number, previous, *length, segment);
        segments.write(&entry).unwrap();
        let at = places.last().filter(|last| last.0 == segment).map_or(0, |last| last.2);
        places.push((segment, at, at + entry.as_bytes().len()));
        ends.push(End { number, sum: entry.sum(), segment });
    }
    drop(segments);
    Log { dir, ends, places }
}

impl Log {
    fn read(&self, applied: End) -> Result<Vec<u64>> {
        let mut numbers = Vec::new();
        let log = LogState { nonce: NONCE, applied };
        replay(self.dir.path(), Owner::ours(), &log, &mut |entry, end| {
            assert_eq!(end, self.ends[entry.number() as usize - 1]);
            numbers.push(entry.number());
            Ok(())
        })?;
        Ok(numbers)
    }

    /// The position after this many entries.
    fn after(&self, entries: usize) -> End {
        match entries.checked_sub(1) {
            Some(last) => self.ends[last],
            None => End { segment: segments::FIRST, ..End::default() },
        }
    }

    fn change(&self, segment: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let path = segments::path(self.dir.path(), segment);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }
}

/// Several segments, with an entry that is longer than the first two.
const LENGTHS: [usize; 8] = [10, 5_000, 700_000, 600_000, 9_000_000, 10, 3_000_000, 10];

#[test]
fn all_that_follows_a_position_is_read_across_segments() {
    let log = made(&LENGTHS);
    assert!(log.ends[7].segment > 3);
    for entries in 0..=LENGTHS.len() {
        let expected: Vec<u64> = (entries as u64 + 1..=LENGTHS.len() as u64).collect();
        assert_eq!(log.read(log.after(entries)).unwrap(), expected);
    }
    segments::give_up_before(log.dir.path(), log.ends[4].segment).unwrap();
    assert_eq!(log.read(log.after(5)).unwrap(), [6, 7, 8]);
}

#[test]
fn a_missing_segment_is_damage_unless_it_was_applied_or_none_follows() {
    let log = made(&LENGTHS);
    let all = segments::list(log.dir.path()).unwrap();
    for segment in all.clone() {
        let path = segments::path(log.dir.path(), segment);
        let kept = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let last = log.ends[7].segment == segment;
        let read = log.read(log.after(0));
        if segment != all[all.len() - 1] {
            assert!(matches!(read, Err(StorageError::LogDamaged { .. })), "{segment}: {read:?}");
        }
        // The last segment is needed as soon as one of its entries is known to be applied.
        if last {
            assert!(log.read(log.after(8)).is_err());
        }
        fs::write(path, kept).unwrap();
    }
}

/// Only the last entry may be torn: any other was acknowledged, and so was one that is applied.
#[test]
fn a_torn_end_is_dropped_and_every_flipped_bit_before_it_is_found() {
    let log = made(&[10, 5_000, 10, 9_000]);
    for (number, (segment, from, to)) in log.places.clone().into_iter().enumerate() {
        let content = if number == 3 { from + 9_000 } else { from + 166 };
        let places =
            (from..from + HEAD_BYTES).chain([from + 124, content - 1]).filter(|at| *at < to);
        for (at, bit) in places.flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            log.change(segment, |bytes| bytes[at] ^= 1 << bit);
            for applied in 0..=4 {
                let read = log.read(log.after(applied));
                let is_last = number == 3;
                if is_last && applied < 4 {
                    let expected: Vec<u64> = (applied as u64 + 1..=3).collect();
                    let found = read.unwrap_or_else(|_| expected.clone());
                    assert_eq!(found, expected, "bit {bit} of byte {at}");
                } else {
                    let what = format!("entry {number}, bit {bit} of byte {at}: {read:?}");
                    let Err(StorageError::LogDamaged { entry, .. }) = read else {
                        panic!("{what}")
                    };
                    assert_eq!(entry, number as u64 + 1, "{what}");
                }
            }
            log.change(segment, |bytes| bytes[at] ^= 1 << bit);
        }
    }
}

/// Each of the log's entries is followed by another one, by its tail, or by both.
#[test]
fn every_flipped_bit_of_the_last_entry_is_found_after_a_tail() {
    for lengths in [&[10][..], &[10, 5_000], &[10, 9_000, 200_000, 10], &[10, 250_000]] {
        let log = made(lengths);
        let (last, end) = (*log.places.last().unwrap(), *log.ends.last().unwrap());
        let (segment, from, to) = last;
        log.change(segment, |bytes| bytes[to..to + PAGE_BYTES].copy_from_slice(&tail(&end)));
        let all: Vec<u64> = (1..=lengths.len() as u64).collect();
        assert_eq!(log.read(log.after(0)).unwrap(), all);
        assert!(log.read(end).unwrap().is_empty());
        let places = (from..from + HEAD_BYTES).chain([from + 124, from + 160]);
        for (at, bit) in places.flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            log.change(segment, |bytes| bytes[at] ^= 1 << bit);
            for applied in 0..=lengths.len() {
                let read = log.read(log.after(applied));
                let Err(StorageError::LogDamaged { entry, .. }) = read else {
                    panic!("bit {bit} of byte {at}: {read:?}")
                };
                assert_eq!(entry, end.number, "bit {bit} of byte {at}");
            }
            log.change(segment, |bytes| bytes[at] ^= 1 << bit);
        }
        for bit in 0..HEAD_BYTES * 8 {
            log.change(segment, |bytes| bytes[to + bit / 8] ^= 1 << (bit % 8));
            assert_eq!(log.read(log.after(0)).unwrap(), all, "a damaged tail says nothing");
            log.change(segment, |bytes| bytes[to + bit / 8] ^= 1 << (bit % 8));
        }
    }
}

/// The tail of an entry is where the next one is written, or at the end of the segment before it.
#[test]
fn a_torn_entry_over_a_tail_and_a_tail_of_an_older_segment_are_no_damage() {
    let log = made(&[10, 9_000]);
    let (segment, from, to) = log.places[1];
    let whole = fs::read(segments::path(log.dir.path(), segment)).unwrap();
    for written in 0..(to - from) / 512 {
        log.change(segment, |bytes| {
            bytes[from..from + PAGE_BYTES].copy_from_slice(&tail(&log.ends[0]));
            bytes[from + PAGE_BYTES..to].fill(0);
            let sector = from + written * 512..from + (written + 1) * 512;
            bytes[sector.clone()].copy_from_slice(&whole[sector]);
        });
        assert_eq!(log.read(log.after(0)).unwrap(), [1], "sector {written}");
    }
    let log = made(&[10, 300_000]);
    let (segment, _, to) = log.places[0];
    assert_ne!(segment, log.ends[1].segment);
    log.change(segment, |bytes| bytes[to..to + PAGE_BYTES].copy_from_slice(&tail(&log.ends[0])));
    assert_eq!(log.read(log.after(0)).unwrap(), [1, 2]);
}

#[test]
fn a_segment_of_another_environment_is_named() {
    let log = made(&LENGTHS);
    let check = |identity| check_identity(log.dir.path(), Owner::ours(), &identity);
    check(IDENTITY).unwrap();
    let last = log.ends[7].segment;
    let error = check([5; 16]).unwrap_err();
    assert!(matches!(&error, StorageError::LogOfAnother { path } if path.ends_with("segment-1")));
    let other = draft(1, 10).finish(&Head { number: 1, segment: last, identity: [5; 16], ..HEAD });
    log.change(last, |bytes| bytes[..PAGE_BYTES].copy_from_slice(other.as_bytes()));
    let error = check(IDENTITY).unwrap_err();
    let named = segments::path(log.dir.path(), last);
    assert!(matches!(&error, StorageError::LogOfAnother { path } if *path == named), "{error}");
    log.change(last, |bytes| bytes[HEAD_BYTES + 20] ^= 1);
    check(IDENTITY).unwrap();
}

#[test]
fn an_end_that_is_torn_at_any_sector_is_dropped() {
    let log = made(&[10, 5_000, 9_000]);
    let (segment, from, to) = log.places[2];
    let whole = fs::read(segments::path(log.dir.path(), segment)).unwrap();
    let sectors = (to - from) / 512;
    for lost in 0..sectors {
        let lost = from + lost * 512..from + (lost + 1) * 512;
        log.change(segment, |bytes| bytes[lost.clone()].fill(0));
        let expected: &[u64] = if lost.start >= from + 9_193 { &[1, 2, 3] } else { &[1, 2] };
        assert_eq!(log.read(log.after(0)).unwrap(), expected, "{lost:?}");
        fs::write(segments::path(log.dir.path(), segment), &whole).unwrap();
    }
}

#[test]
fn entries_of_another_log_or_out_of_order_are_never_taken() {
    let log = made(&[10, 10, 10]);
    let (segment, from, _) = log.places[2];
    // An old entry of the same log in the place of a newer one, as a disk that lost a write has it.
    let old = entry(2, log.ends[0].sum, 10, segment);
    log.change(segment, |bytes| bytes[from..from + 4_096].copy_from_slice(old.as_bytes()));
    assert!(log.read(log.after(0)).is_err());
    // Another history with the same numbers.
    let other = entry(3, log.ends[0].sum, 10, segment);
    log.change(segment, |bytes| bytes[from..from + 4_096].copy_from_slice(other.as_bytes()));
    assert!(log.read(log.after(0)).is_err());
    let foreign = LogState { nonce: [8; 16], applied: log.after(0) };
    replay(log.dir.path(), Owner::ours(), &foreign, &mut |_, _| panic!("it isn't ours")).unwrap();
}

/// Their checksums and their order are right: only the numbers of their segments aren't.
#[test]
fn what_a_segment_held_in_its_earlier_use_is_never_taken_for_an_entry() {
    let log = made(&LENGTHS);
    let last = log.ends[7];
    let path = segments::path(log.dir.path(), last.segment + 1);
    let old = entry(9, last.sum, 10, 1);
    fs::write(&path, old.as_bytes()).unwrap();
    assert_eq!(log.read(log.after(7)).unwrap(), [8]);
    fs::write(&path, entry(9, last.sum, 10, last.segment + 1).as_bytes()).unwrap();
    let mut numbers = Vec::new();
    let state = LogState { nonce: NONCE, applied: log.after(7) };
    replay(log.dir.path(), Owner::ours(), &state, &mut |entry, _| {
        numbers.push(entry.number());
        Ok(())
    })
    .unwrap();
    assert_eq!(numbers, [8, 9]);
}
