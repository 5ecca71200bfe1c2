//! Clearings of large objects, which go on beside the entries after them.
//!
//! Removing gigabytes of small records takes minutes. If all that was written later had to wait for
//! that, no call could start meanwhile. So the entries after it are applied in between, but for the
//! writes to that object, which wait here in their order. None of these entries is recorded as
//! applied before the clearing has ended: after a crash the log still has the clearing and all that
//! follows, and to make writes again gives the same records.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;

use rustc_hash::FxHashMap;

use super::{Work, record_bytes};
use crate::id::{ObjectId, Shard};
use crate::storage::error::Result;
use crate::storage::lmdb::engine::Changes;
use crate::storage::lmdb::layout::ShardMeta;
use crate::storage::lmdb::layout::keys::space_prefixes;
use crate::storage::log::batch::{Op, WriteSet};
use crate::storage::position::End;
use crate::storage::space::Space;

/// Writes that wait are made in portions of about this many bytes.
const PORTION_BYTES: usize = 16 << 10;

/// The clearings under way, and what waits for their end.
#[derive(Debug, Default)]
pub(in crate::storage::log) struct Sweeps {
    objects: FxHashMap<ObjectId, Sweep>,
    /// The last of each shard, and the end of the entries that were applied and aren't recorded.
    metas: FxHashMap<Shard, ShardMeta>,
    end: End,
    /// The bytes of these entries in the log, and those of them that are still in memory.
    kept: u64,
    waiting: u64,
}

#[derive(Debug, Default)]
struct Sweep {
    /// The beginnings of the keys that are still to be removed.
    prefixes: VecDeque<Vec<u8>>,
    /// The writes to the object that came later.
    later: VecDeque<Later>,
}

#[derive(Debug)]
enum Later {
    Writes(WriteSet),
    Clear(Space),
}

impl Sweeps {
    pub(in crate::storage::log) fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The objects that are being cleared.
    pub(in crate::storage::log) fn objects(&self) -> impl Iterator<Item = ObjectId> {
        self.objects.keys().copied()
    }

    /// The bytes of the log that can't be given up before the end.
    pub(in crate::storage::log) fn kept(&self) -> u64 {
        self.kept
    }

    /// From now on the object is being cleared: what begins with `prefixes` is still there.
    pub(super) fn begin(&mut self, object: ObjectId, prefixes: VecDeque<Vec<u8>>) {
        self.objects.insert(object, Sweep { prefixes, later: VecDeque::new() });
    }

    /// Takes a write to an object that is being cleared, to be made later. Returns false if it
    /// isn't.
    pub(super) fn defer(&mut self, object: ObjectId, op: &Op<'_>) -> Result<bool> {
        let Some(sweep) = self.objects.get_mut(&object) else { return Ok(false) };
        if let Op::Clear { space } = *op {
            sweep.later.push_back(Later::Clear(space));
            return Ok(true);
        }
        let is_open = matches!(sweep.later.back(),
            Some(Later::Writes(set)) if set.as_bytes().len() < PORTION_BYTES);
        if !is_open {
            sweep.later.push_back(Later::Writes(WriteSet::new(object)));
        }
        if let Some(Later::Writes(set)) = sweep.later.back_mut() {
            let before = set.as_bytes().len();
            match *op {
                Op::Put { space, key, value } => set.put(space, key, value)?,
                Op::Delete { space, key } => set.delete(space, key)?,
                Op::Clear { .. } => {}
            }
            self.waiting += (set.as_bytes().len() - before) as u64;
        }
        Ok(true)
    }

    /// Remembers that entries of `bytes` bytes were applied up to `end`, and are to be recorded at
    /// the end.
    pub(super) fn keep(&mut self, metas: impl Iterator<Item = (Shard, ShardMeta)>, end: End) {
        self.metas.extend(metas);
        self.end = end;
    }

    /// Counts an entry of the log, with the clearings under way; returns how many of its bytes are
    /// needed in memory no more.
    pub(in crate::storage::log) fn count(&mut self, bytes: u64, waiting_before: u64) -> u64 {
        self.kept += bytes;
        bytes.saturating_sub(self.waiting - waiting_before)
    }

    /// The bytes of writes that wait.
    pub(in crate::storage::log) fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Goes on with one of the clearings until it may have copied `most` bytes of pages; returns
    /// the number copied.
    pub(super) fn go_on(&mut self, changes: &mut Changes<'_>, page: u64, most: u64) -> Result<u64> {
        let Some(object) = self.objects.keys().next().copied() else { return Ok(0) };
        let Entry::Occupied(mut found) = self.objects.entry(object) else { return Ok(0) };
        let (sweep, mut copied) = (found.get_mut(), 0);
        while copied < most {
            if let Some(prefix) = sweep.prefixes.front() {
                let (removed, is_done) = changes.delete_some(prefix, most - copied)?;
                copied += record_bytes(page) + removed;
                if is_done {
                    sweep.prefixes.pop_front();
                }
                continue;
            }
            match sweep.later.pop_front() {
                Some(Later::Clear(space)) => sweep.prefixes.extend(space_prefixes(object, space)),
                Some(Later::Writes(set)) => {
                    let mut work = Work::of_set(&set);
                    copied += work.go_on(changes, (page, u64::MAX), None)?.copied;
                }
                None => {
                    found.remove();
                    break;
                }
            }
        }
        Ok(copied)
    }

    /// The end of all clearings: what is to be recorded now.
    pub(super) fn finish(&mut self) -> (Vec<(Shard, ShardMeta)>, End) {
        (self.kept, self.waiting) = (0, 0);
        (self.metas.drain().collect(), self.end)
    }
}
