//! A part of a list: the keys, with their values, that are read at a time.
//!
//! A long list is read in pages, each from a snapshot of its own. So no reader holds back old pages
//! of the engine while its object waits for something.

use std::iter::Peekable;
use std::ops::ControlFlow;

use itertools::Itertools;

use crate::storage::lmdb::pairs::Pairs;
use crate::storage::range::Direction;
use crate::storage::store::overlay::LayerEntry;

/// The largest size of a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageSize {
    /// The most keys.
    pub(crate) entries: usize,
    /// The bytes, about: the last value may exceed this.
    pub(crate) bytes: usize,
}

/// Keys and values, in the order of their range.
#[derive(Debug, Default)]
pub(crate) struct Page {
    entries: Pairs,
    /// Set if there may be further keys after the last one.
    pub(crate) more: bool,
    /// The number of deleted keys that were skipped before the first key.
    hidden_first: usize,
}

#[cfg(test)]
thread_local! {
    /// The number of keys that pages on this test's thread visited, including deleted ones.
    pub(crate) static VISITED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl Page {
    /// An empty page before the beginning of a list.
    pub(crate) fn unread() -> Self {
        Self { more: true, ..Self::default() }
    }

    /// The entry with this index.
    pub(crate) fn get(&self, number: usize) -> Option<(&[u8], &[u8])> {
        self.entries.get(number)
    }

    pub(super) fn hidden_first(&self) -> usize {
        self.hidden_first
    }

    /// The number of entries.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

/// Fills a page with entries from below, and with an overlay above that hides those for which it
/// has one.
pub(super) struct Filling<'a> {
    overlay: Peekable<Box<dyn Iterator<Item = LayerEntry<'a>> + 'a>>,
    size: PageSize,
    direction: Direction,
    page: Page,
}

impl<'a> Filling<'a> {
    /// Starts with `page`, whose memory is reused.
    pub(super) fn new(
        overlay: Box<dyn Iterator<Item = LayerEntry<'a>> + 'a>,
        size: PageSize,
        direction: Direction,
        mut page: Page,
    ) -> Self {
        page.entries.clear();
        (page.more, page.hidden_first) = (false, 0);
        Self { overlay: overlay.peekable(), size, direction, page }
    }

    /// Takes the next entry from below, in the order of the list.
    pub(super) fn visit(&mut self, key: &[u8], value: &[u8]) -> ControlFlow<()> {
        let direction = self.direction;
        let is_due =
            |above: &LayerEntry<'_>| comes_first(above.0, key, direction) || above.0 == key;
        while let Some((above, value)) = self.overlay.next_if(is_due) {
            self.push(above, value)?;
            if above == key {
                return ControlFlow::Continue(());
            }
        }
        self.push(key, Some(value))
    }

    /// Ends the page after the last entry from below.
    pub(super) fn finish(mut self) -> Page {
        while !self.page.more
            && let Some((key, value)) = self.overlay.next()
        {
            let _ = self.push(key, value);
        }
        self.page
    }

    fn push(&mut self, key: &[u8], value: Option<&[u8]>) -> ControlFlow<()> {
        #[cfg(test)]
        VISITED.set(VISITED.get() + 1);
        let Some(value) = value else {
            self.page.hidden_first += usize::from(self.page.entries.len() == 0);
            return ControlFlow::Continue(());
        };
        self.page.entries.push(key, value);
        let (entries, bytes) = (self.page.entries.len(), self.page.entries.bytes());
        self.page.more = entries >= self.size.entries || bytes >= self.size.bytes;
        if self.page.more { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// Merges two lists in the same order; where both have a key, the upper entry counts.
pub(super) fn over<'a>(
    upper: Box<dyn Iterator<Item = LayerEntry<'a>> + 'a>,
    lower: Box<dyn Iterator<Item = LayerEntry<'a>> + 'a>,
    direction: Direction,
) -> Box<dyn Iterator<Item = LayerEntry<'a>> + 'a> {
    let order = move |upper: &LayerEntry<'_>, lower: &LayerEntry<'_>| {
        let ascending = upper.0.cmp(lower.0);
        match direction {
            Direction::Up => ascending,
            Direction::Down => ascending.reverse(),
        }
    };
    Box::new(upper.merge_join_by(lower, order).map(|of_one| of_one.reduce(|upper, _| upper)))
}

fn comes_first(key: &[u8], other: &[u8], direction: Direction) -> bool {
    match direction {
        Direction::Up => key < other,
        Direction::Down => key > other,
    }
}
