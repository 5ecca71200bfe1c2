//! One document, as the crate `yrs` has it in memory, and in the storage: a whole and a tail of
//! later changes.
//!
//! Invariants:
//! - Every change that was applied and isn't written yet is in `unsaved`, so it isn't lost by
//!   reading the storage again.
//! - The storage alone makes the whole document: a change is in the whole or in the tail.

use std::mem;

use capstead::{List, Result, Storage, failed};
use yrs::updates::decoder::Decode;
use yrs::{Doc, GetString, OffsetKind, Options, ReadTxn, StateVector, Transact, Update, WriteTxn};

use super::refused::{Outcome, Refused};
use super::{plain, wire};

/// The most that a document has, with all that is known of its past. One value of the storage has 4
/// MiB.
const DOCUMENT_BYTES_MAX: usize = 3 << 20;
/// Kept free for what only deletes, so that a full document can be made smaller.
const DELETIONS_BYTES: usize = 256 << 10;
/// A tail of fewer entries, and of fewer bytes, is left as it is.
const TAIL_ENTRIES_MAX: usize = 4096;
/// See [`TAIL_ENTRIES_MAX`]. That of a large document may be half as long as the whole.
const TAIL_BYTES_MIN: usize = 256 << 10;

const WHOLE: &str = "whole";
const TAIL: &str = "tail/";
/// The root type that has the text, by the name that the page gives it.
const TEXT: &str = "text";

pub(super) struct Document {
    storage: Storage,
    doc: Doc,
    /// Changes that were applied and aren't written.
    unsaved: Vec<Vec<u8>>,
    /// The number of the next entry of the tail.
    next: u64,
    whole_bytes: usize,
    tail_entries: usize,
    /// With what is unsaved.
    tail_bytes: usize,
}

impl Document {
    pub(super) fn load(storage: Storage) -> Result<Self> {
        let (doc, unsaved) = (new_doc(), Vec::new());
        let mut document =
            Self { storage, doc, unsaved, next: 0, whole_bytes: 0, tail_entries: 0, tail_bytes: 0 };
        document.read()?;
        Ok(document)
    }

    fn read(&mut self) -> Result<()> {
        self.doc = new_doc();
        let mut txn = self.doc.transact_mut();
        let mut apply = |bytes: &[u8]| {
            let update = Update::decode_v1(bytes).map_err(|error| failed(error.to_string()))?;
            txn.apply_update(update).map_err(|error| failed(error.to_string()))
        };
        (self.whole_bytes, self.tail_entries, self.tail_bytes) = (0, 0, 0);
        if let Some(whole) = self.storage.get(WHOLE)? {
            self.whole_bytes = whole.len();
            apply(&whole)?;
        }
        for entry in self.storage.list(List::all().prefix(TAIL))? {
            let (key, change) = entry?;
            let number = key[TAIL.len()..].try_into().map_err(|_| failed("a key of no entry"))?;
            self.next = u64::from_be_bytes(number) + 1;
            self.tail_entries += 1;
            self.tail_bytes += change.len();
            apply(&change)?;
        }
        for change in &self.unsaved {
            self.tail_bytes += change.len();
            apply(change)?;
        }
        Ok(())
    }

    /// Takes a change into memory. It is durable, and may be told to others, after
    /// [`Document::save`].
    pub(super) fn apply(&mut self, change: Vec<u8>) -> Outcome<()> {
        plain::check(&change)?;
        let update = wire::decoded(|| Update::decode_v1(&change))?;
        if update.is_empty() {
            return Ok(());
        }
        let only_deletes = update.state_vector_lower().is_empty();
        let least = if only_deletes { change.len() } else { change.len() + DELETIONS_BYTES };
        if !self.has_room(least) {
            return Err(Refused::Full);
        }
        let mut txn = self.doc.transact_mut();
        let applied = txn.apply_update(update);
        // What waits for another change, which has not come yet, is kept like all others.
        let is_new = txn.has_missing_updates()
            || !txn.insert_set().is_empty()
            || !txn.delete_set().is_empty();
        drop(txn);
        if applied.is_err() {
            // Some of it may have been applied.
            self.read()?;
            return Err(Refused::NotYjs);
        }
        if is_new {
            self.tail_bytes += change.len();
            self.unsaved.push(change);
        }
        Ok(())
    }

    /// Tells whether it may have so many bytes more.
    fn has_room(&self, bytes: usize) -> bool {
        self.whole_bytes + self.tail_bytes + bytes <= DOCUMENT_BYTES_MAX
    }

    pub(super) fn is_saved(&self) -> bool {
        self.unsaved.is_empty()
    }

    /// Writes what isn't written yet, as one change, which is then to be told to everybody.
    ///
    /// # Errors
    /// The memory is ahead of the storage, and whoever has it must not tell anything.
    pub(super) fn save(&mut self) -> Result<Option<Vec<u8>>> {
        let mut unsaved = mem::take(&mut self.unsaved);
        let change = match unsaved.len() {
            0 => return Ok(None),
            1 => unsaved.remove(0),
            _ => yrs::merge_updates_v1(&unsaved).map_err(|error| failed(error.to_string()))?,
        };
        self.storage.put(entry_key(self.next), &change)?;
        self.next += 1;
        self.tail_entries += 1;
        Ok(Some(change))
    }

    /// Tells whether the tail is so long that it should become part of the whole.
    pub(super) fn has_long_tail(&self) -> bool {
        self.tail_entries >= TAIL_ENTRIES_MAX
            || self.tail_bytes >= TAIL_BYTES_MIN.max(self.whole_bytes / 2)
    }

    /// Tells whether there is no room for so many bytes, and might be if the tail became part of
    /// the whole.
    pub(super) fn should_shrink(&self, bytes: usize) -> bool {
        !self.has_room(bytes + DELETIONS_BYTES) && self.tail_bytes > self.whole_bytes / 8
    }

    /// Makes the tail part of the whole. All is saved by then. The time for it is bounded, as a
    /// document is.
    pub(super) fn compact(&mut self) -> Result<()> {
        let whole = self.changes_since(&StateVector::default());
        self.storage.put(WHOLE, &whole)?;
        for entry in self.storage.list(List::all().prefix(TAIL))? {
            self.storage.delete(entry?.0)?;
        }
        (self.whole_bytes, self.tail_entries, self.tail_bytes) = (whole.len(), 0, 0);
        Ok(())
    }

    /// The changes that are known here.
    pub(super) fn state_vector(&self) -> StateVector {
        self.doc.transact().state_vector()
    }

    /// One change with all that somebody lacks.
    pub(super) fn changes_since(&self, known: &StateVector) -> Vec<u8> {
        self.doc.transact().encode_state_as_update_v1(known)
    }

    pub(super) fn text(&self) -> String {
        let mut txn = self.doc.transact_mut();
        let text = txn.get_or_insert_text(TEXT);
        text.get_string(&txn)
    }
}

/// As the JavaScript of all clients has it.
fn new_doc() -> Doc {
    Doc::with_options(Options { offset_kind: OffsetKind::Utf16, ..Options::default() })
}

fn entry_key(number: u64) -> Vec<u8> {
    [TAIL.as_bytes(), &number.to_be_bytes()].concat()
}
