//! The bytes and keys that an object stores, and the most that it may store.
//!
//! The counts are exact at every moment of a turn, so a limit is checked before a write is
//! accepted. The object's usage record has the counts of the end of the last turn. Grants and
//! request ids count in addition to the class's values, since the object's callers make them grow.
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
    /// Grows with every change of the class's keys.
    changes: Cell<u64>,
    /// Ranges without keys of the class, where they are worth remembering: one for lists in
    /// ascending order, one for lists in descending order. Few objects have any.
    gaps: RefCell<Option<Box<[Option<Gap>; 2]>>>,
    limit: u64,
    class: Option<Rc<ClassAccount>>,
    records: Cell<Counted>,
}

/// Tells whether an account counts the records that the server itself keeps in the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// It doesn't: the account is not an object's.
    Never,
    /// Perhaps not: its usage may come from a version that didn't count them.
    NotYet,
    Yes,
}

/// The sum over all objects of a class in one host's storage.
#[derive(Debug)]
pub(crate) struct ClassAccount {
    bytes: Cell<u64>,
    limit: u64,
}

impl ClassAccount {
    /// A class with this many bytes stored, and this limit.
    pub(crate) fn new(bytes: u64, limit: u64) -> Rc<Self> {
        Rc::new(Self { bytes: Cell::new(bytes), limit })
    }

    fn change(&self, old: u64, new: u64) {
        self.bytes.set((self.bytes.get() + new).saturating_sub(old));
    }
}

impl Account {
    /// The account of an object that stores this much.
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

    /// An account for records of the server itself that belong to no object: those of a namespace.
    pub(crate) fn system(object: ObjectId) -> Rc<Self> {
        Self::counting(object, Usage::default(), u64::MAX, None, Counted::Never)
    }

    /// The object whose storage it is.
    pub(crate) fn object(&self) -> ObjectId {
        self.object
    }

    /// The keys and bytes that the object stores, including all of its writes.
    pub(crate) fn usage(&self) -> Usage {
        self.usage.get()
    }

    /// The most bytes that the object may store in all.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Tells whether the server's own records in the object are counted.
    pub(super) fn records(&self) -> Counted {
        self.records.get()
    }

    /// Sets the usage after the server's own records were all counted.
    pub(super) fn set_records(&self, usage: Usage) {
        self.records.set(Counted::Yes);
        self.replace(usage);
    }

    /// A number that differs after every change of the object's content.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.get()
    }

    /// The range without a beginning that is known to have no keys.
    pub(crate) fn left_of<'a>(&self, range: &'a Range) -> Cow<'a, Range> {
        let gaps = self.gaps.borrow();
        let gap = gaps.as_ref().and_then(|gaps| gaps[range.direction as usize].as_ref());
        gap.map_or(Cow::Borrowed(range), |gap| gap.behind(range))
    }

    /// Learns from a page that was read from the beginning of `range`.
    pub(crate) fn was_read(&self, range: &Range, page: &Page) {
        let (mut gaps, at) = (self.gaps.borrow_mut(), range.direction as usize);
        let before = gaps.as_mut().and_then(|gaps| gaps[at].take());
        if let Some(gap) = Gap::found(before, range, page) {
            gaps.get_or_insert_default()[at] = Some(gap);
        }
    }

    /// Checks that the object may store this much instead of its present amount. Storing less is
    /// always allowed.
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

    /// Sets the usage back after writes were undone.
    pub(super) fn set_back(&self, usage: Usage) {
        self.gaps.take();
        self.set(usage);
        // The first count of the records may be among the writes that were undone.
        if self.records.get() == Counted::Yes && (usage.requests, usage.grants) == (0, 0) {
            self.records.set(Counted::NotYet);
        }
    }

    /// Sets the usage after a write to the object.
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
