//! The reasons for which a server can't start, or has to stop.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::storage::StorageError;

/// The reason for which a server could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The data directory can't be used. It is as it was.
    #[error("{path}: {reason}", path = .path.display())]
    Data {
        /// The directory, or the file in it that caused the error.
        path: PathBuf,
        /// The mistake, and how to correct it.
        reason: String,
    },
    /// An address can't be listened on. Nothing was served.
    #[error("can't listen on {address}, which {flag} says: {source}")]
    Listen {
        /// The flag that changes the address.
        flag: &'static str,
        /// The address asked for.
        address: SocketAddr,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The classes or bindings contradict each other. Nothing was started.
    #[error("{0}")]
    Classes(String),
    /// A setting can't be used. Nothing was started.
    #[error("{0}")]
    Setting(String),
    /// The references could not be printed, so the server was of no use, and ended.
    #[error("can't write the references to standard output, and so the server has ended: {0}")]
    Announce(#[source] std::io::Error),
    /// The storage failed. Acknowledged writes are durable; restart to go on from there.
    #[error("the storage failed, and everything was stopped: {0}")]
    Storage(String),
    /// A host ended by a bug. Acknowledged writes are durable; restart to go on from there.
    #[error("host {number} ended, and everything was stopped: {reason}")]
    Host {
        /// The number of the host.
        number: u16,
        /// The reason of the end.
        reason: String,
    },
    /// The parts of the server could not be put together.
    #[error("the server could not be put together: {0}")]
    Assembly(#[from] capnp::Error),
}

impl From<StorageError> for ServerError {
    fn from(error: StorageError) -> Self {
        Self::Storage(error.to_string())
    }
}
