//! Values that are in memory as well as in the storage, and equal at all times.
//!
//! Every write of a key tells the values that mirror it: another value of the same key, a plain
//! write, a clearing, a transaction that is undone. So a mirror never has to read the storage
//! again, and reading it can't fail. A write that a mirror couldn't take is refused before it is
//! made.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use crate::error::{Reason, Result};

/// Puts a value back that a transaction changed.
pub(in crate::host) type PutBack = Box<dyn FnOnce()>;

/// The steps of undoing a transaction.
enum Undo {
    PutBack(PutBack),
    /// The mirror was made within the transaction: it is to read its key again.
    Reload(Rc<[u8]>, Weak<dyn Mirror>),
}

/// A value in memory that stands for a key.
pub(in crate::host) trait Mirror {
    /// Tells whether these bytes can be such a value.
    fn accepts(&self, stored: &[u8]) -> bool;

    /// The key has these bytes now; none if it was deleted.
    fn update(&self, stored: Option<&[u8]>);

    /// The bytes of the present value in the storage.
    fn length(&self) -> usize;

    /// A function that puts the present value back.
    fn keep(self: Rc<Self>) -> PutBack;
}

struct MirroredKey {
    key: Rc<[u8]>,
    mirror: Weak<dyn Mirror>,
}

/// The mirrors of one instance. There are few, so they are looked for one after the other.
#[derive(Default)]
pub(in crate::host) struct Mirrors {
    entries: RefCell<Vec<MirroredKey>>,
    /// The steps that put back what the open transactions changed; none if there is no transaction.
    undo: RefCell<Option<Vec<Undo>>>,
}

/// The place at which a transaction began.
#[must_use]
pub(in crate::host) struct UndoMark(Option<usize>);

impl Mirrors {
    /// From now on `mirror` is told what is written under `key`, for as long as it exists.
    pub(in crate::host) fn add(&self, key: Rc<[u8]>, mirror: Weak<dyn Mirror>) {
        let mut entries = self.entries.borrow_mut();
        entries.retain(|entry| entry.mirror.strong_count() > 0);
        // Most objects have one, and there may be very many objects.
        entries.reserve_exact(1);
        if let Some(undo) = &mut *self.undo.borrow_mut() {
            undo.push(Undo::Reload(key.clone(), mirror.clone()));
        }
        entries.push(MirroredKey { key, mirror });
    }

    /// The bytes of all values.
    pub(in crate::host) fn bytes(&self) -> usize {
        let entries = self.entries.borrow();
        entries
            .iter()
            .filter_map(|entry| entry.mirror.upgrade())
            .map(|mirror| mirror.length())
            .sum()
    }

    /// # Errors
    /// When a mirror of the key, other than the writer, can't be what is to be written.
    pub(in crate::host) fn check(
        &self,
        key: &[u8],
        value: Option<&[u8]>,
        writer: Option<&dyn Mirror>,
    ) -> Result<()> {
        let Some(value) = value else { return Ok(()) };
        if self.of(key, writer).any(|mirror| !mirror.accepts(value)) {
            let key = key.escape_ascii();
            return Err(
                Reason::WrongType.error(format_args!("the class keeps another type under {key}"))
            );
        }
        Ok(())
    }

    /// The key was written, by the mirror `writer` if there is one.
    pub(in crate::host) fn wrote(
        &self,
        key: &[u8],
        value: Option<&[u8]>,
        writer: Option<&dyn Mirror>,
    ) {
        for mirror in self.of(key, writer) {
            self.keep_in_transaction(mirror.clone());
            mirror.update(value);
        }
    }

    /// All keys were deleted.
    pub(in crate::host) fn cleared(&self) {
        for mirror in self.all() {
            self.keep_in_transaction(mirror.clone());
            mirror.update(None);
        }
    }

    /// The mirror is about to write its key: an open transaction can put its value back.
    pub(in crate::host) fn keep_in_transaction(&self, mirror: Rc<dyn Mirror>) {
        if self.undo.borrow().is_none() {
            return;
        }
        // A class's own code may run in here.
        let put_back = mirror.keep();
        if let Some(undo) = &mut *self.undo.borrow_mut() {
            undo.push(Undo::PutBack(put_back));
        }
    }

    /// A transaction begins.
    pub(in crate::host) fn begin(&self) -> UndoMark {
        let mut undo = self.undo.borrow_mut();
        let mark = UndoMark(undo.as_ref().map(Vec::len));
        undo.get_or_insert_default();
        mark
    }

    /// The transaction that began there has succeeded.
    pub(in crate::host) fn keep(&self, mark: UndoMark) {
        if mark.0.is_none() {
            // Dropped when nothing is borrowed, since values may be of any type.
            let done = self.undo.take();
            drop(done);
        }
    }

    /// The transaction that began there is undone, in the storage already; `read` reads that.
    pub(in crate::host) fn undo(&self, mark: UndoMark, read: impl Fn(&[u8]) -> Option<Vec<u8>>) {
        let changed = match &mut *self.undo.borrow_mut() {
            Some(undo) => undo.split_off(mark.0.unwrap_or(0)),
            None => return,
        };
        for undo in changed.into_iter().rev() {
            match undo {
                Undo::PutBack(put_back) => put_back(),
                Undo::Reload(key, mirror) => {
                    if let Some(present) = mirror.upgrade() {
                        present.update(read(&key).as_deref());
                    }
                    // An outer transaction began before the mirror was made as well.
                    if mark.0.is_some()
                        && let Some(outer) = &mut *self.undo.borrow_mut()
                    {
                        outer.push(Undo::Reload(key, mirror));
                    }
                }
            }
        }
        self.keep(mark);
    }

    fn all(&self) -> Vec<Rc<dyn Mirror>> {
        self.entries.borrow().iter().filter_map(|entry| entry.mirror.upgrade()).collect()
    }

    fn of(&self, key: &[u8], writer: Option<&dyn Mirror>) -> impl Iterator<Item = Rc<dyn Mirror>> {
        let writer = writer.map(std::ptr::from_ref::<dyn Mirror>);
        let entries = self.entries.borrow();
        let others = entries.iter().filter(|entry| {
            let is_writer = |writer| std::ptr::addr_eq(entry.mirror.as_ptr(), writer);
            *entry.key == *key && !writer.is_some_and(is_writer)
        });
        let mirrors: Vec<_> = others.filter_map(|entry| entry.mirror.upgrade()).collect();
        mirrors.into_iter()
    }
}
