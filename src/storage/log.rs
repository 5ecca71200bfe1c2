//! The seam between the commit thread and whatever makes blocks durable.
//!
//! A log keeps one chain of blocks per shard. Each block names the one before it by position and
//! hash, and its owner by epoch, so that two rival owners can't both extend a chain. On one
//! machine the log is the LMDB transaction that applies the blocks (`local.rs`); nothing here
//! does input or output.
//!
//! The hash is XXH3-128 of the block. It finds out a block that was lost, damaged or put elsewhere; it
//! is no defence against whoever can write to the log.
//!
//! Version (1) ‖ shard (2) ‖ epoch (8) ‖ previous position (8) ‖ previous hash (16) ‖ number of write
//! sets (4), then each write set: length (4) ‖ bytes. Numbers are little-endian.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128;

use crate::id::{Epoch, ObjectId, Shard};
use crate::storage::batch::WriteSet;
use crate::storage::layout::keys::after_prefix;
use crate::storage::layout::{Space, Usage};
use crate::storage::local::Reader;
use crate::storage::{Result, StorageError};

const VERSION: u8 = 1;
/// Of a block without write sets.
const HEAD_BYTES: usize = 1 + 2 + 8 + 8 + HASH_BYTES + 4;
const SET_LENGTH_BYTES: usize = 4;
/// Bytes of a chain's hash.
pub(crate) const HASH_BYTES: usize = 16;

/// The number of blocks in a shard's chain: 0 before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position(pub(crate) u64);

/// The end of a shard's chain at some time; the default is the end of an empty chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    /// Of the last block.
    pub(crate) position: Position,
    /// Of the last block, and through it of all before.
    pub(crate) hash: [u8; HASH_BYTES],
}

/// The right to append to a shard, until somebody claims it with a newer epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Newer than every epoch that was given out for the shard before.
    pub(crate) epoch: Epoch,
    /// The link that the first block must name as the previous one.
    pub(crate) link: Link,
}

/// Write sets of one shard that become durable together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShardBlock {
    /// The shard whose chain the block extends.
    pub(crate) shard: Shard,
    /// The claim that it is appended under.
    pub(crate) epoch: Epoch,
    /// The end of the chain that it extends.
    pub(crate) previous: Link,
    /// In the order in which the turns ended.
    pub(crate) writes: Vec<WriteSet>,
}

impl ShardBlock {
    /// The block as bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let sets = self.writes.iter().map(|set| SET_LENGTH_BYTES + set.as_bytes().len());
        let mut bytes = Vec::with_capacity(HEAD_BYTES + sets.sum::<usize>());
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.shard.0.to_le_bytes());
        bytes.extend_from_slice(&self.epoch.0.to_le_bytes());
        bytes.extend_from_slice(&self.previous.position.0.to_le_bytes());
        bytes.extend_from_slice(&self.previous.hash);
        bytes.extend_from_slice(&(self.writes.len() as u32).to_le_bytes());
        for set in &self.writes {
            bytes.extend_from_slice(&(set.as_bytes().len() as u32).to_le_bytes());
            bytes.extend_from_slice(set.as_bytes());
        }
        bytes
    }

    /// The end of the chain once this block is appended: the hash covers all of the block, and
    /// through the previous hash the whole chain.
    pub(crate) fn link(&self) -> Link {
        let hash = xxh3_128(&self.encode()).to_be_bytes();
        Link { position: Position(self.previous.position.0 + 1), hash }
    }
}

/// The outcome of one block.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// It is durable, and this is the new end of its chain.
    Position(Link),
    /// It was refused, for a newer owner or another end of the chain; nothing of it is applied.
    Fenced,
    /// It was refused for now; nothing of it is applied. The same block may be appended again.
    #[cfg_attr(not(test), expect(dead_code, reason = "the local log is never busy"))]
    Busy,
    /// It may be durable or not; only reading the log again tells. The log takes no more blocks.
    Unknown(Arc<StorageError>),
}

/// Makes blocks durable. One thread owns it.
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "a log over the network is recovered and trimmed; the local one is only tested so"
    )
)]
pub(crate) trait ShardLog: Send {
    /// Takes the shard over from whoever had it: older epochs are refused from now on.
    ///
    /// # Errors
    /// Whatever keeps the log from being read: nothing was claimed, and nothing is changed on disk.
    fn claim(&mut self, shard: Shard) -> Result<Claim>;

    /// Makes the blocks durable and says what became of each, in the same order.
    ///
    /// A write set is applied as a whole or not at all, and so is a block. Blocks of different
    /// shards may have different outcomes.
    fn append(&mut self, blocks: &[ShardBlock]) -> Vec<Outcome>;

    /// The end of the shard's chain.
    ///
    /// # Errors
    /// Whatever keeps the log from being read; nothing is changed on disk.
    fn last(&self, shard: Shard) -> Result<Link>;

    /// The blocks of the shard from that position on, oldest first.
    ///
    /// # Errors
    /// `Trimmed` when the log has no longer, or never kept, some of them; or whatever keeps the
    /// log from being read. Nothing is changed on disk.
    fn read(&self, shard: Shard, from: Position) -> Result<Vec<ShardBlock>>;

    /// Lets the log forget the shard's blocks up to and including that position.
    ///
    /// # Errors
    /// The blocks may or may not be forgotten; trimming again is harmless.
    fn trim(&mut self, shard: Shard, upto: Position) -> Result<()>;
}

/// Which keys of a space are meant, and in which order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// The least key.
    pub(crate) start: Bound<Vec<u8>>,
    /// The greatest key.
    pub(crate) end: Bound<Vec<u8>>,
    /// From the greatest to the least.
    pub(crate) reverse: bool,
}

impl Range {
    /// All keys, from the least one on.
    pub(crate) fn all() -> Self {
        Self { start: Bound::Unbounded, end: Bound::Unbounded, reverse: false }
    }

    /// Only those that begin with `prefix`.
    pub(crate) fn within(mut self, prefix: &[u8]) -> Self {
        if prefix.is_empty() {
            return self;
        }
        let starts_later = match &self.start {
            Bound::Included(key) | Bound::Excluded(key) => key.as_slice() >= prefix,
            Bound::Unbounded => false,
        };
        if !starts_later {
            self.start = Bound::Included(prefix.to_vec());
        }
        let Some(after) = after_prefix(prefix) else { return self };
        let ends_earlier = match &self.end {
            Bound::Included(key) | Bound::Excluded(key) => *key < after,
            Bound::Unbounded => false,
        };
        if !ends_earlier {
            self.end = Bound::Excluded(after);
        }
        self
    }

    /// Tells whether no key can be within.
    pub(crate) fn is_empty(&self) -> bool {
        match (&self.start, &self.end) {
            (Bound::Included(start), Bound::Included(end)) => start > end,
            (Bound::Included(start) | Bound::Excluded(start), Bound::Excluded(end))
            | (Bound::Excluded(start), Bound::Included(end)) => start >= end,
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        }
    }
}

/// Takes one key and its value; says whether there is a use for more.
pub(crate) type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Takes an object, its header, and what its class stores in it.
pub(crate) type VisitObject<'a> = dyn FnMut(ObjectId, &[u8], Usage) + 'a;

/// The records that a log has applied, as the vat thread reads them. A read that begins after a
/// commit was reported sees it.
pub(crate) trait Reads {
    /// Looks whether the files below are as they must be.
    ///
    /// # Errors
    /// `FileChanged`, `Io`.
    fn check_files(&self) -> Result<()> {
        Ok(())
    }

    /// The durable value of one key.
    ///
    /// # Errors
    /// `KeyLength`, `Corrupt` (the value is never served), or that the disk can't be read.
    fn get(&self, object: ObjectId, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// The header of an object and its usage record, as of one moment: what waking it needs.
    ///
    /// # Errors
    /// As for `get`.
    fn identity(&self, object: ObjectId) -> Result<[Option<Vec<u8>>; 2]> {
        Ok([self.get(object, Space::Header, &[])?, self.get(object, Space::Usage, &[])?])
    }

    /// The durable values of several keys, in the order of the keys, all as of one moment.
    ///
    /// # Errors
    /// As for `get`, of the first key that has one.
    fn get_many(
        &self,
        object: ObjectId,
        space: Space,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>> {
        keys.iter().map(|key| self.get(object, space, key)).collect()
    }

    /// The length of the durable value of one key, which is not checked for damage.
    ///
    /// # Errors
    /// `KeyLength`, or that the disk can't be read.
    fn length(&self, object: ObjectId, space: Space, key: &[u8]) -> Result<Option<usize>>;

    /// Visits the durable keys in the order of their bytes, all as of one moment, until `visit` has
    /// enough.
    ///
    /// # Errors
    /// `Corrupt` at a damaged record, after those before it were visited; or that the disk can't be
    /// read.
    fn scan(
        &self,
        object: ObjectId,
        space: Space,
        range: &Range,
        visit: &mut Visit<'_>,
    ) -> Result<()>;

    /// Visits every object that has a header.
    ///
    /// # Errors
    /// `Corrupt` at a damaged record, after those before it were visited; or that the disk can't be
    /// read.
    fn objects(&self, visit: &mut VisitObject<'_>) -> Result<()>;

    /// The same, for another thread; none if there is nothing to read, or no disk.
    fn reader(&self) -> Option<Reader> {
        None
    }

    /// Counts what is stored in an object.
    ///
    /// # Errors
    /// As for `scan`.
    fn count(&self, object: ObjectId) -> Result<Usage> {
        let mut usage = Usage::default();
        self.scan(object, Space::Data, &Range::all(), &mut |key, value| {
            usage = usage.changed(key.len(), None, Some(value.len()));
            ControlFlow::Continue(())
        })?;
        self.scan(object, Space::Edges, &Range::all(), &mut |_, _| {
            usage.references += 1;
            ControlFlow::Continue(())
        })?;
        for space in [Space::Requests, Space::Grants] {
            self.scan(object, space, &Range::all(), &mut |key, record| {
                usage = usage.changed_record(space, key.len(), (None, Some(record.len())));
                ControlFlow::Continue(())
            })?;
        }
        Ok(usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(value: &[u8]) -> ShardBlock {
        let mut set = WriteSet::new(ObjectId::from_bytes([1; 16]));
        set.put(Space::Data, b"k", value).unwrap();
        let previous = Link { position: Position(4), hash: [5; 16] };
        ShardBlock { shard: Shard(0x0101), epoch: Epoch(2), previous, writes: vec![set] }
    }

    #[test]
    fn a_block_has_this_encoding() {
        let block = block(b"v");
        let set = block.writes[0].as_bytes();
        let mut expected = vec![1, 1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0];
        expected.extend_from_slice(&[5; 16]);
        expected.extend_from_slice(&[1, 0, 0, 0, set.len() as u8, 0, 0, 0]);
        expected.extend_from_slice(set);
        assert_eq!(block.encode(), expected);
    }

    #[test]
    fn a_link_depends_on_everything_in_the_block() {
        let base = block(b"v");
        assert_eq!(base.link().position, Position(5));
        let mut others = vec![block(b"w"); 6];
        others[1] = ShardBlock { shard: Shard(1), ..base.clone() };
        others[2] = ShardBlock { epoch: Epoch(3), ..base.clone() };
        others[3] = ShardBlock { previous: Link::default(), ..base.clone() };
        others[4] = ShardBlock { writes: vec![], ..base.clone() };
        others[5].writes.extend(base.writes.clone());
        for other in others {
            assert_ne!(other.link().hash, base.link().hash);
        }
        assert_eq!(base.clone().link(), base.link());
    }
}
