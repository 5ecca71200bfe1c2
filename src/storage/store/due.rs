//! The times at which alarms are due, of all objects of a host in one order.
//!
//! Each is a record of [`Space::Due`] that its object writes in the turn that sets the alarm. Its
//! key is the time (6 bytes, big-endian, milliseconds since 1970) ‖ a hash of object and name (8),
//! and its value is the object's id (16) ‖ the alarm's name. So any number of alarms costs no
//! memory: to fire them takes a read of the first few.
//!
//! It knows neither what an alarm does nor what time it is.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use sha2::{Digest, Sha256};

use super::Store;
use crate::id::ObjectId;
use crate::limits::BATCH_BYTES_MAX;
use crate::storage::error::{Result, StorageError};
use crate::storage::range::Range;
use crate::storage::space::{DUE_KEY_BYTES, Space};

const TIME_BYTES: usize = 6;
const HASH_DOMAIN: &[u8] = b"capstead alarm v1";

/// The latest time that a key can hold: the year 10889.
pub(crate) const TIME_MS_MAX: u64 = (1 << (8 * TIME_BYTES)) - 1;

/// A time at which an alarm is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// The object that set it.
    pub(crate) object: ObjectId,
    /// The alarm's name.
    pub(crate) name: Box<str>,
}

/// The first alarms by the time at which they are due.
#[derive(Debug, Default)]
pub(crate) struct DueAlarms {
    /// Those that are due by now, the earliest first.
    pub(crate) now: Vec<Due>,
    /// The time of the first one that is due later; unknown, and so `None`, if not all that are due
    /// by now were wanted.
    pub(crate) next_ms: Option<u64>,
}

impl Due {
    /// Its key in [`Space::Due`].
    pub(crate) fn key(&self) -> [u8; DUE_KEY_BYTES] {
        let mut key = [0; DUE_KEY_BYTES];
        key[..TIME_BYTES].copy_from_slice(&time(self.at_ms));
        let hash = Sha256::new()
            .chain_update(HASH_DOMAIN)
            .chain_update(self.object.as_bytes())
            .chain_update(self.name.as_bytes())
            .finalize();
        key[TIME_BYTES..].copy_from_slice(&hash[..DUE_KEY_BYTES - TIME_BYTES]);
        key
    }

    /// Its record under that key.
    pub(crate) fn record(&self) -> Vec<u8> {
        [self.object.as_bytes(), self.name.as_bytes()].concat()
    }

    /// Returns `None` when the bytes are no such record.
    fn decode(key: &[u8], record: &[u8]) -> Option<Self> {
        let (object, name) = record.split_first_chunk()?;
        let name = std::str::from_utf8(name).ok()?.into();
        Some(Self { at_ms: time_of(key)?, object: ObjectId::from_bytes(*object), name })
    }
}

fn time(at_ms: u64) -> [u8; TIME_BYTES] {
    let bytes = at_ms.min(TIME_MS_MAX).to_be_bytes();
    let mut time = [0; TIME_BYTES];
    time.copy_from_slice(&bytes[bytes.len() - TIME_BYTES..]);
    time
}

fn time_of(key: &[u8]) -> Option<u64> {
    let mut bytes = [0; 8];
    bytes[8 - TIME_BYTES..].copy_from_slice(key.get(..TIME_BYTES)?);
    Some(u64::from_be_bytes(bytes))
}

/// Records of [`Space::Due`] that aren't applied yet; `None` for those that were removed.
type Above = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

impl Store {
    /// The first `most` alarms that are due from `from_ms` to `now_ms`, of those that are wanted,
    /// and the time at which the next one is due. `is_wanted` is asked in the order of the times.
    /// All submitted turns count.
    ///
    /// # Errors
    /// `Corrupt`, or the disk can't be read.
    pub(crate) fn due(
        &self,
        (from_ms, now_ms): (u64, u64),
        most: usize,
        is_wanted: &dyn Fn(&Due) -> bool,
    ) -> Result<DueAlarms> {
        let (from, now) = (time(from_ms), time(now_ms));
        let is_now = |key: &[u8]| key[..TIME_BYTES] <= now[..];
        let mut above = self.due_above(&from, &is_now).into_iter().peekable();
        let mut found = DueAlarms::default();
        let mut take = |key: &[u8], record: &[u8]| {
            if !is_now(key) {
                found.next_ms = time_of(key);
                return ControlFlow::Break(());
            }
            found.now.extend(Due::decode(key, record).filter(is_wanted));
            if found.now.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let mut is_ended = false;
        self.reads.due(&from, &mut |key, record| {
            let mut visit = || {
                while let Some((key, record)) = above.next_if(|(above, _)| &**above < key) {
                    record.map_or(ControlFlow::Continue(()), |record| take(&key, &record))?;
                }
                match above.next_if(|(above, _)| **above == *key) {
                    Some((_, record)) => {
                        record.map_or(ControlFlow::Continue(()), |record| take(key, &record))
                    }
                    None => take(key, record),
                }
            };
            let visited = visit();
            is_ended |= visited.is_break();
            visited
        })?;
        let rest = above.filter(|_| !is_ended).filter_map(|(key, record)| Some((key, record?)));
        for (key, record) in rest {
            if take(&key, &record).is_break() {
                break;
            }
        }
        Ok(found)
    }

    /// The records that may not be applied yet: of each object all that are due now, and those
    /// after them up to the first that is there.
    fn due_above(&self, from: &[u8], is_now: &dyn Fn(&[u8]) -> bool) -> Above {
        let mut above = Above::new();
        let range = Range { start: Bound::Included(from.to_vec()), ..Range::all() };
        for pending in self.pending.values() {
            for (key, record) in pending.layer().list(Space::Due, &range) {
                above.insert(key.to_vec(), record.map(<[u8]>::to_vec));
                if !is_now(key) && record.is_some() {
                    break;
                }
            }
        }
        above
    }

    /// Checks that the open turn may write more of what doesn't count in its batch.
    ///
    /// # Errors
    /// `BatchSize`.
    pub(crate) fn check_turn(&self) -> Result<()> {
        let bytes = self.turn.as_ref().map_or(0, |turn| turn.writes.as_bytes().len());
        if bytes < BATCH_BYTES_MAX {
            return Ok(());
        }
        Err(StorageError::BatchSize { bytes, max: BATCH_BYTES_MAX })
    }
}
