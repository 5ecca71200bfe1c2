//! Lists of an object's keys: which ones, and how they are read.

use std::fmt;
use std::ops::{Bound, ControlFlow};
use std::rc::Rc;

use crate::error::{Result, failed};
use crate::host::state::instance::Instance;
use crate::storage::{Direction, Page, PageSize, Range, Reads, Space};

/// The most that is read at a time: long enough that few snapshots are taken, and short enough to
/// be let go.
const PAGE: PageSize = PageSize { entries: 1_000, bytes: 256 << 10 };

/// Keys of the first page. As many again are read as were needed, since what was read ahead is read
/// once more when the object was written to.
const FIRST_PAGE_KEYS: usize = 32;

/// The keys to list, and their order.
///
/// ```
/// use capstead::List;
///
/// let newest_ten = List::all().prefix("message/").reverse().limit(10);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct List {
    start: Option<Vec<u8>>,
    start_after: Option<Vec<u8>>,
    end: Option<Vec<u8>>,
    prefix: Vec<u8>,
    direction: Direction,
    pub(in crate::host) limit: Option<usize>,
}

impl List {
    /// All keys, the least first.
    pub fn all() -> Self {
        Self::default()
    }

    /// No key less than this one.
    pub fn start(mut self, key: impl AsRef<[u8]>) -> Self {
        self.start = Some(key.as_ref().to_vec());
        self
    }

    /// Only keys greater than this one; not together with [`List::start`].
    pub fn start_after(mut self, key: impl AsRef<[u8]>) -> Self {
        self.start_after = Some(key.as_ref().to_vec());
        self
    }

    /// Only keys less than this one.
    pub fn end(mut self, key: impl AsRef<[u8]>) -> Self {
        self.end = Some(key.as_ref().to_vec());
        self
    }

    /// Only keys that begin with this.
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.prefix = prefix.as_ref().to_vec();
        self
    }

    /// The greatest key first. The other options keep their meaning.
    pub fn reverse(mut self) -> Self {
        self.direction = Direction::Down;
        self
    }

    /// At most so many keys.
    pub fn limit(mut self, keys: usize) -> Self {
        self.limit = Some(keys);
        self
    }

    /// # Errors
    /// When both kinds of start are given.
    pub(in crate::host) fn range(self) -> Result<Range> {
        let start = match (self.start, self.start_after) {
            (Some(_), Some(_)) => {
                return Err(failed("a list has either a start or a start_after, not both"));
            }
            (Some(key), None) => Bound::Included(key),
            (None, Some(key)) => Bound::Excluded(key),
            (None, None) => Bound::Unbounded,
        };
        let end = self.end.map_or(Bound::Unbounded, Bound::Excluded);
        Ok(Range { start, end, direction: self.direction }.within(&self.prefix))
    }
}

/// The keys of a [`List`] with their values, read as it is asked for them.
///
/// As an iterator it gives copies; [`Entries::next_entry`] lends what it has, and
/// [`Entries::visit`] goes through all that is left. After an error there is nothing more.
#[must_use]
pub struct Entries {
    instance: Rc<Instance>,
    /// The keys that are left after the present page.
    rest: Range,
    left: usize,
    page: Page,
    next: usize,
    /// Keys of the next page.
    ahead: usize,
    /// The number of the object's changes that the page knows.
    changes: u64,
}

impl Entries {
    pub(in crate::host) fn new(instance: Rc<Instance>, rest: Range, limit: Option<usize>) -> Self {
        let changes = instance.account.changes();
        let page = Page::unread();
        let (left, ahead) = (limit.unwrap_or(usize::MAX), FIRST_PAGE_KEYS);
        Self { instance, rest, left, page, next: 0, ahead, changes }
    }

    /// The next key and its value.
    ///
    /// # Errors
    /// `damaged:`, at the record that is; or that the storage can't be read, or the instance ended.
    pub fn next_entry(&mut self) -> Result<Option<(&[u8], &[u8])>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.instance.check_alive().inspect_err(|_| self.left = 0)?;
        let changes = self.instance.account.changes();
        if self.changes != changes {
            // The object was written to since: what lies ahead may be different now.
            self.go_on_after_last();
            self.page = Page::unread();
            (self.next, self.ahead, self.changes) = (0, 1, changes);
        }
        if self.next == self.page.len() && self.page.more {
            self.go_on_after_last();
            let size = PageSize { entries: self.ahead.min(self.left), ..PAGE };
            self.ahead = (2 * self.ahead).min(PAGE.entries);
            match self.instance.page(&self.rest, size, std::mem::take(&mut self.page)) {
                Ok(page) => (self.page, self.next) = (page, 0),
                Err(error) => {
                    self.left = 0;
                    return Err(error);
                }
            }
        }
        let entry = self.page.get(self.next);
        if entry.is_some() {
            self.next += 1;
            self.left -= 1;
        }
        Ok(entry)
    }

    /// Shows all that is left to `visit`, one after the other. It is the fastest way through a long
    /// list: nothing is copied as long as all that the object wrote is durable.
    ///
    /// # Errors
    /// As [`Entries::next_entry`]; and the first one of `visit`, which is then not called again.
    pub fn visit(mut self, mut visit: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        let vat = self.instance.vat.clone();
        let own_snapshot = vat.turns.begin_visit();
        while self.left > 0 {
            let needs_more = self.next == self.page.len() && self.page.more;
            if needs_more
                && own_snapshot.is_some()
                && let Some(reads) = self.instance.settled_reads()?
            {
                self.visit_durable(&*reads, &mut visit)?;
                continue;
            }
            match self.next_entry()? {
                Some((key, value)) => visit(key, value)?,
                None => break,
            }
        }
        Ok(())
    }

    /// Goes on until the end of the list, or until the object is written to.
    fn visit_durable(
        &mut self,
        reads: &dyn Reads,
        visit: &mut impl FnMut(&[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.go_on_after_last();
        let (account, object) = (self.instance.account.clone(), self.instance.spec.id);
        let changes = account.changes();
        let (mut failed, mut last, mut left) = (Ok(()), None, self.left);
        reads.scan(object, Space::Data, &self.rest, &mut |key, value| {
            left -= 1;
            match visit(key, value) {
                Err(error) => failed = Err(error),
                Ok(()) if left > 0 && account.changes() == changes => {
                    return ControlFlow::Continue(());
                }
                Ok(()) => {}
            }
            last = Some(key.to_vec());
            ControlFlow::Break(())
        })?;
        (self.page, self.next, self.changes) = (Page::unread(), 0, account.changes());
        self.left = if last.is_some() { left } else { 0 };
        if let Some(last) = last {
            self.go_on_after(last);
        }
        failed
    }

    /// Moves the start of the rest behind what was given out.
    fn go_on_after_last(&mut self) {
        let last = self.next.checked_sub(1).and_then(|last| self.page.get(last));
        if let Some((key, _)) = last {
            let key = key.to_vec();
            self.go_on_after(key);
        }
    }

    fn go_on_after(&mut self, key: Vec<u8>) {
        let behind = Bound::Excluded(key);
        if self.rest.direction == Direction::Down {
            self.rest.end = behind;
        } else {
            self.rest.start = behind;
        }
    }
}

impl Iterator for Entries {
    type Item = Result<(Vec<u8>, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let copied =
            self.next_entry().map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())));
        copied.transpose()
    }
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries").field("left", &self.left).finish_non_exhaustive()
    }
}
