//! Moves the writes of entries into the environment, in one transaction, in the order of the keys.
//!
//! Of several writes of one key only the last is made. So a transaction changes each page of the
//! tree once, however often its records were written.

use std::sync::Arc;

use crate::id::{ObjectId, Shard};
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::engine::{Changes, Environment};
use crate::storage::lmdb::layout::keys::{EngineKey, RecordPath, below_prefix, space_prefixes};
use crate::storage::lmdb::layout::{
    ENVIRONMENT_KEY, EnvironmentRecord, Kind, LogState, ShardMeta, damaged, shard_key,
};
use crate::storage::log::batch::{Op, split_head};
use crate::storage::log::entry::Entry;
use crate::storage::position::End;
use crate::storage::space::Space;

/// Writes of entries are gathered up to this many bytes for one transaction.
pub(super) const SLICE_BYTES: u64 = 16 << 20;

/// Applies the entries of the log `nonce`, up to the last of them, and records that.
///
/// # Errors
/// Those of [`Environment::write`]: nothing can be applied any more.
pub(super) fn apply(
    env: &Environment,
    nonce: [u8; 16],
    entries: &[(Entry, End)],
) -> std::result::Result<(), Arc<StorageError>> {
    let Some((_, applied)) = entries.last() else { return Ok(()) };
    env.write(|changes| {
        let mut writes = Writes::default();
        for (entry, _) in entries {
            entry.blocks(|block| {
                block.sets(|set| {
                    // A write set without writes has no head either.
                    if set.is_empty() {
                        return Ok(());
                    }
                    let (object, ops) = split_head(set)?;
                    for op in ops {
                        writes.add(changes, object, op?)?;
                    }
                    Ok(())
                })?;
                let meta = ShardMeta { epoch: block.epoch, link: block.link() };
                writes.metas.push((block.shard, meta));
                Ok(())
            })?;
        }
        writes.flush(changes)?;
        writes.write_metas(changes)?;
        set_log(changes, Some(nonce), Some(LogState { nonce, applied: *applied }))
    })
}

/// Records the log whose entries the environment receives, in the place of `before`.
///
/// # Errors
/// `Fenced` when another log is in that place.
pub(super) fn set_log(
    changes: &mut Changes<'_>,
    before: Option<[u8; 16]>,
    log: Option<LogState>,
) -> Result<()> {
    let mut record = record(changes)?;
    if record.log.map(|log| log.nonce) != before {
        return Err(damaged(&ENVIRONMENT_KEY));
    }
    record.log = log;
    changes.put(&ENVIRONMENT_KEY, &record.encode(Kind::Objects))
}

fn record(changes: &Changes<'_>) -> Result<EnvironmentRecord> {
    let record = changes.get(&ENVIRONMENT_KEY)?.ok_or_else(|| damaged(&ENVIRONMENT_KEY))?;
    EnvironmentRecord::decode(record, Kind::Objects)
}

/// The writes that were gathered since the last clearing of a space.
#[derive(Default)]
struct Writes<'a> {
    /// By key and age; the value is `None` for a deletion.
    records: Vec<(EngineKey, u32, Write<'a>)>,
    metas: Vec<(Shard, ShardMeta)>,
}

struct Write<'a> {
    links: Vec<EngineKey>,
    value: Option<&'a [u8]>,
}

impl<'a> Writes<'a> {
    fn add(&mut self, changes: &mut Changes<'_>, object: ObjectId, op: Op<'a>) -> Result<()> {
        match op {
            Op::Put { space, key, value } => self.push(object, space, key, Some(value)),
            Op::Delete { space, key } => self.push(object, space, key, None),
            Op::Clear { space } => {
                self.flush(changes)?;
                let [top, nodes] = space_prefixes(object, space);
                changes.delete_all(&top)?;
                changes.delete_all(&nodes)
            }
        }
    }

    fn push(
        &mut self,
        object: ObjectId,
        space: Space,
        key: &[u8],
        value: Option<&'a [u8]>,
    ) -> Result<()> {
        let RecordPath { links, record } = RecordPath::new(object, space, key)?;
        let age = self.records.len() as u32;
        self.records.push((record, age, Write { links, value }));
        Ok(())
    }

    fn flush(&mut self, changes: &mut Changes<'_>) -> Result<()> {
        self.records.sort_unstable_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        let mut records = self.records.drain(..).peekable();
        while let Some((key, _, write)) = records.next() {
            if records.peek().is_some_and(|(next, ..)| *next == key) {
                continue;
            }
            match write.value {
                Some(value) => put(changes, &key, &write.links, value)?,
                None => delete(changes, &key, &write.links)?,
            }
        }
        Ok(())
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
