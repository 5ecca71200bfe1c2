//! A log in memory that keeps the promises of the real one, and breaks them on demand.
//!
//! Tests hold its appends back, fail them or one block of them, fence it, seal it, deliver them
//! twice, lose a block of its history or its tail, and end the process between two moments. Unlike
//! the local log it keeps all blocks, as bytes, and an epoch for each shard. It never touches a
//! disk.
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
use crate::storage::log::shard_log::{Claim, Outcome, ShardLog, VisitBlock};
use crate::storage::position::{Link, Position};
use crate::storage::range::{Direction, Range, Visit};
use crate::storage::space::Space;

/// A fault that is injected into a group, or into one block of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing is applied, and the answer is lost.
    Unknown,
    /// All is applied, and the answer is lost.
    UnknownApplied,
    /// Nothing is applied, and the log is broken from now on.
    Failed,
    /// All is applied, and the log is broken from now on.
    FailedApplied,
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
    /// The numbers of groups after which it was told to rest.
    rests: Vec<usize>,
    fault: Option<Planned>,
    /// Somebody has taken over this host.
    sealed: bool,
    /// The reason why the log accepts no more blocks.
    failure: Option<Arc<StorageError>>,
}

#[derive(Clone, Debug, Default)]
struct Chain {
    epoch: Epoch,
    last: Link,
    blocks: BTreeMap<Position, Vec<u8>>,
    /// The last position that was trimmed.
    trimmed: Position,
}

/// A fault that is still to come.
#[derive(Clone, Copy, Debug)]
struct Planned {
    fault: Fault,
    /// The number of the group, from 0; `None` for the next one.
    group: Option<usize>,
    /// The number of the block in it; `None` for all of them.
    block: Option<usize>,
    /// It comes again and again.
    stays: bool,
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
        self.plan(Planned { fault, group: None, block: None, stays: false });
    }

    /// Makes a block fail, or all, of the group with that number.
    pub(crate) fn fail_at(&self, fault: Fault, group: usize, block: Option<usize>) {
        self.plan(Planned { fault, group: Some(group), block, stays: false });
    }

    /// Makes all groups fail from now on.
    pub(crate) fn fail_always(&self, fault: Fault) {
        self.plan(Planned { fault, group: None, block: None, stays: true });
    }

    fn plan(&self, planned: Planned) {
        self.state().fault = Some(planned);
    }

    /// Somebody takes over this host: it appends nothing any more, in no shard.
    pub(crate) fn seal(&self) {
        self.state().sealed = true;
    }

    /// Loses the last blocks of a shard, as a store does that falls back to an older copy. Their
    /// effects stay.
    pub(crate) fn lose_tail(&self, shard: Shard, blocks: u64) {
        let mut state = self.state();
        let chain = state.chains.get_mut(&shard).unwrap();
        for _ in 0..blocks {
            let lost = chain.blocks.remove(&chain.last.position).unwrap();
            chain.last = ShardBlock::decode(&lost).unwrap().previous;
        }
    }

    /// The blocks that were appended, call by call.
    pub(crate) fn groups(&self) -> Vec<Vec<ShardBlock>> {
        self.state().groups.clone()
    }

    /// The numbers of appends after which nothing waited.
    pub(crate) fn rests(&self) -> Vec<usize> {
        self.state().rests.clone()
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
        (left.failure, left.fault, left.sealed) = (None, None, false);
        left.groups.clear();
        for (number, block) in std::mem::take(&mut left.flight).iter().enumerate() {
            if (keep >> (number % 64)) & 1 == 1 {
                left.append_block(block);
            }
        }
        Self { gate: Gate::default(), state: Arc::new(Mutex::new(left)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    /// The fault of the group with that number.
    fn fault_of(&mut self, group: usize) -> Option<Planned> {
        let is_due = |planned: &Planned| {
            planned.fault != Fault::Claim && planned.group.is_none_or(|planned| planned == group)
        };
        let planned = self.fault.filter(is_due)?;
        if !planned.stays {
            self.fault = None;
        }
        Some(planned)
    }

    fn append(&mut self, blocks: &[ShardBlock], planned: Option<Planned>) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for (number, block) in blocks.iter().enumerate() {
            let hit = planned.filter(|planned| planned.block.is_none_or(|block| block == number));
            outcomes.push(match (&self.failure, hit) {
                (Some(failure), _) if hit.is_none_or(|hit| hit.fault != Fault::FailedApplied) => {
                    Outcome::Failed(failure.clone())
                }
                (_, Some(hit)) => self.append_with(hit.fault, block),
                (_, None) => self.append_block(block),
            });
        }
        outcomes
    }

    fn append_with(&mut self, fault: Fault, block: &ShardBlock) -> Outcome {
        if matches!(fault, Fault::UnknownApplied | Fault::FailedApplied | Fault::Duplicate) {
            self.append_block(block);
        }
        match fault {
            Fault::Fenced => Outcome::Fenced,
            Fault::Busy => Outcome::Busy,
            Fault::Unknown | Fault::UnknownApplied => Outcome::Unknown,
            Fault::Failed | Fault::FailedApplied => {
                let failure = self.failure.get_or_insert_with(|| Arc::new(StorageError::MapFull));
                Outcome::Failed(failure.clone())
            }
            Fault::Duplicate | Fault::Claim | Fault::Panic => self.append_block(block),
        }
    }

    fn has(&self, block: &ShardBlock) -> bool {
        let chain = self.chains.get(&block.shard);
        let there = chain.and_then(|chain| chain.blocks.get(&block.link().position));
        there == Some(&block.encode())
    }

    /// Applies the block, unless it is there already or doesn't follow.
    fn append_block(&mut self, block: &ShardBlock) -> Outcome {
        let Some(chain) = self.chains.get_mut(&block.shard) else { return Outcome::Fenced };
        let (link, bytes) = (block.link(), block.encode());
        if chain.blocks.get(&link.position) == Some(&bytes) {
            return Outcome::Position(link);
        }
        if self.sealed || block.epoch != chain.epoch || block.previous != chain.last {
            return Outcome::Fenced;
        }
        chain.last = link;
        chain.blocks.insert(link.position, bytes);
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
        let is_hit = state.fault.take_if(|planned| planned.fault == Fault::Claim).is_some();
        if is_hit || state.sealed {
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
        let planned = {
            let group = state.groups.len();
            state.fault_of(group)
        };
        state.groups.push(flight);
        if planned.is_some_and(|planned| planned.fault == Fault::Panic) {
            drop(state);
            panic!("the log was told to panic");
        }
        let outcomes = state.append(blocks, planned);
        drop(state);
        self.gate.pass(Stage::After);
        outcomes
    }

    /// An answer that is lost keeps nothing from being applied, and all after it from being
    /// answered.
    fn append_ahead(&mut self, entries: &[Vec<ShardBlock>]) -> Vec<Vec<Outcome>> {
        let (mut is_applied, mut is_answered) = (true, true);
        let append = |entry: &Vec<ShardBlock>| {
            let mut outcomes = vec![Outcome::Unknown; entry.len()];
            if is_applied {
                let found = self.append(entry);
                is_applied = entry.iter().all(|block| self.state().has(block));
                if is_answered {
                    outcomes = found;
                }
            }
            is_answered &= outcomes.iter().all(|found| matches!(found, Outcome::Position(_)));
            outcomes
        };
        entries.iter().map(append).collect()
    }

    fn rest(&mut self) {
        let mut state = self.state();
        let groups = state.groups.len();
        state.rests.push(groups);
    }

    fn last(&self, shard: Shard) -> Result<Link> {
        Ok(self.state().chains.get(&shard).map_or_else(Link::default, |chain| chain.last))
    }

    fn read(&self, shard: Shard, from: Position, visit: &mut VisitBlock<'_>) -> Result<()> {
        let mut position = from.max(Position(1));
        loop {
            // Copied one by one, so that `visit` can use the log as well.
            let bytes = {
                let state = self.state();
                let Some(chain) = state.chains.get(&shard) else { return Ok(()) };
                if position > chain.last.position {
                    return Ok(());
                }
                if position <= chain.trimmed {
                    return Err(StorageError::Trimmed { last: chain.trimmed });
                }
                let bytes = chain.blocks.get(&position);
                bytes.ok_or(StorageError::Hole { shard, position })?.clone()
            };
            visit(ShardBlock::decode(&bytes)?)?;
            position.0 += 1;
        }
    }

    fn trim(&mut self, shard: Shard, upto: Position) -> Result<()> {
        if let Some(chain) = self.state().chains.get_mut(&shard) {
            let upto = upto.0.min(chain.last.position.0.saturating_sub(1));
            chain.trimmed = chain.trimmed.max(Position(upto));
            chain.blocks.retain(|position, _| position.0 > upto);
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

    fn due(&self, from: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        let due: BTreeMap<_, _> = {
            let state = self.state();
            let all = state.records.iter().filter(|((_, space), _)| *space == Space::Due);
            all.flat_map(|(_, records)| records.clone()).collect()
        };
        for (key, record) in due.into_iter().filter(|(key, _)| key.as_slice() >= from) {
            if visit(&key, &record).is_break() {
                break;
            }
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
mod tests;
