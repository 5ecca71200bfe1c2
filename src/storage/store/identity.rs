//! The identity of an object and the amount that it stores, which have to be known before it is
//! used.

use std::rc::Rc;

use super::Store;
use crate::id::ObjectId;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::layout::Usage;
use crate::storage::space::Space;
use crate::storage::store::account::{Account, ClassAccount};

impl Store {
    /// The account of the object's storage, while it is in use. If no record has the usage, it is
    /// counted.
    ///
    /// # Errors
    /// `Corrupt`, or the disk can't be read.
    pub(crate) fn account(
        &self,
        object: ObjectId,
        exists: bool,
        limit: u64,
        class: Option<Rc<ClassAccount>>,
    ) -> Result<Rc<Account>> {
        let record = if exists { self.get(object, Space::Usage, &[])? } else { None };
        let usage = self.usage(object, exists, record)?;
        Ok(Account::new(object, usage, limit, class))
    }

    fn usage(&self, object: ObjectId, exists: bool, record: Option<Vec<u8>>) -> Result<Usage> {
        match record {
            Some(record) => Usage::decode(&record).ok_or_else(|| damaged_usage(object)),
            None if exists => self.reads.count(object),
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
        let usage = self.usage(object, header.is_some(), usage)?;
        Ok((header, usage))
    }
}

fn damaged_usage(object: ObjectId) -> StorageError {
    StorageError::Corrupt { object, space: Space::Usage as u8, key: String::new() }
}
