//! The position in the chain of a shard's blocks.

/// The length of a chain's hash, in bytes.
pub(crate) const HASH_BYTES: usize = 16;

/// The number of blocks in a shard's chain: 0 before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position(pub(crate) u64);

/// The end of a shard's chain at some time; the default is the end of an empty chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    /// The position of the last block.
    pub(crate) position: Position,
    /// The hash of the last block, and through it of all blocks before.
    pub(crate) hash: [u8; HASH_BYTES],
}
