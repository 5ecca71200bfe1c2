//! The promises of a log to an owner that lost an answer, the log's tail, or the log itself.

use super::log::{FAR, FAR_SHARD, ONE, SHARD, advance, append, block, get, put, read, set};
use super::{Backend, Opened};
use crate::id::ObjectId;
use crate::storage::error::StorageError;
use crate::storage::log::block::ShardBlock;
use crate::storage::log::shard_log::{Claim, Outcome};
use crate::storage::position::Position;
use crate::storage::space::Space;
use crate::storage::testing::model::Fault;

pub(super) fn a_block_that_is_offered_again_has_its_answer_and_is_not_applied_twice<B: Backend>() {
    let backend = B::make();
    let Opened { mut log, reads, .. } = backend.open();
    let claim = log.claim(SHARD).unwrap();
    let first = block(claim, vec![put(ONE, b"k", b"1")]);
    let outcomes = log.append(&[first.clone(), first.clone()]);
    let [Outcome::Position(link), Outcome::Position(again)] = outcomes[..] else {
        panic!("{outcomes:?}")
    };
    assert_eq!((link, log.last(SHARD).unwrap()), (again, again));
    assert_eq!(append(&mut *log, first.clone()), Some(link));
    let gone = set(ONE, |set| set.delete(Space::Data, b"k").unwrap());
    let second = block(Claim { link, ..claim }, vec![gone]);
    let last = append(&mut *log, second.clone()).unwrap();
    // Of blocks that aren't the last of their chains only a log with a history knows.
    let known = append(&mut *log, first.clone());
    assert_eq!(known, B::KEEPS_HISTORY.then_some(link));
    assert_eq!(get(&*reads, ONE, b"k"), None);
    // A rival that owns the shard by now changes nothing about what is durable.
    backend.rival(SHARD);
    assert_eq!(append(&mut *log, second.clone()), Some(last));
    assert_eq!(log.last(SHARD).unwrap(), last);
    drop((log, reads));
    let Opened { mut log, reads, .. } = backend.open();
    log.claim(SHARD).unwrap();
    assert_eq!(append(&mut *log, second), Some(last));
    assert_eq!(get(&*reads, ONE, b"k"), None);
    assert_eq!(log.last(SHARD).unwrap(), last);
}

pub(super) fn a_seal_ends_all_appending_of_the_host_and_keeps_what_was_acknowledged<B: Backend>() {
    let backend = B::make();
    let Opened { mut log, reads, .. } = backend.open();
    let group = [ONE, FAR].map(|object| {
        let claim = log.claim(object.home_shard()).unwrap();
        block(claim, vec![put(object, b"k", b"ours")])
    });
    let outcomes = log.append(&group);
    assert!(matches!(outcomes[..], [Outcome::Position(_), Outcome::Position(_)]));
    backend.seal();
    let ends = group.clone().map(|block| block.link());
    for (sent, link) in group.iter().zip(ends) {
        let next = Claim { epoch: sent.epoch, link };
        let late = block(next, vec![put(sent.writes[0].object(), b"k", b"late")]);
        assert_eq!(append(&mut *log, late), None);
        assert_eq!(append(&mut *log, sent.clone()), Some(link));
    }
    // A shard that it had not written to is closed to it as well.
    let third = ObjectId::from_bytes([3; 16]);
    if let Ok(claim) = log.claim(third.home_shard()) {
        assert_eq!(append(&mut *log, block(claim, vec![put(third, b"k", b"late")])), None);
    }
    let left = backend.crash(u64::MAX);
    drop((log, reads));
    let Opened { mut log, reads, .. } = left.open();
    for (sent, link) in group.iter().zip(ends) {
        let object = sent.writes[0].object();
        assert_eq!(get(&*reads, object, b"k").unwrap(), b"ours");
        let claim = log.claim(sent.shard).unwrap();
        assert_eq!(claim.link, link);
        assert!(claim.epoch > sent.epoch);
        advance(&mut *log, claim, vec![put(object, b"k", b"theirs")]);
    }
}

/// Blocks of these numbers, each the predecessor of the next.
fn row(mut claim: Claim, values: std::ops::Range<u8>) -> Vec<ShardBlock> {
    let next = |value| {
        let block = block(claim, vec![put(ONE, b"k", &[value])]);
        claim.link = block.link();
        block
    };
    values.map(next).collect()
}

pub(super) fn a_log_that_lost_its_tail_takes_the_same_blocks_again<B: Backend>() {
    let backend = B::make();
    let Opened { mut log, reads, .. } = backend.open();
    let claim = log.claim(SHARD).unwrap();
    let blocks = row(claim, 0..6);
    for block in &blocks[..5] {
        append(&mut *log, block.clone()).unwrap();
    }
    if !backend.lose_tail(SHARD, 3) {
        return;
    }
    assert_eq!(log.last(SHARD).unwrap(), blocks[1].link());
    assert_eq!(append(&mut *log, blocks[5].clone()), None, "there would be a hole");
    for block in &blocks[2..] {
        assert_eq!(append(&mut *log, block.clone()), Some(block.link()));
    }
    assert_eq!(log.last(SHARD).unwrap(), blocks[5].link());
    assert_eq!(get(&*reads, ONE, b"k").unwrap(), [5]);
}

pub(super) fn of_entries_offered_ahead_only_the_first_ones_in_a_row_are_acknowledged<B: Backend>() {
    let faults = [None, Some(Fault::Busy), Some(Fault::Unknown), Some(Fault::UnknownApplied)];
    for (fault, at) in faults.into_iter().flat_map(|fault| (0..4).map(move |at| (fault, at))) {
        let backend = B::make();
        let Opened { mut log, reads, .. } = backend.open();
        let (one, far) = (log.claim(SHARD).unwrap(), log.claim(FAR_SHARD).unwrap());
        let entries: Vec<_> = row(one, 0..4).into_iter().map(|block| vec![block]).collect();
        let others = row(far, 0..1).into_iter().map(|mut other| {
            (other.shard, other.writes) = (FAR_SHARD, vec![put(FAR, b"k", b"far")]);
            vec![other]
        });
        let entries: Vec<_> = entries.into_iter().chain(others).collect();
        let is_hit = fault.is_some_and(|fault| backend.inject_at(fault, at));
        let outcomes = log.append_ahead(&entries);
        for (entry, outcomes) in outcomes.iter().enumerate() {
            let is_durable = matches!(outcomes[..], [Outcome::Position(_)]);
            assert_eq!(is_durable, !is_hit || entry < at, "{fault:?} at {at}: entry {entry}");
            let is_open = matches!(outcomes[..], [Outcome::Busy | Outcome::Unknown]);
            assert_eq!(is_open, is_hit && entry >= at, "{fault:?} at {at}: entry {entry}");
        }
        if is_hit && fault != Some(Fault::UnknownApplied) {
            assert_eq!(get(&*reads, FAR, b"k"), None, "{fault:?} at {at}: a hole before it");
        }
        // The same again, from the first that wasn't acknowledged or from any before it.
        for from in [if is_hit { at } else { 0 }, 0] {
            let again = log.append_ahead(&entries[from..]);
            let all = again.iter().flatten();
            let known = |outcome: &Outcome| matches!(outcome, Outcome::Position(_));
            assert!(!B::KEEPS_HISTORY && !is_hit || all.clone().all(known), "{again:?}");
        }
        assert_eq!(log.last(SHARD).unwrap(), entries[3][0].link());
        assert_eq!(get(&*reads, ONE, b"k").unwrap(), [3]);
        assert_eq!(get(&*reads, FAR, b"k").unwrap(), b"far");
    }
}

pub(super) fn blocks_of_older_epochs_are_read_and_replayed_in_their_order<B: Backend>() {
    let backend = B::make();
    let mut written = Vec::new();
    for round in 0..3 {
        let Opened { mut log, .. } = backend.open();
        let claim = log.claim(SHARD).unwrap();
        for block in row(claim, round * 2..round * 2 + 2) {
            append(&mut *log, block.clone()).unwrap();
            written.push(block);
        }
    }
    let Opened { log, reads, .. } = backend.open();
    assert!(written.windows(3).all(|blocks| blocks[0].epoch < blocks[2].epoch));
    assert!(written.windows(2).all(|blocks| blocks[1].previous == blocks[0].link()));
    assert_eq!(log.last(SHARD).unwrap(), written[5].link());
    assert_eq!(get(&*reads, ONE, b"k").unwrap(), [5]);
    if B::KEEPS_HISTORY {
        assert_eq!(read(&*log, 1).unwrap(), written);
    }
}

pub(super) fn a_reader_of_the_history_ends_it_with_its_own_error<B: Backend>() {
    let backend = B::make();
    let Opened { mut log, .. } = backend.open();
    let claim = log.claim(SHARD).unwrap();
    for block in row(claim, 0..3) {
        append(&mut *log, block).unwrap();
    }
    let mut seen = 0;
    let ended = log.read(SHARD, Position(1), &mut |_| {
        seen += 1;
        if seen == 2 { Err(StorageError::Closed) } else { Ok(()) }
    });
    match ended {
        Err(StorageError::Closed) => assert_eq!(seen, 2),
        Err(StorageError::Trimmed { .. }) => assert!(!B::KEEPS_HISTORY && seen == 0),
        other => panic!("{other:?}"),
    }
}
