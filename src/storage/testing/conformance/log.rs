//! The promises of a log to the code that appends to it and the code that reads what it applied.

use std::ops::ControlFlow;
use std::thread;

use super::{Backend, Map, Opened};
use crate::id::{Epoch, ObjectId, Shard};
use crate::limits::KEY_BYTES_MAX;
use crate::storage::error::StorageError;
use crate::storage::lmdb::layout::Usage;
use crate::storage::log::batch::WriteSet;
use crate::storage::log::block::ShardBlock;
use crate::storage::log::reads::Reads;
use crate::storage::log::shard_log::{Claim, Outcome, ShardLog};
use crate::storage::position::{Link, Position};
use crate::storage::range::{Direction, Range};
use crate::storage::space::{DUE_KEY_BYTES, Space};
use crate::storage::testing::model::gate::Stage;

pub(super) const ONE: ObjectId = ObjectId::from_bytes([1; 16]);
/// An object in the same shard as `ONE`.
const NEAR: ObjectId = ObjectId::from_bytes([1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
pub(super) const FAR: ObjectId = ObjectId::from_bytes([2; 16]);
pub(super) const SHARD: Shard = Shard(0x0101);
pub(super) const FAR_SHARD: Shard = Shard(0x0202);

pub(super) fn set(object: ObjectId, write: impl FnOnce(&mut WriteSet)) -> WriteSet {
    let mut set = WriteSet::new(object);
    write(&mut set);
    set
}

pub(super) fn put(object: ObjectId, key: &[u8], value: &[u8]) -> WriteSet {
    set(object, |set| set.put(Space::Data, key, value).unwrap())
}

pub(super) fn block(claim: Claim, writes: Vec<WriteSet>) -> ShardBlock {
    let shard = writes[0].object().home_shard();
    ShardBlock { shard, epoch: claim.epoch, previous: claim.link, writes }
}

/// Appends one block; returns `None` if it was fenced.
pub(super) fn append(log: &mut dyn ShardLog, block: ShardBlock) -> Option<Link> {
    match log.append(&[block]).as_slice() {
        [Outcome::Position(link)] => Some(*link),
        [Outcome::Fenced] => None,
        other => panic!("{other:?}"),
    }
}

/// Appends one block that must be accepted; returns the claim for the next one.
pub(super) fn advance(log: &mut dyn ShardLog, claim: Claim, writes: Vec<WriteSet>) -> Claim {
    let block = block(claim, writes);
    let (shard, expected) = (block.shard, block.link());
    let link = append(log, block).expect("the block is the next one");
    assert_eq!((link, log.last(shard).unwrap()), (expected, expected));
    Claim { link, ..claim }
}

pub(super) fn get(reads: &dyn Reads, object: ObjectId, key: &[u8]) -> Option<Vec<u8>> {
    reads.get(object, Space::Data, key).unwrap()
}

pub(super) fn blocks_chain_and_the_next_claim_is_newer_and_goes_on<B: Backend>() {
    let backend = B::make();
    let Opened { mut log, reads, .. } = backend.open();
    let first = log.claim(SHARD).unwrap();
    assert_eq!((first.link, log.last(SHARD).unwrap()), (Link::default(), Link::default()));
    let one = advance(&mut *log, first, vec![put(ONE, b"k", b"1")]);
    let two = advance(&mut *log, one, vec![put(ONE, b"k", b"2")]);
    assert_eq!(two.link.position, Position(2));
    assert_ne!(one.link.hash, two.link.hash);
    assert_eq!(log.last(FAR_SHARD).unwrap(), Link::default());
    drop((log, reads));

    let Opened { mut log, reads, .. } = backend.open();
    let next = log.claim(SHARD).unwrap();
    assert!(next.epoch > first.epoch);
    assert_eq!(next.link, two.link);
    assert_eq!(append(&mut *log, block(two, vec![put(ONE, b"k", b"old")])), None);
    assert_eq!(get(&*reads, ONE, b"k").unwrap(), b"2");
    advance(&mut *log, next, vec![put(ONE, b"k", b"3")]);
    assert_eq!(get(&*reads, ONE, b"k").unwrap(), b"3");
}

pub(super) fn another_epoch_or_another_end_is_fenced_and_nothing_of_it_applied<B: Backend>() {
    let backend = B::make();
    let Opened { mut log, reads, .. } = backend.open();
    let first = log.claim(SHARD).unwrap();
    let good = advance(&mut *log, first, vec![put(ONE, b"k", b"1")]);
    let stale = Claim { epoch: Epoch(good.epoch.0 - 1), ..good };
    let eager = Claim { epoch: Epoch(good.epoch.0 + 1), ..good };
    let forked = Claim { link: Link { hash: [1; 16], ..good.link }, ..good };
    let ahead = Claim { link: Link { position: Position(2), ..good.link }, ..good };
    for wrong in [stale, eager, first, forked, ahead] {
        let writes = vec![put(ONE, b"k", b"bad"), put(NEAR, b"k", b"bad")];
        assert_eq!(append(&mut *log, block(wrong, writes)), None);
        assert_eq!(get(&*reads, ONE, b"k").unwrap(), b"1");
        assert_eq!(get(&*reads, NEAR, b"k"), None);
        assert_eq!(log.last(SHARD).unwrap(), good.link);
    }
    advance(&mut *log, good, vec![put(ONE, b"k", b"2")]);
}

pub(super) fn a_fenced_block_leaves_the_others_of_its_group_alone<B: Backend>() {
    let backend = B::make();
    let Opened { mut log, reads, .. } = backend.open();
    let good = log.claim(SHARD).unwrap();
    let fenced = Claim { epoch: Epoch(0), ..log.claim(FAR_SHARD).unwrap() };
    let theirs = block(fenced, vec![put(FAR, b"k", b"1")]);
    let ours = block(good, vec![put(ONE, b"k", b"1")]);
    for (n, group) in [[theirs.clone(), ours.clone()], [ours, theirs]].into_iter().enumerate() {
        let outcomes = log.append(&group);
        let (theirs, ours) = (&outcomes[n], &outcomes[1 - n]);
        assert!(matches!(theirs, Outcome::Fenced));
        // The second time the block is offered again.
        assert!(matches!(ours, Outcome::Position(_)), "{n}: {ours:?}");
    }
    assert_eq!(get(&*reads, ONE, b"k").unwrap(), b"1");
    assert_eq!(get(&*reads, FAR, b"k"), None);
    assert_eq!(log.last(FAR_SHARD).unwrap(), Link::default());
}

pub(super) fn a_rival_fences_whoever_had_the_shard<B: Backend>() {
    let backend = B::make();
    let Opened { mut log, reads, .. } = backend.open();
    let first = log.claim(SHARD).unwrap();
    let ours = advance(&mut *log, first, vec![put(ONE, b"k", b"ours")]);
    let theirs = backend.rival(SHARD);
    assert!(theirs.epoch > ours.epoch);
    assert_eq!(theirs.link, ours.link);
    assert_eq!(append(&mut *log, block(ours, vec![put(ONE, b"k", b"late")])), None);
    assert_eq!(get(&*reads, ONE, b"k").unwrap(), b"ours");
    let theirs = advance(&mut *log, theirs, vec![put(ONE, b"k", b"theirs")]);
    for late in [ours, Claim { link: theirs.link, ..ours }] {
        assert_eq!(append(&mut *log, block(late, vec![put(ONE, b"k", b"late")])), None);
    }
    assert_eq!(get(&*reads, ONE, b"k").unwrap(), b"theirs");
}

/// The blocks from that position on.
pub(super) fn read(log: &dyn ShardLog, from: u64) -> Result<Vec<ShardBlock>, StorageError> {
    let mut blocks = Vec::new();
    log.read(SHARD, Position(from), &mut |block| {
        blocks.push(block);
        Ok(())
    })?;
    Ok(blocks)
}

pub(super) fn a_group_is_in_a_crash_as_soon_as_it_was_reported<B: Backend>() {
    let mut backend = B::make();
    for round in 0..3_u8 {
        let Opened { mut log, reads, .. } = backend.open();
        if let Some(before) = round.checked_sub(1) {
            assert_eq!(get(&*reads, ONE, b"k").unwrap(), [before]);
            assert_eq!(get(&*reads, FAR, b"k").unwrap(), [before]);
        }
        let group = [ONE, FAR].map(|object| {
            let claim = log.claim(object.home_shard()).unwrap();
            assert_eq!(claim.link.position, Position(u64::from(round)));
            block(claim, vec![put(object, b"k", &[round])])
        });
        let outcomes = log.append(&group);
        assert!(matches!(outcomes[..], [Outcome::Position(_), Outcome::Position(_)]));
        let left = backend.crash(0);
        drop((log, reads));
        backend = left;
    }
}

pub(super) fn a_block_that_is_held_back_is_applied_as_a_whole_or_not_at_all<B: Backend>() {
    for (stage, keep) in [(Stage::Before, 0), (Stage::Before, 1), (Stage::After, 0)] {
        let backend = B::make();
        let Opened { mut log, reads, .. } = backend.open();
        let claim = log.claim(SHARD).unwrap();
        let writes = vec![put(ONE, b"k", b"1"), put(ONE, b"l", b"2"), put(NEAR, b"k", b"3")];
        let block = block(claim, writes);
        let held = backend.gate().hold(stage);
        let appending = thread::spawn(move || (append(&mut *log, block), log));
        backend.gate().wait_until_held();
        let left = backend.crash(keep);
        drop(held);
        assert!(appending.join().unwrap().0.is_some());
        drop(reads);

        let Opened { log, reads, .. } = left.open();
        let all = log.last(SHARD).unwrap().position == Position(1);
        match stage {
            Stage::After => assert!(all),
            Stage::Before => assert_eq!(all, keep == 1 && !B::WHOLE_GROUPS),
        }
        for (object, key) in [(ONE, b"k"), (ONE, b"l"), (NEAR, b"k")] {
            assert_eq!(get(&*reads, object, key).is_some(), all);
        }
    }
}

pub(super) fn history_is_read_or_said_to_be_gone<B: Backend>() {
    let backend = B::make();
    let Opened { mut log, .. } = backend.open();
    for from in [0, 1, 2] {
        assert_eq!(read(&*log, from).unwrap(), []);
    }
    let mut claim = log.claim(SHARD).unwrap();
    let mut blocks = Vec::new();
    for value in 0..4 {
        blocks.push(block(claim, vec![put(ONE, b"k", &[value])]));
        claim = advance(&mut *log, claim, vec![put(ONE, b"k", &[value])]);
    }
    // No block up to `gone` can be read.
    let check = |log: &dyn ShardLog, gone: u64| {
        for from in 0..=6 {
            match read(log, from) {
                Ok(read) => {
                    assert!(from > gone || gone == 0);
                    assert_eq!(read, blocks[blocks.len().min(from.max(1) as usize - 1)..]);
                }
                Err(StorageError::Trimmed { last }) => {
                    assert!(from <= gone);
                    assert_eq!(last, Position(gone));
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(log.last(SHARD).unwrap(), claim.link);
    };
    check(&*log, if B::KEEPS_HISTORY { 0 } else { 4 });
    // The last block always stays.
    for (upto, gone) in [(2, 2), (1, 2), (4, 3), (9, 3)] {
        log.trim(SHARD, Position(upto)).unwrap();
        check(&*log, if B::KEEPS_HISTORY { gone } else { 4 });
    }
    advance(&mut *log, claim, vec![put(ONE, b"k", b"on")]);
}

pub(super) fn reads_see_what_was_applied_and_nothing_else<B: Backend>() {
    let backend = B::make();
    let Opened { mut log, reads, .. } = backend.open();
    let claim = log.claim(SHARD).unwrap();
    let spaces = [Space::Header, Space::Data, Space::Grants, Space::Requests, Space::Usage];
    let fill = |object, value: u8| {
        set(object, |set| {
            for space in spaces {
                let value = [value, space as u8];
                set.put(space, b"k", &value).unwrap();
                set.put(space, &[b'k'; 500], &value).unwrap();
            }
        })
    };
    let claim = advance(&mut *log, claim, vec![fill(ONE, 1), fill(NEAR, 2)]);
    let check = |object, value: u8, gone: &[(Space, usize)]| {
        for (space, length) in spaces.into_iter().flat_map(|space| [(space, 1), (space, 500)]) {
            let expected = (!gone.contains(&(space, length))).then(|| vec![value, space as u8]);
            let key = vec![b'k'; length];
            assert_eq!(reads.length(object, space, &key).unwrap(), expected.as_ref().map(Vec::len));
            assert_eq!(reads.get(object, space, &key).unwrap(), expected);
        }
        assert_eq!(get(&*reads, object, b"kk"), None);
    };
    check(ONE, 1, &[]);
    check(NEAR, 2, &[]);
    let delete =
        |length: usize| set(ONE, |set| set.delete(Space::Data, &vec![b'k'; length]).unwrap());
    let claim = advance(&mut *log, claim, vec![delete(500), delete(499)]);
    check(ONE, 1, &[(Space::Data, 500)]);
    let mixed = set(ONE, |set| {
        set.put(Space::Data, &[b'k'; 500], b"gone").unwrap();
        set.clear(Space::Data);
        set.put(Space::Data, b"k", &[1, Space::Data as u8]).unwrap();
        set.clear(Space::Grants);
    });
    advance(&mut *log, claim, vec![mixed]);
    check(ONE, 1, &[(Space::Data, 500), (Space::Grants, 1), (Space::Grants, 500)]);
    check(NEAR, 2, &[]);
    backend.check_records(ONE, Space::Grants, &Map::new());
}

pub(super) fn a_scan_ends_when_its_visitor_has_enough<B: Backend>() {
    let backend = B::make();
    let Opened { mut log, reads, .. } = backend.open();
    let claim = log.claim(SHARD).unwrap();
    let keys: Vec<Vec<u8>> = [1, 480, 481, 941, 942, 1_500].map(|length| vec![7; length]).into();
    let writes = keys.iter().map(|key| put(ONE, key, b"v")).collect();
    advance(&mut *log, claim, writes);
    for direction in [Direction::Up, Direction::Down] {
        for enough in 1..=keys.len() {
            let mut found = Vec::new();
            let mut visit = |key: &[u8], _: &[u8]| {
                // Other reads work while a list is in progress.
                assert!(get(&*reads, ONE, key).is_some());
                found.push(key.to_vec());
                let more = found.len() < enough;
                if more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            let range = Range { direction, ..Range::all() };
            reads.scan(ONE, Space::Data, &range, &mut visit).unwrap();
            let mut expected = keys.clone();
            if direction == Direction::Down {
                expected.reverse();
            }
            assert_eq!(found, expected[..enough]);
        }
    }
}

pub(super) fn keys_out_of_bounds_are_refused<B: Backend>() {
    let backend = B::make();
    let Opened { reads, .. } = backend.open();
    let check = |space, length: usize, refused: bool| {
        let key = vec![0; length];
        let is = |error| matches!(error, StorageError::KeyLength { .. });
        assert_eq!(reads.get(ONE, space, &key).is_err_and(is), refused, "{space:?} {length}");
        assert_eq!(reads.length(ONE, space, &key).is_err_and(is), refused, "{space:?} {length}");
    };
    for space in (0..=u8::MAX).filter_map(Space::from_byte) {
        if space == Space::Due {
            check(space, DUE_KEY_BYTES - 1, true);
            check(space, DUE_KEY_BYTES, false);
            check(space, DUE_KEY_BYTES + 1, true);
            continue;
        }
        check(space, 0, !matches!(space, Space::Header | Space::Usage));
        check(space, KEY_BYTES_MAX, false);
        check(space, KEY_BYTES_MAX + 1, true);
    }
}

pub(super) fn objects_are_those_with_a_header<B: Backend>() {
    let least = ObjectId::from_bytes([0; 16]);
    let greatest = ObjectId::from_bytes([0xff; 16]);
    let backend = B::make();
    let Opened { mut log, reads, .. } = backend.open();
    let usage = Usage { keys: 3, bytes: 5, references: 2, ..Usage::default() };
    let writes = [
        set(least, |set| {
            set.put(Space::Header, b"", b"least").unwrap();
            set.put(Space::Data, b"k", b"is counted").unwrap();
            set.put(Space::Data, &[0xff; 1_000], b"").unwrap();
            set.put(Space::Edges, b"k", &[7; 16]).unwrap();
        }),
        set(ONE, |set| {
            set.put(Space::Header, b"", b"one").unwrap();
            set.put(Space::Data, b"k", b"isn't").unwrap();
            set.put(Space::Usage, b"", &usage.encode()).unwrap();
        }),
        put(FAR, b"k", b"no header"),
        set(greatest, |set| set.put(Space::Header, b"", b"greatest").unwrap()),
    ];
    for writes in writes {
        let claim = log.claim(writes.object().home_shard()).unwrap();
        assert!(append(&mut *log, block(claim, vec![writes])).is_some());
    }
    let mut found = Vec::new();
    let mut visit = |object, header: &[u8], usage| found.push((object, header.to_vec(), usage));
    reads.objects(&mut visit).unwrap();
    let expected = [
        (
            least,
            b"least".to_vec(),
            Usage { keys: 2, bytes: 1_011, references: 1, ..Usage::default() },
        ),
        (ONE, b"one".to_vec(), usage),
        (greatest, b"greatest".to_vec(), Usage::default()),
    ];
    assert_eq!(found, expected);
}
