//! Random lists, and the entries that they must give according to a sorted map alone.
//!
//! A list continues after its last key, as in `host/api/list.rs`, while writes may come in between.
//! The expected entries are found by comparing keys one by one, without any code of the ranges
//! under test.

use std::ops::Bound;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::Map;
use super::keys::{Pick, pick};
use crate::storage::range::{Direction, Range};
use crate::storage::store::page::{Page, PageSize};

/// The terms of a list, made before its storage is known.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    start: Bound<(Pick, Vec<u8>)>,
    end: Bound<(Pick, Vec<u8>)>,
    /// The beginning, of this length, of a present key.
    prefix: Option<(Pick, Index)>,
    direction: Direction,
}

pub(super) fn wish() -> impl Strategy<Value = Wish> {
    let prefix = proptest::option::weighted(0.4, (pick(), any::<Index>()));
    let wish = (bound(), bound(), prefix, any::<bool>());
    wish.prop_map(|(start, end, prefix, is_down)| {
        let direction = if is_down { Direction::Down } else { Direction::Up };
        Wish { start, end, prefix, direction }
    })
}

/// Some bounds are longer than any key can be.
fn bound() -> impl Strategy<Value = Bound<(Pick, Vec<u8>)>> {
    let tail = vec(select(vec![0x00, b'a', 0xff]), 0..2);
    (0..4, pick(), tail).prop_map(|(kind, key, tail)| match kind {
        0 => Bound::Included((key, tail)),
        1 => Bound::Excluded((key, tail)),
        _ => Bound::Unbounded,
    })
}

pub(super) fn size() -> impl Strategy<Value = PageSize> {
    let bytes = select(vec![1, 600, 5_000, 1 << 20]);
    (1..12usize, bytes).prop_map(|(entries, bytes)| PageSize { entries, bytes })
}

impl Wish {
    /// The list over the present keys.
    pub(super) fn listing(self, present: &Map) -> Listing {
        let bound = |bound: Bound<(Pick, Vec<u8>)>| {
            bound.map(|(pick, tail)| [pick.key(present), tail].concat())
        };
        let prefix = self.prefix.map_or_else(Vec::new, |(pick, length)| {
            let mut key = pick.key(present);
            key.truncate(length.index(key.len() + 1));
            key
        });
        let (start, end) = (bound(self.start), bound(self.end));
        let bounds = Range { start: start.clone(), end: end.clone(), direction: self.direction };
        let range = bounds.within(&prefix);
        Listing { start, end, prefix, range, last: None }
    }
}

/// A list in progress.
#[derive(Debug)]
pub(super) struct Listing {
    start: Bound<Vec<u8>>,
    end: Bound<Vec<u8>>,
    prefix: Vec<u8>,
    /// The remaining range, with which the storage is asked.
    pub(super) range: Range,
    /// The last key that the list gave.
    last: Option<Vec<u8>>,
}

impl Listing {
    pub(super) fn all(direction: Direction) -> Self {
        let (start, end, prefix) = (Bound::Unbounded, Bound::Unbounded, Vec::new());
        Self { start, end, prefix, range: Range { direction, ..Range::all() }, last: None }
    }

    /// The entries that the list must give, in its order.
    pub(super) fn expected<'a>(&self, map: &'a Map) -> Vec<(&'a [u8], &'a [u8])> {
        let within = map.iter().filter(|(key, _)| self.is_within(key));
        let mut expected: Vec<_> = within.map(|(key, value)| (&key[..], &value[..])).collect();
        if self.range.direction == Direction::Down {
            expected.reverse();
        }
        expected
    }

    fn is_within(&self, key: &Vec<u8>) -> bool {
        let after = match &self.start {
            Bound::Included(start) => key >= start,
            Bound::Excluded(start) => key > start,
            Bound::Unbounded => true,
        };
        let before = match &self.end {
            Bound::Included(end) => key <= end,
            Bound::Excluded(end) => key < end,
            Bound::Unbounded => true,
        };
        let ahead = match &self.last {
            Some(last) if self.range.direction == Direction::Down => key < last,
            Some(last) => key > last,
            None => true,
        };
        after && before && ahead && key.starts_with(&self.prefix)
    }

    /// Checks the next page, and continues after it.
    pub(super) fn check_page(&mut self, map: &Map, size: PageSize, page: &Page) {
        let expected = self.expected(map);
        let (mut fit, mut bytes) = (0, 0);
        while fit < expected.len() && fit < size.entries && bytes < size.bytes {
            bytes += expected[fit].0.len() + expected[fit].1.len();
            fit += 1;
        }
        let given: Vec<_> = (0..page.len()).map(|number| page.get(number).unwrap()).collect();
        assert!(given == expected[..fit], "{} of {fit} keys of {self:?}", page.len());
        assert!(page.get(page.len()).is_none());
        assert!(page.more || fit == expected.len(), "a list ended too early: {self:?}");
        assert!(fit > 0 || !page.more, "a list never ends: {self:?}");
        let Some((last, _)) = given.last() else { return };
        self.last = Some(last.to_vec());
        let behind = Bound::Excluded(last.to_vec());
        if self.range.direction == Direction::Down {
            self.range.end = behind;
        } else {
            self.range.start = behind;
        }
    }
}
