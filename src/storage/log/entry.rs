//! The entries of the log on one machine, byte by byte.
//!
//! An entry is one group commit: a head of 104 bytes, then the blocks of all shards that committed
//! together, each after its length (4), then zeros up to a whole page of 4,096 bytes.
//!
//! > sum (16) ‖ magic (8) ‖ format (4) ‖ number of blocks (4) ‖ nonce (16) ‖ incarnation (8) ‖
//! > number (8) ‖ durable (8) ‖ segment (8) ‖ length of the blocks (8) ‖ sum of the entry
//! > before (16)
//!
//! Numbers are little-endian. The sum is XXH3-128 of all bytes after it, without the zeros. It
//! finds damage and torn writes; it is no defence against a program that can write to the log.
//! Nothing here touches a disk.

use xxhash_rust::xxh3::xxh3_128;

use crate::storage::error::{Result, StorageError};
use crate::storage::log::block::{EncodedBlock, ShardBlock};
use crate::storage::position::{HASH_BYTES, Link, NONCE_BYTES, Sum};

/// Entries begin at multiples of this many bytes, and are whole multiples long.
pub(super) const PAGE_BYTES: usize = 4_096;

const MAGIC: [u8; 8] = *b"CAPSTLOG";
const FORMAT: u32 = 1;
const HEAD_BYTES: usize = HASH_BYTES + 8 + 4 + 4 + NONCE_BYTES + 5 * 8 + HASH_BYTES;
const BLOCK_LENGTH_BYTES: usize = 4;

/// The facts about an entry that its head states, beside the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The random name of the log that the entry belongs to.
    pub(super) nonce: [u8; NONCE_BYTES],
    /// The incarnation of the environment that wrote it.
    pub(super) incarnation: u64,
    /// Its number, from 1.
    pub(super) number: u64,
    /// The number up to which entries were known to be durable when it was written.
    pub(super) durable: u64,
    /// The number of the segment that it lies in.
    pub(super) segment: u64,
    /// The sum of the entry before; zeros before the first.
    pub(super) previous: Sum,
}

/// An entry in the making.
#[derive(Debug)]
pub(super) struct Draft {
    bytes: Vec<u8>,
    blocks: u32,
}

impl Draft {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; HEAD_BYTES], blocks: 0 }
    }

    /// Adds a block; returns the end of its chain.
    pub(super) fn add(&mut self, block: &ShardBlock) -> Link {
        let at = self.bytes.len() + BLOCK_LENGTH_BYTES;
        self.bytes.resize(at, 0);
        block.encode_into(&mut self.bytes);
        let length = (self.bytes.len() - at) as u32;
        self.bytes[at - BLOCK_LENGTH_BYTES..at].copy_from_slice(&length.to_le_bytes());
        self.blocks += 1;
        block.link_of(&self.bytes[at..])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// The bytes that the entry will take: whole pages.
    pub(super) fn length(&self) -> u64 {
        self.bytes.len().next_multiple_of(PAGE_BYTES) as u64
    }

    /// Ends the entry.
    pub(super) fn finish(mut self, head: &Head) -> Entry {
        let content = self.bytes.len();
        let length = (content - HEAD_BYTES) as u64;
        let mut fields = Vec::with_capacity(HEAD_BYTES);
        fields.extend_from_slice(&MAGIC);
        fields.extend_from_slice(&FORMAT.to_le_bytes());
        fields.extend_from_slice(&self.blocks.to_le_bytes());
        fields.extend_from_slice(&head.nonce);
        for number in [head.incarnation, head.number, head.durable, head.segment, length] {
            fields.extend_from_slice(&number.to_le_bytes());
        }
        fields.extend_from_slice(&head.previous);
        self.bytes[HASH_BYTES..HEAD_BYTES].copy_from_slice(&fields);
        let sum = xxh3_128(&self.bytes[HASH_BYTES..]).to_le_bytes();
        self.bytes[..HASH_BYTES].copy_from_slice(&sum);
        self.bytes.resize(content.next_multiple_of(PAGE_BYTES), 0);
        Entry { bytes: self.bytes, content, blocks: self.blocks, number: head.number, sum }
    }
}

/// A whole entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As on disk, at least up to the zeros at the end.
    bytes: Vec<u8>,
    /// The number of bytes without these zeros.
    content: usize,
    blocks: u32,
    number: u64,
    sum: Sum,
}

impl Entry {
    /// Its bytes for the disk: whole pages, until [`Entry::shrink`].
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes that it takes on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.content.next_multiple_of(PAGE_BYTES) as u64
    }

    /// Gives the memory of the zeros back. Entries wait in memory until they are applied, and most
    /// are far shorter than a page.
    pub(super) fn shrink(&mut self) {
        self.bytes.truncate(self.content);
        self.bytes.shrink_to_fit();
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn sum(&self) -> Sum {
        self.sum
    }

    /// Calls `visit` with each of its blocks.
    ///
    /// # Errors
    /// `Malformed`, or that of `visit`.
    pub(super) fn blocks<'a>(
        &'a self,
        mut visit: impl FnMut(EncodedBlock<'a>) -> Result<()>,
    ) -> Result<()> {
        let mut rest = &self.bytes[HEAD_BYTES..self.content];
        for _ in 0..self.blocks {
            let malformed = || StorageError::Malformed { at: self.content - rest.len() };
            let (length, left) = rest.split_first_chunk().ok_or_else(malformed)?;
            let length = u32::from_le_bytes(*length) as usize;
            let (block, left) = left.split_at_checked(length).ok_or_else(malformed)?;
            visit(EncodedBlock::decode(block)?)?;
            rest = left;
        }
        Ok(())
    }
}

/// The meaning of the bytes at a place where an entry may begin.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No entry of this segment: never written, torn, of another log, or of an earlier use of the
    /// segment's file.
    Nothing,
    /// The head of an entry of this log, which isn't whole.
    Torn(Head),
    /// An entry of this log.
    Whole(Head, Entry),
}

/// Reads the entry at the beginning of `bytes`, a part of that segment of the log `nonce`.
pub(super) fn find(bytes: &[u8], nonce: &[u8; NONCE_BYTES], segment: u64) -> Found {
    let Some((head, blocks, length)) =
        fields(bytes).filter(|(head, ..)| head.nonce == *nonce && head.segment == segment)
    else {
        return Found::Nothing;
    };
    let content = usize::try_from(length).ok().and_then(|length| length.checked_add(HEAD_BYTES));
    let whole = content.and_then(|content| {
        let (sum, _) = bytes.split_first_chunk::<HASH_BYTES>()?;
        let covered = bytes.get(HASH_BYTES..content)?;
        (xxh3_128(covered).to_le_bytes() == *sum).then_some((content, *sum))
    });
    let Some((content, sum)) = whole else { return Found::Torn(head) };
    let bytes = bytes[..content].to_vec();
    Found::Whole(head, Entry { bytes, content, blocks, number: head.number, sum })
}

/// The head, the number of blocks and their length, if an entry begins here.
fn fields(bytes: &[u8]) -> Option<(Head, u32, u64)> {
    let (magic, rest) = bytes.get(HASH_BYTES..)?.split_first_chunk()?;
    let (format, rest) = rest.split_first_chunk()?;
    let (blocks, rest) = rest.split_first_chunk()?;
    let (nonce, rest) = rest.split_first_chunk()?;
    let is_entry = *magic == MAGIC && u32::from_le_bytes(*format) == FORMAT;
    let mut rest = is_entry.then_some(rest)?;
    let mut number = || {
        let (number, left) = rest.split_first_chunk()?;
        rest = left;
        Some(u64::from_le_bytes(*number))
    };
    let (incarnation, own, durable) = (number()?, number()?, number()?);
    let (segment, length) = (number()?, number()?);
    let (previous, _) = rest.split_first_chunk()?;
    let (nonce, previous) = (*nonce, *previous);
    let head = Head { nonce, incarnation, number: own, durable, segment, previous };
    Some((head, u32::from_le_bytes(*blocks), length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, ObjectId, Shard};
    use crate::storage::log::batch::WriteSet;
    use crate::storage::space::Space;

    const NONCE: [u8; 16] = [9; 16];

    fn block(shard: u16, value: &[u8]) -> ShardBlock {
        let mut set = WriteSet::new(ObjectId::from_bytes([1; 16]));
        set.put(Space::Data, b"k", value).unwrap();
        let previous = Link::default();
        ShardBlock { shard: Shard(shard), epoch: Epoch(2), previous, writes: vec![set] }
    }

    fn head() -> Head {
        Head { nonce: NONCE, incarnation: 3, number: 4, durable: 3, segment: 6, previous: [5; 16] }
    }

    fn made() -> (Entry, Vec<Link>) {
        let mut draft = Draft::new();
        let links = [block(1, &[7; 5_000]), block(2, b"v")].iter().map(|b| draft.add(b)).collect();
        (draft.finish(&head()), links)
    }

    #[test]
    fn an_entry_is_found_as_it_was_made_with_its_blocks() {
        let (mut entry, links) = made();
        assert_eq!(entry.as_bytes().len(), 2 * PAGE_BYTES);
        let Found::Whole(found, again) = find(entry.as_bytes(), &NONCE, 6) else { panic!() };
        entry.shrink();
        assert_eq!(entry.disk_bytes(), 2 * PAGE_BYTES as u64);
        assert_eq!((found, &again), (head(), &entry));
        let mut seen = Vec::new();
        again
            .blocks(|block| {
                seen.push((block.shard, block.link()));
                block.sets(|set| WriteSet::decode(set).map(drop))
            })
            .unwrap();
        assert_eq!(seen, [(Shard(1), links[0]), (Shard(2), links[1])]);
        assert_eq!(links[0], block(1, &[7; 5_000]).link());
    }

    #[test]
    fn an_entry_has_this_head() {
        let (entry, _) = made();
        let bytes = entry.as_bytes();
        assert_eq!(&bytes[16..28], b"CAPSTLOG\x01\0\0\0");
        assert_eq!(bytes[28..32], [2, 0, 0, 0]);
        assert_eq!(bytes[32..48], NONCE);
        assert_eq!((bytes[48], bytes[56], bytes[64], bytes[72]), (3, 4, 3, 6));
        assert_eq!(bytes[88..104], [5; 16]);
        assert_eq!(bytes[..16], xxh3_128(&bytes[16..entry.content]).to_le_bytes());
    }

    #[test]
    fn no_changed_bit_and_no_torn_page_makes_another_entry() {
        let (entry, _) = made();
        for bit in 0..entry.content * 8 {
            let mut bytes = entry.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(find(&bytes, &NONCE, 6), Found::Whole(..)), "bit {bit}");
        }
        let mut torn = entry.as_bytes().to_vec();
        torn[PAGE_BYTES..].fill(0);
        assert_eq!(find(&torn, &NONCE, 6), Found::Torn(head()));
        assert_eq!(find(&torn[..PAGE_BYTES], &NONCE, 6), Found::Torn(head()));
        assert_eq!(find(&torn[PAGE_BYTES..], &NONCE, 6), Found::Nothing);
        assert_eq!(find(entry.as_bytes(), &[8; 16], 6), Found::Nothing);
        assert_eq!(find(entry.as_bytes(), &NONCE, 7), Found::Nothing);
    }
}
