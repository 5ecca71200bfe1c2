//! The errors of the storage: each says what is true on disk after it.
//!
//! The error that a remote caller gets says what to do about it, and contains neither ids nor
//! paths.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{self, Reason};
use crate::id::{ObjectId, Shard};
use crate::storage::position::Position;

/// The result of operations of the storage.
pub(crate) type Result<T> = std::result::Result<T, StorageError>;

/// The reason why an operation of the storage failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum StorageError {
    /// A key is too long, or empty where it must not be. Nothing was written.
    #[error("{}: the key has {length} bytes; use a key of 1 to {max} bytes", Reason::KeyLength)]
    KeyLength {
        /// The length of the refused key, in bytes.
        length: usize,
        /// The most bytes that a key may have.
        max: usize,
    },

    /// A value is too long. Nothing was written.
    #[error(
        "{}: the value has {length} bytes; split it into values of at most {max} bytes",
        Reason::ValueLength
    )]
    ValueLength {
        /// The length of the refused value, in bytes.
        length: usize,
        /// The most bytes that a value may have.
        max: usize,
    },

    /// The turn wrote too much. This write was not made; the turn's earlier writes remain.
    #[error(
        "{}: the turn's writes would have {bytes} bytes; write at most {max} between awaits",
        Reason::BatchSize
    )]
    BatchSize {
        /// The bytes that the turn would have written with the refused write.
        bytes: usize,
        /// The most bytes that one turn may write.
        max: usize,
    },

    /// The object, or all objects of its class together, would store too much. Nothing was written;
    /// deletions, and writes that take no more room, still work.
    #[error(
        "{}: the {whose} would store {bytes} bytes, and may have {max}; delete something first",
        Reason::OverQuota
    )]
    OverQuota {
        /// "object" or "class".
        whose: &'static str,
        /// The bytes that would have been stored.
        bytes: u64,
        /// The most bytes that may be stored.
        max: u64,
    },

    /// The disk or the map of the environment is nearly full. Nothing was written; deletions, and
    /// writes that take no more room, still work.
    #[error(
        "{}: {left} bytes are left for the storage, and {reserve} are kept free; delete something, or make room",
        Reason::LowSpace
    )]
    LowSpace {
        /// The bytes that are left.
        left: u64,
        /// The bytes that are kept free.
        reserve: u64,
    },

    /// A snapshot was called back from its holder, because the pages that it kept were needed.
    /// Nothing changed.
    #[error(
        "{}: the export was given up, since the server needed the room that it kept; make room, and begin again",
        Reason::LowSpace
    )]
    CalledBack,

    /// A write came outside the turn of its object. Nothing was written.
    #[error(
        "{}: this write is outside a turn of its object; write from the object's handlers",
        Reason::OutsideTurn
    )]
    OutsideTurn {
        /// The object whose storage was to be written.
        object: ObjectId,
    },

    /// A record of an object isn't the one that was written. It was not returned, and is left as it
    /// is.
    #[error(
        "the record {key:?} in space {space} of object {object:?} is damaged; restore a backup"
    )]
    Corrupt {
        /// The object to which the record belongs.
        object: ObjectId,
        /// The number of its space.
        space: u8,
        /// Its key, with the bytes that aren't printable escaped.
        key: String,
    },

    /// A record that belongs to no object isn't the one that was written. It is left as it is.
    #[error("the storage's own record {key:?} is damaged; restore a backup")]
    CorruptRecord {
        /// The key of the record, escaped.
        key: String,
    },

    /// Bytes that should be a write set aren't one. None of them was applied.
    #[error("a write set is malformed at byte {at}")]
    Malformed {
        /// The number of bytes that could be read before the fault.
        at: usize,
    },

    /// A newer owner has the shard. Nothing of the refused block was applied.
    #[error("shard {shard:?} has a newer owner; stop serving it")]
    Fenced {
        /// The shard that was lost.
        shard: Shard,
    },

    /// The log accepts nothing for now. Nothing of the refused block was applied.
    #[error("the log of shard {shard:?} is busy; start again")]
    Busy {
        /// The shard whose block was refused.
        shard: Shard,
    },

    /// The log has lost a block that it must have. Nothing changed.
    #[cfg_attr(not(test), expect(dead_code, reason = "the local log keeps no history"))]
    #[error("the log lacks block {position:?} of shard {shard:?}; restore a backup")]
    Hole {
        /// The shard whose block is missing.
        shard: Shard,
        /// The first position that is missing.
        position: Position,
    },

    /// The log no longer has the requested blocks, or never kept them. Nothing changed.
    #[error("the log keeps only what follows {last:?}; read the shard's records instead")]
    Trimmed {
        /// The newest position that can't be read any more.
        last: Position,
    },

    /// An earlier commit failed. It is unknown whether that commit is on disk; nothing was
    /// committed after it. The process must exit and start again from the disk.
    #[error("the storage failed earlier and takes no more writes; restart this host: {0}")]
    Latched(#[source] Arc<StorageError>),

    /// The storage was closed in order. Nothing was read or written.
    #[error("the storage is closed: the server is shutting down")]
    Closed,

    /// The commit thread panicked. It is unknown whether the last group is on disk.
    #[error("the commit thread of the storage panicked; restart this host: {0}")]
    Panicked(String),

    /// The environment has no room left. The group was not committed.
    #[error("the map of the environment is full; start again with a larger --map-size")]
    MapFull,

    /// The system has no address space for the map. Nothing was opened.
    #[error(
        "the system has no address space left for the map; start again with a smaller --map-size, or fewer --hosts"
    )]
    MapSize,

    /// LMDB failed. If it was writing, it is unknown whether that transaction is on disk.
    #[error("LMDB failed to {action}: {source}")]
    Lmdb {
        /// The action that failed.
        action: &'static str,
        /// The error of LMDB.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The operating system returned an error while the storage was being opened.
    #[error("could not {action} {path:?}: {source}")]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },

    /// The disk is full. Everything acknowledged is durable; the writes in progress were not
    /// acknowledged.
    #[error(
        "no space is left on the file system of {path:?}, and nothing that was answered is lost: {left} bytes \
         are free, and {needed} are needed; make room there"
    )]
    NoSpace {
        /// A directory or file on the full disk.
        path: PathBuf,
        /// The bytes that are free.
        left: u64,
        /// The bytes that are needed, as far as that is known.
        needed: u64,
    },

    /// A file of the storage was changed from outside while it was in use. Writes that may be
    /// missing after a restart were not acknowledged.
    #[error(
        "the file {path:?} {what} while it was in use; put it back or restore a backup, and start again"
    )]
    FileChanged {
        /// The file.
        path: PathBuf,
        /// The change that was found.
        what: &'static str,
    },

    /// A copy doesn't have as many records as the original, which is unchanged.
    #[error(
        "{found} of {expected} records were copied; the storage is as it was: restore a backup"
    )]
    Miscounted {
        /// Records of the original, as its engine counts them.
        expected: u64,
        /// Records of the copy.
        found: u64,
    },

    /// The data has another format. It was not changed.
    #[error(
        "the data has format {found}, and this program knows format {known}; export them with the program \
         that wrote them, and import that with this one"
    )]
    Format {
        /// The format of the data.
        found: u64,
        /// The format of this program.
        known: u64,
    },

    /// The directory holds something else. It was not changed.
    #[error("{0:?} holds files that are not this storage; choose an empty or new directory")]
    NotOurs(PathBuf),

    /// The directory lacks the file with the data. It was not changed.
    #[error("{0:?} was a storage but its data file is gone; restore a backup")]
    DataMissing(PathBuf),

    /// The directory was a complete storage once, and its marker is gone. It was not changed.
    #[error("{0:?} lacks what a storage begins with, the file CAPSTEAD; restore a backup")]
    MarkerMissing(PathBuf),

    /// The file with the data can't be opened safely. It was not changed.
    #[error("{path:?} is damaged: {what}; restore a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The fault in it.
        what: &'static str,
    },

    /// An entry of the log that was acknowledged is damaged or missing. Nothing was changed.
    #[error(
        "{path:?} is damaged: entry {entry} of the log isn't as it was written; restore a backup"
    )]
    LogDamaged {
        /// The segment in which the entry was looked for.
        path: PathBuf,
        /// The number of the entry.
        entry: u64,
    },

    /// A segment of the log is of another environment. Nothing was changed.
    #[error(
        "{path:?} belongs to another data directory or host; put back the file that was there, \
         or restore a backup"
    )]
    LogOfAnother {
        /// The segment.
        path: PathBuf,
    },

    /// The log has entries that must be applied before anything is read, and only the owner of the
    /// data can do that. Nothing was changed.
    #[error(
        "{path:?} was not closed in order, and only user {owner}, whose data it is, can finish that: \
         run this as that user, or start the server once"
    )]
    LogUnapplied {
        /// The directory.
        path: PathBuf,
        /// The user that owns it.
        owner: u32,
    },

    /// The path isn't a directory. It was not changed.
    #[error("{0:?} is not a directory; choose an empty or new directory")]
    NotADirectory(PathBuf),

    /// Another process, or another part of this one, uses the directory. It was not changed.
    #[error("{0:?} is in use by another process; stop that one first")]
    InUse(PathBuf),
}

impl From<StorageError> for capnp::Error {
    /// Tells a remote caller what to do; names of files and objects stay in the log.
    fn from(cause: StorageError) -> Self {
        use StorageError as E;
        match cause {
            E::KeyLength { .. }
            | E::ValueLength { .. }
            | E::BatchSize { .. }
            | E::OverQuota { .. }
            | E::OutsideTurn { .. } => Self::failed(cause.to_string()),
            E::Corrupt { .. } | E::CorruptRecord { .. } | E::Malformed { .. } => {
                Reason::Damaged.error("a stored record of the object is damaged; tell the operator")
            }
            E::LowSpace { .. } | E::CalledBack => Self::overloaded(cause.to_string()),
            E::MapFull | E::Busy { .. } => {
                error::overloaded("the host's storage takes no more writes now; try later")
            }
            _ => error::disconnected("the host's storage failed; restore the reference"),
        }
    }
}

pub(crate) fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> StorageError {
    move |source| StorageError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_an_error_says_what_the_caller_should_do() {
        let check = |cause: StorageError, kind, text: &str| {
            let error = capnp::Error::from(cause);
            assert_eq!(error.kind, kind);
            assert!(error.extra.contains(text), "{}", error.extra);
        };
        let object = ObjectId::from_bytes([9; 16]);
        let long = StorageError::KeyLength { length: 500, max: 480 };
        check(long, capnp::ErrorKind::Failed, "500 bytes");
        check(StorageError::OutsideTurn { object }, capnp::ErrorKind::Failed, "outside-turn:");
        check(StorageError::MapFull, capnp::ErrorKind::Overloaded, "try later");
        let latched = StorageError::Latched(Arc::new(StorageError::MapFull));
        check(latched, capnp::ErrorKind::Disconnected, "restore");
        check(StorageError::InUse("/secret".into()), capnp::ErrorKind::Disconnected, "storage");
    }

    #[test]
    fn the_words_of_errors_say_their_kinds() {
        let causes = [
            (StorageError::KeyLength { length: 500, max: 480 }, Reason::KeyLength),
            (StorageError::ValueLength { length: 2, max: 1 }, Reason::ValueLength),
            (StorageError::BatchSize { bytes: 2, max: 1 }, Reason::BatchSize),
            (StorageError::OverQuota { whose: "class", bytes: 2, max: 1 }, Reason::OverQuota),
            (StorageError::LowSpace { left: 1, reserve: 2 }, Reason::LowSpace),
            (StorageError::CalledBack, Reason::LowSpace),
            (
                StorageError::OutsideTurn { object: ObjectId::from_bytes([9; 16]) },
                Reason::OutsideTurn,
            ),
            (StorageError::Malformed { at: 1 }, Reason::Damaged),
        ];
        for (cause, reason) in causes {
            let error = capnp::Error::from(cause);
            assert_eq!((Reason::of(&error), error.kind), (Some(reason), reason.kind()), "{error}");
        }
    }

    #[test]
    fn remote_callers_learn_neither_ids_nor_paths() {
        let object = ObjectId::from_bytes([9; 16]);
        let causes = [
            StorageError::Corrupt { object, space: 1, key: "k".into() },
            StorageError::OutsideTurn { object },
            StorageError::NotOurs("0909".into()),
        ];
        for cause in causes {
            assert!(!capnp::Error::from(cause).extra.contains("0909"));
        }
    }
}
