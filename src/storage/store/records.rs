//! The records that the server itself keeps of an object, beside what its class stores.
//!
//! They are written in the object's turns and read like everything else. They count neither for what
//! the object stores nor for its quota, and the class never sees them.

use super::Store;
use crate::id::ObjectId;
use crate::storage::committer::Ticket;
use crate::storage::layout::Space;
use crate::storage::log::Range;
use crate::storage::page::{Page, PageSize};
use crate::storage::{Result, StorageError};

impl Store {
    /// Sets a record of the server itself; the ticket is that of the open turn.
    ///
    /// # Errors
    /// `OutsideTurn`, `KeyLength`, `ValueLength`, `BatchSize`, `Latched`: as for `put`.
    pub(crate) fn put_record(
        &mut self,
        object: ObjectId,
        space: Space,
        key: &[u8],
        value: &[u8],
    ) -> Result<Ticket> {
        let ticket = self.committer.next_ticket();
        let turn = self.turn_of(object)?;
        turn.writes.put(space, key, value)?;
        turn.remember(space, key, ticket, Some(value.into()));
        Ok(ticket)
    }

    /// Removes a record of the server itself, which need not be there.
    ///
    /// # Errors
    /// `OutsideTurn`, `KeyLength`, `BatchSize`, `Latched`: nothing was written.
    pub(crate) fn delete_record(
        &mut self,
        object: ObjectId,
        space: Space,
        key: &[u8],
    ) -> Result<Ticket> {
        let ticket = self.committer.next_ticket();
        let turn = self.turn_of(object)?;
        turn.writes.delete(space, key)?;
        turn.remember(space, key, ticket, None);
        Ok(ticket)
    }

    /// Some records of the server itself, in the order of their keys.
    ///
    /// # Errors
    /// `Corrupt`, or that the disk can't be read.
    pub(crate) fn records(
        &self,
        object: ObjectId,
        space: Space,
        range: &Range,
        size: PageSize,
    ) -> Result<Page> {
        self.page_of(object, space, range, size, Page::default())
    }

    /// The least and the greatest key of a space that begin with `prefix`, if there are any.
    ///
    /// # Errors
    /// `Corrupt`, or that the disk can't be read.
    pub(crate) fn ends(
        &self,
        object: ObjectId,
        space: Space,
        prefix: &[u8],
    ) -> Result<Option<[Vec<u8>; 2]>> {
        const ONE: PageSize = PageSize { entries: 1, bytes: usize::MAX };
        let end = |reverse| {
            let range = Range { reverse, ..Range::all().within(prefix) };
            let page = self.page_of(object, space, &range, ONE, Page::default())?;
            Ok::<_, StorageError>(page.get(0).map(|(key, _)| key.to_vec()))
        };
        let (Some(least), Some(greatest)) = (end(false)?, end(true)?) else { return Ok(None) };
        Ok(Some([least, greatest]))
    }

    /// Checks that there is room for more records.
    ///
    /// # Errors
    /// `LowSpace`.
    pub(crate) fn check_room(&self) -> Result<()> {
        self.room.check_growth()
    }
}
