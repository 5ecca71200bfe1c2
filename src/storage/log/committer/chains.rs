//! The chains of the shards that are written to, and the log that has them.

use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::id::Shard;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::layout::log_shard;
use crate::storage::log::batch::WriteSet;
use crate::storage::log::block::ShardBlock;
use crate::storage::log::shard_log::{Claim, Outcome, ShardLog};

/// The pauses before blocks are offered again to a log that was busy or lost its answer.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The log, and the claim of each shard that was written to.
pub(super) struct Chains {
    pub(super) log: Box<dyn ShardLog>,
    claims: FxHashMap<Shard, Claim>,
    /// The turns that are being committed, and the number of the first of each block.
    pub(super) group: Vec<WriteSet>,
    firsts: Vec<usize>,
    /// The turns of the last commit.
    turns: usize,
    /// The time of a commit, on average over the last ones.
    usual: Duration,
}

impl Chains {
    pub(super) fn new(log: Box<dyn ShardLog>) -> Self {
        let (claims, group, firsts) = (FxHashMap::default(), Vec::new(), Vec::new());
        Self { log, claims, group, firsts, turns: 0, usual: Duration::ZERO }
    }

    /// Tells whether a lone turn of this many bytes may be committed by its own thread. After a
    /// group others are likely to follow, and that thread has better things to do than to wait.
    pub(super) fn takes_lone_turns(&self, bytes: u64) -> bool {
        self.turns <= 1 && self.log.is_ready(bytes, self.usual)
    }

    /// A commit of this many turns took so long.
    pub(super) fn took(&mut self, turns: usize, time: Duration) {
        self.usual = (self.usual * 7 + time) / 8;
        self.turns = turns;
    }

    /// Appends all of `group`; returns how many of its turns, from the first on, are durable, and
    /// the reason if those after them aren't known to be. Blocks are offered again after a `pause`,
    /// which tells whether that is not yet for the last time.
    pub(super) fn commit(
        &mut self,
        group: &mut Vec<WriteSet>,
        pause: impl Fn(Duration) -> bool,
    ) -> (usize, Option<Arc<StorageError>>) {
        let turns = group.len();
        let blocks = match self.blocks(group) {
            Ok(made) => made,
            Err(error) => return (0, Some(Arc::new(error))),
        };
        let (mut time, mut is_last_offer) = (PAUSE_MIN, false);
        loop {
            let outcomes = self.log.append(&blocks);
            assert_eq!(outcomes.len(), blocks.len(), "a log answers for every block");
            let (mut committed, mut failure, mut is_open) = (turns, None, false);
            for ((block, first), outcome) in blocks.iter().zip(&self.firsts).zip(outcomes) {
                let shard = block.shard;
                let cause = match outcome {
                    Outcome::Position(link) => {
                        self.claims.insert(shard, Claim { epoch: block.epoch, link });
                        continue;
                    }
                    Outcome::Fenced => Arc::new(StorageError::Fenced { shard }),
                    Outcome::Failed(cause) => cause,
                    Outcome::Busy | Outcome::Unknown => {
                        is_open = true;
                        Arc::new(StorageError::Busy { shard })
                    }
                };
                committed = committed.min(*first);
                failure = failure.or(Some(cause));
            }
            if !is_open || is_last_offer {
                return (committed, failure);
            }
            is_last_offer = !pause(time);
            time = (2 * time).min(PAUSE_MAX);
        }
    }

    /// Makes one block per shard, in which turns stay in order.
    fn blocks(&mut self, group: &mut Vec<WriteSet>) -> Result<Vec<ShardBlock>> {
        let mut blocks: Vec<ShardBlock> = Vec::new();
        self.firsts.clear();
        let mut places = FxHashMap::default();
        for (turn, set) in group.drain(..).enumerate() {
            let shard = log_shard(set.object());
            if let Some(&place) = places.get(&shard) {
                let block: &mut ShardBlock = &mut blocks[place];
                block.writes.push(set);
                continue;
            }
            let Claim { epoch, link: previous } = self.claim(shard)?;
            places.insert(shard, blocks.len());
            blocks.push(ShardBlock { shard, epoch, previous, writes: vec![set] });
            self.firsts.push(turn);
        }
        Ok(blocks)
    }

    fn claim(&mut self, shard: Shard) -> Result<Claim> {
        if let Some(claim) = self.claims.get(&shard) {
            return Ok(*claim);
        }
        let claim = self.log.claim(shard)?;
        self.claims.insert(shard, claim);
        Ok(claim)
    }
}
