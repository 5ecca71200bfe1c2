//! The writes of one object in one turn, as data.
//!
//! They are bytes and not closures so that they can be logged, replayed and sent to another
//! machine. They know the limits, but neither where nor when they are stored.
//!
//! Version (1) ‖ object id (16), then per write: 1 (put) or 2 (delete) ‖ space (1) ‖ length of the
//! key (2) ‖ key, and for a put ‖ length of the value (4) ‖ value; or 3 (clear) ‖ space (1).
//! Lengths are little-endian. A write set without writes has no bytes at all.
//!
//! **Invariant:** a write set holds whole writes within the limits; a refused write leaves no
//! trace.

use crate::id::ObjectId;
use crate::limits::{BATCH_BYTES_MAX, WRITE_BYTES};
use crate::storage::error::{Result, StorageError};
use crate::storage::space::{Space, check_value};

const VERSION: u8 = 1;
const PUT: u8 = 1;
const DELETE: u8 = 2;
const CLEAR: u8 = 3;
/// Room for a small turn, which then needs one allocation.
const FIRST_BYTES: usize = 256;

/// One object's writes of one turn, in the order in which they were made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WriteSet {
    object: ObjectId,
    bytes: Vec<u8>,
    /// The sum of the lengths of keys and values, to which the limit applies. The server's own
    /// records of the object follow from the actions of its class, and are few in a turn: they are
    /// never over the limit.
    content: usize,
}

/// A length of a write set, to which it can be cut back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    bytes: usize,
    content: usize,
}

/// One write, borrowed from its write set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op<'a> {
    /// The key has this value from here on.
    Put {
        /// The part of the object's storage.
        space: Space,
        /// The key in that space.
        key: &'a [u8],
        /// The new value.
        value: &'a [u8],
    },
    /// The key has no value from here on.
    Delete {
        /// The part of the object's storage.
        space: Space,
        /// The key in that space.
        key: &'a [u8],
    },
    /// No key of the space has a value from here on.
    Clear {
        /// The part of the object's storage.
        space: Space,
    },
}

impl WriteSet {
    /// Makes an empty write set, without allocating memory.
    pub(crate) fn new(object: ObjectId) -> Self {
        Self { object, bytes: Vec::new(), content: 0 }
    }

    /// Adds a write of `value` under `key`.
    ///
    /// # Errors
    /// `KeyLength`, `ValueLength`, `BatchSize`: the write set is unchanged.
    pub(crate) fn put(&mut self, space: Space, key: &[u8], value: &[u8]) -> Result<()> {
        check_value(value)?;
        self.begin_op(PUT, space, key, value.len())?;
        self.bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(value);
        Ok(())
    }

    /// Adds the removal of `key`, which need not exist.
    ///
    /// # Errors
    /// `KeyLength`, `BatchSize`: the write set is unchanged.
    pub(crate) fn delete(&mut self, space: Space, key: &[u8]) -> Result<()> {
        self.begin_op(DELETE, space, key, 0)
    }

    /// Adds the removal of all keys of the space.
    pub(crate) fn clear(&mut self, space: Space) {
        self.begin();
        self.bytes.extend_from_slice(&[CLEAR, space as u8]);
    }

    /// The present length, to cut back to.
    pub(crate) fn mark(&self) -> Mark {
        Mark { bytes: self.bytes.len(), content: self.content }
    }

    /// Forgets every write since `mark`, which must be an earlier one of this write set.
    pub(crate) fn back_to(&mut self, mark: Mark) {
        self.bytes.truncate(mark.bytes);
        self.content = mark.content;
    }

    fn begin(&mut self) {
        if self.bytes.is_empty() {
            self.bytes.reserve(FIRST_BYTES);
            self.bytes.push(VERSION);
            self.bytes.extend_from_slice(self.object.as_bytes());
        }
    }

    fn begin_op(&mut self, op: u8, space: Space, key: &[u8], value_bytes: usize) -> Result<()> {
        space.check_key(key)?;
        if matches!(space, Space::Data | Space::Grants) {
            let content = self.content + key.len() + value_bytes + WRITE_BYTES;
            if content > BATCH_BYTES_MAX {
                return Err(StorageError::BatchSize { bytes: content, max: BATCH_BYTES_MAX });
            }
            self.content = content;
        }
        self.begin();
        self.bytes.extend_from_slice(&[op, space as u8]);
        self.bytes.extend_from_slice(&(key.len() as u16).to_le_bytes());
        self.bytes.extend_from_slice(key);
        Ok(())
    }

    /// The object whose writes these are.
    pub(crate) fn object(&self) -> ObjectId {
        self.object
    }

    /// Tells whether there are no writes.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The encoded writes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The writes, in the order in which they were made.
    #[cfg(test)]
    pub(crate) fn ops(&self) -> Ops<'_> {
        match split_head(&self.bytes) {
            Ok((_, ops)) => ops,
            Err(_) => Ops { bytes: &[], at: 0 },
        }
    }

    /// Reads a write set that came from elsewhere.
    ///
    /// # Errors
    /// `Malformed` when the bytes aren't exactly one write set; the errors of the limits when it is
    /// too large.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let (object, ops) = split_head(bytes)?;
        let mut writes = Self::new(object);
        for op in ops {
            match op? {
                Op::Put { space, key, value } => writes.put(space, key, value)?,
                Op::Delete { space, key } => writes.delete(space, key)?,
                Op::Clear { space } => writes.clear(space),
            }
        }
        Ok(writes)
    }
}

/// The object of an encoded write set, and its writes.
///
/// # Errors
/// `Malformed` when the bytes don't begin as a write set does.
pub(crate) fn split_head(bytes: &[u8]) -> Result<(ObjectId, Ops<'_>)> {
    let mut ops = Ops { bytes, at: 0 };
    match ops.array::<1>() {
        Some([VERSION]) => {}
        _ => return Err(StorageError::Malformed { at: 0 }),
    }
    let object = ops.array().ok_or(StorageError::Malformed { at: ops.at })?;
    Ok((ObjectId::from_bytes(object), ops))
}

/// Reads encoded writes; malformed bytes end the iteration with an error, never with a panic.
#[derive(Clone, Debug)]
pub(crate) struct Ops<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Ops<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn op(&mut self) -> Option<Op<'a>> {
        let [op, space] = self.array()?;
        let space = Space::from_byte(space)?;
        if op == CLEAR {
            return Some(Op::Clear { space });
        }
        let length = u16::from_le_bytes(self.array()?);
        let key = self.take(usize::from(length))?;
        match op {
            DELETE => Some(Op::Delete { space, key }),
            PUT => {
                let length = u32::from_le_bytes(self.array()?);
                let value = self.take(usize::try_from(length).ok()?)?;
                Some(Op::Put { space, key, value })
            }
            _ => None,
        }
    }
}

impl<'a> Iterator for Ops<'a> {
    type Item = Result<Op<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let start = self.at;
        let op = self.op();
        if op.is_none() {
            self.at = self.bytes.len();
        }
        Some(op.ok_or(StorageError::Malformed { at: start }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

    const OBJECT: ObjectId = ObjectId::from_bytes([7; 16]);

    /// Without a key it clears the space, and without a value it deletes the key.
    type Write = (u8, Vec<u8>, Option<Vec<u8>>);

    fn writes() -> impl Strategy<Value = Vec<Write>> {
        let value = proptest::option::of(vec(any::<u8>(), 0..40));
        vec((0..3u8, vec(any::<u8>(), 0..40), value), 1..20).prop_map(|mut writes| {
            for (_, key, value) in &mut writes {
                *value = value.take().filter(|_| !key.is_empty());
            }
            writes
        })
    }

    fn encode(writes: &[Write]) -> WriteSet {
        let mut set = WriteSet::new(OBJECT);
        for (space, key, value) in writes {
            let space = Space::from_byte(*space).unwrap();
            match value {
                Some(value) => set.put(space, key, value).unwrap(),
                None if key.is_empty() => set.clear(space),
                None => set.delete(space, key).unwrap(),
            }
        }
        set
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(writes in writes()) {
            let set = encode(&writes);
            let decoded: Vec<Write> = set.ops().map(|op| match op.unwrap() {
                Op::Put { space, key, value } => (space as u8, key.to_vec(), Some(value.to_vec())),
                Op::Delete { space, key } => (space as u8, key.to_vec(), None),
                Op::Clear { space } => (space as u8, vec![], None),
            }).collect();
            prop_assert_eq!(decoded, writes);
            prop_assert_eq!(WriteSet::decode(set.as_bytes()).unwrap(), set);
        }

        #[test]
        fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
            let _ = WriteSet::decode(&bytes);
        }

        #[test]
        fn damaged_bytes_never_panic_and_decoding_is_canonical(
            writes in writes(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut bytes = encode(&writes).as_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(set) = WriteSet::decode(&bytes) {
                prop_assert_eq!(set.as_bytes(), &bytes[..]);
            }
            if let Ok(set) = WriteSet::decode(&bytes[..at]) {
                prop_assert_eq!(set.as_bytes(), if set.is_empty() { &[][..] } else { &bytes[..at] });
            }
        }
    }

    #[test]
    fn a_refused_write_leaves_no_trace() {
        let mut set = WriteSet::new(OBJECT);
        set.put(Space::Data, b"k", b"v").unwrap();
        let before = set.clone();
        let long_key = vec![0; KEY_BYTES_MAX + 1];
        let long_value = vec![0; VALUE_BYTES_MAX + 1];
        assert!(matches!(
            set.put(Space::Data, &long_key, b""),
            Err(StorageError::KeyLength { .. })
        ));
        assert!(matches!(
            set.delete(Space::Data, b""),
            Err(StorageError::KeyLength { length: 0, .. })
        ));
        let refused = set.put(Space::Data, b"k", &long_value);
        assert!(matches!(refused, Err(StorageError::ValueLength { .. })));
        assert_eq!(set, before);
    }

    #[test]
    fn going_back_leaves_what_was_there_and_its_room() {
        let mut set = WriteSet::new(OBJECT);
        let empty = set.mark();
        set.put(Space::Data, b"a", b"1").unwrap();
        let (before, mark) = (set.clone(), set.mark());
        set.clear(Space::Data);
        set.put(Space::Data, b"b", b"2").unwrap();
        set.back_to(mark);
        assert_eq!(set, before);
        set.back_to(empty);
        assert_eq!(set, WriteSet::new(OBJECT));
    }

    #[test]
    fn a_turn_writes_at_most_the_limit() {
        let mut set = WriteSet::new(OBJECT);
        let value = vec![0; VALUE_BYTES_MAX];
        for key in 1..BATCH_BYTES_MAX / VALUE_BYTES_MAX {
            set.put(Space::Data, &[key as u8], &value).unwrap();
        }
        let before = set.as_bytes().len();
        let refused =
            set.put(Space::Data, b"k", &value).and_then(|()| set.delete(Space::Data, b"k"));
        assert!(matches!(refused, Err(StorageError::BatchSize { max: BATCH_BYTES_MAX, .. })));
        assert_eq!(set.as_bytes().len(), before);
        set.put(Space::Data, b"k", b"small").unwrap();
        while set.put(Space::Data, b"k", &[]).is_ok() {}
        // However short they are, their number is bounded.
        let mut short = WriteSet::new(OBJECT);
        let written =
            (0_u32..).take_while(|n| short.put(Space::Data, &n.to_le_bytes(), &[]).is_ok());
        assert_eq!(written.count(), BATCH_BYTES_MAX / (4 + WRITE_BYTES));
        set.put(Space::Usage, b"", &[0; 16]).unwrap();
        set.put(Space::Requests, b"k", &value).unwrap();
    }
}
