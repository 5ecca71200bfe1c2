//! A part of a list: as many keys with their values as are read at a time.
//!
//! A long list is read in pages, each from a snapshot of its own, so that no reader holds old pages of
//! the engine back while its object waits for something.

use std::iter::Peekable;
use std::ops::ControlFlow;

use crate::storage::lmdb::pairs::Pairs;
use crate::storage::range::Direction;
use crate::storage::store::overlay::Entry;

/// The most that a page takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageSize {
    /// At most so many keys.
    pub(crate) entries: usize,
    /// About so many bytes; a last value may go over it.
    pub(crate) bytes: usize,
}

/// Keys and values, in the order of their range.
#[derive(Debug, Default)]
pub(crate) struct Page {
    entries: Pairs,
    /// There may be further keys behind the last one.
    pub(crate) more: bool,
    /// Deleted keys that it passed by before its first one.
    hidden_first: usize,
}

#[cfg(test)]
thread_local! {
    /// Keys that pages of this test's thread passed by, deleted ones too.
    pub(crate) static VISITED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl Page {
    /// No entries, and the first ones may follow.
    pub(crate) fn unread() -> Self {
        Self { more: true, ..Self::default() }
    }

    /// The entry of that number, from 0.
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

/// Fills a page from below, with an overlay above that hides what it has an entry for.
pub(super) struct Filling<'a> {
    overlay: Peekable<Box<dyn Iterator<Item = Entry<'a>> + 'a>>,
    size: PageSize,
    direction: Direction,
    page: Page,
}

impl<'a> Filling<'a> {
    /// It goes into `page`, whose memory is used again.
    pub(super) fn new(
        overlay: Box<dyn Iterator<Item = Entry<'a>> + 'a>,
        size: PageSize,
        direction: Direction,
        mut page: Page,
    ) -> Self {
        page.entries.clear();
        (page.more, page.hidden_first) = (false, 0);
        Self { overlay: overlay.peekable(), size, direction, page }
    }

    /// The next entry from below, in the order of the list.
    pub(super) fn visit(&mut self, key: &[u8], value: &[u8]) -> ControlFlow<()> {
        let direction = self.direction;
        let is_due = |above: &Entry<'_>| comes_first(above.0, key, direction) || above.0 == key;
        while let Some((above, value)) = self.overlay.next_if(is_due) {
            self.push(above, value)?;
            if above == key {
                return ControlFlow::Continue(());
            }
        }
        self.push(key, Some(value))
    }

    /// There is nothing more below.
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

/// Two lists in the same order as one; where both have a key, the entry of the upper one counts.
pub(super) fn over<'a>(
    upper: Box<dyn Iterator<Item = Entry<'a>> + 'a>,
    lower: Box<dyn Iterator<Item = Entry<'a>> + 'a>,
    direction: Direction,
) -> Box<dyn Iterator<Item = Entry<'a>> + 'a> {
    let (mut upper, mut lower) = (upper.peekable(), lower.peekable());
    Box::new(std::iter::from_fn(move || {
        let (Some((above, _)), Some((below, _))) = (upper.peek(), lower.peek()) else {
            return upper.next().or_else(|| lower.next());
        };
        if above == below {
            lower.next();
            upper.next()
        } else if comes_first(above, below, direction) {
            upper.next()
        } else {
            lower.next()
        }
    }))
}

fn comes_first(key: &[u8], other: &[u8], direction: Direction) -> bool {
    match direction {
        Direction::Up => key < other,
        Direction::Down => key > other,
    }
}
