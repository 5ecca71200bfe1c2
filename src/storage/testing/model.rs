//! A log in memory that keeps the promises of the real one, and breaks them on demand.
//!
//! Tests hold its appends back, fail them, fence it, deliver them twice, lose a block of its
//! history, and end the process between two moments. Unlike the local log it keeps all blocks, and
//! an epoch for each shard. It never touches a disk.
//!
//! **Invariants:** everything that `append` reported survives every crash. Blocks that it held back
//! before applying them survive a crash one by one, each as a whole or not at all.

pub(crate) mod config;
pub(crate) mod gate;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use self::gate::{Gate, Held, Stage};
use crate::id::{Epoch, ObjectId, Shard};
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::layout::Usage;
use crate::storage::log::batch::Op;
use crate::storage::log::block::ShardBlock;
use crate::storage::log::reads::{Reads, VisitObject};
use crate::storage::log::shard_log::{Claim, Outcome, ShardLog};
use crate::storage::position::{Link, Position};
use crate::storage::range::{Direction, Range, Visit};
use crate::storage::space::Space;

/// A fault that is injected into the next group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing is applied, and the log doesn't know that.
    Unknown,
    /// All is applied, and the log doesn't know that.
    UnknownApplied,
    /// A newer owner has claimed every shard.
    Fenced,
    /// The log accepts nothing for now.
    Busy,
    /// The group arrives twice.
    Duplicate,
    /// The next claim fails.
    Claim,
    /// The log has a bug.
    Panic,
}

/// A handle; all clones refer to the same log.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryLog {
    gate: Gate,
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Debug, Default)]
struct State {
    records: BTreeMap<(ObjectId, Space), BTreeMap<Vec<u8>, Vec<u8>>>,
    chains: BTreeMap<Shard, Chain>,
    /// The blocks that are held back before they are applied.
    flight: Vec<ShardBlock>,
    groups: Vec<Vec<ShardBlock>>,
    fault: Option<Fault>,
    /// The reason why the log accepts no more blocks.
    failure: Option<Arc<StorageError>>,
}

#[derive(Clone, Debug, Default)]
struct Chain {
    epoch: Epoch,
    last: Link,
    blocks: BTreeMap<Position, ShardBlock>,
}

impl MemoryLog {
    /// Makes appends wait, before they apply anything, while the guard lives.
    pub(crate) fn hold(&self) -> Held {
        self.gate.hold(Stage::Before)
    }

    /// The gate that holds appends back.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Waits until an append is being held back.
    pub(crate) fn wait_until_held(&self) {
        self.gate.wait_until_held();
    }

    /// Makes the next group, or the next claim, fail.
    pub(crate) fn fail_next(&self, fault: Fault) {
        self.state().fault = Some(fault);
    }

    /// The blocks that were appended, call by call.
    pub(crate) fn groups(&self) -> Vec<Vec<ShardBlock>> {
        self.state().groups.clone()
    }

    /// Loses a block of the history; its effects stay.
    pub(crate) fn lose(&self, shard: Shard, position: Position) {
        let mut state = self.state();
        state.chains.get_mut(&shard).unwrap().blocks.remove(&position).unwrap();
    }

    /// The log as it is after a crash at this moment. A block that is held back before being
    /// applied survives if its bit in `keep` is set.
    pub(crate) fn crash(&self, keep: u64) -> Self {
        let mut left = self.state().clone();
        (left.failure, left.fault) = (None, None);
        left.groups.clear();
        for (number, block) in std::mem::take(&mut left.flight).iter().enumerate() {
            if (keep >> (number % 64)) & 1 == 1 {
                left.apply(block);
            }
        }
        Self { gate: Gate::default(), state: Arc::new(Mutex::new(left)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn append(&mut self, blocks: &[ShardBlock]) -> Vec<Outcome> {
        let unknown =
            |cause: &Arc<StorageError>| vec![Outcome::Unknown(cause.clone()); blocks.len()];
        if let Some(failure) = &self.failure {
            return unknown(failure);
        }
        match self.fault.take() {
            None | Some(Fault::Claim) => self.apply_all(blocks),
            Some(Fault::Duplicate) => {
                let outcomes = self.apply_all(blocks);
                self.apply_all(blocks);
                outcomes
            }
            Some(Fault::Fenced) => vec![Outcome::Fenced; blocks.len()],
            Some(Fault::Busy) => vec![Outcome::Busy; blocks.len()],
            Some(fault) => {
                if fault == Fault::UnknownApplied {
                    self.apply_all(blocks);
                }
                unknown(self.failure.insert(Arc::new(StorageError::MapFull)))
            }
        }
    }

    fn apply_all(&mut self, blocks: &[ShardBlock]) -> Vec<Outcome> {
        blocks.iter().map(|block| self.apply(block)).collect()
    }

    fn apply(&mut self, block: &ShardBlock) -> Outcome {
        let Some(chain) = self.chains.get_mut(&block.shard) else { return Outcome::Fenced };
        if block.epoch != chain.epoch || block.previous != chain.last {
            return Outcome::Fenced;
        }
        let link = block.link();
        chain.last = link;
        chain.blocks.insert(link.position, block.clone());
        for set in &block.writes {
            for op in set.ops() {
                self.apply_op(set.object(), op.unwrap());
            }
        }
        Outcome::Position(link)
    }

    fn apply_op(&mut self, object: ObjectId, op: Op<'_>) {
        match op {
            Op::Put { space, key, value } => {
                let records = self.records.entry((object, space)).or_default();
                records.insert(key.to_vec(), value.to_vec());
            }
            Op::Delete { space, key } => {
                self.records.entry((object, space)).or_default().remove(key);
            }
            Op::Clear { space } => {
                self.records.remove(&(object, space));
            }
        }
    }
}

impl ShardLog for MemoryLog {
    fn claim(&mut self, shard: Shard) -> Result<Claim> {
        let mut state = self.state();
        if state.fault.take_if(|fault| *fault == Fault::Claim).is_some() {
            return Err(StorageError::Fenced { shard });
        }
        let chain = state.chains.entry(shard).or_default();
        chain.epoch.0 += 1;
        Ok(Claim { epoch: chain.epoch, link: chain.last })
    }

    fn append(&mut self, blocks: &[ShardBlock]) -> Vec<Outcome> {
        self.state().flight = blocks.to_vec();
        self.gate.pass(Stage::Before);
        let mut state = self.state();
        let flight = std::mem::take(&mut state.flight);
        state.groups.push(flight);
        if state.fault == Some(Fault::Panic) {
            drop(state);
            panic!("the log was told to panic");
        }
        let outcomes = state.append(blocks);
        drop(state);
        self.gate.pass(Stage::After);
        outcomes
    }

    fn last(&self, shard: Shard) -> Result<Link> {
        Ok(self.state().chains.get(&shard).map_or_else(Link::default, |chain| chain.last))
    }

    fn read(&self, shard: Shard, from: Position) -> Result<Vec<ShardBlock>> {
        let state = self.state();
        let Some(chain) = state.chains.get(&shard) else { return Ok(Vec::new()) };
        let mut positions = (from.0.max(1)..=chain.last.position.0).map(Position);
        let missing = positions.clone().rev().find(|position| !chain.blocks.contains_key(position));
        match missing {
            Some(last) => Err(StorageError::Trimmed { last }),
            None => {
                Ok(positions.by_ref().map(|position| chain.blocks[&position].clone()).collect())
            }
        }
    }

    fn trim(&mut self, shard: Shard, upto: Position) -> Result<()> {
        if let Some(chain) = self.state().chains.get_mut(&shard) {
            chain.blocks.retain(|position, _| *position > upto);
        }
        Ok(())
    }
}

impl Reads for MemoryLog {
    fn get(&self, object: ObjectId, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        space.check_key(key)?;
        let state = self.state();
        Ok(state.records.get(&(object, space)).and_then(|records| records.get(key)).cloned())
    }

    fn length(&self, object: ObjectId, space: Space, key: &[u8]) -> Result<Option<usize>> {
        Ok(self.get(object, space, key)?.map(|value| value.len()))
    }

    fn scan(
        &self,
        object: ObjectId,
        space: Space,
        range: &Range,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mut left = range.clone();
        while !left.is_empty() {
            // Copied one by one, so that `visit` can read as well.
            let next = {
                let state = self.state();
                let Some(records) = state.records.get(&(object, space)) else { return Ok(()) };
                let mut found = records.range((left.start.clone(), left.end.clone()));
                let next = if left.direction == Direction::Down {
                    found.next_back()
                } else {
                    found.next()
                };
                next.map(|(key, value)| (key.clone(), value.clone()))
            };
            let Some((key, value)) = next else { return Ok(()) };
            if visit(&key, &value).is_break() {
                return Ok(());
            }
            let behind = Bound::Excluded(key);
            *(if left.direction == Direction::Down { &mut left.end } else { &mut left.start }) =
                behind;
        }
        Ok(())
    }

    fn objects(&self, visit: &mut VisitObject<'_>) -> Result<()> {
        let objects: Vec<_> = {
            let state = self.state();
            let headers = state.records.keys().filter(|(_, space)| *space == Space::Header);
            headers.map(|(object, _)| *object).collect()
        };
        for object in objects {
            let Some(header) = self.get(object, Space::Header, &[])? else { continue };
            let usage = match self.get(object, Space::Usage, &[])? {
                Some(record) => Usage::decode(&record).unwrap(),
                None => self.count(object)?,
            };
            visit(object, &header, usage);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
    fn an_unknown_outcome_is_all_or_nothing_and_the_last_one() {
        for (fault, found) in [(Fault::Unknown, None), (Fault::UnknownApplied, Some(vec![7]))] {
            let (mut log, claim) = log_of(0);
            log.fail_next(fault);
            assert!(matches!(log.append(&[block(claim, 1, 7)])[..], [Outcome::Unknown(_)]));
            assert!(matches!(log.append(&[block(claim, 1, 8)])[..], [Outcome::Unknown(_)]));
            assert_eq!(value(&log, 1), found);
            let mut again = log.crash(0);
            assert_eq!(value(&again, 1), found);
            let claim = again.claim(SHARD).unwrap();
            assert!(matches!(again.append(&[block(claim, 1, 9)])[..], [Outcome::Position(_)]));
        }
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
    fn a_hole_is_found_out() {
        let (log, _) = log_of(5);
        log.lose(SHARD, Position(2));
        log.lose(SHARD, Position(4));
        let newest = |from| match log.read(SHARD, Position(from)) {
            Err(StorageError::Trimmed { last }) => Some(last),
            read => {
                assert_eq!(read.unwrap().len() as u64, 6 - from);
                None
            }
        };
        assert_eq!((newest(1), newest(4), newest(5)), (Some(Position(4)), Some(Position(4)), None));
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
}
