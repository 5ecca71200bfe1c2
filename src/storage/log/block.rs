//! The blocks of a log, byte by byte: the write sets of one shard that commit together.
//!
//! The hash of a block is XXH3-128 of its bytes. It detects a block that was lost, damaged or
//! misplaced; it is no defence against a program that can write to the log.
//!
//! Version (1) ‖ shard (2) ‖ epoch (8) ‖ previous position (8) ‖ previous hash (16) ‖ number of
//! write sets (4), then each write set: length (4) ‖ bytes. Numbers are little-endian.

use xxhash_rust::xxh3::xxh3_128;

use crate::id::{Epoch, Shard};
use crate::storage::error::{Result, StorageError};
use crate::storage::log::batch::WriteSet;
use crate::storage::position::{HASH_BYTES, Link, Position};

const VERSION: u8 = 1;
/// The length of a block without write sets.
const HEAD_BYTES: usize = 1 + 2 + 8 + 8 + HASH_BYTES + 4;
const SET_LENGTH_BYTES: usize = 4;

/// Write sets of one shard that become durable together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShardBlock {
    /// The shard whose chain the block extends.
    pub(crate) shard: Shard,
    /// The epoch of the claim under which it is appended.
    pub(crate) epoch: Epoch,
    /// The end of the chain that it extends.
    pub(crate) previous: Link,
    /// The write sets, in the order in which the turns ended.
    pub(crate) writes: Vec<WriteSet>,
}

impl ShardBlock {
    /// The block as bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode_into(&mut bytes);
        bytes
    }

    /// Appends the block as bytes.
    pub(crate) fn encode_into(&self, bytes: &mut Vec<u8>) {
        let sets = self.writes.iter().map(|set| SET_LENGTH_BYTES + set.as_bytes().len());
        bytes.reserve(HEAD_BYTES + sets.sum::<usize>());
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
    }

    /// Tells whether the chain ends with this block.
    pub(crate) fn is_last_of(&self, last: Link) -> bool {
        self.previous.position.0 + 1 == last.position.0 && self.link() == last
    }

    /// The end of the chain once this block is appended. The hash covers the whole block, and
    /// through the previous hash the whole chain.
    pub(crate) fn link(&self) -> Link {
        self.link_of(&self.encode())
    }

    /// The same, given the block as bytes.
    pub(crate) fn link_of(&self, encoded: &[u8]) -> Link {
        next_link(self.previous, encoded)
    }
}

fn next_link(previous: Link, encoded: &[u8]) -> Link {
    let hash = xxh3_128(encoded).to_be_bytes();
    Link { position: Position(previous.position.0 + 1), hash }
}

#[cfg(any(test, fuzzing))]
impl ShardBlock {
    /// Reads a block that came from elsewhere.
    ///
    /// # Errors
    /// `Malformed` when the bytes aren't exactly one block; those of [`WriteSet::decode`].
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let EncodedBlock { shard, epoch, previous, .. } = EncodedBlock::decode(bytes)?;
        let mut length = HEAD_BYTES;
        let mut block = Self { shard, epoch, previous, writes: Vec::new() };
        EncodedBlock::decode(bytes)?.sets(|set| {
            length += SET_LENGTH_BYTES + set.len();
            block.writes.push(WriteSet::decode(set)?);
            Ok(())
        })?;
        if length == bytes.len() { Ok(block) } else { Err(StorageError::Malformed { at: length }) }
    }
}

/// A block as bytes, borrowed from an entry of a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EncodedBlock<'a> {
    /// The shard whose chain the block extends.
    pub(crate) shard: Shard,
    /// The epoch of the claim under which it was appended.
    pub(crate) epoch: Epoch,
    /// The end of the chain that it extends.
    pub(crate) previous: Link,
    count: u32,
    bytes: &'a [u8],
}

impl<'a> EncodedBlock<'a> {
    /// Reads the head of an encoded block.
    ///
    /// # Errors
    /// `Malformed`.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self> {
        Self::head(bytes).ok_or(StorageError::Malformed { at: 0 })
    }

    fn head(bytes: &'a [u8]) -> Option<Self> {
        let ([VERSION], rest) = bytes.split_first_chunk()? else { return None };
        let (shard, rest) = rest.split_first_chunk()?;
        let (epoch, rest) = rest.split_first_chunk()?;
        let (position, rest) = rest.split_first_chunk()?;
        let (hash, rest) = rest.split_first_chunk()?;
        let (count, _) = rest.split_first_chunk()?;
        let previous = Link { position: Position(u64::from_le_bytes(*position)), hash: *hash };
        let (shard, epoch) = (Shard(u16::from_le_bytes(*shard)), Epoch(u64::from_le_bytes(*epoch)));
        Some(Self { shard, epoch, previous, count: u32::from_le_bytes(*count), bytes })
    }

    /// The end of the chain with this block.
    pub(crate) fn link(&self) -> Link {
        next_link(self.previous, self.bytes)
    }

    /// Calls `visit` with each of its write sets, as bytes.
    ///
    /// # Errors
    /// `Malformed`, or that of `visit`.
    pub(crate) fn sets(&self, mut visit: impl FnMut(&'a [u8]) -> Result<()>) -> Result<()> {
        let mut rest = &self.bytes[HEAD_BYTES..];
        for _ in 0..self.count {
            let taken = take_set(rest);
            let at = self.bytes.len() - rest.len();
            let (set, left) = taken.ok_or(StorageError::Malformed { at })?;
            visit(set)?;
            rest = left;
        }
        Ok(())
    }
}

fn take_set(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ObjectId;
    use crate::storage::space::Space;

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
    fn a_block_is_decoded_and_nothing_else_is() {
        let mut block = block(b"v");
        block.writes.push(block.writes[0].clone());
        let bytes = block.encode();
        assert_eq!(ShardBlock::decode(&bytes).unwrap(), block);
        for length in 0..bytes.len() {
            assert!(ShardBlock::decode(&bytes[..length]).is_err(), "{length}");
        }
        assert!(ShardBlock::decode(&[&bytes[..], &[0]].concat()).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            // If it can be read at all it is another block, and has only this encoding.
            if let Ok(other) = ShardBlock::decode(&changed) {
                assert_eq!(other.encode(), changed, "bit {bit}");
                assert_ne!(other.link(), block.link());
            }
        }
    }

    #[test]
    fn a_block_knows_the_chain_that_it_ends() {
        let block = block(b"v");
        assert!(block.is_last_of(block.link()));
        assert!(!block.is_last_of(Link { hash: [0; 16], ..block.link() }));
        assert!(!block.is_last_of(block.previous));
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
