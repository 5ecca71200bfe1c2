//! The parts of an object's storage, and the lengths of keys and values in them.

use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::storage::error::{Result, StorageError};

/// The parts of an object's storage. Their keys are separate.
///
/// The numbers are part of the format; 3 is reserved for alarms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Space {
    /// The identity of the object: its class and name. Its key may be empty.
    Header = 0,
    /// The values that the object's class stores.
    Data = 1,
    /// The grants that make references to the object valid.
    Grants = 2,
    /// The objects that the values of `Data` refer to, under the same keys.
    Edges = 4,
    /// The ids of calls that are applied at most once, with their replies.
    Requests = 5,
    /// The amounts that the object stores. Its key is empty.
    Usage = 6,
    /// The amounts that the server keeps in the object for each grant and the grants made from it.
    Shares = 7,
    /// The WebSockets that survive the process, with the messages that wait for their clients.
    Sockets = 8,
}

impl Space {
    /// The space with this number, if there is one.
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Space; 8] = [
            Space::Header,
            Space::Data,
            Space::Grants,
            Space::Edges,
            Space::Requests,
            Space::Usage,
            Space::Shares,
            Space::Sockets,
        ];
        ALL.into_iter().find(|space| *space as u8 == byte)
    }

    /// Tells whether its records are removed when the class deletes all that it stored.
    pub(crate) fn is_of_class(self) -> bool {
        matches!(self, Self::Data | Self::Edges)
    }

    /// Tells whether its records, which the class doesn't write itself, count towards the object's
    /// quota.
    pub(crate) fn is_counted(self) -> bool {
        matches!(self, Self::Grants | Self::Requests)
    }

    /// Refuses keys that are too long, and empty keys in spaces with several keys.
    pub(crate) fn check_key(self, key: &[u8]) -> Result<()> {
        let least = usize::from(!matches!(self, Self::Header | Self::Usage));
        if (least..=KEY_BYTES_MAX).contains(&key.len()) {
            return Ok(());
        }
        Err(StorageError::KeyLength { length: key.len(), max: KEY_BYTES_MAX })
    }
}

/// Refuses values that are too long, of objects and of the cluster.
pub(crate) fn check_value(value: &[u8]) -> Result<()> {
    let (length, max) = (value.len(), VALUE_BYTES_MAX);
    if length > max { Err(StorageError::ValueLength { length, max }) } else { Ok(()) }
}
