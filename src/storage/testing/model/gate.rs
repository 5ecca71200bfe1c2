//! A gate in front of a log, which holds its appends back while a test wants that.
//!
//! An append can be held before the log has it, as by a slow disk, or after all of it is durable
//! and before that is reported. The gate never changes an append.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::id::Shard;
use crate::storage::error::Result;
use crate::storage::log::applied::Applied;
use crate::storage::log::block::ShardBlock;
use crate::storage::log::shard_log::{Claim, Outcome, ShardLog, VisitBlock};
use crate::storage::position::{Link, Position};

/// Longer than any append takes to arrive; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The stage at which an append is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing of it is applied.
    Before,
    /// All of it is durable, and its outcome isn't reported yet.
    After,
}

/// A handle; all clones refer to the same gate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<(Mutex<Door>, Condvar)>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Door {
    #[default]
    Open,
    Closed(Stage),
    /// Closed, and an append waits in front of it.
    Waiting(Stage),
}

/// Dropping this lets the waiting append and all later ones continue, also when a test fails.
#[derive(Debug)]
#[must_use]
pub(crate) struct Held(Gate);

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.door() = Door::Open;
        self.0.0.1.notify_all();
    }
}

impl Gate {
    /// Makes appends wait while the guard lives.
    pub(crate) fn hold(&self, stage: Stage) -> Held {
        *self.door() = Door::Closed(stage);
        Held(self.clone())
    }

    /// Waits until an append is being held back.
    pub(crate) fn wait_until_held(&self) {
        let nobody = |door: &mut Door| !matches!(door, Door::Waiting(_));
        let waited = self.0.1.wait_timeout_while(self.door(), PATIENCE, nobody).unwrap();
        assert!(!waited.1.timed_out(), "no append came to the gate");
    }

    /// Called by a log at each stage of an append.
    pub(super) fn pass(&self, stage: Stage) {
        let mut door = self.door();
        if *door == Door::Closed(stage) {
            *door = Door::Waiting(stage);
            self.0.1.notify_all();
        }
        let shut =
            |door: &mut Door| matches!(*door, Door::Closed(at) | Door::Waiting(at) if at == stage);
        drop(self.0.1.wait_while(door, shut).unwrap());
    }

    fn door(&self) -> MutexGuard<'_, Door> {
        self.0.0.lock().unwrap()
    }
}

/// Any log behind a gate.
pub(crate) struct Gated {
    gate: Gate,
    appending: Arc<Mutex<()>>,
    /// Set if an append also waits until it is applied.
    applies: bool,
    log: Box<dyn ShardLog>,
}

impl Gated {
    /// `appending` is locked while the log handles an append.
    pub(crate) fn new(gate: Gate, appending: Arc<Mutex<()>>, log: Box<dyn ShardLog>) -> Self {
        Self { gate, appending, applies: false, log }
    }

    /// The same log, whose appends are applied when they end.
    pub(crate) fn applying(self) -> Self {
        Self { applies: true, ..self }
    }
}

impl ShardLog for Gated {
    fn claim(&mut self, shard: Shard) -> Result<Claim> {
        self.log.claim(shard)
    }

    fn append(&mut self, blocks: &[ShardBlock]) -> Vec<Outcome> {
        self.gate.pass(Stage::Before);
        let outcomes = {
            let _appending = self.appending.lock().unwrap();
            let outcomes = self.log.append(blocks);
            if self.applies
                && let Some(applied) = self.log.applied()
            {
                applied.catch_up().unwrap();
            }
            outcomes
        };
        self.gate.pass(Stage::After);
        outcomes
    }

    fn rest(&mut self) {
        self.log.rest();
    }

    fn applied(&self) -> Option<Arc<Applied>> {
        self.log.applied()
    }

    fn last(&self, shard: Shard) -> Result<Link> {
        self.log.last(shard)
    }

    fn read(&self, shard: Shard, from: Position, visit: &mut VisitBlock<'_>) -> Result<()> {
        self.log.read(shard, from, visit)
    }

    fn trim(&mut self, shard: Shard, upto: Position) -> Result<()> {
        self.log.trim(shard, upto)
    }
}
