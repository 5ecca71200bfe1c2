//! The file that objects travel in: its bytes, and the rules for their order. See
//! docs/archive-format.md.
//!
//! > magic (16) ‖ version (1) ‖ frame ‖ frame ‖ …
//!
//! and each frame is
//!
//! > length of the payload (4) ‖ CRC-32C over length ‖ payload (4) ‖ payload
//!
//! with little-endian numbers. The last frame has the totals and a SHA-256 of everything before it,
//! so that a file which ends anywhere else is known to be cut off.
//!
//! The code reads and writes bytes and nothing else; it knows neither where objects live nor what
//! their records mean.
//!
//! **Invariants:** hostile bytes never cause a panic, and never make the reader allocate more bytes
//! than there are. An archive that was read to its end is in order: each object appears once in its
//! host, header first, keys ascending.

pub(crate) mod export;
mod file;
mod order;
#[cfg(test)]
mod tests;

pub(crate) use self::file::{ArchiveReader, ArchiveWriter};
use crate::cursor::Cursor;
use crate::id::{ObjectId, Shard};
use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::storage::lmdb::layout::ShardMeta;
use crate::storage::space::Space;

const MAGIC: &[u8; 16] = b"capstead archive";
/// The version that this code reads and writes.
const VERSION: u8 = 1;

const HEAD_BYTES: usize = 8;
/// One record with the longest key and the largest value, plus the bytes around it.
const PAYLOAD_BYTES_MAX: usize = KEY_BYTES_MAX + VALUE_BYTES_MAX + 64;

const HEAD: u8 = 1;
const SECRET: u8 = 2;
const HOST: u8 = 3;
const SHARD: u8 = 4;
const OBJECT: u8 = 5;
const RECORDS: u8 = 6;
const END: u8 = 7;

/// The result of operations on archives.
pub(crate) type Result<T> = std::result::Result<T, ArchiveError>;

/// The reason why an archive can't be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// The operating system returned an error.
    #[error("it can't be read or written: {0}")]
    Io(#[from] std::io::Error),
    /// The file doesn't begin as an archive does.
    #[error("it is not an archive of Capstead; choose a file that export or backup made")]
    Foreign,
    /// The file has another version.
    #[error(
        "it is an archive of version {found}, and this program reads version {VERSION}; use its own program"
    )]
    Version {
        /// The version of the file.
        found: u8,
    },
    /// The file ends before its last frame does.
    #[error("it was cut short: it ends at byte {at}, before its last part; make or copy it again")]
    Cut {
        /// The offset at which it ends.
        at: u64,
    },
    /// The bytes aren't those that were written.
    #[error("it is damaged near byte {at}: {what}; make or copy it again")]
    Damaged {
        /// The offset at which the damaged frame begins.
        at: u64,
        /// The fault in it.
        what: &'static str,
    },
}

/// An archive's description of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head<'a> {
    /// The time at which it was begun, in milliseconds since 1970.
    pub(crate) created_ms: u64,
    /// The cluster that it was made from.
    pub(crate) cluster: [u8; 32],
    /// The number of hosts of that cluster.
    pub(crate) hosts: u16,
    /// The request that the archive answers, in words for people.
    pub(crate) asked: &'a str,
}

/// Counts of an archive's content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Objects that exist, which are those with a header.
    pub(crate) objects: u64,
    /// Keys that their classes stored.
    pub(crate) keys: u64,
    /// The sum of the lengths of those keys and their values.
    pub(crate) bytes: u64,
}

/// One part of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// The first one.
    Head(Head<'a>),
    /// A key of the cluster; only backups have them.
    Secret {
        /// The name of its file.
        name: &'a str,
        /// The file's content.
        text: &'a [u8],
    },
    /// One host's part follows.
    Host(u16),
    /// The objects of that shard follow; its chain ended at this place.
    Shard(Shard, ShardMeta),
    /// The records of that object follow.
    Object(ObjectId),
    /// Records of the object.
    Records(Records<'a>),
    /// The last one.
    End(Totals, [u8; 32]),
}

/// One record of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// The part of the object's storage.
    pub(crate) space: Space,
    /// The key as its writer knows it.
    pub(crate) key: &'a [u8],
    /// The value.
    pub(crate) value: &'a [u8],
}

/// Records as bytes; each is space (1) ‖ length of key (2) ‖ key ‖ length of value (4) ‖ value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    /// Bytes that [`Record::encode`] made.
    pub(crate) fn encoded(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Tells whether all of the bytes are records within the limits.
    fn are_whole(self) -> bool {
        let mut records = self.into_iter();
        while !records.0.is_empty() {
            if records.next().is_none() {
                return false;
            }
        }
        !self.0.is_empty()
    }
}

impl<'a> IntoIterator for Records<'a> {
    type Item = Record<'a>;
    type IntoIter = RecordIter<'a>;

    fn into_iter(self) -> RecordIter<'a> {
        RecordIter(self.0)
    }
}

/// Reads records, up to the first bytes that aren't a record.
pub(crate) struct RecordIter<'a>(&'a [u8]);

impl<'a> Iterator for RecordIter<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let mut bytes = Cursor::new(self.0);
        let space = Space::from_byte(bytes.byte()?)?;
        let length = u16::from_le_bytes(bytes.array()?);
        let key = bytes.slice(length.into())?;
        let length = usize::try_from(u32::from_le_bytes(bytes.array()?)).ok()?;
        let value = bytes.slice(length)?;
        space.check_key(key).ok().filter(|()| length <= VALUE_BYTES_MAX)?;
        self.0 = bytes.rest();
        Some(Record { space, key, value })
    }
}

impl Record<'_> {
    /// Appends the record to encoded records.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.space as u8);
        out.extend_from_slice(&(self.key.len() as u16).to_le_bytes());
        out.extend_from_slice(self.key);
        out.extend_from_slice(&(self.value.len() as u32).to_le_bytes());
        out.extend_from_slice(self.value);
    }
}

impl<'a> Frame<'a> {
    /// Appends the whole frame.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEAD_BYTES]);
        self.encode_payload(out);
        let length = ((out.len() - start - HEAD_BYTES) as u32).to_le_bytes();
        let sum = checksum(length, &out[start + HEAD_BYTES..]);
        out[start..start + 4].copy_from_slice(&length);
        out[start + 4..start + HEAD_BYTES].copy_from_slice(&sum.to_le_bytes());
    }

    fn encode_payload(&self, out: &mut Vec<u8>) {
        match self {
            Self::Head(head) => {
                out.push(HEAD);
                out.extend_from_slice(&head.created_ms.to_le_bytes());
                out.extend_from_slice(&head.cluster);
                out.extend_from_slice(&head.hosts.to_le_bytes());
                out.extend_from_slice(head.asked.as_bytes());
            }
            Self::Secret { name, text } => {
                out.extend_from_slice(&[SECRET, name.len() as u8]);
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(text);
            }
            Self::Host(number) => {
                out.push(HOST);
                out.extend_from_slice(&number.to_le_bytes());
            }
            Self::Shard(shard, meta) => {
                out.push(SHARD);
                out.extend_from_slice(&shard.0.to_le_bytes());
                out.extend_from_slice(&meta.encode());
            }
            Self::Object(id) => {
                out.push(OBJECT);
                out.extend_from_slice(id.as_bytes());
            }
            Self::Records(records) => {
                out.push(RECORDS);
                out.extend_from_slice(records.0);
            }
            Self::End(totals, hash) => {
                out.push(END);
                for number in [totals.objects, totals.keys, totals.bytes] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
                out.extend_from_slice(hash);
            }
        }
    }

    /// Returns `None` when the payload is no frame of this version.
    fn decode(payload: &'a [u8]) -> Option<Self> {
        let (&kind, rest) = payload.split_first()?;
        match kind {
            HEAD => {
                let mut bytes = Cursor::new(rest);
                let (created, cluster) = (bytes.array()?, bytes.array()?);
                let (hosts, asked) = (bytes.array()?, bytes.rest());
                Some(Self::Head(Head {
                    created_ms: u64::from_le_bytes(created),
                    cluster,
                    hosts: u16::from_le_bytes(hosts),
                    asked: std::str::from_utf8(asked).ok()?,
                }))
            }
            SECRET => {
                let (&length, rest) = rest.split_first()?;
                let (name, text) = rest.split_at_checked(length.into())?;
                Some(Self::Secret { name: std::str::from_utf8(name).ok()?, text })
            }
            HOST => Some(Self::Host(u16::from_le_bytes(rest.try_into().ok()?))),
            SHARD => {
                let (shard, meta) = rest.split_first_chunk()?;
                Some(Self::Shard(Shard(u16::from_le_bytes(*shard)), ShardMeta::decode(meta)?))
            }
            OBJECT => Some(Self::Object(ObjectId::from_bytes(rest.try_into().ok()?))),
            RECORDS => Some(Self::Records(Records(rest))).filter(|_| Records(rest).are_whole()),
            END => {
                let mut bytes = Cursor::new(rest);
                let mut number = || bytes.array().map(u64::from_le_bytes);
                let totals = Totals { objects: number()?, keys: number()?, bytes: number()? };
                Some(Self::End(totals, bytes.rest().try_into().ok()?))
            }
            _ => None,
        }
    }
}

/// Reads consecutive frames in memory; anything else is an error that ends the iteration.
pub(crate) struct Frames<'a> {
    bytes: &'a [u8],
    at: u64,
}

impl<'a> Frames<'a> {
    /// Reads the frames in these bytes.
    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn frame(&mut self) -> Result<Frame<'a>> {
        let damaged = |what| ArchiveError::Damaged { at: self.at, what };
        let (head, rest) = self.bytes.split_first_chunk().ok_or(damaged(PARTIAL))?;
        let (length, sum) = split_head(*head).ok_or(damaged(LENGTH))?;
        let (payload, rest) = rest.split_at_checked(length).ok_or(damaged(PARTIAL))?;
        let frame = judge(length, sum, payload).map_err(damaged)?;
        self.bytes = rest;
        self.at += (HEAD_BYTES + length) as u64;
        Ok(frame)
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>>;

    fn next(&mut self) -> Option<Result<Frame<'a>>> {
        if self.bytes.is_empty() {
            return None;
        }
        let frame = self.frame();
        if frame.is_err() {
            self.bytes = &[];
        }
        Some(frame)
    }
}

const PARTIAL: &str = "a part of it ends too early";
const LENGTH: &str = "a part of it has an impossible length";
const CHECKSUM: &str = "a checksum is wrong";
const UNKNOWN: &str = "a part of it makes no sense";

/// The payload's length and checksum; `None` if no frame is that long.
fn split_head(head: [u8; HEAD_BYTES]) -> Option<(usize, u32)> {
    let (length, sum) = head.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let sum = u32::from_le_bytes(sum.try_into().ok()?);
    (length <= PAYLOAD_BYTES_MAX).then_some((length, sum))
}

fn judge(length: usize, sum: u32, payload: &[u8]) -> std::result::Result<Frame<'_>, &'static str> {
    if checksum((length as u32).to_le_bytes(), payload) != sum {
        return Err(CHECKSUM);
    }
    Frame::decode(payload).ok_or(UNKNOWN)
}

fn checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length), payload)
}
