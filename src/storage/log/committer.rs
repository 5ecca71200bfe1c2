//! The commit thread: it makes submitted turns durable, in order, in groups of all that wait, up to
//! a number of bytes.
//!
//! While one group is being synced the next one gathers. A lone turn never waits for company,
//! except for turns that end in the same run of the vat thread, which then wakes this one. If a
//! sync is faster than two threads can wake each other, a vat thread with nothing else to do
//! commits a lone turn itself. Otherwise it only appends to a queue and reads atomic numbers.
//!
//! **Invariants:** tickets become durable in their order: a thread takes turns out of the queue
//! only while it has the log. `durable` moves only after the log reported every block of these
//! tickets as durable. After a block that was fenced, a log that failed, or a panic, `failure` is
//! set, nothing more is committed, and `durable` never moves again. The same blocks are offered
//! again to a log that is busy or lost its answer.

mod chains;
#[cfg(test)]
mod tests;
mod unapplied;

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustc_hash::FxHashSet;

use self::chains::Chains;
use self::unapplied::Unapplied;
use crate::clock::monotonic;
use crate::id::ObjectId;
use crate::limits::{COMMIT_GROUP_BYTES, COMMIT_QUEUE_BYTES, COMMIT_QUEUE_TURNS};
use crate::storage::error::{Result, StorageError};
use crate::storage::log::applied::Applied;
use crate::storage::log::batch::WriteSet;
use crate::storage::log::shard_log::ShardLog;

/// The largest turn that the vat thread commits itself: other calls of the host wait meanwhile.
const HERE_BYTES_MAX: usize = 64 << 10;

/// The position of a submitted turn in the order of one environment; 0 comes before all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(crate) u64);

/// Called on any thread after each move of `durable` or `applied`, and once after `failure` was
/// set.
pub(crate) type OnProgress = Box<dyn Fn() + Send + Sync>;

/// The vat thread's handle. Dropping it commits everything queued and ends the thread.
pub(crate) struct Committer {
    shared: Arc<Shared>,
    /// The ticket of the last submitted write set; only this handle gives out tickets.
    last: Cell<Ticket>,
    /// The entries that the records lag behind by, if they do.
    behind: Option<Arc<Applied>>,
    on_progress: Arc<dyn Fn() + Send + Sync>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// The log, until the thread ends. Locked before `queue`.
    chains: Mutex<Option<Chains>>,
    queue: Mutex<Queue>,
    filled: Condvar,
    durable: AtomicU64,
    /// The bytes in the queue; changed with the queue locked, and read without the lock.
    bytes: AtomicUsize,
    /// The bytes of the group that is being committed.
    in_flight: AtomicUsize,
    unapplied: Unapplied,
    failure: OnceLock<Arc<StorageError>>,
}

#[derive(Default)]
struct Queue {
    sets: Vec<WriteSet>,
    last: Ticket,
    state: State,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    Closed,
}

impl Committer {
    /// Starts the thread, which closes `log` at its end.
    ///
    /// # Errors
    /// `Io` when the operating system can't start a thread; nothing was claimed.
    pub(crate) fn start(
        name: &str,
        log: Box<dyn ShardLog>,
        on_progress: OnProgress,
    ) -> Result<Self> {
        let on_progress: Arc<dyn Fn() + Send + Sync> = on_progress.into();
        let behind = log.applied();
        let shared = Arc::new(Shared::new(log));
        let (theirs, progress) = (shared.clone(), on_progress.clone());
        if let Some(behind) = &behind {
            behind.observe(on_progress.clone());
        }
        let name = format!("{name}-commit");
        let thread = Builder::new()
            .name(name.clone())
            .spawn(move || run(&theirs, &*progress))
            .map_err(|source| {
                let path = PathBuf::from(name);
                StorageError::Io { action: "start the thread", path, source }
            })?;
        Ok(Self { shared, last: Cell::default(), behind, on_progress, thread: Some(thread) })
    }

    /// Queues the writes; never waits. After a failure they are dropped. The thread takes them when
    /// it has finished its present group, or after [`Committer::wake`].
    pub(crate) fn submit(&self, set: WriteSet) -> Ticket {
        let ticket = self.next_ticket();
        self.last.set(ticket);
        if self.shared.failure.get().is_some() {
            return ticket;
        }
        let mut queue = self.shared.queue();
        self.shared.bytes.fetch_add(set.as_bytes().len(), Ordering::Relaxed);
        queue.last = ticket;
        queue.sets.push(set);
        ticket
    }

    /// Has the queue committed by the thread, if it isn't at work already. Call it soon after
    /// `submit`; turns that are submitted in between join the group.
    pub(crate) fn wake(&self) {
        self.shared.filled.notify_one();
    }

    /// Has the queue committed here if it holds a lone turn, and otherwise by the thread.
    pub(crate) fn commit(&self) {
        if !self.commits_here() {
            self.wake();
        }
    }

    /// Commits the queue if it holds a lone turn and the log will do it at once; returns whether it
    /// did.
    fn commits_here(&self) -> bool {
        let bytes = self.shared.bytes.load(Ordering::Relaxed);
        let is_lone = self.last.get().0 == self.durable().0 + 1;
        if !is_lone || bytes > HERE_BYTES_MAX || self.shared.failure.get().is_some() {
            return false;
        }
        // The thread has it while it commits, and then takes this turn next.
        let Ok(mut guard) = self.shared.chains.try_lock() else { return false };
        let Some(chains) = guard.as_mut().filter(|chains| chains.takes_lone_turns(bytes as u64))
        else {
            return false;
        };
        commit(&self.shared, chains, &*self.on_progress);
        true
    }

    /// The ticket of the next submitted write set.
    pub(crate) fn next_ticket(&self) -> Ticket {
        Ticket(self.last.get().0 + 1)
    }

    /// The ticket of the last submitted write set.
    pub(crate) fn last_ticket(&self) -> Ticket {
        self.last.get()
    }

    /// The last durable ticket; all before it are durable too.
    pub(crate) fn durable(&self) -> Ticket {
        // Acquire: a thread that reads this number then reads everything committed before it.
        Ticket(self.shared.durable.load(Ordering::Acquire))
    }

    /// The last ticket whose writes reads of the records see, as all before it. It is never after
    /// `durable`.
    pub(crate) fn applied(&self) -> Ticket {
        let durable = self.durable();
        let Some(behind) = &self.behind else { return durable };
        self.shared.unapplied.last_applied(behind.count(), durable)
    }

    /// The objects that lack writes in the records which they should have by `applied`, which has
    /// to be asked before.
    pub(crate) fn aside(&self) -> FxHashSet<ObjectId> {
        self.behind.as_ref().map(|behind| behind.aside()).unwrap_or_default()
    }

    /// The bytes that were submitted and may not be in the log yet.
    pub(crate) fn bytes_unlogged(&self) -> u64 {
        // A group is counted as in flight before it is taken off the queue.
        let queued = self.shared.bytes.load(Ordering::Acquire);
        (queued + self.shared.in_flight.load(Ordering::Relaxed)) as u64
    }

    /// Tells whether so many times as much waits for the disk as should. This is asked before every
    /// call, so it takes no lock.
    pub(crate) fn is_full(&self, times: usize) -> bool {
        if self.behind.as_ref().is_some_and(|behind| behind.is_full(times as u64)) {
            return true;
        }
        let turns = self.last.get().0 - self.durable().0;
        turns >= COMMIT_QUEUE_TURNS * times as u64
            || self.shared.bytes.load(Ordering::Relaxed) >= COMMIT_QUEUE_BYTES * times
    }

    /// The failure after which nothing becomes durable any more, if there was one.
    pub(crate) fn failure(&self) -> Option<&Arc<StorageError>> {
        self.shared.failure.get().or_else(|| self.behind.as_ref()?.failure())
    }

    /// Makes `error` the failure, unless there was one. A group that is being committed may still
    /// become durable, and none after it.
    pub(crate) fn fail(&self, error: Arc<StorageError>) {
        let _ = self.shared.failure.set(error);
    }

    /// Commits the queue and ends the thread.
    ///
    /// # Errors
    /// `Latched` when a commit failed, now or earlier: only the turns reported by `durable` are
    /// known to be durable.
    pub(crate) fn shutdown(&mut self) -> Result<()> {
        self.finish();
        self.failure().map_or(Ok(()), |failure| Err(StorageError::Latched(failure.clone())))
    }

    fn finish(&mut self) {
        self.shared.queue().state = State::Closed;
        self.shared.filled.notify_one();
        if let Some(thread) = self.thread.take() {
            // Only a panic in `on_progress` gets here; it was latched like any other failure.
            let _ = thread.join();
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.finish();
    }
}

impl fmt::Debug for Committer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (last, durable) = (self.last.get(), self.durable());
        f.debug_struct("Committer")
            .field("last", &last)
            .field("durable", &durable)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn new(log: Box<dyn ShardLog>) -> Self {
        Self {
            chains: Mutex::new(Some(Chains::new(log))),
            queue: Mutex::default(),
            filled: Condvar::new(),
            durable: AtomicU64::new(0),
            bytes: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            unapplied: Unapplied::default(),
            failure: OnceLock::new(),
        }
    }

    /// Panics of a commit are caught while this lock is held.
    fn chains(&self) -> MutexGuard<'_, Option<Chains>> {
        self.chains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No code that holds this lock can panic, so a poisoned queue is intact.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits before blocks are offered again; returns false if that is for the last time.
    fn pause(&self, pause: Duration) -> bool {
        let is_open = |queue: &mut Queue| queue.state == State::Open;
        let waited = self.filled.wait_timeout_while(self.queue(), pause, is_open);
        let (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.state == State::Open && self.failure.get().is_none()
    }

    /// Waits for writes; returns false when no more will come.
    fn await_writes(&self, company: &Company) -> bool {
        let mut queue = self.queue();
        if queue.sets.is_empty() {
            let waiting = |queue: &mut Queue| queue.sets.is_empty() && queue.state == State::Open;
            let filled = self.filled.wait_while(queue, waiting);
            queue = filled.unwrap_or_else(PoisonError::into_inner);
        } else if self.bytes.load(Ordering::Relaxed) < COMMIT_GROUP_BYTES {
            let all = queue.sets.len() + company.turns;
            let waiting = |queue: &mut Queue| queue.sets.len() < all && queue.state == State::Open;
            let gathered = self.filled.wait_timeout_while(queue, company.patience, waiting);
            (queue, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        }
        !queue.sets.is_empty() || queue.state == State::Open
    }

    /// Moves writes into `group`, which is empty: all, or as many as one group may have. Returns
    /// the ticket of the last of them.
    fn take(&self, group: &mut Vec<WriteSet>) -> Option<Ticket> {
        let mut queue = self.queue();
        let mut bytes = self.bytes.load(Ordering::Relaxed);
        if bytes <= COMMIT_GROUP_BYTES {
            std::mem::swap(&mut queue.sets, group);
        } else {
            let (mut count, mut next) = (0, 0);
            bytes = 0;
            while let Some(set) = queue.sets.get(count) {
                next += set.as_bytes().len();
                if count > 0 && next > COMMIT_GROUP_BYTES {
                    break;
                }
                (count, bytes) = (count + 1, next);
            }
            group.extend(queue.sets.drain(..count));
        }
        self.in_flight.store(bytes, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Release);
        let last = Ticket(queue.last.0 - queue.sets.len() as u64);
        (!group.is_empty()).then_some(last)
    }
}

/// Turns that may follow soon, because callers whose replies have just left tend to call again.
///
/// When other turns already wait, a short wait for these makes one group of both. Otherwise the two
/// would always take turns, and every call would wait for two syncs instead of one.
#[derive(Default)]
struct Company {
    turns: usize,
    patience: Duration,
}

/// A fraction of the last commit's time, so that no turn waits much longer than without company.
fn patience(commit: Duration) -> Duration {
    (commit / 4).min(Duration::from_millis(2))
}

fn run(shared: &Shared, on_progress: &dyn Fn()) {
    let mut company = Company::default();
    while shared.await_writes(&company) && shared.failure.get().is_none() {
        if let Some(chains) = &mut *shared.chains() {
            company = commit(shared, chains, on_progress);
        }
    }
    // Its end takes a while, and nobody should wait for the lock meanwhile.
    let chains = shared.chains().take();
    drop(chains);
}

/// Commits a group, and tells of it. After an outcome that isn't a position, or a panic, nothing
/// is committed any more.
fn commit(shared: &Shared, chains: &mut Chains, on_progress: &dyn Fn()) -> Company {
    let done = catch_unwind(AssertUnwindSafe(|| {
        let Some(company) = commit_queue(shared, chains)? else { return Ok(Company::default()) };
        on_progress();
        if shared.bytes.load(Ordering::Relaxed) == 0 {
            chains.log.rest();
        }
        Ok(company)
    }));
    let failure = match done {
        Ok(Ok(company)) => return company,
        Ok(Err(failure)) => failure,
        Err(panic) => Arc::new(StorageError::Panicked(panic_text(&*panic))),
    };
    let _ = shared.failure.set(failure);
    on_progress();
    Company::default()
}

/// Commits a group of the turns in the queue; returns those that may follow soon, or `None` if
/// there were none.
fn commit_queue(
    shared: &Shared,
    chains: &mut Chains,
) -> std::result::Result<Option<Company>, Arc<StorageError>> {
    let mut group = std::mem::take(&mut chains.group);
    let Some(last) = shared.take(&mut group) else { return Ok(None) };
    let (began, turns) = (monotonic(), group.len());
    let (committed, failure) = chains.commit(&mut group, |pause| shared.pause(pause));
    chains.group = group;
    let ticket = Ticket(last.0 - (turns - committed) as u64);
    if chains.log.applied().is_some() {
        shared.unapplied.push(ticket);
    }
    shared.in_flight.store(0, Ordering::Relaxed);
    shared.durable.store(ticket.0, Ordering::Release);
    let took = began.elapsed();
    chains.took(turns, took);
    failure.map_or(Ok(Some(Company { turns, patience: patience(took) })), Err)
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given").to_owned()
}
