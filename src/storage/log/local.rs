//! The log of a single machine: a file of entries, each a group commit, in front of LMDB.
//!
//! One write and one sync make an entry durable, and that is all that an answer waits for. A thread
//! of its own moves entries to the environment later; reads find there what has been applied, and
//! the store remembers the rest. Opening applies what an earlier process left in the log.
//!
//! The environment names its log by a random nonce, and the last entry that it has. It names none
//! once it has everything, as after an end in order: the log is begun with the first append.
//!
//! **Invariants:** an entry is applied only after its sync. A block is appended only under the
//! incarnation that the environment has on disk, which is the epoch of all claims of this process;
//! so a process that was replaced is fenced by the data. Nothing is appended after a failure.

use std::collections::hash_map::Entry;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::clock::monotonic;
use crate::id::{Epoch, Shard};
use crate::limits::{MAP_BYTES, RESERVE_BYTES_MAX, RESERVE_BYTES_MIN, VALUE_BYTES_MAX};
use crate::metrics::Metrics;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::dir::{Access, random_name};
use crate::storage::lmdb::disk::{self, Disk};
use crate::storage::lmdb::engine::Environment;
use crate::storage::lmdb::layout::{EnvironmentRecord, LogState, ShardMeta, damaged, shard_key};
use crate::storage::lmdb::owned::Owner;
use crate::storage::lmdb::room::{QUEUED_FACTOR, Room};
use crate::storage::log::applied::{Applied, Backlog};
use crate::storage::log::applier::{Applier, ApplierOptions};
use crate::storage::log::apply::set_log;
use crate::storage::log::block::ShardBlock;
use crate::storage::log::entry::{Draft, Head};
use crate::storage::log::opening::{open_to_read, open_to_write, record_of};
use crate::storage::log::reader::Reader;
use crate::storage::log::segments::{self, Segments};
use crate::storage::log::shard_log::{Claim, Outcome, ShardLog, VisitBlock};
use crate::storage::position::{End, Identity, Link, NONCE_BYTES, Position};

/// The options of the local log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogOptions {
    /// Time to sleep before every commit, to simulate a slow disk.
    pub(crate) commit_delay: Duration,
    /// Time to sleep before every transaction that applies entries, to simulate a slow one.
    pub(crate) apply_delay: Duration,
    /// The address space of the environment, in bytes; its data never outgrow it.
    pub(crate) map_bytes: usize,
    /// Bytes of the disk, and of the map, that growth leaves free; `None` for the default.
    pub(crate) reserve_bytes: Option<u64>,
    /// The size and age of what may wait to be applied.
    pub(crate) backlog: Backlog,
    /// The most bytes of a segment, unless one entry needs more.
    pub(crate) segment_bytes: u64,
    /// The access: reading alone, or writing too.
    pub(crate) access: Access,
    /// The user that the data belong to, and that writes them.
    pub(crate) owner: Owner,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            commit_delay: Duration::ZERO,
            apply_delay: Duration::ZERO,
            map_bytes: MAP_BYTES,
            reserve_bytes: None,
            backlog: Backlog::default(),
            segment_bytes: segments::BYTES_MAX,
            access: Access::Full,
            owner: Owner::ours(),
        }
    }
}

/// The writing side. One thread at a time has it: mostly the commit thread.
#[derive(Debug)]
pub(crate) struct LocalLog {
    env: Arc<Environment>,
    options: LogOptions,
    metrics: Arc<Metrics>,
    room: Arc<Room>,
    applied: Arc<Applied>,
    /// Begun with the first append.
    writer: Option<Writer>,
    failure: Option<Arc<StorageError>>,
    /// The ends of the chains that this log has extended. While the incarnation is ours, no other
    /// process changes them.
    ends: FxHashMap<Shard, Link>,
}

#[derive(Debug)]
struct Writer {
    identity: Identity,
    nonce: [u8; NONCE_BYTES],
    last: End,
    /// The number of the last entry that has a tail.
    tail: u64,
    segments: Segments,
    applier: Applier,
}

/// Opens or creates the environment in `path`, and applies what an earlier process left in its log;
/// returns its log and a reader of it.
///
/// # Errors
/// `NotADirectory`, `NotOurs`, `Format`, `InUse`, `DataMissing`, `CorruptRecord`, `LogDamaged`: the
/// data are unchanged. `Io`, `Lmdb`, `MapFull`: at most, this opening was counted, and a part of
/// the log applied.
pub(crate) fn open(
    path: &Path,
    options: LogOptions,
    metrics: Arc<Metrics>,
) -> Result<(LocalLog, Reader)> {
    let env = Arc::new(match options.access {
        Access::Full => open_to_write(path, options.map_bytes, &metrics)?,
        Access::Read => open_to_read(path, options.map_bytes, options.owner, &metrics)?,
    });
    let applied = Arc::new(Applied::new(options.backlog, metrics.clone()));
    let reader = Reader::new(env.clone(), applied.clone(), metrics.clone());
    let room = Arc::new(room(path, &env, &applied, options.reserve_bytes)?);
    let (writer, failure, ends) = (None, None, FxHashMap::default());
    Ok((LocalLog { env, options, metrics, room, applied, writer, failure, ends }, reader))
}

fn room(
    path: &Path,
    env: &Arc<Environment>,
    applied: &Arc<Applied>,
    reserve: Option<u64>,
) -> Result<Room> {
    let path = path.to_owned();
    let total = Disk::of(&path)?.total.min(env.map_bytes());
    let usual = (total / 20).clamp(RESERVE_BYTES_MIN, RESERVE_BYTES_MAX);
    let reserve = reserve.unwrap_or(usual);
    // The measure may outlive the storage, if that is closed first.
    let (env, applied) = (Arc::downgrade(env), applied.clone());
    let measure = move |queued| {
        let env = env.upgrade().ok_or(StorageError::Closed)?;
        let left = Disk::of(&path)?.left.min(env.bytes_unmapped());
        // Accepted writes will take room in the environment, and records don't fill their pages.
        // Those that aren't in the log yet will take room there, too.
        let taken = (2 * applied.bytes()).saturating_add(queued * QUEUED_FACTOR);
        // Free pages in the engine count too, but only down to half the reserve: they may be too
        // scattered for a large value.
        let may_reuse = left >= reserve / 2 && left < reserve.saturating_add(taken);
        let left = if may_reuse { left + env.bytes_reusable()? } else { left };
        let left = left.saturating_sub(taken);
        if left < reserve {
            // It may give room back, too.
            applied.hurry();
        }
        Ok(left)
    };
    Ok(Room::new(reserve, Box::new(measure)))
}

/// Snapshots are called back when fewer bytes than half the reserve are left, or these: a few of
/// the largest values.
const LOW_BYTES_MIN: u64 = 4 * VALUE_BYTES_MAX as u64;

/// The usual time of a commit up to which the caller may wait for it: about that in which two
/// threads wake each other.
const READY_TIME_MAX: Duration = Duration::from_micros(300);

impl LocalLog {
    /// The room left on disk and in the map.
    pub(crate) fn room(&self) -> Arc<Room> {
        self.room.clone()
    }

    /// Begins the log: a first segment, and its nonce in the environment.
    fn begin(&mut self, identity: Identity) -> Result<()> {
        let nonce = random_name()?;
        let segments = Segments::begin(self.env.path(), self.options.segment_bytes)?;
        self.applied.watch(segments.watched());
        let last = End { segment: segments::FIRST, ..End::default() };
        let state = LogState { nonce, applied: last };
        let begun = self.env.write(|changes| set_log(changes, None, Some(state)));
        begun.map_err(StorageError::Latched)?;
        let (env, applied) = (self.env.clone(), self.applied.clone());
        let low = (self.room.reserve() / 2).max(LOW_BYTES_MIN);
        let options = ApplierOptions { nonce, low, delay: self.options.apply_delay };
        let applier = Applier::start(env, options, applied)?;
        self.writer = Some(Writer { identity, nonce, last, tail: 0, segments, applier });
        Ok(())
    }

    fn write(&mut self, blocks: &[ShardBlock]) -> Result<Vec<Outcome>> {
        self.env.check_files()?;
        // Its incarnation on disk is the only epoch whose blocks are appended.
        let EnvironmentRecord { identity, incarnation, .. } = record_of(&self.env)?;
        let mut draft = Draft::new();
        let mut outcomes = Vec::with_capacity(blocks.len());
        for block in blocks {
            let is_ours = block.epoch == Epoch(incarnation);
            let last = self.end(block.shard)?;
            outcomes.push(if is_ours && block.previous == *last {
                *last = draft.add(block)?;
                Outcome::Position(*last)
            } else if block.is_last_of(*last) {
                // Offered again: this group, or one before, has it.
                Outcome::Position(*last)
            } else {
                Outcome::Fenced
            });
        }
        if draft.is_empty() {
            return Ok(outcomes);
        }
        if self.writer.is_none() {
            self.begin(identity)?;
        }
        self.applied.make_room();
        if let Some(failure) = self.applied.failure() {
            return Err(StorageError::Latched(failure.clone()));
        }
        let Some(writer) = &mut self.writer else { return Ok(outcomes) };
        let (number, previous) = (writer.last.number + 1, writer.last.sum);
        let (durable, nonce) = (number - 1, writer.nonce);
        let segment = writer.segments.place(draft.length(), || self.applied.catch_up())?;
        if segment != writer.last.segment {
            self.applied.watch(writer.segments.watched());
        }
        let head = Head { nonce, incarnation, number, durable, segment, previous, identity };
        let mut entry = draft.finish(&head);
        thread::sleep(self.options.commit_delay);
        writer.segments.write(&entry)?;
        // Writes to an environment without a name would be lost when they are applied.
        self.env.check_files()?;
        writer.last = End { number, sum: entry.sum(), segment };
        let bytes = entry.disk_bytes();
        entry.shrink();
        self.applied.push(entry, writer.last);
        // A small entry takes a whole page of the log.
        self.room.committed(bytes);
        Ok(outcomes)
    }

    /// The end of the shard's chain.
    fn end(&mut self, shard: Shard) -> Result<&mut Link> {
        Ok(match self.ends.entry(shard) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(meta(&self.env, shard)?.link),
        })
    }
}

impl ShardLog for LocalLog {
    fn claim(&mut self, shard: Shard) -> Result<Claim> {
        // Opening the environment durably made the epoch newer than all before it.
        let epoch = Epoch(self.env.incarnation());
        Ok(Claim { epoch, link: self.last(shard)? })
    }

    fn append(&mut self, blocks: &[ShardBlock]) -> Vec<Outcome> {
        let began = monotonic();
        let failure = self.failure.as_ref().or(self.applied.failure());
        if let Some(failure) = failure {
            return vec![Outcome::Failed(failure.clone()); blocks.len()];
        }
        let outcomes = match self.write(blocks) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                let failure = Arc::new(disk::explained(error, self.env.path()));
                self.failure = Some(failure.clone());
                return vec![Outcome::Failed(failure); blocks.len()];
            }
        };
        self.metrics.commits_total.add(1);
        self.metrics.commit_microseconds_total.add(began.elapsed().as_micros() as u64);
        for (block, outcome) in blocks.iter().zip(&outcomes) {
            if matches!(outcome, Outcome::Position(_)) {
                self.metrics.turns_committed_total.add(block.writes.len() as u64);
            }
        }
        outcomes
    }

    fn is_ready(&self, bytes: u64, usual: Duration) -> bool {
        let is_free = self.options.commit_delay.is_zero() && !self.applied.is_full();
        is_free
            && usual <= READY_TIME_MAX
            && self.writer.as_ref().is_some_and(|writer| writer.segments.has_room(bytes))
    }

    fn rest(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        let End { number, sum: previous, segment } = writer.last;
        if self.failure.is_some() || writer.tail == number {
            return;
        }
        let (nonce, identity) = (writer.nonce, writer.identity);
        let (incarnation, durable) = (self.env.incarnation(), number);
        let head = Head { nonce, incarnation, number, durable, segment, previous, identity };
        match writer.segments.write_tail(&head.tail()) {
            Ok(()) => writer.tail = number,
            Err(error) => {
                let failure = Arc::new(disk::explained(error, self.env.path()));
                self.failure = Some(failure.clone());
                // Nobody waits for an outcome of this.
                self.applied.fail(failure);
            }
        }
    }

    fn applied(&self) -> Option<Arc<Applied>> {
        Some(self.applied.clone())
    }

    fn last(&self, shard: Shard) -> Result<Link> {
        self.ends.get(&shard).map_or_else(|| Ok(meta(&self.env, shard)?.link), |last| Ok(*last))
    }

    fn read(&self, shard: Shard, from: Position, _visit: &mut VisitBlock<'_>) -> Result<()> {
        let last = self.last(shard)?.position;
        // No block comes before the first, so none can be missing.
        if from.max(Position(1)) <= last { Err(StorageError::Trimmed { last }) } else { Ok(()) }
    }

    fn trim(&mut self, _shard: Shard, _upto: Position) -> Result<()> {
        Ok(())
    }
}

impl Drop for LocalLog {
    /// Applies the rest. If that succeeds the environment needs no log any more; otherwise the next
    /// opening finds it.
    fn drop(&mut self) {
        let Some(Writer { nonce, segments, mut applier, .. }) = self.writer.take() else { return };
        let is_whole = applier.close();
        drop(segments);
        if !is_whole || self.failure.is_some() {
            return;
        }
        match self.env.write(|changes| set_log(changes, Some(nonce), None)) {
            Ok(()) => {
                // The next opening does it otherwise.
                let _ = segments::give_up_before(self.env.path(), u64::MAX);
            }
            // Nothing is lost, but the disk is broken, which the end of the process must say.
            Err(failure) => self.applied.fail(failure),
        }
    }
}

/// The meta record of a shard, as of the last entry that was applied.
fn meta(env: &Environment, shard: Shard) -> Result<ShardMeta> {
    let key = shard_key(shard);
    env.read(|snapshot| {
        snapshot.get(&key)?.map_or(Ok(ShardMeta::default()), |record| {
            ShardMeta::decode(record).ok_or_else(|| damaged(&key))
        })
    })
}

#[cfg(test)]
mod tests;
