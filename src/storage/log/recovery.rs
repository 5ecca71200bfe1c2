//! Reading a log that was not closed in order: which entries follow those that the environment has?
//!
//! Entries are read in their order while each follows the one before, by number and checksum. One
//! entry is written at a time, so only the last can be torn, and that one was not acknowledged. If
//! anything of the same log comes after a place where the order ends, or a tail says that an entry
//! was durable that isn't there, an acknowledged entry is damaged, and nothing is served.
//!
//! **Invariant:** it never skips an entry, and never takes one of another log for its own: the
//! nonce, the segment, the number and the previous checksum must all fit.

use std::io::Read as _;
use std::path::Path;

use crate::storage::error::{Result, StorageError, io_error};
use crate::storage::lmdb::layout::LogState;
use crate::storage::lmdb::owned::Owner;
use crate::storage::log::entry::{
    Entry, Found, HEAD_BYTES, Head, PAGE_BYTES, find, is_of_another, names_another,
};
use crate::storage::log::segments;
use crate::storage::position::{End, Identity, Sum};

/// Looks at the first entry of each segment.
///
/// # Errors
/// `LogOfAnother` when one was written for another environment; `Io`.
pub(super) fn check_identity(dir: &Path, owner: Owner, identity: &Identity) -> Result<()> {
    for number in segments::list(dir)? {
        let path = segments::path(dir, number);
        let failed = io_error("read", &path);
        let mut file = owner.open(&path).map_err(&failed)?;
        let mut bytes = Vec::new();
        (&mut file).take(HEAD_BYTES as u64).read_to_end(&mut bytes).map_err(&failed)?;
        // Only the sum tells another's entry from a damaged one of ours.
        if names_another(&bytes, identity) {
            file.read_to_end(&mut bytes).map_err(&failed)?;
            if is_of_another(&bytes, identity) {
                return Err(StorageError::LogOfAnother { path: path.clone() });
            }
        }
    }
    Ok(())
}

/// Calls `visit`, in order, with each entry after `log.applied`.
///
/// # Errors
/// `LogDamaged` when a segment is missing, or an entry that was acknowledged is; `Io`; the error of
/// `visit`.
pub(super) fn replay(
    dir: &Path,
    owner: Owner,
    log: &LogState,
    visit: &mut dyn FnMut(Entry, End) -> Result<()>,
) -> Result<()> {
    let mut walk = Walk { log, last: None, lost: None, visit };
    let first = log.applied.segment;
    let numbers = segments::list(dir)?.into_iter().filter(|number| *number >= first);
    let numbers: Vec<_> = numbers.collect();
    // Each segment is made while the one before it fills: no number is left out.
    let wanted = first..first + numbers.len().max(1) as u64;
    for number in wanted {
        if !numbers.contains(&number) {
            return Err(damaged(dir, number, walk.expected()));
        }
        let path = segments::path(dir, number);
        let mut bytes = Vec::new();
        let read = owner.open(&path).and_then(|mut file| file.read_to_end(&mut bytes));
        read.map_err(io_error("read", &path))?;
        if !walk.segment(number, &bytes)? {
            return Err(damaged(dir, number, walk.expected()));
        }
    }
    if walk.last.map_or(0, |(number, _)| number) < log.applied.number {
        return Err(damaged(dir, first, walk.expected()));
    }
    Ok(())
}

fn damaged(dir: &Path, segment: u64, entry: u64) -> StorageError {
    StorageError::LogDamaged { path: segments::path(dir, segment), entry }
}

struct Walk<'a> {
    log: &'a LogState,
    /// The number and sum of the last entry.
    last: Option<(u64, Sum)>,
    /// The number of a first entry that can't be read, by the one after it.
    lost: Option<u64>,
    visit: &'a mut dyn FnMut(Entry, End) -> Result<()>,
}

impl Walk<'_> {
    /// The number of the next entry, as far as that is known.
    fn expected(&self) -> u64 {
        let first = self.lost.unwrap_or(self.log.applied.number.max(1));
        self.last.map_or(first, |(number, _)| number + 1)
    }

    /// Reads one segment; returns false if it holds an entry that doesn't follow.
    fn segment(&mut self, segment: u64, bytes: &[u8]) -> Result<bool> {
        let mut at = 0;
        while let Found::Whole(head, entry) = find(&bytes[at..], &self.log.nonce, segment) {
            if !self.follows(&head, &entry) {
                return Ok(false);
            }
            let (number, sum, length) = (entry.number(), entry.sum(), entry.disk_bytes() as usize);
            self.last = Some((number, sum));
            if number > self.log.applied.number {
                (self.visit)(entry, End { number, sum, segment })?;
            }
            at = (at + length).min(bytes.len());
        }
        let is_end = !self.has_more(segment, &bytes[at..]);
        if !is_end && self.last.is_none() {
            self.lost = self.next_whole(segment, &bytes[at..]).map(|number| number - 1);
        }
        Ok(is_end)
    }

    /// The number of the first whole entry in these bytes.
    fn next_whole(&self, segment: u64, bytes: &[u8]) -> Option<u64> {
        (0..bytes.len()).step_by(PAGE_BYTES).find_map(|at| {
            match find(&bytes[at..], &self.log.nonce, segment) {
                Found::Whole(head, _) if head.number > 1 => Some(head.number),
                Found::Tail(head) => Some(head.number + 1),
                _ => None,
            }
        })
    }

    fn follows(&self, head: &Head, entry: &Entry) -> bool {
        let applied = &self.log.applied;
        if head.number == applied.number && entry.sum() != applied.sum {
            return false;
        }
        match self.last {
            Some((number, sum)) => head.number == number + 1 && head.previous == sum,
            // The first one: those before it were applied and removed.
            None if applied.number == 0 => head.number == 1 && head.previous == Sum::default(),
            None => head.number <= applied.number,
        }
    }

    /// Tells whether any other entry of the log begins here than the one that may be torn, or a
    /// tail of one that wasn't read.
    fn has_more(&self, segment: u64, bytes: &[u8]) -> bool {
        let expected = self.expected();
        bytes.chunks(PAGE_BYTES).enumerate().any(|(page, _)| {
            match find(&bytes[page * PAGE_BYTES..], &self.log.nonce, segment) {
                Found::Nothing => false,
                Found::Torn(head) => head.number != expected,
                Found::Tail(head) => head.number >= expected,
                Found::Whole(..) => true,
            }
        })
    }
}

#[cfg(test)]
mod tests;
