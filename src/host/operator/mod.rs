//! The operator's view of a host: grants, request ids, exports and imports.

pub(in crate::host) mod admin;
pub(in crate::host) mod export;
pub(in crate::host) mod import;

use crate::error::Reason;
use crate::storage::StorageError;

/// The error as the operator may see it: in full.
fn storage_failed(error: &StorageError) -> capnp::Error {
    match error {
        StorageError::LowSpace { .. } | StorageError::CalledBack => {
            capnp::Error::overloaded(error.to_string())
        }
        StorageError::OverQuota { .. } => capnp::Error::failed(error.to_string()),
        _ => Reason::StorageFailed.error(error),
    }
}
