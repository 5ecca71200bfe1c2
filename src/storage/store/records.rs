//! The records that the server itself keeps of an object, in addition to the class's values.
//!
//! They are written in the object's turns and read like all others. Grants and request ids count
//! towards the object's quota, the others don't, and the class never sees any of them.

use std::ops::Bound;

use super::Store;
use crate::id::ObjectId;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::layout::Usage;
use crate::storage::log::committer::Ticket;
use crate::storage::range::{Direction, Range};
use crate::storage::space::Space;
use crate::storage::store::account::{Account, Counted};
use crate::storage::store::page::{Page, PageSize};

impl Store {
    /// The ticket that the open turn will get.
    pub(crate) fn open_ticket(&self) -> Ticket {
        self.committer.next_ticket()
    }

    /// Sets a record of the server itself; returns the ticket of the open turn.
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
        let counted = self.counted(object, space, key, Some(value.len()))?;
        let ticket = self.committer.next_ticket();
        let turn = self.turn_of(object)?;
        turn.writes.put(space, key, value)?;
        turn.remember(space, key, ticket, Some(value.into()));
        if let Some(usage) = counted {
            turn.account.set_records(usage);
        }
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
        let counted = self.counted(object, space, key, None)?;
        let ticket = self.committer.next_ticket();
        let turn = self.turn_of(object)?;
        turn.writes.delete(space, key)?;
        turn.remember(space, key, ticket, None);
        if let Some(usage) = counted {
            turn.account.set_records(usage);
        }
        Ok(ticket)
    }

    /// The object's usage after a record of the server itself gets another length; `None` if the
    /// record doesn't count.
    fn counted(
        &mut self,
        object: ObjectId,
        space: Space,
        key: &[u8],
        length: Option<usize>,
    ) -> Result<Option<Usage>> {
        if !space.is_counted() {
            return Ok(None);
        }
        let account = self.turn_of(object)?.account.clone();
        if account.records() == Counted::Never {
            return Ok(None);
        }
        let mut usage = account.usage();
        // Versions that didn't count such records left both numbers 0.
        if account.records() == Counted::NotYet && (usage.requests, usage.grants) == (0, 0) {
            usage = self.count_records(object, usage)?;
        }
        let before = self.length(object, space, key)?;
        Ok(Some(usage.changed_record(space, key.len(), (before, length))))
    }

    /// Adds the records of grants and request ids to `usage`.
    fn count_records(&self, object: ObjectId, mut usage: Usage) -> Result<Usage> {
        const SOME: PageSize = PageSize { entries: 256, bytes: 1 << 20 };
        for space in [Space::Requests, Space::Grants] {
            let mut range = Range::all();
            loop {
                let page = self.records(object, space, &range, SOME)?;
                let mut last = None;
                for (key, record) in (0..).map_while(|at| page.get(at)) {
                    usage = usage.changed_record(space, key.len(), (None, Some(record.len())));
                    last = Some(key.to_vec());
                }
                let Some(last) = last else { break };
                range.start = Bound::Excluded(last);
            }
        }
        Ok(usage)
    }

    /// Checks that this many bytes more may be stored in records that the class doesn't write.
    ///
    /// # Errors
    /// `OverQuota`, `LowSpace`.
    pub(crate) fn check_records(&self, account: &Account, bytes: usize) -> Result<()> {
        let usage = account.usage();
        account.check(Usage { requests: usage.requests.saturating_add(bytes as u64), ..usage })?;
        self.check_growth(bytes)
    }

    /// Some of the server's own records, in the order of their keys.
    ///
    /// # Errors
    /// `Corrupt`, or the disk can't be read.
    pub(crate) fn records(
        &self,
        object: ObjectId,
        space: Space,
        range: &Range,
        size: PageSize,
    ) -> Result<Page> {
        self.page_of(object, space, range, size, Page::default())
    }

    /// The least and the greatest key in a space that begin with `prefix`, if there are any.
    ///
    /// # Errors
    /// `Corrupt`, or the disk can't be read.
    pub(crate) fn ends(
        &self,
        object: ObjectId,
        space: Space,
        prefix: &[u8],
    ) -> Result<Option<[Vec<u8>; 2]>> {
        const ONE: PageSize = PageSize { entries: 1, bytes: usize::MAX };
        let end = |direction| {
            let range = Range { direction, ..Range::all().within(prefix) };
            let page = self.page_of(object, space, &range, ONE, Page::default())?;
            Ok::<_, StorageError>(page.get(0).map(|(key, _)| key.to_vec()))
        };
        let (Some(least), Some(greatest)) = (end(Direction::Up)?, end(Direction::Down)?) else {
            return Ok(None);
        };
        Ok(Some([least, greatest]))
    }

    /// Checks that there is room for more records.
    ///
    /// # Errors
    /// `LowSpace`.
    pub(crate) fn check_room(&self) -> Result<()> {
        self.check_growth(0)
    }

    /// Checks that there is room for this many bytes more, after all that was accepted.
    ///
    /// # Errors
    /// `LowSpace`.
    pub(super) fn check_growth(&self, bytes: usize) -> Result<()> {
        self.room.check_growth(self.bytes_accepted() + bytes as u64)
    }

    /// The bytes of turns that may not be in the log yet.
    fn bytes_accepted(&self) -> u64 {
        let open = self.turn.as_ref().map_or(0, |turn| turn.writes.as_bytes().len());
        self.committer.bytes_unlogged() + open as u64
    }

    /// Checks that there is room for a step of an import, which may be large.
    ///
    /// # Errors
    /// `LowSpace`.
    pub(crate) fn check_import(&self) -> Result<()> {
        self.room.check_import(self.bytes_accepted())
    }
}
