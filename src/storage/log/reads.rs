//! Reads of the records that a log has applied, for the vat thread.

use std::ops::ControlFlow;

use crate::id::ObjectId;
use crate::storage::error::Result;
use crate::storage::lmdb::layout::Usage;
use crate::storage::range::{Range, Visit};
use crate::storage::space::Space;

/// Takes an object, its header, and the amount stored in it.
pub(crate) type VisitObject<'a> = dyn FnMut(ObjectId, &[u8], Usage) + 'a;

/// Reads the records that a log has applied, for the vat thread. A read that begins after
/// blocks were reported as applied sees them.
pub(crate) trait Reads {
    /// Checks that the files of the storage are as they must be.
    ///
    /// # Errors
    /// `FileChanged`, `Io`.
    fn check_files(&self) -> Result<()> {
        Ok(())
    }

    /// The durable value of one key.
    ///
    /// # Errors
    /// `KeyLength`, `Corrupt` (the value is not returned), or the disk can't be read.
    fn get(&self, object: ObjectId, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// The header of an object and its usage record, as of one moment, which are needed to wake it.
    ///
    /// # Errors
    /// As for `get`.
    fn identity(&self, object: ObjectId) -> Result<[Option<Vec<u8>>; 2]> {
        Ok([self.get(object, Space::Header, &[])?, self.get(object, Space::Usage, &[])?])
    }

    /// The durable values of several keys, in the order of the keys, all as of one moment.
    ///
    /// # Errors
    /// As for `get`, of the first key with an error.
    fn get_many(
        &self,
        object: ObjectId,
        space: Space,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>> {
        keys.iter().map(|key| self.get(object, space, key)).collect()
    }

    /// The length of the durable value of one key, which is not checked for damage.
    ///
    /// # Errors
    /// `KeyLength`, or the disk can't be read.
    fn length(&self, object: ObjectId, space: Space, key: &[u8]) -> Result<Option<usize>>;

    /// Visits the durable keys in the order of their bytes, all as of one moment, until `visit` has
    /// enough.
    ///
    /// # Errors
    /// `Corrupt` at a damaged record, after those before it were visited; or the disk can't be
    /// read.
    fn scan(
        &self,
        object: ObjectId,
        space: Space,
        range: &Range,
        visit: &mut Visit<'_>,
    ) -> Result<()>;

    /// Visits the durable records of [`Space::Due`] of all objects, in the order of their keys from
    /// `from` on, until `visit` has enough.
    ///
    /// # Errors
    /// As for `scan`.
    fn due(&self, from: &[u8], visit: &mut Visit<'_>) -> Result<()>;

    /// Visits every object that has a header.
    ///
    /// # Errors
    /// `Corrupt` at a damaged record, after those before it were visited; or the disk can't be
    /// read.
    fn objects(&self, visit: &mut VisitObject<'_>) -> Result<()>;

    /// Counts the records stored in an object.
    ///
    /// # Errors
    /// As for `scan`.
    fn count(&self, object: ObjectId) -> Result<Usage> {
        let mut usage = Usage::default();
        self.scan(object, Space::Data, &Range::all(), &mut |key, value| {
            usage = usage.changed(key.len(), None, Some(value.len()));
            ControlFlow::Continue(())
        })?;
        self.scan(object, Space::Edges, &Range::all(), &mut |_, _| {
            usage.references += 1;
            ControlFlow::Continue(())
        })?;
        for space in [Space::Requests, Space::Grants] {
            self.scan(object, space, &Range::all(), &mut |key, record| {
                usage = usage.changed_record(space, key.len(), (None, Some(record.len())));
                ControlFlow::Continue(())
            })?;
        }
        Ok(usage)
    }
}
