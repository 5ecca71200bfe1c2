//! A storage after it was closed: every read fails with an error that says so.

use crate::id::ObjectId;
use crate::storage::error::{Result, StorageError};
use crate::storage::log::reads::{Reads, VisitObject};
use crate::storage::range::{Range, Visit};
use crate::storage::space::Space;

/// Fails every read.
pub(super) struct Closed;

impl Reads for Closed {
    fn get(&self, _: ObjectId, _: Space, _: &[u8]) -> Result<Option<Vec<u8>>> {
        Err(StorageError::Closed)
    }

    fn length(&self, _: ObjectId, _: Space, _: &[u8]) -> Result<Option<usize>> {
        Err(StorageError::Closed)
    }

    fn scan(&self, _: ObjectId, _: Space, _: &Range, _: &mut Visit<'_>) -> Result<()> {
        Err(StorageError::Closed)
    }

    fn due(&self, _: &[u8], _: &mut Visit<'_>) -> Result<()> {
        Err(StorageError::Closed)
    }

    fn objects(&self, _: &mut VisitObject<'_>) -> Result<()> {
        Err(StorageError::Closed)
    }
}
