//! The interface between the commit thread and the log that makes blocks durable.
//!
//! A log keeps one chain of blocks per shard. Each block names the one before it by position and
//! hash, and its owner by epoch, so that two rival owners can't both extend a chain. On one machine
//! the log is a file of entries in front of LMDB (`local.rs`); nothing here does any
//! input or output.

use std::sync::Arc;
use std::time::Duration;

use crate::id::{Epoch, Shard};
use crate::storage::error::{Result, StorageError};
use crate::storage::log::applied::Applied;
use crate::storage::log::block::ShardBlock;
use crate::storage::position::{Link, Position};

/// The right to append to a shard, until a claim with a newer epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Newer than every epoch given out for the shard before.
    pub(crate) epoch: Epoch,
    /// The link that the first block must name as its predecessor.
    pub(crate) link: Link,
}

/// The outcome of one block.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// It is durable, and this is the end of the chain with it.
    Position(Link),
    /// It was refused, because of a newer owner or another end of the chain; none of it is applied,
    /// or ever will be.
    Fenced,
    /// It was refused for now; none of it is applied.
    #[cfg_attr(not(test), expect(dead_code, reason = "the local log is never busy"))]
    Busy,
    /// Its answer was lost: it may or may not be durable.
    Unknown,
    /// The log is broken, and accepts no more blocks in this process. Only the next process learns
    /// whether this one is durable.
    Failed(Arc<StorageError>),
}

/// Takes one block of a log after the other.
pub(crate) type VisitBlock<'a> = dyn FnMut(ShardBlock) -> Result<()> + 'a;

/// Makes blocks durable. One thread owns it.
///
/// Each call of `append` that accepts a block is one entry of the log. Its bytes never change once
/// they were offered: an owner without an answer, or with `Busy` or `Unknown`, offers the same
/// blocks again until there is one.
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "a log over the network is recovered and trimmed; the local one is only tested so"
    )
)]
pub(crate) trait ShardLog: Send {
    /// Takes the shard over from its present owner: older epochs are refused from now on.
    ///
    /// # Errors
    /// `Fenced` when somebody has taken over this host; or the log can't be read. Nothing was
    /// claimed, and nothing is changed on disk.
    fn claim(&mut self, shard: Shard) -> Result<Claim>;

    /// Makes the blocks durable, and returns the outcome of each, in the same order.
    ///
    /// A block is applied as a whole or not at all, and so is each of its write sets. Blocks of
    /// different shards may have different outcomes. A block that is offered again after it was
    /// applied is answered by its `Position`, also when another owner has the shard by then, if its
    /// chain ends with it or if `read` still gives it; it is never applied twice.
    fn append(&mut self, blocks: &[ShardBlock]) -> Vec<Outcome>;

    /// Offers several entries, each before the one in front of it is answered, if the log can. An
    /// entry is answered only after all before it: up to the first that isn't durable as a whole,
    /// and all after that are `Unknown`, even if the log has them.
    fn append_ahead(&mut self, entries: &[Vec<ShardBlock>]) -> Vec<Vec<Outcome>> {
        let mut is_next = true;
        let append = |entry: &Vec<ShardBlock>| {
            if !is_next {
                return vec![Outcome::Unknown; entry.len()];
            }
            let outcomes = self.append(entry);
            is_next = outcomes.iter().all(|outcome| matches!(outcome, Outcome::Position(_)));
            outcomes
        };
        entries.iter().map(append).collect()
    }

    /// Tells whether `append` of this many bytes would wait for nothing but one sync of a local
    /// disk, and for no longer than two threads take to wake each other. `usual` is the time of the
    /// last commits.
    fn is_ready(&self, _bytes: u64, _usual: Duration) -> bool {
        false
    }

    /// Called when everything was answered and nothing waits to be appended. The log may take the
    /// time to note that its last entry is durable, so that damage of it is found later.
    fn rest(&mut self) {}

    /// The entries that the records lag behind by; `None` if `append` applies them itself.
    fn applied(&self) -> Option<Arc<Applied>> {
        None
    }

    /// The end of the shard's chain. An owner that knows of a later one, because the log lost its
    /// tail, offers the missing blocks again before any other.
    ///
    /// # Errors
    /// The log can't be read; nothing is changed on disk.
    fn last(&self, shard: Shard) -> Result<Link>;

    /// Visits the blocks of the shard from that position on, of all epochs, the oldest first.
    ///
    /// # Errors
    /// `Trimmed`, before anything was visited, when the log no longer has some of them, or never
    /// kept them; `Hole` after those before it; the error of `visit`; or the log can't be read.
    /// Nothing is changed on disk.
    fn read(&self, shard: Shard, from: Position, visit: &mut VisitBlock<'_>) -> Result<()>;

    /// Lets the log forget the shard's blocks up to and including that position. It keeps the last
    /// one all the same, by which the chain goes on.
    ///
    /// # Errors
    /// The blocks may or may not be forgotten; trimming again is harmless.
    fn trim(&mut self, shard: Shard, upto: Position) -> Result<()>;
}
