//! The stored form of request ids: the bytes of their keys and records.
//!
//! | key | record |
//! |---|---|
//! | `00` ‖ id | version (1) ‖ number (8) ‖ began (8) ‖ interface (8) ‖ method (2) ‖ state (1) ‖ lineage ‖ rest |
//! | `01` ‖ number (8) | began (8) ‖ id |
//! | `02` | number (8) ‖ time (8): all calls before that number had begun by that time |
//!
//! The number counts the object's calls with ids, and `began` is the time at which the call began.
//! State 0 is a call that has begun; 1 is one with a reply, which is the rest as a message in the
//! standard framing; 2 to 5 are those that ended with an error, whose text is the rest. The lineage
//! is the grants in whose shares the call counts: their number (1) and 16 bytes of each; version 1
//! had none. All numbers are big-endian.
//!
//! It never touches the storage.

use std::rc::Rc;

use capnp::{Error, ErrorKind};
use capstead_client::sturdyref::{GrantId, Method};

use crate::error::{Reason, Result, failed};
use crate::limits::{GRANT_DEPTH_MAX, VALUE_BYTES_MAX};

/// The beginning of the keys of the calls, in the order in which they began.
pub(in crate::host) const ORDER: u8 = 1;

const BY_ID: u8 = 0;
const VERSION: u8 = 2;
const VERSION_WITHOUT_LINEAGE: u8 = 1;
const HEAD_BYTES: usize = 1 + 8 + 8 + 8 + 2 + 1;
const BEGUN: u8 = 0;
const REPLIED: u8 = 1;
/// The kinds of errors that cross the wire, from state 2 on.
const KINDS: [ErrorKind; 4] =
    [ErrorKind::Failed, ErrorKind::Overloaded, ErrorKind::Disconnected, ErrorKind::Unimplemented];

/// The longest row of grants that are made from each other: one part of it in the object, one in
/// its class, and the place of those who have none.
const LINEAGE_BYTES_MAX: usize = 1 + 16 * (2 * GRANT_DEPTH_MAX as usize + 1);

/// The longest reply that can be stored, in bytes, or text of an error.
pub(in crate::host) const REPLY_BYTES_MAX: usize = VALUE_BYTES_MAX - HEAD_BYTES - LINEAGE_BYTES_MAX;

/// The least that an id takes: its two keys and records, without a reply.
pub(in crate::host) const BYTES_MIN: usize = (1 + 16) + HEAD_BYTES + 1 + (1 + 8) + (8 + 16);

/// The id by which a caller calls a call, to be told the reply again.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(in crate::host) struct RequestId(Rc<[u8]>);

/// A call with an id that began once.
pub(in crate::host) struct Record<S> {
    pub(in crate::host) number: u64,
    /// Milliseconds since 1970.
    pub(in crate::host) began: u64,
    pub(in crate::host) method: Method,
    /// The grants in whose shares it counts.
    pub(in crate::host) lineage: Vec<GrantId>,
    pub(in crate::host) state: S,
}

/// The state of a call.
pub(in crate::host) enum CallState {
    Begun,
    Ended(Outcome),
}

/// The end of a call: the message of its reply, or its error.
pub(in crate::host) type Outcome = Result<Vec<u8>>;

impl RequestId {
    /// # Errors
    /// When it is too short to be unguessable, or too long.
    pub(in crate::host) fn new(bytes: &[u8]) -> Result<Self> {
        if (16..=64).contains(&bytes.len()) {
            return Ok(Self(bytes.into()));
        }
        Err(Reason::RequestIdLength
            .error(format_args!("the id has {} bytes; use 16 to 64 random ones", bytes.len())))
    }

    pub(in crate::host) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key of the call's record.
    pub(in crate::host) fn key(&self) -> Vec<u8> {
        [&[BY_ID], &*self.0].concat()
    }
}

/// The key of a call in the order of all.
pub(in crate::host) fn order_key(number: u64) -> [u8; 9] {
    let mut key = [ORDER; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

/// The number in such a key.
pub(in crate::host) fn number_in(key: &[u8]) -> Result<u64> {
    let number = key.split_first().and_then(|(_, number)| number.try_into().ok());
    number.map(u64::from_be_bytes).ok_or_else(damaged)
}

/// The record in the order of all under the number of a call.
pub(in crate::host) fn order_record(began: u64, id: &RequestId) -> Vec<u8> {
    [&began.to_be_bytes(), &*id.0].concat()
}

/// The key of the time by which earlier calls had begun.
pub(in crate::host) const BY_THEN: [u8; 1] = [2];

/// The record there: all calls before `number` had begun by `time`.
pub(in crate::host) fn by_then_record(number: u64, time: u64) -> [u8; 16] {
    let mut record = [0; 16];
    record[..8].copy_from_slice(&number.to_be_bytes());
    record[8..].copy_from_slice(&time.to_be_bytes());
    record
}

/// The number and the time.
pub(in crate::host) fn decode_by_then(bytes: &[u8]) -> Result<(u64, u64)> {
    let (number, time) = bytes.split_first_chunk().ok_or_else(damaged)?;
    let time = time.try_into().map_err(|_| damaged())?;
    Ok((u64::from_be_bytes(*number), u64::from_be_bytes(time)))
}

/// The time at which the call began, and its id.
pub(in crate::host) fn decode_order(bytes: &[u8]) -> Result<(u64, RequestId)> {
    let (began, id) = bytes.split_first_chunk().ok_or_else(damaged)?;
    Ok((u64::from_be_bytes(*began), RequestId(id.into())))
}

impl Record<&CallState> {
    pub(in crate::host) fn encode(&self) -> Vec<u8> {
        let (state, rest) = match self.state {
            CallState::Begun => (BEGUN, &[][..]),
            CallState::Ended(Ok(reply)) => (REPLIED, reply.as_slice()),
            CallState::Ended(Err(error)) => {
                let kind = KINDS.iter().position(|kind| *kind == error.kind).unwrap_or_default();
                (REPLIED + 1 + kind as u8, error.extra.as_bytes())
            }
        };
        let lineage = 1 + 16 * self.lineage.len();
        let mut bytes = Vec::with_capacity(HEAD_BYTES + lineage + rest.len());
        bytes.push(VERSION);
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(self.began.to_be_bytes());
        bytes.extend(self.method.interface.to_be_bytes());
        bytes.extend(self.method.ordinal.to_be_bytes());
        bytes.push(state);
        // It fits into a byte: there are two rows of grants at most.
        bytes.push(self.lineage.len() as u8);
        bytes.extend(self.lineage.iter().flat_map(GrantId::as_bytes));
        bytes.extend(rest);
        bytes
    }
}

impl Record<CallState> {
    /// # Errors
    /// When the record isn't one that this version writes.
    pub(in crate::host) fn decode(bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes).ok_or_else(damaged)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let (version, head) = head.split_first()?;
        let (lineage, rest) = match *version {
            VERSION => {
                let (count, rest) = rest.split_first()?;
                let (ids, rest) = rest.split_at_checked(usize::from(*count) * 16)?;
                (ids.as_chunks().0.iter().copied().map(GrantId::from_bytes).collect(), rest)
            }
            VERSION_WITHOUT_LINEAGE => (Vec::new(), rest),
            _ => return None,
        };
        let (number, head) = head.split_first_chunk()?;
        let (began, head) = head.split_first_chunk()?;
        let (interface, head) = head.split_first_chunk()?;
        let (method, head) = head.split_first_chunk()?;
        let interface = u64::from_be_bytes(*interface);
        let method = Method { interface, ordinal: u16::from_be_bytes(*method) };
        let state = match head {
            [BEGUN] if rest.is_empty() => CallState::Begun,
            [REPLIED] => CallState::Ended(Ok(rest.to_vec())),
            [kind] => {
                let kind = *KINDS.get(usize::from(*kind).checked_sub(2)?)?;
                let extra = String::from_utf8(rest.to_vec()).ok()?;
                CallState::Ended(Err(Error { kind, extra }))
            }
            _ => return None,
        };
        let (number, began) = (u64::from_be_bytes(*number), u64::from_be_bytes(*began));
        Some(Self { number, began, method, lineage, state })
    }
}

fn damaged() -> Error {
    failed("the record of a request id is of a newer format, or damaged")
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::error::{disconnected, overloaded, unimplemented};

    fn encoded_again(record: &Record<CallState>) -> Vec<u8> {
        let Record { number, began, method, lineage, state } = record;
        let (number, began, method, lineage) = (*number, *began, *method, lineage.clone());
        Record { number, began, method, lineage, state }.encode()
    }

    #[test]
    fn records_come_back_as_they_were() {
        let method = Method { interface: 0x0102_0304_0506_0708, ordinal: 9 };
        let states = [
            CallState::Begun,
            CallState::Ended(Ok(vec![1, 2, 3])),
            CallState::Ended(Ok(vec![])),
            CallState::Ended(Err(failed("no"))),
            CallState::Ended(Err(overloaded("later"))),
            CallState::Ended(Err(disconnected("é"))),
            CallState::Ended(Err(unimplemented(""))),
        ];
        for (number, state) in states.iter().enumerate() {
            let lineage = vec![GrantId::from_bytes([5; 16]); number];
            let record = Record { number: number as u64, began: 77, method, lineage, state };
            let bytes = record.encode();
            assert_eq!(
                usize::from(bytes[HEAD_BYTES - 1]),
                number.saturating_sub(usize::from(number > 1))
            );
            assert_eq!(encoded_again(&Record::decode(&bytes).unwrap()), bytes);
            // The same without a lineage, as version 1 wrote it.
            let mut old = Record { lineage: Vec::new(), ..record }.encode();
            assert_eq!((old[0], old.remove(HEAD_BYTES)), (2, 0));
            old[0] = 1;
            let new = encoded_again(&Record::decode(&old).unwrap());
            assert_eq!(
                (&new[1..HEAD_BYTES], &new[HEAD_BYTES + 1..]),
                (&old[1..HEAD_BYTES], &old[HEAD_BYTES..])
            );
        }
    }

    #[test]
    fn ids_have_16_to_64_bytes() {
        for (length, is_good) in [(0, false), (15, false), (16, true), (64, true), (65, false)] {
            let id = RequestId::new(&vec![7; length]);
            assert_eq!(id.is_ok(), is_good, "{length}");
            let Ok(id) = id else { continue };
            assert!(decode_order(&order_record(5, &id)).unwrap() == (5, id.clone()));
            assert_eq!(id.key().len(), length + 1);
        }
        assert_eq!(number_in(&order_key(258)).unwrap(), 258);
        assert!(order_key(255) < order_key(256));
    }

    proptest! {
        #[test]
        fn hostile_records_end_in_an_error(bytes in vec(any::<u8>(), 0..60)) {
            if let Ok(record) = Record::decode(&bytes)
                && bytes[0] == VERSION
            {
                prop_assert_eq!(encoded_again(&record), bytes.clone());
            }
            let _ = (decode_order(&bytes), number_in(&bytes));
        }
    }
}
