//! The state that a store must hold: a map for each object, the submitted turns, and the turns that
//! may be lost.
//!
//! It follows the same steps as the store and knows nothing of how the store works. After a crash
//! it checks that the state found is allowed, and continues from there.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::{Map, World, usage};
use crate::id::ObjectId;
use crate::storage::error::StorageError;
use crate::storage::lmdb::layout::Usage;
use crate::storage::log::committer::Ticket;

/// The most bytes that one object may store, and all objects together: few, so that tests reach
/// both limits.
pub(super) const OBJECT_BYTES: u64 = 40_000;
pub(super) const CLASS_BYTES: u64 = 60_000;

/// The required outcome of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Done,
    /// There was nothing to change.
    Nothing,
    OutsideTurn,
    KeyLength,
    OverQuota,
}

#[derive(Debug)]
pub(super) struct Oracle {
    /// Includes all writes, those of the open turn too.
    now: World,
    turn: Option<Turn>,
    /// The state after each submitted turn since the storage was opened; the first one is the state
    /// found.
    history: Vec<(Ticket, World)>,
    /// The last ticket that the store reported as durable.
    pub(super) durable: Ticket,
}

#[derive(Debug)]
struct Turn {
    object: ObjectId,
    before: World,
    wrote: bool,
    savepoints: Vec<(Rc<Map>, bool)>,
}

impl Oracle {
    pub(super) fn new(found: World) -> Self {
        let history = vec![(Ticket::default(), found.clone())];
        Self { now: found, turn: None, history, durable: Ticket::default() }
    }

    pub(super) fn map(&self, object: ObjectId) -> Rc<Map> {
        self.now.get(&object).cloned().unwrap_or_default()
    }

    pub(super) fn exists(&self, object: ObjectId) -> bool {
        self.now.contains_key(&object)
    }

    pub(super) fn usage(&self, object: ObjectId) -> Usage {
        usage(&self.map(object))
    }

    /// The bytes that all objects store in total.
    pub(super) fn bytes(&self) -> u64 {
        self.now.values().map(|map| usage(map).bytes).sum()
    }

    /// Opens a turn; returns whether it has to create the object.
    pub(super) fn begin(&mut self, object: ObjectId) -> bool {
        let before = self.now.clone();
        let is_new = !self.exists(object);
        self.now.entry(object).or_default();
        self.turn = Some(Turn { object, before, wrote: is_new, savepoints: Vec::new() });
        is_new
    }

    pub(super) fn put(&mut self, object: ObjectId, key: &[u8], value: &[u8]) -> Verdict {
        if self.turn.as_ref().is_none_or(|turn| turn.object != object) {
            return Verdict::OutsideTurn;
        }
        if !is_key(key) {
            return Verdict::KeyLength;
        }
        let mut after = self.map(object);
        Rc::make_mut(&mut after).insert(key.to_vec(), value.to_vec());
        let (before, bytes) = (self.usage(object).bytes, usage(&after).bytes);
        let class = self.bytes() - before + bytes;
        if bytes > before && (bytes > OBJECT_BYTES || class > CLASS_BYTES) {
            return Verdict::OverQuota;
        }
        self.write(object, after)
    }

    pub(super) fn delete(&mut self, object: ObjectId, key: &[u8]) -> Verdict {
        if self.turn.as_ref().is_none_or(|turn| turn.object != object) {
            return Verdict::OutsideTurn;
        }
        if !is_key(key) {
            return Verdict::KeyLength;
        }
        let mut after = self.map(object);
        match Rc::make_mut(&mut after).remove(key) {
            Some(_) => self.write(object, after),
            None => Verdict::Nothing,
        }
    }

    pub(super) fn clear(&mut self, object: ObjectId) -> Verdict {
        if self.turn.as_ref().is_none_or(|turn| turn.object != object) {
            return Verdict::OutsideTurn;
        }
        if self.map(object).is_empty() {
            return Verdict::Nothing;
        }
        self.write(object, Rc::default())
    }

    fn write(&mut self, object: ObjectId, after: Rc<Map>) -> Verdict {
        self.now.insert(object, after);
        self.turn.as_mut().unwrap().wrote = true;
        Verdict::Done
    }

    pub(super) fn savepoint(&mut self) {
        let turn = self.turn.as_mut().unwrap();
        turn.savepoints.push((self.now[&turn.object].clone(), turn.wrote));
    }

    pub(super) fn keep(&mut self) {
        self.turn.as_mut().unwrap().savepoints.pop().unwrap();
    }

    pub(super) fn undo(&mut self) {
        let turn = self.turn.as_mut().unwrap();
        let (map, wrote) = turn.savepoints.pop().unwrap();
        turn.wrote = wrote;
        self.now.insert(turn.object, map);
    }

    /// Ends the turn with this ticket.
    pub(super) fn submit(&mut self, ticket: Option<Ticket>) {
        let turn = self.turn.take().unwrap();
        assert_eq!(ticket.is_some(), turn.wrote, "a turn has a ticket if it wrote");
        if let Some(ticket) = ticket {
            assert!(ticket > self.last(), "tickets grow");
            self.history.push((ticket, self.now.clone()));
        }
    }

    pub(super) fn discard(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.now = turn.before;
        }
    }

    /// The last submitted turn.
    pub(super) fn last(&self) -> Ticket {
        self.history.last().unwrap().0
    }

    /// The store reported all turns up to this one as durable.
    pub(super) fn acknowledge(&mut self, durable: Ticket) {
        assert!(durable >= self.durable, "what is durable stays so");
        assert!(durable <= self.last(), "nothing is durable that wasn't submitted");
        self.durable = durable;
    }

    /// Treats all unacknowledged turns as lost.
    pub(super) fn lose_unacknowledged(&mut self) {
        self.history.retain(|(ticket, _)| *ticket <= self.durable);
    }

    /// Checks the state found after reopening. It must include all acknowledged turns; of the later
    /// turns in each shard it must include none without those before it.
    pub(super) fn recover(&self, found: &World, whole_groups: bool) {
        let fits = |part: &dyn Fn(&World) -> World| {
            let mut ends = self.history.iter().filter(|(ticket, _)| *ticket >= self.durable);
            ends.any(|(_, world)| part(world) == part(found))
        };
        let objects = found.keys().chain(self.now.keys());
        let shards: BTreeSet<_> = objects.map(|object| object.home_shard()).collect();
        for shard in shards {
            let part = |world: &World| {
                let near = world.iter().filter(|(object, _)| object.home_shard() == shard);
                near.map(|(object, map)| (*object, map.clone())).collect()
            };
            assert!(fits(&part), "{shard:?} holds what it never held after {:?}", self.durable);
        }
        assert!(!whole_groups || fits(&World::clone), "the shards are of different moments");
    }
}

fn is_key(key: &[u8]) -> bool {
    (1..=crate::limits::KEY_BYTES_MAX).contains(&key.len())
}

/// The verdict that the store's result for a write stands for.
pub(super) fn verdict(result: Result<Option<Ticket>, StorageError>, ticket: Ticket) -> Verdict {
    match result {
        Ok(Some(of)) => {
            assert_eq!(of, ticket, "a write has the ticket of its turn");
            Verdict::Done
        }
        Ok(None) => Verdict::Nothing,
        Err(StorageError::OutsideTurn { .. }) => Verdict::OutsideTurn,
        Err(StorageError::KeyLength { .. }) => Verdict::KeyLength,
        Err(StorageError::OverQuota { .. }) => Verdict::OverQuota,
        Err(other) => panic!("{other}"),
    }
}
