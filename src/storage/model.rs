//! A log in memory that keeps the promises of the real one, and breaks them when told to.
//!
//! Tests hold its syncs back, fail them, or fence it. It never touches a disk.

use std::collections::BTreeMap;
use std::ops::RangeBounds;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::id::{Epoch, ObjectId, Shard};
use crate::storage::batch::Op;
use crate::storage::layout::Space;
use crate::storage::log::{
    Claim, Link, Outcome, Position, Range, Reads, ShardBlock, ShardLog, Visit, VisitObject,
};
use crate::storage::{Result, StorageError};

/// What goes wrong with the next group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing is applied, and the log doesn't know.
    Unknown,
    /// A newer owner has every shard.
    Fenced,
    /// The log takes nothing for now.
    Busy,
    /// The next claim fails.
    Claim,
    /// The log has a bug.
    Panic,
}

/// A handle; all clones are the same log.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryLog(Arc<(Mutex<State>, Condvar)>);

/// Dropping it lets the waiting append and all later ones go on, also when a test fails.
#[derive(Debug)]
#[must_use]
pub(crate) struct Held(MemoryLog);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.state().syncs = Syncs::Free;
        self.0.0.1.notify_all();
    }
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<(ObjectId, Space, Vec<u8>), Vec<u8>>,
    links: BTreeMap<Shard, Link>,
    groups: Vec<Vec<ShardBlock>>,
    fault: Option<Fault>,
    syncs: Syncs,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Syncs {
    #[default]
    Free,
    Held,
    Waiting,
}

impl MemoryLog {
    /// Makes appends wait, before they apply anything, for as long as the guard lives.
    pub(crate) fn hold(&self) -> Held {
        self.state().syncs = Syncs::Held;
        Held(self.clone())
    }

    /// Waits until an append is being held back.
    pub(crate) fn wait_until_held(&self) {
        drop(self.0.1.wait_while(self.state(), |state| state.syncs != Syncs::Waiting).unwrap());
    }

    /// Makes the next group, or the next claim, go wrong.
    pub(crate) fn fail_next(&self, fault: Fault) {
        self.state().fault = Some(fault);
    }

    /// What was appended, call by call.
    pub(crate) fn groups(&self) -> Vec<Vec<ShardBlock>> {
        self.state().groups.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap()
    }
}

impl State {
    fn apply(&mut self, block: &ShardBlock) -> Outcome {
        if self.links.get(&block.shard).copied().unwrap_or_default() != block.previous {
            return Outcome::Fenced;
        }
        for set in &block.writes {
            let object = set.object();
            for op in set.ops() {
                match op.unwrap() {
                    Op::Put { space, key, value } => {
                        self.records.insert((object, space, key.to_vec()), value.to_vec());
                    }
                    Op::Delete { space, key } => {
                        self.records.remove(&(object, space, key.to_vec()));
                    }
                    Op::Clear { space } => {
                        self.records.retain(|(of, within, _), _| (*of, *within) != (object, space));
                    }
                }
            }
        }
        self.links.insert(block.shard, block.link());
        Outcome::Position(block.link())
    }
}

impl ShardLog for MemoryLog {
    fn claim(&mut self, shard: Shard) -> Result<Claim> {
        if self.state().fault == Some(Fault::Claim) {
            return Err(StorageError::Fenced { shard });
        }
        Ok(Claim { epoch: Epoch(1), link: self.last(shard)? })
    }

    fn append(&mut self, blocks: &[ShardBlock]) -> Vec<Outcome> {
        let mut state = self.state();
        if state.syncs == Syncs::Held {
            state.syncs = Syncs::Waiting;
            self.0.1.notify_all();
        }
        let mut state = self.0.1.wait_while(state, |state| state.syncs != Syncs::Free).unwrap();
        state.groups.push(blocks.to_vec());
        let fault = state.fault.take();
        if fault == Some(Fault::Panic) {
            drop(state);
            panic!("the log was told to panic");
        }
        let outcome = |block| match fault {
            None | Some(Fault::Claim | Fault::Panic) => state.apply(block),
            Some(Fault::Unknown) => Outcome::Unknown(Arc::new(StorageError::MapFull)),
            Some(Fault::Fenced) => Outcome::Fenced,
            Some(Fault::Busy) => Outcome::Busy,
        };
        blocks.iter().map(outcome).collect()
    }

    fn last(&self, shard: Shard) -> Result<Link> {
        Ok(self.state().links.get(&shard).copied().unwrap_or_default())
    }

    fn read(&self, shard: Shard, from: Position) -> Result<Vec<ShardBlock>> {
        let groups = self.groups();
        let blocks = groups.into_iter().flatten().filter(|block| block.shard == shard);
        Ok(blocks.filter(|block| block.link().position >= from).collect())
    }

    fn trim(&mut self, _shard: Shard, _upto: Position) -> Result<()> {
        Ok(())
    }
}

impl Reads for MemoryLog {
    fn get(&self, object: ObjectId, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        space.check_key(key)?;
        Ok(self.state().records.get(&(object, space, key.to_vec())).cloned())
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
        let bounds = (range.start.clone(), range.end.clone());
        let mut found: Vec<_> = {
            // The visitor may read in between.
            let records = &self.state().records;
            let all = records.iter().filter(|((of, within, key), _)| {
                (*of, *within) == (object, space) && bounds.contains(key)
            });
            all.map(|((_, _, key), value)| (key.clone(), value.clone())).collect()
        };
        if range.reverse {
            found.reverse();
        }
        for (key, value) in found {
            if visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn objects(&self, visit: &mut VisitObject<'_>) -> Result<()> {
        let headers: Vec<_> = {
            let records = &self.state().records;
            let headers = records.iter().filter(|((_, space, _), _)| *space == Space::Header);
            headers.map(|((object, _, _), header)| (*object, header.clone())).collect()
        };
        for (object, header) in headers {
            visit(object, &header, self.count(object)?);
        }
        Ok(())
    }
}
