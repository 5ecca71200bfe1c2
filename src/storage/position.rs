//! The positions in the chain of a shard's blocks, and in the log of a host.

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

/// The length of the random name under which a log's entries are written, in bytes.
pub(crate) const NONCE_BYTES: usize = 16;

/// The random name of an environment, which it keeps for ever.
pub(crate) type Identity = [u8; 16];

/// The checksum of a log's entry, which covers the checksum of the entry before.
pub(crate) type Sum = [u8; HASH_BYTES];

/// The last entry of a log at some time; the default is the end of an empty log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct End {
    /// Its number, from 1; 0 before the first.
    pub(crate) number: u64,
    /// Its checksum.
    pub(crate) sum: Sum,
    /// The number of the segment that holds it, or that will hold the first.
    pub(crate) segment: u64,
}
