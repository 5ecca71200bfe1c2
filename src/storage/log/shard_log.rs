//! The interface between the commit thread and the log that makes blocks durable.
//!
//! A log keeps one chain of blocks per shard. Each block names the one before it by position and
//! hash, and its owner by epoch, so that two rival owners can't both extend a chain. On one machine
//! the log is a file of entries in front of LMDB (`local.rs`); nothing here does any
//! input or output.

use std::sync::Arc;

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
    /// It is durable, and this is the new end of its chain.
    Position(Link),
    /// It was refused, because of a newer owner or another end of the chain; none of it is applied.
    Fenced,
    /// It was refused for now; none of it is applied. The same block may be appended again.
    #[cfg_attr(not(test), expect(dead_code, reason = "the local log is never busy"))]
    Busy,
    /// It may or may not be durable; only reading the log again tells. The log accepts no more
    /// blocks.
    Unknown(Arc<StorageError>),
}

/// Makes blocks durable. One thread owns it.
///
/// Each call of `append` that accepts a block is one entry of the log.
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
    /// The log can't be read: nothing was claimed, and nothing is changed on disk.
    fn claim(&mut self, shard: Shard) -> Result<Claim>;

    /// Makes the blocks durable, and returns the outcome of each, in the same order.
    ///
    /// A block is applied as a whole or not at all, and so is each of its write sets. Blocks of
    /// different shards may have different outcomes.
    fn append(&mut self, blocks: &[ShardBlock]) -> Vec<Outcome>;

    /// The entries that the records lag behind by; `None` if `append` applies them itself.
    fn applied(&self) -> Option<Arc<Applied>> {
        None
    }

    /// The end of the shard's chain.
    ///
    /// # Errors
    /// The log can't be read; nothing is changed on disk.
    fn last(&self, shard: Shard) -> Result<Link>;

    /// The blocks of the shard from that position on, oldest first.
    ///
    /// # Errors
    /// `Trimmed` when the log no longer has some of them, or never kept them; or the log can't be
    /// read. Nothing is changed on disk.
    fn read(&self, shard: Shard, from: Position) -> Result<Vec<ShardBlock>>;

    /// Lets the log forget the shard's blocks up to and including that position.
    ///
    /// # Errors
    /// The blocks may or may not be forgotten; trimming again is harmless.
    fn trim(&mut self, shard: Shard, upto: Position) -> Result<()>;
}
