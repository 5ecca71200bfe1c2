//! The promises of the log in memory that the suite for all logs doesn't know.

use super::*;
use crate::storage::log::batch::WriteSet;

const SHARD: Shard = Shard(0x0101);

/// A log with this many blocks in one shard, and the claim for the next one.
fn log_of(blocks: u8) -> (MemoryLog, Claim) {
    let mut log = MemoryLog::default();
    let mut claim = log.claim(SHARD).unwrap();
    for number in 0..blocks {
        let outcomes = log.append(&[block(claim, 1, number)]);
        let [Outcome::Position(link)] = outcomes[..] else { panic!("{outcomes:?}") };
        claim.link = link;
    }
    (log, claim)
}

fn block(claim: Claim, object: u8, value: u8) -> ShardBlock {
    let mut set = WriteSet::new(ObjectId::from_bytes([object; 16]));
    set.put(Space::Data, b"k", &[value]).unwrap();
    let shard = set.object().home_shard();
    ShardBlock { shard, epoch: claim.epoch, previous: claim.link, writes: vec![set] }
}

fn value(log: &MemoryLog, object: u8) -> Option<Vec<u8>> {
    log.get(ObjectId::from_bytes([object; 16]), Space::Data, b"k").unwrap()
}

#[test]
fn a_failure_is_all_or_nothing_and_the_last_outcome() {
    for (fault, found) in [(Fault::Failed, None), (Fault::FailedApplied, Some(vec![7]))] {
        let (mut log, claim) = log_of(0);
        log.fail_next(fault);
        assert!(matches!(log.append(&[block(claim, 1, 7)])[..], [Outcome::Failed(_)]));
        assert!(matches!(log.append(&[block(claim, 1, 8)])[..], [Outcome::Failed(_)]));
        assert_eq!(value(&log, 1), found);
        let mut again = log.crash(0);
        assert_eq!(value(&again, 1), found);
        let claim = again.claim(SHARD).unwrap();
        assert!(matches!(again.append(&[block(claim, 1, 9)])[..], [Outcome::Position(_)]));
    }
}

#[test]
fn a_fault_of_one_block_leaves_the_others_of_its_group_alone() {
    let (mut log, first) = log_of(0);
    let second = log.claim(Shard(0x0202)).unwrap();
    log.fail_at(Fault::Unknown, 0, Some(1));
    let group = [block(first, 1, 7), block(second, 2, 8)];
    assert!(matches!(log.append(&group)[..], [Outcome::Position(_), Outcome::Unknown]));
    assert_eq!((value(&log, 1), value(&log, 2)), (Some(vec![7]), None));
    assert!(matches!(log.append(&group)[..], [Outcome::Position(_), Outcome::Position(_)]));
    assert_eq!((value(&log, 1), value(&log, 2)), (Some(vec![7]), Some(vec![8])));
}

#[test]
fn a_log_that_was_busy_takes_the_same_block() {
    let (mut log, claim) = log_of(0);
    log.fail_next(Fault::Busy);
    assert!(matches!(log.append(&[block(claim, 1, 7)])[..], [Outcome::Busy]));
    assert_eq!(value(&log, 1), None);
    assert!(matches!(log.append(&[block(claim, 1, 7)])[..], [Outcome::Position(_)]));
}

#[test]
fn a_group_that_arrives_twice_is_applied_once() {
    let (mut log, claim) = log_of(1);
    log.fail_next(Fault::Duplicate);
    let expected = block(claim, 1, 7).link();
    let outcomes = log.append(&[block(claim, 1, 7)]);
    assert!(matches!(outcomes[..], [Outcome::Position(link)] if link == expected));
    assert_eq!(log.last(SHARD).unwrap(), expected);
}

#[test]
fn a_hole_is_told_from_what_was_trimmed() {
    let (mut log, _) = log_of(5);
    log.lose(SHARD, Position(3));
    log.trim(SHARD, Position(1)).unwrap();
    let read = |from| {
        let mut blocks = Vec::new();
        let end = log.read(SHARD, Position(from), &mut |block| {
            blocks.push(block.link().position.0);
            Ok(())
        });
        (blocks, end)
    };
    assert!(
        matches!(read(1), (blocks, Err(StorageError::Trimmed { last: Position(1) })) if blocks.is_empty())
    );
    for from in [2, 3] {
        let (blocks, end) = read(from);
        assert_eq!(blocks, (from..3).collect::<Vec<_>>());
        let is_hole =
            matches!(end, Err(StorageError::Hole { shard: SHARD, position: Position(3) }));
        assert!(is_hole, "{end:?}");
    }
    assert!(matches!(read(4), (blocks, Ok(())) if blocks == [4, 5]));
}

#[test]
fn a_crash_keeps_what_was_reported_and_any_of_the_blocks_under_way() {
    let (mut log, first) = log_of(3);
    let second = log.claim(Shard(0x0202)).unwrap();
    let held = log.hold();
    let mut theirs = log.clone();
    let group = [block(first, 1, 7), block(second, 2, 8)];
    let appending = std::thread::spawn(move || theirs.append(&group));
    log.wait_until_held();
    for keep in 0..4 {
        let left = log.crash(keep);
        let expected = if keep & 1 == 1 { vec![7] } else { vec![2] };
        assert_eq!(value(&left, 1), Some(expected));
        assert_eq!(value(&left, 2), (keep & 2 == 2).then(|| vec![8]));
        assert_eq!(left.last(SHARD).unwrap().position, Position(3 + (keep & 1)));
    }
    drop(held);
    assert_eq!(appending.join().unwrap().len(), 2);
    assert_eq!(value(&log.crash(0), 2), Some(vec![8]));
}
