//! A part of an object's keys of which nothing is left.
//!
//! Deletions that aren't durable yet hide what the disk has: a list must pass by each such key.
//! Whoever takes the least key away again and again would pass by all of those before, so that the
//! part without keys that the last list found is remembered and jumped over.
//!
//! It is kept in memory alone, and forgotten as soon as a key is added or a deletion undone.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::ops::Bound;

use crate::storage::range::{Direction, Range};
use crate::storage::store::page::Page;

/// Hidden keys that are passed by before they are worth remembering.
const HIDDEN_MIN: usize = 8;

/// From where to where no key is.
#[derive(Debug)]
pub(super) struct Gap {
    from: Bound<Vec<u8>>,
    to: Bound<Vec<u8>>,
}

/// A place between keys: before a key, or behind it.
type Cut<'a> = (&'a [u8], bool);

impl Gap {
    /// The range without what it begins with of the gap.
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

    /// The gap that a list of `range` found, where it had to pass by hidden keys before its first
    /// one.
    pub(super) fn found(before: Option<Self>, range: &Range, page: &Page) -> Option<Self> {
        if page.hidden_first() < HIDDEN_MIN {
            return before;
        }
        let first = page.get(0).map(|(key, _)| Bound::Excluded(key.to_vec()));
        // The list began where the gap that was known ended.
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

    /// Tells whether the list would begin within the gap. If the gap has no end, a list of all that
    /// is left says so soon by itself.
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

/// The end of one part as the beginning of the next one, or the other way round.
fn turned(bound: &Bound<Vec<u8>>) -> Bound<Vec<u8>> {
    match bound {
        Bound::Included(key) => Bound::Excluded(key.clone()),
        Bound::Excluded(key) => Bound::Included(key.clone()),
        Bound::Unbounded => Bound::Unbounded,
    }
}

/// None before all keys, which is less than all else.
fn lower(bound: &Bound<Vec<u8>>) -> Option<Cut<'_>> {
    match bound {
        Bound::Included(key) => Some((key, false)),
        Bound::Excluded(key) => Some((key, true)),
        Bound::Unbounded => None,
    }
}

/// None behind all keys.
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
