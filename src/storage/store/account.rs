//! The bytes and keys that an object stores, and the most that it may.
//!
//! The counts are exact at every moment of a turn, so that a limit is known before a write is
//! accepted; what they were at the end of the last turn is in the object's usage record. Grants and
//! request ids count beside what the class writes, since whoever calls the object makes them grow.
//! Nothing here is stored.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::id::ObjectId;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::layout::Usage;
use crate::storage::range::Range;
use crate::storage::store::gap::Gap;
use crate::storage::store::page::Page;

/// The account of one object's storage, while it is in use.
#[derive(Debug)]
pub(crate) struct Account {
    object: ObjectId,
    usage: Cell<Usage>,
    /// Grows with every change of the keys that the class wrote.
    changes: Cell<u64>,
    /// Ranges in which there is none of the keys that the class wrote, if that is worth
    /// remembering: for lists, and for those from the greatest key to the least.
    gaps: RefCell<[Option<Gap>; 2]>,
    limit: u64,
    class: Option<Rc<ClassAccount>>,
    records: Cell<Counted>,
}

/// The state of an account's count of what the server itself keeps in the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// It is about something else.
    Never,
    /// Its usage may be of a version that didn't count this.
    NotYet,
    Yes,
}

/// The sum of what all objects of a class have in the storage of one host.
#[derive(Debug)]
pub(crate) struct ClassAccount {
    bytes: Cell<u64>,
    limit: u64,
}

impl ClassAccount {
    /// A class that has so many bytes, of so many that it may have.
    pub(crate) fn new(bytes: u64, limit: u64) -> Rc<Self> {
        Rc::new(Self { bytes: Cell::new(bytes), limit })
    }

    fn change(&self, old: u64, new: u64) {
        self.bytes.set((self.bytes.get() + new).saturating_sub(old));
    }
}

impl Account {
    /// An account of an object that stores this much.
    pub(crate) fn new(
        object: ObjectId,
        usage: Usage,
        limit: u64,
        class: Option<Rc<ClassAccount>>,
    ) -> Rc<Self> {
        Self::counting(object, usage, limit, class, Counted::NotYet)
    }

    fn counting(
        object: ObjectId,
        usage: Usage,
        limit: u64,
        class: Option<Rc<ClassAccount>>,
        records: Counted,
    ) -> Rc<Self> {
        let (usage, changes, records) = (Cell::new(usage), Cell::default(), Cell::new(records));
        Rc::new(Self { object, usage, changes, gaps: RefCell::default(), limit, class, records })
    }

    /// An account for records of the server itself where no object is: those of a namespace.
    pub(crate) fn system(object: ObjectId) -> Rc<Self> {
        Self::counting(object, Usage::default(), u64::MAX, None, Counted::Never)
    }

    /// The object whose storage it is.
    pub(crate) fn object(&self) -> ObjectId {
        self.object
    }

    /// The keys and bytes that the object stores, with all of its writes.
    pub(crate) fn usage(&self) -> Usage {
        self.usage.get()
    }

    /// The bytes that the object may have, in all.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// The state of its count of what the server itself keeps in the object.
    pub(super) fn records(&self) -> Counted {
        self.records.get()
    }

    /// The server itself keeps this much in the object now, and has all counted.
    pub(super) fn set_records(&self, usage: Usage) {
        self.records.set(Counted::Yes);
        self.replace(usage);
    }

    /// A number that is another one after every change of what the object stores.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.get()
    }

    /// The range without keys at its beginning that are known to be gone.
    pub(crate) fn left_of<'a>(&self, range: &'a Range) -> Cow<'a, Range> {
        let gaps = self.gaps.borrow();
        gaps[range.direction as usize]
            .as_ref()
            .map_or(Cow::Borrowed(range), |gap| gap.behind(range))
    }

    /// A page from the beginning of `range` was read.
    pub(crate) fn was_read(&self, range: &Range, page: &Page) {
        let gap = &mut self.gaps.borrow_mut()[range.direction as usize];
        *gap = Gap::found(gap.take(), range, page);
    }

    /// Checks that the object may have so much instead of what it has; less is always right.
    ///
    /// # Errors
    /// `OverQuota`, of the object or of its class.
    pub(crate) fn check(&self, wanted: Usage) -> Result<()> {
        let present = self.usage.get();
        if wanted.total() <= present.total() {
            return Ok(());
        }
        if wanted.total() > self.limit {
            let (bytes, max) = (wanted.total(), self.limit);
            return Err(StorageError::OverQuota { whose: "object", bytes, max });
        }
        let Some(class) = &self.class else { return Ok(()) };
        let bytes = class.bytes.get() + (wanted.total() - present.total());
        if bytes > class.limit {
            return Err(StorageError::OverQuota { whose: "class", bytes, max: class.limit });
        }
        Ok(())
    }

    /// Writes were taken back, and the object stores this much again.
    pub(super) fn set_back(&self, usage: Usage) {
        self.gaps.take();
        self.set(usage);
        // The first count may be among the writes that were taken back.
        if self.records.get() == Counted::Yes && (usage.requests, usage.grants) == (0, 0) {
            self.records.set(Counted::NotYet);
        }
    }

    /// The object was written to, and stores this much now.
    pub(super) fn set(&self, usage: Usage) {
        self.changes.set(self.changes.get() + 1);
        if usage.keys > self.replace(usage).keys {
            self.gaps.take();
        }
    }

    fn replace(&self, usage: Usage) -> Usage {
        let before = self.usage.replace(usage);
        if let Some(class) = &self.class {
            class.change(before.total(), usage.total());
        }
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: ObjectId = ObjectId::from_bytes([1; 16]);

    fn bytes(bytes: u64) -> Usage {
        Usage { keys: 1, bytes, ..Usage::default() }
    }

    #[test]
    fn growth_ends_at_the_limit_of_the_object_and_of_its_class() {
        let class = ClassAccount::new(50, 100);
        let account = Account::new(OBJECT, bytes(30), 40, Some(class.clone()));
        let other = Account::new(OBJECT, bytes(20), 1_000, Some(class.clone()));
        account.check(bytes(40)).unwrap();
        let refused = account.check(bytes(41)).unwrap_err().to_string();
        assert!(refused.contains("41 bytes") && refused.contains("40"), "{refused}");
        account.set(bytes(40));
        other.check(bytes(60)).unwrap();
        let refused = other.check(bytes(61)).unwrap_err();
        assert!(matches!(
            refused,
            StorageError::OverQuota { whose: "class", bytes: 101, max: 100 }
        ));
        assert_eq!(class.bytes.get(), 60);
    }

    #[test]
    fn shrinking_is_right_even_above_the_limit() {
        let account = Account::new(OBJECT, bytes(30), 10, None);
        account.check(bytes(29)).unwrap();
        account.check(bytes(30)).unwrap();
        account.check(bytes(31)).unwrap_err();
    }

    #[test]
    fn every_change_changes_the_number() {
        let account = Account::system(OBJECT);
        let before = account.changes();
        account.set(account.usage());
        assert_ne!(account.changes(), before);
    }
}
