//! The parts of an object's storage, and the lengths of keys and values in them.

use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::storage::error::{Result, StorageError};

/// The length of all keys in [`Space::Due`].
pub(crate) const DUE_KEY_BYTES: usize = 14;

/// The parts of an object's storage. Their keys are separate.
///
/// The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Space {
    /// The identity of the object: its class and name. Its key may be empty.
    Header = 0,
    /// The values that the object's class stores.
    Data = 1,
    /// The grants that make references to the object valid.
    Grants = 2,
    /// The alarms that the class set, by their names.
    Alarms = 3,
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
    /// The times at which alarms are due, which are in one order for all objects of the host. The
    /// keys say the object, too, and have one length.
    Due = 9,
}

impl Space {
    /// The space with this number, if there is one.
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Space; 10] = [
            Space::Header,
            Space::Data,
            Space::Grants,
            Space::Alarms,
            Space::Edges,
            Space::Requests,
            Space::Usage,
            Space::Shares,
            Space::Sockets,
            Space::Due,
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

    /// Refuses keys that are too long or too short: an empty one is for a space with one key.
    pub(crate) fn check_key(self, key: &[u8]) -> Result<()> {
        let (least, max) = match self {
            Self::Header | Self::Usage => (0, KEY_BYTES_MAX),
            Self::Due => (DUE_KEY_BYTES, DUE_KEY_BYTES),
            _ => (1, KEY_BYTES_MAX),
        };
        if (least..=max).contains(&key.len()) {
            return Ok(());
        }
        Err(StorageError::KeyLength { length: key.len(), max })
    }
}

/// Refuses values that are too long, of objects and of the cluster.
pub(crate) fn check_value(value: &[u8]) -> Result<()> {
    let (length, max) = (value.len(), VALUE_BYTES_MAX);
    if length > max { Err(StorageError::ValueLength { length, max }) } else { Ok(()) }
}
