//! The identity of an object and the amount that it stores, which have to be known before it is
//! used.

use std::rc::Rc;

use super::Store;
use crate::id::ObjectId;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::layout::Usage;
use crate::storage::space::Space;
use crate::storage::store::account::{Account, ClassAccount};

/// The knowledge of whether an object has anything in the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Present,
    Absent,
}

impl Presence {
    /// That of the object whose header was looked for.
    pub(crate) fn of<T>(header: Option<&T>) -> Self {
        if header.is_some() { Self::Present } else { Self::Absent }
    }
}

impl Store {
    /// The account of the object's storage, while it is in use. If no record has the usage, it is
    /// counted.
    ///
    /// # Errors
    /// `Corrupt`, or the disk can't be read.
    pub(crate) fn account(
        &self,
        object: ObjectId,
        presence: Presence,
        limit: u64,
        class: Option<Rc<ClassAccount>>,
    ) -> Result<Rc<Account>> {
        let record = match presence {
            Presence::Present => self.get(object, Space::Usage, &[])?,
            Presence::Absent => None,
        };
        let usage = self.usage(object, presence, record)?;
        Ok(Account::new(object, usage, limit, class))
    }

    fn usage(
        &self,
        object: ObjectId,
        presence: Presence,
        record: Option<Vec<u8>>,
    ) -> Result<Usage> {
        match record {
            Some(record) => Usage::decode(&record).ok_or_else(|| damaged_usage(object)),
            None if presence == Presence::Present => self.reads.count(object),
            None => Ok(Usage::default()),
        }
    }

    /// An object's header, and its usage, which are needed to wake it, read at once.
    ///
    /// # Errors
    /// As for `account`.
    pub(crate) fn identity(&self, object: ObjectId) -> Result<(Option<Vec<u8>>, Usage)> {
        let [header, usage] = match self.settled_reads(object) {
            Some(reads) => reads.identity(object)?,
            None => [self.get(object, Space::Header, &[])?, self.get(object, Space::Usage, &[])?],
        };
        let usage = self.usage(object, Presence::of(header.as_ref()), usage)?;
        Ok((header, usage))
    }
}

fn damaged_usage(object: ObjectId) -> StorageError {
    StorageError::Corrupt { object, space: Space::Usage as u8, key: String::new() }
}
