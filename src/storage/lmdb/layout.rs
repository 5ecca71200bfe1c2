//! Every key and record of the environments, byte by byte.
//!
//! It is one file of pure functions so that the format can be read and reviewed in one place. It
//! never touches a disk.
//!
//! | key | record |
//! |---|---|
//! | `00` | the environment: format, kind, identity, incarnation, nonce of its log, last applied entry |
//! | `01` ‖ text | config environments only: version (8) ‖ value |
//! | shard (2) | the shard's epoch, position and chain hash |
//! | shard (2) ‖ object id (16) ‖ space (1) ‖ key of the space | one record of an object; longer keys see `keys` |
//!
//! Numbers in keys are big-endian, so that LMDB's order is theirs. The shard at the front is the
//! *log* shard, which is the object's home shard: a shard's meta record sorts right before its
//! objects. Config keys never share an environment with objects.
//!
//! Every record is stored after a checksum (4 bytes, little-endian), which is the lower half of
//! XXH3-64 of the record, seeded with XXH3-64 of the key. So a record that is damaged, or lies
//! under a key that isn't its own, is noticed when it is read. XXH3 was chosen for its speed with
//! short records.

pub(crate) mod keys;

use smallvec::SmallVec;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::cursor::Cursor;
use crate::id::{Epoch, ObjectId, Shard};
use crate::limits::CONFIG_KEY_BYTES_MAX;
use crate::storage::error::StorageError;
use crate::storage::position::{End, HASH_BYTES, Identity, Link, NONCE_BYTES, Position};
use crate::storage::space::Space;

/// The format that this code reads and writes.
pub(crate) const FORMAT: u8 = 4;

/// The key of an environment's record about itself. All other keys are longer.
pub(crate) const ENVIRONMENT_KEY: [u8; 1] = [0];

/// Bytes of the checksum in front of every record.
pub(crate) const CHECKSUM_BYTES: usize = 4;

const CONFIG_PREFIX: u8 = 1;
/// The bytes in front of a config value's name.
pub(crate) const CONFIG_PREFIX_BYTES: usize = 1;
const SHARD_BYTES: usize = 2;
const SPACE_AT: usize = SHARD_BYTES + ObjectId::LEN;
const META_VERSION: u8 = 1;

/// The purpose of an environment; one kind is never opened as the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The objects of one host.
    Objects = 0,
    /// The placement and settings of a cluster.
    Config = 1,
}

/// The shard whose log gets the writes of `object`.
pub(crate) fn log_shard(object: ObjectId) -> Shard {
    object.home_shard()
}

/// The key of a shard's meta record.
pub(crate) fn shard_key(shard: Shard) -> [u8; SHARD_BYTES] {
    shard.0.to_be_bytes()
}

/// The key of a config value.
pub(crate) fn config_key(key: &str) -> Result<Vec<u8>, StorageError> {
    if key.is_empty() || key.len() > CONFIG_KEY_BYTES_MAX {
        return Err(StorageError::KeyLength { length: key.len(), max: CONFIG_KEY_BYTES_MAX });
    }
    Ok([&[CONFIG_PREFIX], key.as_bytes()].concat())
}

/// The beginning of the keys of config values whose names begin like this.
pub(crate) fn config_prefix(prefix: &str) -> Result<Vec<u8>, StorageError> {
    if prefix.len() > CONFIG_KEY_BYTES_MAX {
        return Err(StorageError::KeyLength { length: prefix.len(), max: CONFIG_KEY_BYTES_MAX });
    }
    Ok([&[CONFIG_PREFIX], prefix.as_bytes()].concat())
}

/// Writes a record, preceded by its checksum, into a slot with the length of both.
pub(crate) fn fill(slot: &mut [u8], key: &[u8], record: &[u8]) {
    let (sum, rest) = slot.split_at_mut(CHECKSUM_BYTES);
    sum.copy_from_slice(&checksum(key, record));
    rest.copy_from_slice(record);
}

/// The checksum in front of `record` when it is stored under `key`.
#[inline]
pub(crate) fn checksum(key: &[u8], record: &[u8]) -> [u8; CHECKSUM_BYTES] {
    (xxh3_64_with_seed(record, xxh3_64(key)) as u32).to_le_bytes()
}

/// The record in the bytes stored under `key`; `None` if it is damaged.
#[inline]
pub(crate) fn whole<'a>(key: &[u8], stored: &'a [u8]) -> Option<&'a [u8]> {
    let (sum, record) = stored.split_first_chunk::<CHECKSUM_BYTES>()?;
    (*sum == checksum(key, record)).then_some(record)
}

/// The record in the bytes stored under `key`; if it is damaged, an error that names it.
pub(crate) fn verify<'a>(key: &[u8], stored: &'a [u8]) -> Result<&'a [u8], StorageError> {
    whole(key, stored).ok_or_else(|| damaged(key))
}

/// The error for a damaged record, by the key that it was found under.
pub(crate) fn damaged(key: &[u8]) -> StorageError {
    let object = key.get(SHARD_BYTES..SPACE_AT).and_then(|bytes| bytes.try_into().ok());
    match (object, key.get(SPACE_AT..)) {
        (Some(object), Some([space, rest @ ..])) => StorageError::Corrupt {
            object: ObjectId::from_bytes(object),
            space: *space,
            key: rest.escape_ascii().to_string(),
        },
        _ => StorageError::CorruptRecord { key: key.escape_ascii().to_string() },
    }
}

/// A shard's meta record: the owner of the last applied block, and the end of the chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShardMeta {
    /// The epoch of the last block.
    pub(crate) epoch: Epoch,
    /// The position and hash of the last block.
    pub(crate) link: Link,
}

impl ShardMeta {
    const BYTES: usize = 1 + 8 + 8 + HASH_BYTES;

    /// Version, epoch, position, chain hash.
    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [META_VERSION; Self::BYTES];
        bytes[1..9].copy_from_slice(&self.epoch.0.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.link.position.0.to_be_bytes());
        bytes[17..].copy_from_slice(&self.link.hash);
        bytes
    }

    /// Returns `None` when the bytes are no meta record of a known version.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut bytes = Cursor::new(bytes);
        let Some(META_VERSION) = bytes.byte() else { return None };
        let epoch = Epoch(u64::from_be_bytes(bytes.array()?));
        let position = Position(u64::from_be_bytes(bytes.array()?));
        Some(Self { epoch, link: Link { position, hash: bytes.rest().try_into().ok()? } })
    }
}

/// The amounts stored in an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// The number of the class's keys.
    pub(crate) keys: u64,
    /// The sum of the lengths of the class's keys and values.
    pub(crate) bytes: u64,
    /// The number of keys with values that refer to objects: those with a record in `Edges`.
    pub(crate) references: u64,
    /// The sum of the lengths of all keys and records of its request ids.
    pub(crate) requests: u64,
    /// The sum of the lengths of all keys and records of its grants.
    pub(crate) grants: u64,
}

/// An encoded usage record.
pub(crate) type UsageRecord = SmallVec<[u8; 40]>;

impl Usage {
    /// Writes keys and bytes; then references, if there are any; or references, request ids and
    /// grants, if either of the latter two isn't 0.
    pub(crate) fn encode(self) -> UsageRecord {
        let numbers = [self.keys, self.bytes, self.references, self.requests, self.grants];
        let count = match self {
            Self { references: 0, requests: 0, grants: 0, .. } => 2,
            Self { requests: 0, grants: 0, .. } => 3,
            _ => 5,
        };
        numbers.iter().take(count).flat_map(|number| number.to_be_bytes()).collect()
    }

    /// Returns `None` when the bytes are no such record.
    pub(crate) fn decode(record: &[u8]) -> Option<Self> {
        let (numbers, []) = record.as_chunks() else { return None };
        let number = |at: usize| numbers.get(at).copied().map_or(0, u64::from_be_bytes);
        let (keys, bytes, references) = (number(0), number(1), number(2));
        let usage = Self { keys, bytes, references, requests: number(3), grants: number(4) };
        (*usage.encode() == *record).then_some(usage)
    }

    /// All bytes that count towards the quota.
    pub(crate) fn total(self) -> u64 {
        self.bytes.saturating_add(self.requests).saturating_add(self.grants)
    }

    /// The usage after a record of the server itself was added, removed or replaced, if such
    /// records count.
    pub(crate) fn changed_record(
        mut self,
        space: Space,
        key: usize,
        (old, new): (Option<usize>, Option<usize>),
    ) -> Self {
        let size = |record: Option<usize>| record.map_or(0, |record| (key + record) as u64);
        let sum = match space {
            Space::Requests => &mut self.requests,
            Space::Grants => &mut self.grants,
            _ => return self,
        };
        *sum = (*sum + size(new)).saturating_sub(size(old));
        self
    }

    /// The usage after one key was added or removed, or its value replaced by one of another
    /// length.
    pub(crate) fn changed(self, key: usize, old: Option<usize>, new: Option<usize>) -> Self {
        let size = |value: Option<usize>| value.map_or(0, |value| (key + value) as u64);
        Self {
            keys: (self.keys + u64::from(new.is_some())).saturating_sub(u64::from(old.is_some())),
            bytes: (self.bytes + size(new)).saturating_sub(size(old)),
            ..self
        }
    }
}

/// An environment's record about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EnvironmentRecord {
    /// By it a segment of another environment's log is known.
    pub(crate) identity: Identity,
    /// The number of times that it was opened, this time included.
    pub(crate) incarnation: u64,
    /// The log in front of it; `None` if it has everything.
    pub(crate) log: Option<LogState>,
}

/// The log whose entries an environment receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogState {
    /// The random name under which the entries are written; never all zeros.
    pub(crate) nonce: [u8; NONCE_BYTES],
    /// The last entry whose writes the environment has.
    pub(crate) applied: End,
}

impl EnvironmentRecord {
    const BYTES: usize = 1 + 1 + size_of::<Identity>() + 8 + NONCE_BYTES + 8 + 8 + HASH_BYTES;

    /// The record of an environment that was never opened.
    pub(crate) fn new(identity: Identity) -> Self {
        Self { identity, ..Self::default() }
    }

    /// Writes format, kind, identity, incarnation, nonce, and the number, segment and checksum of
    /// the last applied entry; zeros if there is no log.
    pub(crate) fn encode(self, kind: Kind) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        bytes.extend_from_slice(&[FORMAT, kind as u8]);
        bytes.extend_from_slice(&self.identity);
        bytes.extend_from_slice(&self.incarnation.to_be_bytes());
        if let Some(LogState { nonce, applied }) = self.log {
            bytes.extend_from_slice(&nonce);
            bytes.extend_from_slice(&applied.number.to_be_bytes());
            bytes.extend_from_slice(&applied.segment.to_be_bytes());
            bytes.extend_from_slice(&applied.sum);
        }
        bytes.resize(Self::BYTES, 0);
        bytes
    }

    /// Refuses other formats with an error that names them, and any record that isn't for this
    /// `kind`.
    pub(crate) fn decode(bytes: &[u8], kind: Kind) -> Result<Self, StorageError> {
        match bytes {
            [FORMAT, of, rest @ ..] if *of == kind as u8 => {
                Self::fields(rest).ok_or_else(|| damaged(&ENVIRONMENT_KEY))
            }
            [format, ..] if *format != FORMAT => {
                Err(StorageError::Format { found: u64::from(*format), known: u64::from(FORMAT) })
            }
            _ => Err(damaged(&ENVIRONMENT_KEY)),
        }
    }

    fn fields(bytes: &[u8]) -> Option<Self> {
        let (identity, rest) = bytes.split_first_chunk()?;
        let (incarnation, rest) = rest.split_first_chunk()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (segment, sum) = rest.split_first_chunk()?;
        let (number, segment) = (u64::from_be_bytes(*number), u64::from_be_bytes(*segment));
        let applied = End { number, segment, sum: sum.try_into().ok()? };
        let state = LogState { nonce: *nonce, applied };
        let log = (*nonce != [0; NONCE_BYTES]).then_some(state);
        Some(Self { identity: *identity, incarnation: u64::from_be_bytes(*incarnation), log })
    }
}

#[cfg(test)]
mod tests {
    use super::keys::RecordPath;
    use super::*;
    use crate::limits::KEY_BYTES_MAX;

    fn object(byte: u8) -> ObjectId {
        ObjectId::from_bytes([byte; ObjectId::LEN])
    }

    #[test]
    fn meta_sorts_before_the_shards_objects_and_after_the_environment() {
        let first =
            RecordPath::new(ObjectId::from_bytes([0; 16]), Space::Header, b"").unwrap().record;
        assert!(ENVIRONMENT_KEY.as_slice() < shard_key(Shard(0)).as_slice());
        assert!(shard_key(Shard(0)).as_slice() < first.as_slice());
        assert!(first.as_slice() < shard_key(Shard(1)).as_slice());
    }

    #[test]
    fn keys_that_are_too_long_or_empty_are_refused() {
        for (space, key) in [
            (Space::Data, vec![0; KEY_BYTES_MAX + 1]),
            (Space::Data, vec![]),
            (Space::Grants, vec![]),
            (Space::Header, vec![0; KEY_BYTES_MAX + 1]),
        ] {
            let refused = RecordPath::new(object(1), space, &key);
            assert!(matches!(refused, Err(StorageError::KeyLength { .. })), "{space:?}");
        }
        assert!(config_key(&"k".repeat(CONFIG_KEY_BYTES_MAX)).unwrap().len() <= 511);
    }

    #[test]
    fn every_changed_bit_and_every_other_key_is_found_out() {
        let (key, record) = (b"key".as_slice(), b"value".as_slice());
        let stored = [&checksum(key, record), record].concat();
        assert_eq!(verify(key, &stored).unwrap(), record);
        for bit in 0..stored.len() * 8 {
            let mut damaged = stored.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(key, &damaged).is_err(), "bit {bit}");
        }
        assert!(verify(b"kez", &stored).is_err());
        assert!(verify(key, &stored[..3]).is_err());
    }

    #[test]
    fn usage_is_short_without_references_and_has_one_encoding() {
        for (references, requests, grants, length) in
            [(0, 0, 0, 16), (1, 0, 0, 24), (0, 0, 7, 40), (2, 9, 0, 40)]
        {
            let usage = Usage { keys: 3, bytes: 300, references, requests, grants };
            let record = usage.encode();
            assert_eq!(record.len(), length);
            assert_eq!(Usage::decode(&record), Some(usage));
            assert_eq!(Usage::decode(&record[1..]), None);
        }
        for length in [0, 8, 24, 32, 40, 48] {
            assert_eq!(Usage::decode(&vec![0; length]), None, "{length}");
        }
    }

    #[test]
    fn meta_and_environment_records_come_back_as_they_were() {
        let link = Link { position: Position(9), hash: [3; 16] };
        let meta = ShardMeta { epoch: Epoch(2), link };
        assert_eq!(ShardMeta::decode(&meta.encode()), Some(meta));
        assert_eq!(ShardMeta::decode(&meta.encode()[1..]), None);

        let applied = End { number: 7, sum: [8; 16], segment: 9 };
        for log in [None, Some(LogState { nonce: [6; 16], applied })] {
            let record = EnvironmentRecord { identity: [4; 16], incarnation: 5, log };
            let bytes = record.encode(Kind::Objects);
            assert_eq!(EnvironmentRecord::decode(&bytes, Kind::Objects).unwrap(), record);
            assert!(EnvironmentRecord::decode(&bytes, Kind::Config).is_err());
            assert!(EnvironmentRecord::decode(&bytes[1..], Kind::Objects).is_err());
        }
        let mut bytes = EnvironmentRecord::default().encode(Kind::Objects);
        bytes[0] = FORMAT + 1;
        let newer = EnvironmentRecord::decode(&bytes, Kind::Objects);
        assert!(matches!(newer, Err(StorageError::Format { found: 5, known: 4 })));
    }
}
