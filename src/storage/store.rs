//! Storage as the vat thread sees it: every write is visible at once, and durable a little later.
//!
//! Reads look first at the open turn, then at the submitted turns that aren't applied yet, then at
//! the records on disk. The store never waits: submitting a turn puts its writes into the commit
//! thread's queue.
//!
//! **Invariants:** at most one turn is open, and only its object can write. A submitted write is
//! forgotten here only after the log reported it as applied, so that the next read of the records
//! sees it or a later one. Nothing of a discarded turn is ever queued.

pub(crate) mod account;
mod admin;
mod closed;
pub(crate) mod due;
mod edges;
mod gap;
pub(crate) mod identity;
mod overlay;
pub(crate) mod page;
mod records;
mod settling;
#[cfg(test)]
mod tests;
pub(crate) mod transactions;

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::id::{ObjectId, ObjectIds};
use crate::metrics::Metrics;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::layout::Usage;
use crate::storage::lmdb::room::Room;
use crate::storage::log::batch::WriteSet;
use crate::storage::log::committer::{Committer, OnProgress, Ticket};
use crate::storage::log::local::{self, LogOptions};
use crate::storage::log::reader::Reader;
use crate::storage::log::reads::{Reads, VisitObject};
use crate::storage::log::shard_log::ShardLog;
use crate::storage::range::Range;
use crate::storage::space::Space;
use crate::storage::store::account::Account;
use crate::storage::store::closed::Closed;
use crate::storage::store::edges::TargetsOf;
use crate::storage::store::overlay::{Layer, Pending, Seen, Undo, Value};
use crate::storage::store::page::{Filling, Page, PageSize, over};

/// The options of a store.
#[derive(Clone, Debug)]
pub(crate) struct StoreOptions {
    /// The host's name, after which its commit thread is named.
    pub(crate) name: String,
    /// The options of the log.
    pub(crate) log: LogOptions,
    /// The metrics that count reads and commits.
    pub(crate) metrics: Arc<Metrics>,
}

/// The storage of all objects of one host. Dropping it commits every submitted turn.
pub(crate) struct Store {
    turn: Option<Turn>,
    pending: FxHashMap<ObjectId, Pending>,
    /// The objects whose turns are in `pending`, in the order in which they are applied.
    order: VecDeque<(Ticket, ObjectId)>,
    /// Objects whose turns are over by that order, and whose records lack some of their writes.
    aside: FxHashSet<ObjectId>,
    committer: Committer,
    reads: Rc<dyn Reads>,
    /// `None` over a log without a disk, and after closing.
    reader: Option<Reader>,
    room: Arc<Room>,
    /// Finds the objects that values refer to; `None` if no value refers to any.
    targets_of: Option<TargetsOf>,
}

struct Turn {
    account: Rc<Account>,
    /// The account's usage before the turn.
    before: Usage,
    writes: WriteSet,
    layer: Layer,
    /// The steps that undo the writes of the open transactions, the most recent last.
    undo: Vec<Undo>,
    transactions: usize,
}

/// The length of a key's value before a write, which the accounts need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// The writer doesn't know.
    Unknown,
    /// The length of the present value; `None` if there is no value.
    Known(Option<usize>),
}

impl Store {
    /// Opens or creates the storage in `path`; `on_progress` is called on any thread.
    ///
    /// # Errors
    /// Those of [`local::open`]; the data are unchanged.
    pub(crate) fn open(
        path: &Path,
        options: StoreOptions,
        on_progress: OnProgress,
    ) -> Result<Self> {
        let (log, reader) = local::open(path, options.log, options.metrics)?;
        let room = log.room();
        let reads = Rc::new(reader.clone());
        let store = Self::new(&options.name, Box::new(log), reads, room, on_progress)?;
        Ok(Self { reader: Some(reader), ..store })
    }

    /// A store over any log, with reads of the records that the log has applied.
    ///
    /// # Errors
    /// `Io` when the operating system can't start a thread.
    pub(crate) fn new(
        name: &str,
        log: Box<dyn ShardLog>,
        reads: Rc<dyn Reads>,
        room: Arc<Room>,
        on_progress: OnProgress,
    ) -> Result<Self> {
        let committer = Committer::start(name, log, on_progress)?;
        let (pending, order) = (FxHashMap::default(), VecDeque::new());
        let (turn, reader, targets_of, aside) = (None, None, None, FxHashSet::default());
        Ok(Self { turn, pending, order, aside, committer, reads, reader, room, targets_of })
    }

    /// Visits every object that exists, with its header and the amount that it stores.
    ///
    /// # Errors
    /// `Corrupt`, or the disk can't be read.
    pub(crate) fn objects(&self, visit: &mut VisitObject<'_>) -> Result<()> {
        self.reads.objects(visit)
    }

    /// Opens a turn of the account's object. It costs nothing until something is written.
    ///
    /// # Panics
    /// When a turn is open: the code that opened it must have submitted or discarded it.
    pub(crate) fn begin(&mut self, account: Rc<Account>) {
        assert!(self.turn.is_none(), "turns never nest: each is one poll of the vat thread");
        let (before, writes) = (account.usage(), WriteSet::new(account.object()));
        let (layer, undo) = (Layer::default(), Vec::new());
        self.turn = Some(Turn { account, before, writes, layer, undo, transactions: 0 });
    }

    /// The object with the open turn.
    pub(crate) fn turn_object(&self) -> Option<ObjectId> {
        self.turn.as_ref().map(|turn| turn.account.object())
    }

    /// The value of `key`, including all earlier writes of the object.
    ///
    /// # Errors
    /// `KeyLength`, `Corrupt`, or the disk can't be read; nothing changed.
    pub(crate) fn get(
        &self,
        object: ObjectId,
        space: Space,
        key: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        match self.unsettled(object, space, key)? {
            Some(value) => Ok(value.as_deref().map(<[u8]>::to_vec)),
            None => self.reads.get(object, space, key),
        }
    }

    /// The values of several of the class's keys, in the order of the keys.
    ///
    /// # Errors
    /// As for `get`, of the first key with an error.
    pub(crate) fn get_many(
        &self,
        object: ObjectId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>> {
        match self.settled_reads(object) {
            Some(reads) => reads.get_many(object, Space::Data, keys),
            None => keys.iter().map(|key| self.get(object, Space::Data, key)).collect(),
        }
    }

    /// The length of the value of `key`, which is not read.
    ///
    /// # Errors
    /// `KeyLength`, or the disk can't be read; nothing changed.
    pub(crate) fn length(
        &self,
        object: ObjectId,
        space: Space,
        key: &[u8],
    ) -> Result<Option<usize>> {
        match self.unsettled(object, space, key)? {
            Some(value) => Ok(value.as_deref().map(<[u8]>::len)),
            None => self.reads.length(object, space, key),
        }
    }

    /// The value of a key according to the writes that may not be applied yet, if these include the
    /// key.
    fn unsettled(&self, object: ObjectId, space: Space, key: &[u8]) -> Result<Option<&Value>> {
        space.check_key(key)?;
        Ok(self.layers(object).find_map(|layer| match layer.get(space, key) {
            Seen::Value(value) => Some(value),
            Seen::Below => None,
        }))
    }

    /// The object's writes that may not be applied yet, the newest first.
    fn layers(&self, object: ObjectId) -> impl Iterator<Item = &Layer> {
        let turn = self.turn.as_ref().filter(|turn| turn.account.object() == object);
        let pending = self.pending.get(&object).map(Pending::layer);
        turn.map(|turn| &turn.layer).into_iter().chain(pending)
    }

    /// The first keys of `range` that the class stored, including all its earlier writes. The page
    /// reuses the memory of an older one.
    ///
    /// # Errors
    /// `Corrupt`, or the disk can't be read; nothing changed.
    pub(crate) fn page(
        &self,
        object: ObjectId,
        range: &Range,
        size: PageSize,
        old: Page,
    ) -> Result<Page> {
        self.page_of(object, Space::Data, range, size, old)
    }

    fn page_of(
        &self,
        object: ObjectId,
        space: Space,
        range: &Range,
        size: PageSize,
        old: Page,
    ) -> Result<Page> {
        if range.is_empty() {
            return Ok(Page::default());
        }
        let none = || -> Box<dyn Iterator<Item = _>> { Box::new(std::iter::empty()) };
        let (mut above, mut hidden) = (none(), false);
        for layer in self.layers(object) {
            if !hidden {
                above = over(above, layer.list(space, range), range.direction);
            }
            hidden |= layer.is_cleared() && space.is_of_class();
        }
        let mut filling = Filling::new(above, size, range.direction, old);
        if !hidden {
            let mut visit = |key: &[u8], value: &[u8]| filling.visit(key, value);
            self.reads.scan(object, space, range, &mut visit)?;
        }
        Ok(filling.finish())
    }

    /// A reader of the object's records, if these have all its writes.
    pub(crate) fn settled_reads(&self, object: ObjectId) -> Option<Rc<dyn Reads>> {
        self.layers(object).all(Layer::is_empty).then(|| self.reads.clone())
    }

    /// Sets `key` in the class's storage to `value`; returns the ticket of the open turn.
    ///
    /// # Errors
    /// `OutsideTurn`, `KeyLength`, `ValueLength`, `BatchSize`, `OverQuota`, `LowSpace`, `Latched`:
    /// nothing was written, and the turn's earlier writes remain.
    pub(crate) fn put(
        &mut self,
        account: &Account,
        key: &[u8],
        value: &[u8],
        before: Before,
    ) -> Result<Ticket> {
        let targets = self.targets(account.object(), key, value);
        self.put_referring(account, key, value, (before, targets))
    }

    /// As `put`, for a value that is known to refer to `targets`.
    ///
    /// # Errors
    /// As for `put`.
    pub(crate) fn put_referring(
        &mut self,
        account: &Account,
        key: &[u8],
        value: &[u8],
        (before, targets): (Before, ObjectIds),
    ) -> Result<Ticket> {
        self.turn_of(account.object())?;
        let before = self.length_before(account.object(), key, before)?;
        let mut usage = account.usage().changed(key.len(), before, Some(value.len()));
        let edges = self.edges(account, key, targets)?;
        usage.references = edges.references;
        account.check(usage)?;
        if usage.bytes > account.usage().bytes {
            self.check_growth(key.len() + value.len())?;
        }
        let ticket = self.put_record(account.object(), Space::Data, key, value)?;
        self.write_edges(account.object(), key, edges)?;
        account.set(usage);
        Ok(ticket)
    }

    /// Removes `key` from the class's storage; returns `None` if it isn't there.
    ///
    /// # Errors
    /// `OutsideTurn`, `KeyLength`, `BatchSize`, `Latched`: nothing was written, and the turn's
    /// earlier writes remain.
    pub(crate) fn delete(
        &mut self,
        account: &Account,
        key: &[u8],
        before: Before,
    ) -> Result<Option<Ticket>> {
        self.turn_of(account.object())?;
        let Some(length) = self.length_before(account.object(), key, before)? else {
            return Ok(None);
        };
        let mut usage = account.usage().changed(key.len(), Some(length), None);
        let edges = self.edges(account, key, ObjectIds::NONE)?;
        usage.references = edges.references;
        let ticket = self.delete_record(account.object(), Space::Data, key)?;
        self.write_edges(account.object(), key, edges)?;
        account.set(usage);
        Ok(Some(ticket))
    }

    /// Removes everything that the class stored; returns `None` if that is nothing.
    ///
    /// # Errors
    /// `OutsideTurn`, `Latched`: nothing was written, and the turn's earlier writes remain.
    pub(crate) fn clear(&mut self, account: &Account) -> Result<Option<Ticket>> {
        let ticket = self.committer.next_ticket();
        let turn = self.turn_of(account.object())?;
        let usage = account.usage();
        let rest = Usage { requests: usage.requests, grants: usage.grants, ..Usage::default() };
        if usage == rest {
            return Ok(None);
        }
        turn.writes.clear(Space::Data);
        if usage.references > 0 {
            turn.writes.clear(Space::Edges);
        }
        turn.layer.clear((turn.transactions > 0).then_some(&mut turn.undo));
        account.set(rest);
        Ok(Some(ticket))
    }

    fn length_before(&self, object: ObjectId, key: &[u8], before: Before) -> Result<Option<usize>> {
        match before {
            Before::Known(length) => Ok(length),
            Before::Unknown => self.length(object, Space::Data, key),
        }
    }

    /// The open turn, if `object` may write in it.
    fn turn_of(&mut self, object: ObjectId) -> Result<&mut Turn> {
        if let Some(failure) = self.committer.failure() {
            return Err(StorageError::Latched(failure.clone()));
        }
        let turn = self.turn.as_mut().filter(|turn| turn.account.object() == object);
        turn.ok_or(StorageError::OutsideTurn { object })
    }

    /// The object's last turn that may not be durable yet, if there is one.
    pub(crate) fn unsettled_ticket(&self, object: ObjectId) -> Option<Ticket> {
        let last = self.pending.get(&object).map(Pending::last);
        last.filter(|last| *last > self.committer.durable())
    }

    /// The last turn that was submitted.
    pub(crate) fn last_submitted(&self) -> Ticket {
        self.committer.last_ticket()
    }

    /// Ends the turn and queues its writes as one atomic batch; returns `None` if it wrote nothing.
    pub(crate) fn submit_turn(&mut self) -> Option<Ticket> {
        let mut turn = self.turn.take()?;
        let usage = turn.account.usage();
        if usage != turn.before {
            let (ticket, record) = (self.committer.next_ticket(), usage.encode());
            let put = turn.writes.put(Space::Usage, &[], &record);
            debug_assert!(put.is_ok(), "a usage record is never over a limit");
            turn.remember(Space::Usage, &[], ticket, Some(record.as_slice().into()));
        }
        if turn.writes.is_empty() {
            return None;
        }
        let object = turn.account.object();
        let ticket = self.committer.submit(turn.writes);
        self.order.push_back((ticket, object));
        self.pending.entry(object).or_default().add(turn.layer, ticket);
        Some(ticket)
    }

    /// Ends the turn and forgets its writes.
    pub(crate) fn discard(&mut self) {
        if let Some(turn) = self.turn.take() {
            turn.account.set_back(turn.before);
        }
    }

    /// Checks that the files are as they must be, as each commit does.
    pub(crate) fn check_files(&self) -> Result<()> {
        self.reads.check_files()
    }

    /// The failure after which nothing becomes durable any more, if there was one; the process must
    /// then exit.
    pub(crate) fn failure(&self) -> Option<StorageError> {
        self.committer.failure().cloned().map(StorageError::Latched)
    }

    /// Makes `error` the failure, unless there was one: nothing more becomes durable.
    pub(crate) fn fail(&self, error: Arc<StorageError>) {
        self.committer.fail(error);
    }

    /// Commits every submitted turn, drops the open one, and closes the files. Later reads and
    /// writes fail with `Closed`.
    ///
    /// # Errors
    /// `Latched` when a commit failed, now or earlier: only the turns reported by `settle` are
    /// known to be durable.
    pub(crate) fn close(&mut self) -> Result<()> {
        self.discard();
        (self.reads, self.reader) = (Rc::new(Closed), None);
        self.committer.shutdown()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("turn", &self.turn_object())
            .field("pending", &self.pending.len())
            .field("committer", &self.committer)
            .finish_non_exhaustive()
    }
}

impl Turn {
    fn remember(&mut self, space: Space, key: &[u8], ticket: Ticket, value: Value) {
        let undo = (self.transactions > 0).then_some(&mut self.undo);
        self.layer.set(space, key, (ticket, value), undo);
    }
}
