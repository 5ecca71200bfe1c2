//! The groups that the commit thread makes, and what it does with each outcome of a log.

use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, ThreadId};

use super::*;
use crate::id::ObjectId;
use crate::id::Shard;
use crate::storage::log::block::ShardBlock;
use crate::storage::log::shard_log::VisitBlock;
use crate::storage::log::shard_log::{Claim, Outcome};
use crate::storage::position::{Link, Position};
use crate::storage::space::Space;
use crate::storage::testing::model::{Fault, MemoryLog};

fn start(log: &MemoryLog) -> (Committer, Receiver<()>) {
    let (progress, progressed) = channel();
    let on_progress = Box::new(move || progress.send(()).unwrap());
    (Committer::start("test", Box::new(log.clone()), on_progress).unwrap(), progressed)
}

fn set(object: u8, value: &[u8]) -> WriteSet {
    let mut set = WriteSet::new(ObjectId::from_bytes([object; 16]));
    set.put(Space::Data, b"k", value).unwrap();
    set
}

fn submit(committer: &Committer, set: WriteSet) -> Ticket {
    let ticket = committer.submit(set);
    committer.commit();
    ticket
}

#[test]
fn nothing_is_durable_before_its_sync_and_what_gathers_meanwhile_is_one_group() {
    let log = MemoryLog::default();
    let (mut committer, progressed) = start(&log);
    let held = log.hold();
    let first = submit(&committer, set(1, b"0"));
    log.wait_until_held();
    let rest: Vec<_> = (0..100).map(|n| submit(&committer, set(n % 5, &[n]))).collect();
    assert_eq!(committer.durable(), Ticket(0));
    assert!(progressed.try_recv().is_err());

    drop(held);
    progressed.recv().unwrap();
    assert!(committer.durable() >= first);
    progressed.recv().unwrap();
    assert_eq!(committer.durable(), rest[99]);
    let groups = log.groups();
    assert_eq!(groups.len(), 2);
    let turns: usize = groups[1].iter().map(|block| block.writes.len()).sum();
    assert_eq!((groups[1].len(), turns), (5, 100));
    committer.shutdown().unwrap();
}

#[test]
fn the_log_is_told_when_nothing_waits_and_not_before() {
    let log = MemoryLog::default();
    let (mut committer, progressed) = start(&log);
    let held = log.hold();
    submit(&committer, set(1, b"0"));
    log.wait_until_held();
    submit(&committer, set(1, b"1"));
    assert!(log.rests().is_empty());
    drop(held);
    (0..2).for_each(|_| progressed.recv().unwrap());
    committer.shutdown().unwrap();
    assert_eq!(log.rests(), [2], "the first group has another one behind it");
}

#[test]
fn turns_of_a_shard_stay_in_order_and_blocks_chain() {
    let log = MemoryLog::default();
    let (mut committer, progressed) = start(&log);
    for n in 0..3 {
        submit(&committer, set(1, &[n]));
        progressed.recv().unwrap();
    }
    committer.shutdown().unwrap();
    let blocks: Vec<_> = log.groups().into_iter().flatten().collect();
    for (block, next) in blocks.iter().zip(&blocks[1..]) {
        assert_eq!(next.previous, block.link());
    }
    let written: Vec<_> = blocks.into_iter().flat_map(|block| block.writes).collect();
    assert_eq!(written, [set(1, &[0]), set(1, &[1]), set(1, &[2])]);
}

#[test]
fn a_fence_a_failure_and_a_panic_are_the_end_of_committing() {
    for fault in [Fault::Failed, Fault::Fenced, Fault::Claim, Fault::Panic] {
        let log = MemoryLog::default();
        let (mut committer, progressed) = start(&log);
        log.fail_next(fault);
        submit(&committer, set(1, b"lost"));
        progressed.recv().unwrap();
        assert!(committer.failure().is_some(), "{fault:?}");
        let appends = log.groups().len();
        submit(&committer, set(1, b"later"));
        assert_eq!(committer.durable(), Ticket(0), "{fault:?}");
        assert!(committer.shutdown().is_err(), "{fault:?}");
        assert_eq!(log.groups().len(), appends, "{fault:?}");
    }
}

/// Three turns that commit together, of two shards: the second one is alone in its shard.
fn submit_three(log: &MemoryLog, committer: &Committer) {
    let held = log.hold();
    submit(committer, set(1, b"0"));
    log.wait_until_held();
    for (object, value) in [(1, b"1"), (2, b"2"), (1, b"3")] {
        submit(committer, set(object, value));
    }
    drop(held);
}

#[test]
fn a_busy_log_and_a_lost_answer_are_resolved_by_the_same_blocks() {
    for fault in [Fault::Busy, Fault::Unknown, Fault::UnknownApplied] {
        for block in [None, Some(0), Some(1)] {
            let log = MemoryLog::default();
            let (mut committer, progressed) = start(&log);
            log.fail_at(fault, 1, block);
            submit_three(&log, &committer);
            while committer.durable() < Ticket(4) {
                progressed.recv().unwrap();
            }
            committer.shutdown().unwrap();
            let groups = log.groups();
            assert_eq!(groups.len(), 3, "{fault:?} of {block:?}");
            assert_eq!(groups[1], groups[2], "the same blocks are offered again");
            let ends = groups[1].iter().map(|block| (block.shard, block.link()));
            for (shard, end) in ends {
                assert_eq!(log.last(shard).unwrap(), end, "{fault:?} of {block:?}");
            }
        }
    }
}

#[test]
fn a_log_that_stays_busy_keeps_nobody_from_closing() {
    let log = MemoryLog::default();
    let (mut committer, _progressed) = start(&log);
    log.fail_always(Fault::Busy);
    submit(&committer, set(1, b"0"));
    assert!(committer.shutdown().is_err());
    assert!(!log.groups().is_empty());
}

#[test]
fn the_acknowledged_part_of_a_group_is_reported() {
    for fault in [Fault::Fenced, Fault::Failed, Fault::FailedApplied] {
        for (block, durable) in [(0, 1), (1, 2)] {
            let log = MemoryLog::default();
            let (mut committer, _progressed) = start(&log);
            log.fail_at(fault, 1, Some(block));
            submit_three(&log, &committer);
            assert!(committer.shutdown().is_err());
            assert_eq!(committer.durable(), Ticket(durable), "{fault:?} of block {block}");
        }
    }
}

/// A group needs room in one piece of the log.
#[test]
fn many_bytes_are_committed_in_several_groups_in_their_order() {
    const PART: usize = COMMIT_GROUP_BYTES / 4;
    let log = MemoryLog::default();
    let (mut committer, progressed) = start(&log);
    let held = log.hold();
    submit(&committer, set(1, b"first"));
    log.wait_until_held();
    let sets: Vec<_> = (0..9).map(|n| set(1 + n % 2, &vec![n; PART - 100])).collect();
    let last = sets.iter().map(|set| submit(&committer, set.clone())).last().unwrap();
    assert!(committer.bytes_unlogged() >= 9 * (PART as u64 - 100));
    drop(held);
    while committer.durable() < last {
        progressed.recv().unwrap();
    }
    assert_eq!(committer.bytes_unlogged(), 0);
    committer.shutdown().unwrap();
    let groups = log.groups();
    let turns = |group: &Vec<ShardBlock>| group.iter().map(|block| block.writes.len()).sum();
    assert_eq!(groups.iter().map(turns).collect::<Vec<usize>>(), [1, 4, 4, 1]);
    let written = groups.into_iter().flatten().flat_map(|block| block.writes);
    let of_one = written.filter(|set| set.object() == sets[0].object()).skip(1);
    assert!(of_one.eq(sets.iter().step_by(2).cloned()));
}

#[test]
fn the_queue_is_full_at_its_limit_and_shutdown_commits_it() {
    let log = MemoryLog::default();
    let (mut committer, progressed) = start(&log);
    let held = log.hold();
    submit(&committer, set(1, b""));
    log.wait_until_held();
    for _ in 2..COMMIT_QUEUE_TURNS {
        submit(&committer, set(1, b""));
    }
    assert!(!committer.is_full());
    let last = submit(&committer, set(1, b"last"));
    assert!(committer.is_full());
    drop(held);
    let shared = committer.shared.clone();
    committer.shutdown().unwrap();
    drop(committer);
    assert_eq!(shared.durable.load(Ordering::Acquire), last.0);
    assert_eq!(progressed.iter().count(), 2);
}

/// A log on a fast disk, and the threads that appended to it.
struct Quick(MemoryLog, Arc<Mutex<Vec<ThreadId>>>);

impl ShardLog for Quick {
    fn claim(&mut self, shard: Shard) -> Result<Claim> {
        self.0.claim(shard)
    }

    fn append(&mut self, blocks: &[ShardBlock]) -> Vec<Outcome> {
        self.1.lock().unwrap().push(thread::current().id());
        self.0.append(blocks)
    }

    fn is_ready(&self, bytes: u64, _usual: Duration) -> bool {
        bytes < 1000
    }

    fn last(&self, shard: Shard) -> Result<Link> {
        self.0.last(shard)
    }

    fn read(&self, shard: Shard, from: Position, visit: &mut VisitBlock<'_>) -> Result<()> {
        self.0.read(shard, from, visit)
    }

    fn trim(&mut self, shard: Shard, upto: Position) -> Result<()> {
        self.0.trim(shard, upto)
    }
}

fn start_quick(log: &MemoryLog) -> (Committer, Receiver<()>, Arc<Mutex<Vec<ThreadId>>>) {
    let (progress, progressed) = channel();
    let threads = Arc::<Mutex<_>>::default();
    let on_progress = Box::new(move || progress.send(()).unwrap());
    let quick = Box::new(Quick(log.clone(), threads.clone()));
    (Committer::start("test", quick, on_progress).unwrap(), progressed, threads)
}

#[test]
fn a_lone_turn_is_committed_here_where_that_is_quick() {
    let log = MemoryLog::default();
    let (mut committer, progressed, threads) = start_quick(&log);
    // The thread may take the first ones, while it starts.
    for n in 0..100 {
        submit(&committer, set(1, &[n]));
        progressed.recv().unwrap();
    }
    let here =
        |threads: &[ThreadId]| threads.iter().filter(|id| **id == thread::current().id()).count();
    let count = here(&threads.lock().unwrap());
    assert!(count > 50, "{count}");
    // Neither of several turns nor of a long one: other calls would wait.
    committer.submit(set(1, b"3"));
    submit(&committer, set(2, b"4"));
    progressed.recv().unwrap();
    // Nor of one behind a group, since others are likely to follow.
    submit(&committer, set(1, b"5"));
    progressed.recv().unwrap();
    submit(&committer, set(1, &[6; 2000]));
    progressed.recv().unwrap();
    assert_eq!(here(&threads.lock().unwrap()), count);
    committer.submit(set(1, b"7"));
    committer.wake();
    progressed.recv().unwrap();
    assert_eq!(here(&threads.lock().unwrap()), count, "it was handed over");
    committer.shutdown().unwrap();
    let written = log.groups().into_iter().flatten().flat_map(|block| block.writes);
    assert_eq!(written.count(), 105);
}

#[test]
fn a_turn_behind_others_is_never_committed_before_them() {
    let log = MemoryLog::default();
    let (mut committer, progressed, threads) = start_quick(&log);
    let held = log.hold();
    committer.submit(set(1, b"0"));
    submit(&committer, set(1, b"1"));
    log.wait_until_held();
    submit(&committer, set(1, b"2"));
    assert_eq!(committer.durable(), Ticket(0));
    drop(held);
    while committer.durable() < Ticket(3) {
        progressed.recv().unwrap();
    }
    committer.shutdown().unwrap();
    assert!(!threads.lock().unwrap().contains(&thread::current().id()));
}

#[test]
fn a_failure_here_is_the_end_of_committing_too() {
    for fault in [Fault::Failed, Fault::Fenced, Fault::Claim, Fault::Panic] {
        let log = MemoryLog::default();
        let (mut committer, progressed, _threads) = start_quick(&log);
        log.fail_next(fault);
        submit(&committer, set(1, b"lost"));
        progressed.recv().unwrap();
        assert!(committer.failure().is_some(), "{fault:?}");
        submit(&committer, set(1, b"later"));
        assert_eq!(committer.durable(), Ticket(0), "{fault:?}");
        assert!(committer.shutdown().is_err(), "{fault:?}");
    }
}
