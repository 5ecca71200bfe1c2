//! The entries that are in the log and not yet in the environment, shared by the threads that
//! append them, apply them, and wait for that.
//!
//! **Invariants:** entries are applied in the order in which they were pushed. `count` moves only
//! after the environment durably has all entries up to it. After `failure` is set it never moves
//! again.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::monotonic;
use crate::limits::BACKLOG_BYTES;
use crate::storage::error::{Result, StorageError};
use crate::storage::log::entry::Entry;
use crate::storage::position::End;

/// The sizes at which entries are applied: fewer and larger transactions write fewer pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Entries of this many bytes are applied together.
    pub(crate) bytes: u64,
    /// The longest time that an entry waits for company.
    pub(crate) age: Duration,
}

impl Pace {
    /// The usual pace.
    pub(crate) const USUAL: Self = Self { bytes: 8 << 20, age: Duration::from_millis(200) };
}

/// The entries that a log has and its environment hasn't.
#[derive(Default)]
pub(crate) struct Applied {
    backlog: Mutex<Backlog>,
    /// Notified when the backlog, or what is wanted of it, changes.
    changed: Condvar,
    count: AtomicU64,
    /// The bytes in the backlog, for readers without the lock.
    bytes: AtomicU64,
    failure: OnceLock<Arc<StorageError>>,
    observer: OnceLock<Arc<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct Backlog {
    entries: VecDeque<(Entry, End)>,
    /// The time of the first one.
    since: Option<Instant>,
    pushed: u64,
    /// All entries up to this one are to be applied soon.
    wanted: u64,
    closing: bool,
}

impl Applied {
    /// The number of entries that were pushed and that the environment has.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
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
        self.bytes() >= BACKLOG_BYTES
    }

    /// Calls `observer` from now on whenever entries were applied, and once after a failure.
    pub(crate) fn observe(&self, observer: Arc<dyn Fn() + Send + Sync>) {
        let _ = self.observer.set(observer);
    }

    /// Waits until everything that was pushed by now is applied.
    ///
    /// # Errors
    /// `Latched`: some of it never will be by this process.
    pub(crate) fn catch_up(&self) -> Result<()> {
        let mut backlog = self.backlog();
        let upto = backlog.pushed;
        backlog.wanted = backlog.wanted.max(upto);
        self.changed.notify_all();
        let waiting = |_: &mut Backlog| self.count() < upto && self.failure().is_none();
        drop(self.changed.wait_while(backlog, waiting).unwrap_or_else(PoisonError::into_inner));
        match self.failure() {
            Some(failure) if self.count() < upto => Err(StorageError::Latched(failure.clone())),
            _ => Ok(()),
        }
    }

    /// Adds an entry that the log durably has.
    pub(super) fn push(&self, entry: Entry, end: End) {
        let mut backlog = self.backlog();
        let bytes = entry.as_bytes().len() as u64;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        backlog.pushed += 1;
        backlog.entries.push_back((entry, end));
        if backlog.since.is_none() {
            backlog.since = Some(monotonic());
            self.changed.notify_all();
        } else if self.bytes() - bytes < Pace::USUAL.bytes && self.bytes() >= Pace::USUAL.bytes {
            self.changed.notify_all();
        }
    }

    /// No entry will follow.
    pub(super) fn close(&self) {
        self.backlog().closing = true;
        self.changed.notify_all();
    }

    /// Waits until it is time, and takes all entries; returns false when there will be no more.
    pub(super) fn take(&self, pace: Pace, taken: &mut VecDeque<(Entry, End)>) -> bool {
        let mut backlog = self.backlog();
        loop {
            let is_wanted = backlog.closing || backlog.wanted > self.count();
            match backlog.since {
                Some(since) => {
                    let age = since.elapsed();
                    if is_wanted || age >= pace.age || self.bytes() >= pace.bytes {
                        break;
                    }
                    let waited = self.changed.wait_timeout(backlog, pace.age - age);
                    (backlog, _) = waited.unwrap_or_else(PoisonError::into_inner);
                }
                None if backlog.closing => return false,
                None => {
                    let waited = self.changed.wait(backlog);
                    backlog = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        backlog.since = None;
        std::mem::swap(&mut backlog.entries, taken);
        true
    }

    /// The environment durably has the next `entries` entries, of this many bytes.
    pub(super) fn advance(&self, entries: u64, bytes: u64) {
        // With the lock, so that no waiting thread misses it.
        let backlog = self.backlog();
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.count.fetch_add(entries, Ordering::Release);
        drop(backlog);
        self.tell();
    }

    /// Nothing is applied any more.
    pub(super) fn fail(&self, failure: Arc<StorageError>) {
        let backlog = self.backlog();
        let _ = self.failure.set(failure);
        drop(backlog);
        self.tell();
    }

    fn tell(&self) {
        self.changed.notify_all();
        if let Some(observer) = self.observer.get() {
            observer();
        }
    }

    /// No code that holds this lock can panic, so a poisoned backlog is intact.
    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applied")
            .field("count", &self.count())
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}
