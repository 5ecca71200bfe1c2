//! Storage as the vat thread sees it: every write is there at once, and durable a little later.
//!
//! Reads look first at the open turn, then at the sealed turns that aren't durable yet, then at
//! the disk. It never waits: sealing a turn puts its writes in the commit thread's queue.
//!
//! **Invariants:** at most one turn is open, and only its object can write. A sealed write is
//! forgotten here only after the commit thread said that it is durable, so that the next read of
//! the disk sees it, or sees a later one. Nothing of a discarded turn is ever queued.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::id::ObjectId;
use crate::metrics::Metrics;
use crate::storage::batch::WriteSet;
use crate::storage::committer::{Committer, OnProgress, Ticket};
use crate::storage::layout::{RecordKey, Space};
use crate::storage::local::{self, LogOptions};
use crate::storage::log::{Reads, ShardLog};
use crate::storage::{Result, StorageError};

/// How a store is opened.
#[derive(Clone, Debug)]
pub(crate) struct StoreOptions {
    /// The host's name, which its commit thread is called after.
    pub(crate) name: String,
    /// Slept before every commit, to try what a slow disk would do.
    pub(crate) commit_delay: Duration,
    /// Where reads and commits are counted.
    pub(crate) metrics: Arc<Metrics>,
}

/// The storage of all objects of one host. Dropping it commits every sealed turn.
pub(crate) struct Store {
    turn: Option<Turn>,
    pending: BTreeMap<Rc<[u8]>, (Ticket, Value)>,
    /// The keys of `pending` in the order in which their writes become durable.
    order: VecDeque<(Ticket, Rc<[u8]>)>,
    committer: Committer,
    reads: Box<dyn Reads>,
}

/// What a key was set to; none means that it was deleted.
type Value = Option<Rc<[u8]>>;

struct Turn {
    object: ObjectId,
    writes: WriteSet,
    overlay: BTreeMap<Rc<[u8]>, Value>,
}

impl Store {
    /// Opens or makes the storage in `path`; `on_progress` is called on the commit thread.
    ///
    /// # Errors
    /// Those of [`local::open`]; the data are untouched.
    pub(crate) fn open(
        path: &Path,
        options: StoreOptions,
        on_progress: OnProgress,
    ) -> Result<Self> {
        let log = LogOptions { commit_delay: options.commit_delay, ..LogOptions::default() };
        let (log, reader) = local::open(path, log, options.metrics)?;
        Self::new(&options.name, Box::new(log), Box::new(reader), on_progress)
    }

    /// A store over any log, and over reads of what that log has applied.
    ///
    /// # Errors
    /// `Io` when the operating system gives no thread.
    pub(crate) fn new(
        name: &str,
        log: Box<dyn ShardLog>,
        reads: Box<dyn Reads>,
        on_progress: OnProgress,
    ) -> Result<Self> {
        let committer = Committer::start(name, log, on_progress)?;
        let (pending, order) = (BTreeMap::new(), VecDeque::new());
        Ok(Self { turn: None, pending, order, committer, reads })
    }

    /// Opens a turn of `object`; it costs nothing until something is written.
    ///
    /// # Panics
    /// When a turn is open: whoever opened it must have sealed or discarded it.
    pub(crate) fn begin(&mut self, object: ObjectId) {
        assert!(self.turn.is_none(), "turns never nest: each is one poll of the vat thread");
        let writes = WriteSet::new(object);
        self.turn = Some(Turn { object, writes, overlay: BTreeMap::new() });
    }

    /// Whose turn is open.
    pub(crate) fn turn_object(&self) -> Option<ObjectId> {
        self.turn.as_ref().map(|turn| turn.object)
    }

    /// The value of `key`, with all of the object's earlier writes.
    ///
    /// # Errors
    /// `KeyLength`, `Corrupt`, or that the disk can't be read; nothing changed.
    pub(crate) fn get(
        &self,
        object: ObjectId,
        space: Space,
        key: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        let record = RecordKey::new(object, space, key)?;
        let open = self.turn.as_ref().and_then(|turn| turn.overlay.get(record.as_bytes()));
        let sealed = || self.pending.get(record.as_bytes()).map(|(_, value)| value);
        match open.or_else(sealed) {
            Some(value) => Ok(value.as_deref().map(<[u8]>::to_vec)),
            None => self.reads.get(object, space, key),
        }
    }

    /// Sets `key` to `value`; the ticket is that of the open turn.
    ///
    /// # Errors
    /// `OutsideTurn`, `KeyLength`, `ValueLength`, `BatchSize`, `Latched`: nothing was written, and
    /// the turn's earlier writes stand.
    pub(crate) fn put(
        &mut self,
        object: ObjectId,
        space: Space,
        key: &[u8],
        value: &[u8],
    ) -> Result<Ticket> {
        let turn = writable(&mut self.turn, &self.committer, object)?;
        turn.writes.put(space, key, value)?;
        turn.remember(space, key, Some(value.into()))?;
        Ok(self.committer.next_ticket())
    }

    /// Removes `key`, which need not exist; the ticket is that of the open turn.
    ///
    /// # Errors
    /// `OutsideTurn`, `KeyLength`, `BatchSize`, `Latched`: nothing was written, and the turn's
    /// earlier writes stand.
    pub(crate) fn delete(&mut self, object: ObjectId, space: Space, key: &[u8]) -> Result<Ticket> {
        let turn = writable(&mut self.turn, &self.committer, object)?;
        turn.writes.delete(space, key)?;
        turn.remember(space, key, None)?;
        Ok(self.committer.next_ticket())
    }

    /// The last turn that was sealed.
    pub(crate) fn last_sealed(&self) -> Ticket {
        self.committer.last_ticket()
    }

    /// Ends the turn and queues its writes as one atomic batch; none if it wrote nothing.
    pub(crate) fn seal(&mut self) -> Option<Ticket> {
        let turn = self.turn.take().filter(|turn| !turn.writes.is_empty())?;
        let ticket = self.committer.submit(turn.writes);
        for (key, value) in turn.overlay {
            self.order.push_back((ticket, key.clone()));
            self.pending.insert(key, (ticket, value));
        }
        Some(ticket)
    }

    /// Has the commit thread begin with what was sealed. To be called soon after `seal`, once for all
    /// turns that end together: they share one sync then.
    pub(crate) fn commit_sealed(&self) {
        self.committer.wake();
    }

    /// Ends the turn and forgets its writes.
    pub(crate) fn discard(&mut self) {
        self.turn = None;
    }

    /// Everything up to this ticket is durable; what memory held for it is dropped.
    pub(crate) fn settle(&mut self) -> Ticket {
        let durable = self.committer.durable();
        while let Some((_, key)) = self.order.pop_front_if(|(ticket, _)| *ticket <= durable) {
            // A later turn may have written the key again.
            if self.pending.get(&key).is_some_and(|(ticket, _)| *ticket <= durable) {
                self.pending.remove(&key);
            }
        }
        durable
    }

    /// Everything up to this ticket is durable.
    pub(crate) fn durable(&self) -> Ticket {
        self.committer.durable()
    }

    /// Whether so much waits for the disk that no new call should start.
    pub(crate) fn is_full(&self) -> bool {
        self.committer.is_full()
    }

    /// Why nothing will become durable any more, if that is so; the process must then exit.
    pub(crate) fn failure(&self) -> Option<StorageError> {
        self.committer.failure().cloned().map(StorageError::Latched)
    }

    /// Commits every sealed turn, drops the open one, and closes the files. Later reads and writes
    /// fail with `Closed`.
    ///
    /// # Errors
    /// `Latched` when a commit failed, now or earlier: what is durable is what `settle` said.
    pub(crate) fn close(&mut self) -> Result<()> {
        self.discard();
        self.reads = Box::new(Closed);
        self.committer.shutdown()
    }
}

/// What a closed store reads.
struct Closed;

impl Reads for Closed {
    fn get(&self, _: ObjectId, _: Space, _: &[u8]) -> Result<Option<Vec<u8>>> {
        Err(StorageError::Closed)
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
    fn remember(&mut self, space: Space, key: &[u8], value: Value) -> Result<()> {
        let record = RecordKey::new(self.object, space, key)?;
        match self.overlay.get_mut(record.as_bytes()) {
            Some(place) => *place = value,
            None => {
                self.overlay.insert(record.as_bytes().into(), value);
            }
        }
        Ok(())
    }
}

/// The open turn, if `object` may write in it.
fn writable<'a>(
    turn: &'a mut Option<Turn>,
    committer: &Committer,
    object: ObjectId,
) -> Result<&'a mut Turn> {
    if let Some(failure) = committer.failure() {
        return Err(StorageError::Latched(failure.clone()));
    }
    let turn = turn.as_mut().filter(|turn| turn.object == object);
    turn.ok_or(StorageError::OutsideTurn { object })
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
