//! The entries of the log on one machine, byte by byte.
//!
//! An entry is one group commit: a head of 120 bytes, then the blocks of all shards that committed
//! together, each after its length (4), then zeros up to a whole page of 4,096 bytes.
//!
//! > sum (16) ‖ magic (8) ‖ format (2) ‖ kind (2) ‖ number of blocks (4) ‖ nonce (16) ‖
//! > incarnation (8) ‖ number (8) ‖ durable (8) ‖ segment (8) ‖ length of the blocks (8) ‖ sum of
//! > the entry before (16) ‖ identity (16)
//!
//! A log that rests has a tail after its last entry: a page with a head alone, which says that the
//! entry is durable. The next entry is written over it.
//!
//! Numbers are little-endian. The sum is XXH3-128 of all bytes after it, without the zeros. It
//! finds damage and torn writes; it is no defence against a program that can write to the log.
//! Nothing here touches a disk.

use xxhash_rust::xxh3::xxh3_128;

use crate::storage::error::{Result, StorageError};
use crate::storage::log::block::{EncodedBlock, ShardBlock};
use crate::storage::position::{HASH_BYTES, Identity, Link, NONCE_BYTES, Sum};

/// Entries begin at multiples of this many bytes, and are whole multiples long.
pub(super) const PAGE_BYTES: usize = 4_096;

const MAGIC: [u8; 8] = *b"CAPSTLOG";
const FORMAT: u16 = 2;
// No changed bit makes one of the other.
const ENTRY: u16 = 1;
const TAIL: u16 = 2;
/// The length of a head: of an entry without its blocks, and of a tail.
pub(super) const HEAD_BYTES: usize =
    HASH_BYTES + 8 + 2 + 2 + 4 + NONCE_BYTES + 5 * 8 + HASH_BYTES + size_of::<Identity>();
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
    /// The sum of the entry before; zeros before the first. A tail has that of the entry that it
    /// follows, and its number.
    pub(super) previous: Sum,
    /// The identity of the environment that the log is in front of.
    pub(super) identity: Identity,
}

impl Head {
    /// Writes the head of an entry or a tail to the front of `bytes`, and then the sum of all of
    /// them.
    fn write(&self, (kind, blocks): (u16, u32), bytes: &mut [u8]) -> Sum {
        let length = (bytes.len() - HEAD_BYTES) as u64;
        let numbers = [self.incarnation, self.number, self.durable, self.segment, length];
        let numbers = numbers.map(u64::to_le_bytes);
        let (format, kind, blocks) =
            (FORMAT.to_le_bytes(), kind.to_le_bytes(), blocks.to_le_bytes());
        let fields = [
            &MAGIC[..],
            &format,
            &kind,
            &blocks,
            &self.nonce,
            numbers.as_flattened(),
            &self.previous,
            &self.identity,
        ];
        let (sum, rest) = bytes.split_at_mut(HASH_BYTES);
        let mut at = 0;
        for field in fields {
            rest[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        }
        let found = xxh3_128(rest).to_le_bytes();
        sum.copy_from_slice(&found);
        found
    }

    /// The page of a tail with this head.
    pub(super) fn tail(&self) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        self.write((TAIL, 0), &mut page[..HEAD_BYTES]);
        page
    }
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
    ///
    /// # Errors
    /// `BatchSize` when it is longer than an entry can say.
    pub(super) fn add(&mut self, block: &ShardBlock) -> Result<Link> {
        let at = self.bytes.len() + BLOCK_LENGTH_BYTES;
        self.bytes.resize(at, 0);
        block.encode_into(&mut self.bytes);
        let length = block_length(self.bytes.len() - at)?;
        self.bytes[at - BLOCK_LENGTH_BYTES..at].copy_from_slice(&length.to_le_bytes());
        self.blocks += 1;
        Ok(block.link_of(&self.bytes[at..]))
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
        let sum = head.write((ENTRY, self.blocks), &mut self.bytes);
        self.bytes.resize(content.next_multiple_of(PAGE_BYTES), 0);
        Entry { bytes: self.bytes, content, blocks: self.blocks, number: head.number, sum }
    }
}

fn block_length(bytes: usize) -> Result<u32> {
    let max = u32::MAX as usize;
    u32::try_from(bytes).map_err(|_| StorageError::BatchSize { bytes, max })
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
    /// A tail of this log.
    Tail(Head),
    /// An entry of this log.
    Whole(Head, Entry),
}

/// Reads the entry at the beginning of `bytes`, a part of that segment of the log `nonce`.
pub(super) fn find(bytes: &[u8], nonce: &[u8; NONCE_BYTES], segment: u64) -> Found {
    let Some((head, kind, blocks, length)) =
        fields(bytes).filter(|(head, ..)| head.nonce == *nonce && head.segment == segment)
    else {
        return Found::Nothing;
    };
    let (content, sum) = match (kind, whole(bytes, length)) {
        (ENTRY, Some(whole)) => whole,
        (ENTRY, None) => return Found::Torn(head),
        (TAIL, Some(_)) => return Found::Tail(head),
        // A damaged tail says nothing.
        _ => return Found::Nothing,
    };
    let bytes = bytes[..content].to_vec();
    Found::Whole(head, Entry { bytes, content, blocks, number: head.number, sum })
}

/// Tells whether a head is here that names another environment; it may be a damaged one.
pub(super) fn names_another(bytes: &[u8], identity: &Identity) -> bool {
    fields(bytes).is_some_and(|(head, ..)| head.identity != *identity)
}

/// Tells whether an entry begins here that was written for another environment.
pub(super) fn is_of_another(bytes: &[u8], identity: &Identity) -> bool {
    let found = fields(bytes).filter(|(head, ..)| head.identity != *identity);
    found.is_some_and(|(.., length)| whole(bytes, length).is_some())
}

/// The length and the sum of what has blocks of this length, if nothing of it was changed.
fn whole(bytes: &[u8], length: u64) -> Option<(usize, Sum)> {
    let content = usize::try_from(length).ok()?.checked_add(HEAD_BYTES)?;
    let (sum, _) = bytes.split_first_chunk::<HASH_BYTES>()?;
    let covered = bytes.get(HASH_BYTES..content)?;
    (xxh3_128(covered).to_le_bytes() == *sum).then_some((content, *sum))
}

/// The head, the kind, the number of blocks and their length, if something begins here.
fn fields(bytes: &[u8]) -> Option<(Head, u16, u32, u64)> {
    let (magic, rest) = bytes.get(HASH_BYTES..)?.split_first_chunk()?;
    let (format, rest) = rest.split_first_chunk()?;
    let (kind, rest) = rest.split_first_chunk()?;
    let (blocks, rest) = rest.split_first_chunk()?;
    let (nonce, rest) = rest.split_first_chunk()?;
    let is_entry = *magic == MAGIC && u16::from_le_bytes(*format) == FORMAT;
    let mut rest = is_entry.then_some(rest)?;
    let mut number = || {
        let (number, left) = rest.split_first_chunk()?;
        rest = left;
        Some(u64::from_le_bytes(*number))
    };
    let (incarnation, own, durable) = (number()?, number()?, number()?);
    let (segment, length) = (number()?, number()?);
    let (previous, rest) = rest.split_first_chunk()?;
    let (identity, _) = rest.split_first_chunk()?;
    let (nonce, previous, identity) = (*nonce, *previous, *identity);
    let head = Head { nonce, incarnation, number: own, durable, segment, previous, identity };
    Some((head, u16::from_le_bytes(*kind), u32::from_le_bytes(*blocks), length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, ObjectId, Shard};
    use crate::storage::log::batch::WriteSet;
    use crate::storage::space::Space;

    const NONCE: [u8; 16] = [9; 16];
    const IDENTITY: Identity = [4; 16];

    fn block(shard: u16, value: &[u8]) -> ShardBlock {
        let mut set = WriteSet::new(ObjectId::from_bytes([1; 16]));
        set.put(Space::Data, b"k", value).unwrap();
        let previous = Link::default();
        ShardBlock { shard: Shard(shard), epoch: Epoch(2), previous, writes: vec![set] }
    }

    fn head() -> Head {
        let (nonce, previous, identity) = (NONCE, [5; 16], IDENTITY);
        Head { nonce, incarnation: 3, number: 4, durable: 3, segment: 6, previous, identity }
    }

    fn made() -> (Entry, Vec<Link>) {
        let mut draft = Draft::new();
        let links =
            [block(1, &[7; 5_000]), block(2, b"v")].iter().map(|b| draft.add(b).unwrap()).collect();
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
    fn a_block_longer_than_its_length_can_say_is_refused() {
        let most = u32::MAX as usize;
        assert_eq!(block_length(most).unwrap(), u32::MAX);
        assert!(matches!(block_length(most + 1), Err(StorageError::BatchSize { .. })));
    }

    #[test]
    fn an_entry_has_this_head() {
        let (entry, _) = made();
        let bytes = entry.as_bytes();
        assert_eq!(&bytes[16..28], b"CAPSTLOG\x02\0\x01\0");
        assert_eq!(bytes[28..32], [2, 0, 0, 0]);
        assert_eq!(bytes[32..48], NONCE);
        assert_eq!((bytes[48], bytes[56], bytes[64], bytes[72]), (3, 4, 3, 6));
        assert_eq!((&bytes[88..104], &bytes[104..120]), (&[5; 16][..], &IDENTITY[..]));
        assert_eq!(bytes[..16], xxh3_128(&bytes[16..entry.content]).to_le_bytes());
    }

    #[test]
    fn a_tail_is_found_and_a_changed_one_says_nothing() {
        let tail = Head { durable: 4, ..head() }.tail();
        assert_eq!(find(&tail, &NONCE, 6), Found::Tail(Head { durable: 4, ..head() }));
        assert_eq!(&tail[16..28], b"CAPSTLOG\x02\0\x02\0");
        assert!(tail[HEAD_BYTES..].iter().all(|byte| *byte == 0));
        for bit in 0..HEAD_BYTES * 8 {
            let mut bytes = tail;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(find(&bytes, &NONCE, 6), Found::Nothing, "bit {bit}");
        }
    }

    #[test]
    fn an_entry_of_another_environment_is_known_by_its_identity() {
        let (entry, _) = made();
        assert!(!is_of_another(entry.as_bytes(), &IDENTITY));
        assert!(is_of_another(entry.as_bytes(), &[3; 16]));
        let mut damaged = entry.as_bytes().to_vec();
        damaged[110] ^= 1;
        assert!(names_another(&damaged, &IDENTITY));
        assert!(!is_of_another(&damaged, &IDENTITY), "it is damaged, and may be ours");
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
