//! A range of an object's keys in which none is left.
//!
//! Deletions that aren't durable yet hide keys that the disk still has, and a list has to skip each
//! of these. A class that removes its least key again and again would skip all the earlier ones
//! each time. So the range without keys that the last list found is remembered and skipped as a
//! whole.
//!
//! It is kept in memory only, and forgotten as soon as a key is added or a deletion undone.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::ops::Bound;

use crate::storage::range::{Direction, Range};
use crate::storage::store::page::Page;

/// The least number of hidden keys that makes a gap worth remembering.
const HIDDEN_MIN: usize = 8;

/// A range without keys.
#[derive(Debug)]
pub(super) struct Gap {
    from: Bound<Vec<u8>>,
    to: Bound<Vec<u8>>,
}

/// A position between keys: before a key (`false`) or after it (`true`).
type Cut<'a> = (&'a [u8], bool);

impl Gap {
    /// The range without its beginning, if that is within the gap.
    pub(super) fn behind<'a>(&self, range: &'a Range) -> Cow<'a, Range> {
        if !self.holds_beginning(range) {
            return Cow::Borrowed(range);
        }
        let mut range = range.clone();
        if range.direction == Direction::Down {
            range.end = turned(&self.from);
        } else {
            range.start = turned(&self.to);
        }
        Cow::Owned(range)
    }

    /// The gap that a list of `range` found, if it had to skip hidden keys before its first key.
    pub(super) fn found(before: Option<Self>, range: &Range, page: &Page) -> Option<Self> {
        if page.hidden_first() < HIDDEN_MIN {
            return before;
        }
        let first = page.get(0).map(|(key, _)| Bound::Excluded(key.to_vec()));
        // The list began where the known gap ended.
        let touching = before.filter(|gap| {
            if range.direction == Direction::Down {
                turned(&gap.from) == range.end
            } else {
                turned(&gap.to) == range.start
            }
        });
        Some(if range.direction == Direction::Down {
            let to = touching.map_or_else(|| range.end.clone(), |gap| gap.to);
            Self { from: first.unwrap_or_else(|| range.start.clone()), to }
        } else {
            let from = touching.map_or_else(|| range.start.clone(), |gap| gap.from);
            Self { from, to: first.unwrap_or_else(|| range.end.clone()) }
        })
    }

    /// Tells whether the list would begin within the gap. A gap without an end doesn't count: a
    /// list of the keys that are left ends at once by itself.
    fn holds_beginning(&self, range: &Range) -> bool {
        let (from, to) = (lower(&self.from), upper(&self.to));
        if range.direction == Direction::Down {
            let (Some(from), end) = (from, upper(&range.end)) else { return false };
            let is_after = end.is_none_or(|end| end > from);
            is_after && compare_upper(end, to) != Ordering::Greater
        } else {
            let (start, Some(to)) = (lower(&range.start), to) else { return false };
            let is_before = start.is_none_or(|start| start < to);
            is_before && start >= from
        }
    }
}

/// The end of one range as the beginning of the next one, or the reverse.
fn turned(bound: &Bound<Vec<u8>>) -> Bound<Vec<u8>> {
    match bound {
        Bound::Included(key) => Bound::Excluded(key.clone()),
        Bound::Excluded(key) => Bound::Included(key.clone()),
        Bound::Unbounded => Bound::Unbounded,
    }
}

/// `None` is before all keys, and less than all other positions.
fn lower(bound: &Bound<Vec<u8>>) -> Option<Cut<'_>> {
    match bound {
        Bound::Included(key) => Some((key, false)),
        Bound::Excluded(key) => Some((key, true)),
        Bound::Unbounded => None,
    }
}

/// `None` is after all keys.
fn upper(bound: &Bound<Vec<u8>>) -> Option<Cut<'_>> {
    match bound {
        Bound::Included(key) => Some((key, true)),
        Bound::Excluded(key) => Some((key, false)),
        Bound::Unbounded => None,
    }
}

fn compare_upper(one: Option<Cut<'_>>, other: Option<Cut<'_>>) -> Ordering {
    match (one, other) {
        (None, None) => Ordering::Equal,
        (None, _) => Ordering::Greater,
        (_, None) => Ordering::Less,
        (Some(one), Some(other)) => one.cmp(&other),
    }
}
