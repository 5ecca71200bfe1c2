//! Moves the writes of entries into the environment, in the order of the keys.
//!
//! Of several writes of one key only the last is made. So a transaction changes each page of the
//! tree once, however often its records were written. This holds within some ten thousand writes,
//! which are sorted together: the memory for that is bounded, too.
//!
//! Usually one transaction is enough. When the writes touch very many pages, or little room is
//! left, there are several, and the last one records how far the environment is. Then a crash may
//! leave some of the writes; the next start makes all of them again, which gives the same records.
//! The clearing of a large object takes many more, and the entries after it don't wait for it
//! (see `sweeps`).

pub(super) mod sweeps;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use self::sweeps::Sweeps;
use crate::id::{ObjectId, Shard};
use crate::metrics::Metrics;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::disk::Disk;
use crate::storage::lmdb::engine::{Changes, Environment};
use crate::storage::lmdb::layout::keys::{EngineKey, RecordPath, below_prefix, space_prefixes};
use crate::storage::lmdb::layout::{
    ENVIRONMENT_KEY, EnvironmentRecord, Kind, LogState, ShardMeta, damaged, shard_key,
};
use crate::storage::log::batch::{Op, Ops, WriteSet, split_head};
use crate::storage::log::entry::Entry;
use crate::storage::position::{End, NONCE_BYTES};

/// Entries of about this many bytes are applied together.
pub(super) const SLICE_BYTES: u64 = 16 << 20;
/// The bytes of pages that one transaction may copy, which LMDB has in memory until its end.
const TRANSACTION_BYTES: u64 = 128 << 20;
/// A transaction takes at most this fraction of the room that is left: the pages that it frees can
/// be used again by the one after the next.
const ROOM_FRACTION: u64 = 4;
/// Writes that are sorted together at most: their keys and places take some 10 MB.
const SORTED_TOGETHER: usize = 1 << 16;
/// The pages that a change of one record copies, where no other record shares them: a leaf, and
/// some of the pages above it.
const PAGES_OF_A_RECORD: u64 = 2;
/// Pages that a transaction copies in any case, rounded up.
const COMMIT_PAGES: u64 = 16;
/// For a clearing beside others, which soon have a turn then.
pub(super) const CLEARING_BYTES: u64 = 16 << 20;

/// The bytes of pages that a change of one record copies.
pub(super) fn record_bytes(page: u64) -> u64 {
    PAGES_OF_A_RECORD * page
}

/// An environment that receives the entries of a log.
pub(super) struct Target<'a> {
    pub(super) env: &'a Environment,
    /// The name of the log.
    pub(super) nonce: [u8; NONCE_BYTES],
    pub(super) metrics: &'a Metrics,
    /// Snapshots are called back when fewer bytes than these are left.
    pub(super) low: u64,
    /// The most bytes of pages that a transaction copies for a clearing beside other entries.
    pub(super) clearing: u64,
    /// Time to sleep before every transaction.
    pub(super) delay: Duration,
}

impl Target<'_> {
    /// Applies the entries, up to the last of them, and records that.
    ///
    /// # Errors
    /// Those of [`Environment::write`]: nothing can be applied any more.
    pub(super) fn apply(&self, entries: &[(Entry, End)]) -> Applies {
        self.apply_beside(entries, None)
    }

    /// The same, beside clearings of large objects, to which such clearings are added. As long as
    /// there are any, nothing is recorded.
    ///
    /// # Errors
    /// As for `apply`.
    pub(super) fn apply_beside(
        &self,
        entries: &[(Entry, End)],
        mut sweeps: Option<&mut Sweeps>,
    ) -> Applies {
        let Some((_, end)) = entries.last() else { return Ok(()) };
        let mut work = Work::of(entries).map_err(Arc::new)?;
        loop {
            thread::sleep(self.delay);
            let most = self.room().map_err(Arc::new)?;
            let went = self.env.write(|changes| {
                let page = self.env.page_bytes();
                let beside = sweeps.as_deref_mut().map(|sweeps| (sweeps, self.clearing));
                let went = work.go_on(changes, (page, most), beside)?;
                if went.is_done {
                    let metas = std::mem::take(&mut work.metas);
                    match sweeps.as_deref_mut().filter(|sweeps| !sweeps.is_empty()) {
                        Some(sweeps) => sweeps.keep(metas.into_iter(), *end),
                        None => self.record(changes, metas, *end)?,
                    }
                }
                Ok(went)
            })?;
            self.committed(went.copied);
            if went.is_done {
                return Ok(());
            }
        }
    }

    /// Goes on with the clearings in one short transaction; at the end of all of them, it records
    /// what was applied beside them.
    ///
    /// # Errors
    /// As for `apply`.
    pub(super) fn sweep(&self, sweeps: &mut Sweeps) -> Applies {
        thread::sleep(self.delay);
        let most = self.room().map_err(Arc::new)?.min(self.clearing);
        let copied = self.env.write(|changes| {
            let copied = sweeps.go_on(changes, self.env.page_bytes(), most)?;
            if sweeps.is_empty() {
                let (metas, end) = sweeps.finish();
                self.record(changes, metas, end)?;
            }
            Ok(copied)
        })?;
        self.committed(copied);
        Ok(())
    }

    /// Tells whether the disk has room for a log that can't be given up for a while.
    pub(super) fn has_plenty(&self) -> bool {
        Disk::of(self.env.path()).is_ok_and(|disk| disk.left / 2 >= self.low)
    }

    fn committed(&self, copied: u64) {
        self.env.snapshots().written(copied + COMMIT_PAGES * self.env.page_bytes());
        self.metrics.applies_total.add(1);
    }

    /// The bytes of pages that a transaction may copy now.
    fn room(&self) -> Result<u64> {
        let env = self.env;
        loop {
            // If the folder is gone, writing says so.
            let disk = Disk::of(env.path()).map_or(u64::MAX, |disk| disk.left);
            let left = disk.min(env.bytes_unmapped());
            if left / ROOM_FRACTION >= TRANSACTION_BYTES {
                return Ok(TRANSACTION_BYTES);
            }
            let left = left + env.bytes_reusable()?;
            // Afterwards more may be left.
            if left >= self.low || !env.snapshots().call_back(left) {
                return Ok((left / ROOM_FRACTION).min(TRANSACTION_BYTES));
            }
        }
    }

    fn record(
        &self,
        changes: &mut Changes<'_>,
        mut metas: Vec<(Shard, ShardMeta)>,
        applied: End,
    ) -> Result<()> {
        // A stable sort: the last of a shard's stays the last.
        metas.sort_by_key(|(shard, _)| shard.0);
        let mut metas = metas.into_iter().peekable();
        while let Some((shard, meta)) = metas.next() {
            if metas.peek().is_none_or(|(next, _)| *next != shard) {
                changes.put(&shard_key(shard), &meta.encode())?;
            }
        }
        let nonce = self.nonce;
        set_log(changes, Some(nonce), Some(LogState { nonce, applied }))
    }
}

/// The error is that of [`Environment::write`].
type Applies = std::result::Result<(), Arc<StorageError>>;

/// Records the log whose entries the environment receives, in the place of `before`.
///
/// # Errors
/// `CorruptRecord` when another log is in that place.
pub(super) fn set_log(
    changes: &mut Changes<'_>,
    before: Option<[u8; 16]>,
    log: Option<LogState>,
) -> Result<()> {
    let record = changes.get(&ENVIRONMENT_KEY)?.ok_or_else(|| damaged(&ENVIRONMENT_KEY))?;
    let mut record = EnvironmentRecord::decode(record, Kind::Objects)?;
    if record.log.map(|log| log.nonce) != before {
        return Err(damaged(&ENVIRONMENT_KEY));
    }
    record.log = log;
    changes.put(&ENVIRONMENT_KEY, &record.encode(Kind::Objects))
}

/// All that is to be done for some entries.
#[derive(Default)]
pub(super) struct Work<'a> {
    /// The write sets that follow, and the rest of the one before them.
    sets: VecDeque<&'a [u8]>,
    set: Option<(ObjectId, Ops<'a>)>,
    /// The next steps.
    steps: VecDeque<Step<'a>>,
    metas: Vec<(Shard, ShardMeta)>,
}

enum Step<'a> {
    Write(EngineKey, Write<'a>),
    /// Removes all keys of the object with this beginning.
    Clear(ObjectId, Vec<u8>),
}

/// The part of the work that one transaction did.
pub(super) struct Went {
    /// The bytes of pages that it may have copied.
    pub(super) copied: u64,
    pub(super) is_done: bool,
}

/// A change of a record.
struct Write<'a> {
    links: Vec<EngineKey>,
    /// `None` for a deletion.
    value: Option<&'a [u8]>,
}

impl<'a> Work<'a> {
    fn of(entries: &'a [(Entry, End)]) -> Result<Self> {
        let mut work = Self::default();
        for (entry, _) in entries {
            entry.blocks(|block| {
                block.sets(|set| {
                    // A write set without writes has no head either.
                    if !set.is_empty() {
                        work.sets.push_back(set);
                    }
                    Ok(())
                })?;
                let meta = ShardMeta { epoch: block.epoch, link: block.link() };
                work.metas.push((block.shard, meta));
                Ok(())
            })?;
        }
        Ok(work)
    }

    /// The writes of one set, without a position.
    pub(super) fn of_set(set: &'a WriteSet) -> Self {
        Self { sets: VecDeque::from([set.as_bytes()]), ..Self::default() }
    }

    /// Makes the next steps, if there are none: those of the next writes up to a clearing, the last
    /// of each key, in the order of the keys. Writes to an object that is being cleared are made
    /// later.
    fn prepare(&mut self, mut sweeps: Option<&mut Sweeps>) -> Result<()> {
        let mut writes = Vec::new();
        while self.steps.is_empty() && writes.len() < SORTED_TOGETHER {
            let Some((object, op)) = self.next_op()? else { break };
            if let Some(sweeps) = sweeps.as_deref_mut()
                && sweeps.defer(object, &op)?
            {
                continue;
            }
            let (space, key, value) = match op {
                Op::Put { space, key, value } => (space, key, Some(value)),
                Op::Delete { space, key } => (space, key, None),
                Op::Clear { space } => {
                    let clear = |prefix| Step::Clear(object, prefix);
                    self.steps.extend(space_prefixes(object, space).map(clear));
                    break;
                }
            };
            let RecordPath { links, record } = RecordPath::new(object, space, key)?;
            writes.push((record, writes.len(), Write { links, value }));
        }
        writes.sort_unstable_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        while let Some((key, _, write)) = writes.pop() {
            writes.truncate(writes.partition_point(|(before, ..)| *before < key));
            self.steps.push_front(Step::Write(key, write));
        }
        Ok(())
    }

    fn next_op(&mut self) -> Result<Option<(ObjectId, Op<'a>)>> {
        loop {
            if let Some((object, ops)) = &mut self.set
                && let Some(op) = ops.next()
            {
                return Ok(Some((*object, op?)));
            }
            let Some(set) = self.sets.pop_front() else { return Ok(None) };
            self.set = Some(split_head(set)?);
        }
    }

    /// Takes steps until they may have copied `most` bytes. It always takes one. If there is work
    /// beside it, a clearing that isn't done after so many bytes is put there.
    pub(super) fn go_on(
        &mut self,
        changes: &mut Changes<'_>,
        (page, most): (u64, u64),
        mut beside: Option<(&mut Sweeps, u64)>,
    ) -> Result<Went> {
        let record = record_bytes(page);
        let mut copied = 0;
        loop {
            if self.steps.is_empty() {
                self.prepare(beside.as_mut().map(|(sweeps, _)| &mut **sweeps))?;
            }
            let Some(step) = self.steps.front() else { return Ok(Went { copied, is_done: true }) };
            match step {
                Step::Write(key, Write { links, value }) => {
                    let value_bytes = value.map_or(0, |value| value.len() as u64);
                    copied += record * (1 + links.len() as u64) + value_bytes;
                    match value {
                        Some(value) => put(changes, key, links, value)?,
                        None => delete(changes, key, links)?,
                    }
                    self.steps.pop_front();
                }
                Step::Clear(object, prefix) => {
                    let object = *object;
                    let clearing = beside.as_ref().map_or(most, |(_, clearing)| *clearing);
                    let left = most.saturating_sub(copied).max(record).min(clearing);
                    let (removed, is_done) = changes.delete_some(prefix, left)?;
                    copied += record + removed;
                    if is_done {
                        self.steps.pop_front();
                    } else if let Some((sweeps, _)) = &mut beside {
                        sweeps.begin(object, self.clearings());
                    }
                }
            }
            if copied >= most {
                return Ok(Went { copied, is_done: self.is_done() });
            }
        }
    }

    /// Takes the steps out. A clearing is the last of the writes that steps are made of, so these
    /// are all of the same one.
    fn clearings(&mut self) -> VecDeque<Vec<u8>> {
        let prefix = |step| match step {
            Step::Clear(_, prefix) => Some(prefix),
            Step::Write(..) => None,
        };
        self.steps.drain(..).filter_map(prefix).collect()
    }

    fn is_done(&self) -> bool {
        let is_rest = self.set.as_ref().is_some_and(|(_, ops)| ops.clone().next().is_some());
        self.steps.is_empty() && self.sets.is_empty() && !is_rest
    }
}

fn put(changes: &mut Changes<'_>, key: &[u8], links: &[EngineKey], value: &[u8]) -> Result<()> {
    for link in links {
        // Written without a look at the old record: it must be this one in any case.
        changes.put(link, b"")?;
    }
    changes.put(key, value)
}

fn delete(changes: &mut Changes<'_>, key: &[u8], links: &[EngineKey]) -> Result<()> {
    changes.delete(key)?;
    for link in links.iter().rev() {
        if changes.has_any(&below_prefix(link))? {
            break;
        }
        changes.delete(link)?;
    }
    Ok(())
}
