//! The entries that are in the log and not yet in the environment, shared by the threads that
//! append them, apply them, and wait for that.
//!
//! **Invariants:** entries are applied in the order in which they were pushed. `count` moves only
//! after the environment durably has all entries up to it, but for writes to objects in `aside`.
//! After `failure` is set it never moves again.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;

use crate::clock::monotonic;
use crate::id::ObjectId;
use crate::limits::{BACKLOG_AGE, BACKLOG_BYTES};
use crate::metrics::Metrics;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::watched::Watched;
use crate::storage::log::entry::Entry;
use crate::storage::position::End;

/// The log may be this number of times as long as the backlog while a large object is cleared: a
/// start after a crash reads all of it.
const KEPT_FACTOR: u64 = 16;

/// The size and age of the entries that may wait: fewer and larger transactions write fewer pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// The bytes of the log at which no new call starts. An eighth of them is applied together.
    pub(crate) bytes: u64,
    /// The longest time that an entry waits for company.
    pub(crate) age: Duration,
}

impl Default for Backlog {
    fn default() -> Self {
        Self { bytes: BACKLOG_BYTES, age: BACKLOG_AGE }
    }
}

impl Backlog {
    /// Entries of this many bytes are applied at once.
    fn due(self) -> u64 {
        self.bytes / 8
    }
}

/// The entries that a log has and its environment hasn't.
pub(crate) struct Applied {
    limits: Backlog,
    metrics: Arc<Metrics>,
    waiting: Mutex<Waiting>,
    /// Notified when the backlog, or what is wanted of it, changes.
    changed: Condvar,
    count: AtomicU64,
    /// The objects that are being cleared beside later entries, which lack the writes to them.
    aside: Mutex<FxHashSet<ObjectId>>,
    any_aside: AtomicBool,
    /// The bytes in the backlog, for readers without the lock.
    bytes: AtomicU64,
    failure: OnceLock<Arc<StorageError>>,
    observer: OnceLock<Arc<dyn Fn() + Send + Sync>>,
    /// Held while the environment has some of an entry's writes and lacks others.
    between: Mutex<()>,
    /// The file of the log that is being written, as long as it is.
    file: Mutex<Weak<Watched>>,
}

#[derive(Default)]
struct Waiting {
    entries: VecDeque<(Entry, End)>,
    /// The bytes of these.
    bytes: u64,
    /// The time of the first one.
    since: Option<Instant>,
    pushed: u64,
    /// All entries up to this one are to be applied soon.
    wanted: u64,
    closing: bool,
}

impl Applied {
    /// A log without entries.
    pub(super) fn new(limits: Backlog, metrics: Arc<Metrics>) -> Self {
        Self {
            limits,
            metrics,
            waiting: Mutex::default(),
            changed: Condvar::new(),
            count: AtomicU64::new(0),
            aside: Mutex::default(),
            any_aside: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            failure: OnceLock::new(),
            observer: OnceLock::new(),
            between: Mutex::default(),
            file: Mutex::default(),
        }
    }

    /// The number of entries that were pushed and that the environment has, but for writes to the
    /// objects of `aside`.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// The objects of which the environment may lack writes that it should have by `count`, which
    /// has to be read before.
    pub(crate) fn aside(&self) -> FxHashSet<ObjectId> {
        if self.any_aside.load(Ordering::Acquire) {
            return self.aside.lock().unwrap_or_else(PoisonError::into_inner).clone();
        }
        FxHashSet::default()
    }

    /// The environment may lack writes to these objects from now on, and none to others.
    pub(super) fn set_aside(&self, objects: impl Iterator<Item = ObjectId>) {
        let mut aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        aside.clear();
        aside.extend(objects);
        // Release: those who see a count that is set later see this too.
        self.any_aside.store(!aside.is_empty(), Ordering::Release);
    }

    /// The failure after which nothing is applied any more, if there was one.
    pub(crate) fn failure(&self) -> Option<&Arc<StorageError>> {
        self.failure.get()
    }

    /// The bytes that wait.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Tells whether so much waits that no new call should start.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes() >= self.limits.bytes
    }

    /// Calls `observer` from now on whenever entries were applied, and once after a failure.
    pub(crate) fn observe(&self, observer: Arc<dyn Fn() + Send + Sync>) {
        let _ = self.observer.set(observer);
    }

    /// Has everything that was pushed by now applied without waiting for company.
    pub(super) fn hurry(&self) {
        let mut waiting = self.waiting();
        waiting.wanted = waiting.pushed;
        self.changed.notify_all();
    }

    /// Waits until everything that was pushed by now is applied.
    ///
    /// # Errors
    /// `Latched`: some of it never will be by this process.
    pub(crate) fn catch_up(&self) -> Result<()> {
        self.hurry();
        let waiting = self.waiting();
        let upto = waiting.wanted;
        let is_behind = |_: &mut Waiting| self.count() < upto && self.failure().is_none();
        drop(self.changed.wait_while(waiting, is_behind).unwrap_or_else(PoisonError::into_inner));
        // An object may still be cleared.
        drop(self.between());
        self.failure().map_or(Ok(()), |failure| Err(StorageError::Latched(failure.clone())))
    }

    /// Waits while twice as much waits as may. Calls don't start then; but an import, or turns that
    /// had begun, may write faster than the disk takes it.
    pub(super) fn make_room(&self) {
        let most = self.limits.bytes.saturating_mul(2);
        if self.bytes() >= most {
            let is_full = |_: &mut Waiting| self.bytes() >= most && self.failure().is_none();
            let waited = self.changed.wait_while(self.waiting(), is_full);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Adds an entry that the log durably has.
    pub(super) fn push(&self, entry: Entry, end: End) {
        let mut waiting = self.waiting();
        let bytes = entry.disk_bytes();
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.metrics.log_backlog_bytes.add(bytes);
        waiting.pushed += 1;
        waiting.bytes += bytes;
        waiting.entries.push_back((entry, end));
        let is_first = waiting.since.is_none();
        if is_first {
            waiting.since = Some(monotonic());
        }
        let was_due = waiting.bytes - bytes >= self.limits.due();
        if is_first || !was_due && waiting.bytes >= self.limits.due() {
            self.changed.notify_all();
        }
    }

    /// No entry will follow.
    pub(super) fn close(&self) {
        self.waiting().closing = true;
        self.changed.notify_all();
    }

    /// Waits until it is time, and takes all entries; returns false when there will be no more.
    pub(super) fn take(&self, taken: &mut VecDeque<(Entry, End)>) -> bool {
        let mut waiting = self.waiting();
        while !self.is_due(&waiting) {
            match waiting.since {
                Some(since) => {
                    let left = self.limits.age.saturating_sub(since.elapsed());
                    let waited = self.changed.wait_timeout(waiting, left);
                    (waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
                }
                None if waiting.closing => return false,
                None => {
                    let waited = self.changed.wait(waiting);
                    waiting = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        take_all(&mut waiting, taken);
        true
    }

    /// Takes all entries if it is time.
    pub(super) fn take_due(&self, taken: &mut VecDeque<(Entry, End)>) {
        let mut waiting = self.waiting();
        if self.is_due(&waiting) {
            take_all(&mut waiting, taken);
        }
    }

    fn is_due(&self, waiting: &Waiting) -> bool {
        let is_wanted = waiting.closing || waiting.wanted > self.count();
        waiting.since.is_some_and(|since| {
            is_wanted || since.elapsed() >= self.limits.age || waiting.bytes >= self.limits.due()
        })
    }

    /// The most bytes of the log that are kept for a clearing of a large object.
    pub(super) fn kept_max(&self) -> u64 {
        self.limits.bytes.saturating_mul(KEPT_FACTOR)
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Keeps snapshots from being taken until it is dropped.
    pub(super) fn between(&self) -> MutexGuard<'_, ()> {
        self.between.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on that file is the one that is being written.
    pub(super) fn watch(&self, file: &Arc<Watched>) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(file);
    }

    /// Checks that the file that is being written is as it must be.
    ///
    /// # Errors
    /// `FileChanged`, `Io`.
    pub(super) fn check_file(&self) -> Result<()> {
        let present = || self.file.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let Some(file) = present() else { return Ok(()) };
        let checked = file.check();
        // The log may have gone on to another file meanwhile, and given this one up.
        if present().is_some_and(|present| Arc::ptr_eq(&present, &file)) { checked } else { Ok(()) }
    }

    /// The environment durably has the next `entries` entries, and this many bytes wait no more.
    pub(super) fn advance(&self, entries: u64, bytes: u64) {
        // With the lock, so that no waiting thread misses it.
        let waiting = self.waiting();
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.metrics.log_backlog_bytes.subtract(bytes);
        self.metrics.commits_applied_total.add(entries);
        self.count.fetch_add(entries, Ordering::Release);
        drop(waiting);
        self.tell();
    }

    /// Nothing is applied any more.
    pub(super) fn fail(&self, failure: Arc<StorageError>) {
        let waiting = self.waiting();
        let _ = self.failure.set(failure);
        drop(waiting);
        self.tell();
    }

    fn tell(&self) {
        self.changed.notify_all();
        if let Some(observer) = self.observer.get() {
            observer();
        }
    }

    /// No code that holds this lock can panic, so a poisoned backlog is intact.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take_all(waiting: &mut Waiting, taken: &mut VecDeque<(Entry, End)>) {
    (waiting.since, waiting.bytes) = (None, 0);
    std::mem::swap(&mut waiting.entries, taken);
}

impl fmt::Debug for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applied")
            .field("count", &self.count())
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}
