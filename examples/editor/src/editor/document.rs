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

use super::plain::{self, Cuts};
use super::refused::{Outcome, Refused};

/// The most that a document has, with all that is known of its past. One value of the storage has 4
/// MiB.
const DOCUMENT_BYTES_MAX: usize = 3 << 20;
/// Kept free for what only deletes, so that a full document can be made smaller.
const DELETIONS_BYTES: usize = 256 << 10;
/// The most new deletions of one change: each divides a text.
const DELETIONS_MAX: usize = 20_000;
/// A tail of fewer entries, and of fewer bytes, is left as it is.
const TAIL_ENTRIES_MAX: usize = 4096;
/// See [`TAIL_ENTRIES_MAX`]. That of a large document may be half as long as the whole.
const TAIL_BYTES_MIN: usize = 256 << 10;

/// Before the tail in the order of keys. The storage checks the neighbours of a key that it doesn't
/// have yet, and behind the tail the whole would be one for each new entry.
const WHOLE: &str = "document";
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
    /// The bytes that the tail may take beyond its own when it becomes part of the whole.
    tail_growth: usize,
}

impl Document {
    pub(super) fn load(storage: Storage) -> Result<Self> {
        let (doc, unsaved) = (new_doc(), Vec::new());
        let (next, whole_bytes, tail_entries, tail_bytes, tail_growth) = Default::default();
        let mut document = Self {
            storage,
            doc,
            unsaved,
            next,
            whole_bytes,
            tail_entries,
            tail_bytes,
            tail_growth,
        };
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
        (self.whole_bytes, self.tail_entries) = (0, 0);
        (self.tail_bytes, self.tail_growth) = (0, 0);
        let mut count = |change: &[u8]| {
            self.tail_bytes += change.len();
            self.tail_growth += plain::check(change).map_or(0, Cuts::growth);
        };
        if let Some(whole) = self.storage.get(WHOLE)? {
            self.whole_bytes = whole.len();
            apply(&whole)?;
        }
        for entry in self.storage.list(List::all().prefix(TAIL))? {
            let (key, change) = entry?;
            let number = key[TAIL.len()..].try_into().map_err(|_| failed("a key of no entry"))?;
            self.next = u64::from_be_bytes(number) + 1;
            self.tail_entries += 1;
            count(&change);
            apply(&change)?;
        }
        for change in &self.unsaved {
            count(change);
            apply(change)?;
        }
        Ok(())
    }

    /// Takes a change into memory. It is durable, and may be told to others, after
    /// [`Document::save`].
    pub(super) fn apply(&mut self, change: Vec<u8>) -> Outcome<()> {
        let mut cuts = plain::check(&change)?;
        let update = Update::decode_v1(&change).map_err(|_| Refused::NotYjs)?;
        if update.is_empty() {
            return Ok(());
        }
        let only_deletes = update.state_vector_lower().is_empty();
        let reserve = if only_deletes { 0 } else { DELETIONS_BYTES };
        let has_many = cuts.deletions > DELETIONS_MAX;
        if has_many || !self.has_room(change.len() + cuts.growth() + reserve) {
            // A client that comes back sends all deletions of the document.
            cuts.deletions = self.new_deletions(&update);
            if cuts.deletions > DELETIONS_MAX {
                return Err(Refused::TooLarge);
            }
            let adds = !only_deletes || cuts.deletions > 0;
            if adds && !self.has_room(change.len() + cuts.growth() + reserve) {
                return Err(Refused::Full);
            }
        }
        let reach = reach(&update);
        let mut txn = self.doc.transact_mut();
        let applied = txn.apply_update(update);
        // A change that waits for an earlier one, which has not come yet, is kept like all others.
        let waits = txn.has_missing_updates() && !is_within(&reach, &txn.state_vector());
        let is_new = waits || !txn.insert_set().is_empty() || !txn.delete_set().is_empty();
        drop(txn);
        if applied.is_err() {
            // Some of it may have been applied.
            self.read()?;
            return Err(Refused::NotYjs);
        }
        if is_new {
            self.tail_bytes += change.len();
            self.tail_growth += cuts.growth();
            self.unsaved.push(change);
        }
        Ok(())
    }

    /// The number of deletions in a change that the document hasn't. It takes a look at all of the
    /// document.
    fn new_deletions(&self, update: &Update) -> usize {
        let known = self.doc.transact().snapshot().delete_set;
        update.delete_set().diff(&known).iter().map(|(_, ranges)| ranges.iter().count()).sum()
    }

    /// Tells whether it may have so many bytes more.
    fn has_room(&self, bytes: usize) -> bool {
        self.whole_bytes + self.tail_bytes + self.tail_growth + bytes <= DOCUMENT_BYTES_MAX
    }

    pub(super) fn is_saved(&self) -> bool {
        self.unsaved.is_empty()
    }

    /// Writes what isn't written yet, as one change, which is then to be told to everybody.
    ///
    /// # Errors
    /// The memory is ahead of the storage, and the object must not tell anything.
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
        let tail = self.tail_bytes + self.tail_growth;
        !self.has_room(bytes + DELETIONS_BYTES) && tail > self.whole_bytes / 8
    }

    /// Makes the tail part of the whole. All is saved by then. The time for it is bounded, as a
    /// document is.
    pub(super) fn compact(&mut self) -> Result<()> {
        let whole = self.changes_since(&StateVector::default());
        self.storage.put(WHOLE, &whole)?;
        for entry in self.storage.list(List::all().prefix(TAIL))? {
            self.storage.delete(entry?.0)?;
        }
        (self.whole_bytes, self.tail_entries) = (whole.len(), 0);
        (self.tail_bytes, self.tail_growth) = (0, 0);
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

/// The end of what a change adds and deletes, for each client that wrote it.
fn reach(update: &Update) -> StateVector {
    let mut reach = StateVector::default();
    // The update's own state vector leaves out what waits for something earlier.
    let added = update.insertions(true);
    for (client, ranges) in added.iter().chain(update.delete_set().iter()) {
        for range in ranges.iter() {
            reach.set_max(*client, range.end);
        }
    }
    reach
}

/// Tells whether a document that has so much of each client's has all up to there.
fn is_within(reach: &StateVector, has: &StateVector) -> bool {
    reach.iter().all(|(client, end)| *end <= has.get(client))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_entry_of_the_tail_has_no_large_neighbour() {
        assert!(WHOLE.as_bytes() < &*entry_key(0));
    }
}
