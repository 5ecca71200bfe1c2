//! The positions in the chain of a shard's blocks, and in the log of a host.

use std::io;
use std::path::Path;

use crate::storage::error::{Result, io_error};

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

/// A new name for an environment or a log; never all zeros.
///
/// # Errors
/// `Io`: the operating system has no random bytes.
pub(crate) fn random_name() -> Result<[u8; 16]> {
    let mut name = [0; 16];
    let failed = io_error("read random bytes from", Path::new("the system"));
    getrandom::fill(&mut name).map_err(|error| failed(io::Error::other(error)))?;
    name[0] |= 1;
    Ok(name)
}

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
