//! Moves the writes of entries into the environment, in the order of the keys.
//!
//! Of several writes of one key only the last is made. So a transaction changes each page of the
//! tree once, however often its records were written. This holds within some ten thousand writes,
//! which are sorted together: the memory for that is bounded, too.
//!
//! Usually one transaction is enough. When the writes touch very many pages, or little room is
//! left, there are several, and the last one records how far the environment is. Then a crash may
//! leave some of the writes; the next start makes all of them again, which gives the same records.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::id::{ObjectId, Shard};
use crate::metrics::Metrics;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::disk::Disk;
use crate::storage::lmdb::engine::{Changes, Environment};
use crate::storage::lmdb::layout::keys::{EngineKey, RecordPath, below_prefix, space_prefixes};
use crate::storage::lmdb::layout::{
    ENVIRONMENT_KEY, EnvironmentRecord, Kind, LogState, ShardMeta, damaged, shard_key,
};
use crate::storage::log::batch::{Op, Ops, split_head};
use crate::storage::log::entry::Entry;
use crate::storage::position::End;

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

/// Applies the entries of the log `nonce`, up to the last of them, and records that.
///
/// # Errors
/// Those of [`Environment::write`]: nothing can be applied any more.
pub(super) fn apply(
    env: &Environment,
    nonce: [u8; 16],
    entries: &[(Entry, End)],
    metrics: &Metrics,
) -> std::result::Result<(), Arc<StorageError>> {
    let Some((_, applied)) = entries.last() else { return Ok(()) };
    let mut work = Work::of(entries).map_err(Arc::new)?;
    loop {
        let most = room(env).map_err(Arc::new)?;
        let is_done = env.write(|changes| {
            if !work.go_on(changes, env.page_bytes(), most)? {
                return Ok(false);
            }
            work.write_metas(changes)?;
            set_log(changes, Some(nonce), Some(LogState { nonce, applied: *applied }))?;
            Ok(true)
        })?;
        metrics.applies_total.add(1);
        if is_done {
            return Ok(());
        }
    }
}

/// The bytes of pages that a transaction may copy now.
fn room(env: &Environment) -> Result<u64> {
    // If the folder is gone, writing says so.
    let left = Disk::of(env.path()).map_or(u64::MAX, |disk| disk.left).min(env.bytes_unmapped());
    if left / ROOM_FRACTION >= TRANSACTION_BYTES {
        return Ok(TRANSACTION_BYTES);
    }
    Ok(((left + env.bytes_reusable()?) / ROOM_FRACTION).min(TRANSACTION_BYTES))
}

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
struct Work<'a> {
    /// The write sets that follow, and the rest of the one before them.
    sets: VecDeque<&'a [u8]>,
    set: Option<(ObjectId, Ops<'a>)>,
    /// The next steps.
    steps: VecDeque<Step<'a>>,
    metas: Vec<(Shard, ShardMeta)>,
}

enum Step<'a> {
    Write(EngineKey, Write<'a>),
    /// Removes all keys with this beginning.
    Clear(Vec<u8>),
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

    /// Makes the next steps, if there are none: those of the next writes up to a clearing, the last
    /// of each key, in the order of the keys.
    fn prepare(&mut self) -> Result<()> {
        let mut writes = Vec::new();
        while self.steps.is_empty() && writes.len() < SORTED_TOGETHER {
            let Some((object, op)) = self.next_op()? else { break };
            let (space, key, value) = match op {
                Op::Put { space, key, value } => (space, key, Some(value)),
                Op::Delete { space, key } => (space, key, None),
                Op::Clear { space } => {
                    self.steps.extend(space_prefixes(object, space).into_iter().map(Step::Clear));
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

    /// Takes steps until they may have copied `most` bytes; returns whether that was all of them.
    /// It always takes one.
    fn go_on(&mut self, changes: &mut Changes<'_>, page: u64, most: u64) -> Result<bool> {
        let record = PAGES_OF_A_RECORD * page;
        let mut copied = 0;
        loop {
            if self.steps.is_empty() {
                self.prepare()?;
            }
            let Some(step) = self.steps.front() else { return Ok(true) };
            match step {
                Step::Write(key, Write { links, value }) => {
                    let value_bytes = value.map_or(0, |value| value.len() as u64);
                    copied += record * (1 + links.len() as u64) + value_bytes;
                    match value {
                        Some(value) => put(changes, key, links, value)?,
                        None => delete(changes, key, links)?,
                    }
                }
                Step::Clear(prefix) => {
                    let left = most.saturating_sub(copied).max(record);
                    let (removed, is_done) = changes.delete_some(prefix, left)?;
                    copied += record + removed;
                    if !is_done {
                        return Ok(false);
                    }
                }
            }
            self.steps.pop_front();
            if copied >= most {
                return Ok(self.is_done());
            }
        }
    }

    fn is_done(&self) -> bool {
        let is_rest = self.set.as_ref().is_some_and(|(_, ops)| ops.clone().next().is_some());
        self.steps.is_empty() && self.sets.is_empty() && !is_rest
    }

    fn write_metas(&mut self, changes: &mut Changes<'_>) -> Result<()> {
        // A stable sort: the last of a shard's stays the last.
        self.metas.sort_by_key(|(shard, _)| shard.0);
        let mut metas = self.metas.drain(..).peekable();
        while let Some((shard, meta)) = metas.next() {
            if metas.peek().is_none_or(|(next, _)| *next != shard) {
                changes.put(&shard_key(shard), &meta.encode())?;
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests;
