//! Reads the objects of one environment, all as of one moment, into the frames of an archive.
//!
//! It runs on a thread of its own, because it takes as long as there is data, and the reader of the
//! frames may be slow. A snapshot preserves the moment, which keeps the engine from reusing old
//! pages. So the reader of the frames must not be slow without limit. It never writes.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::id::{ObjectId, Shard};
use crate::storage::archive::{Frame, Record, Records};
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::engine::Snapshot;
use crate::storage::lmdb::held::Recall;
use crate::storage::lmdb::layout::keys::RecordPath;
use crate::storage::lmdb::layout::{ShardMeta, damaged, log_shard, shard_key};
use crate::storage::lmdb::scan;
use crate::storage::log::reader::Reader;
use crate::storage::range::Range;
use crate::storage::space::Space;

/// Frames are handed out once they have about this many bytes.
const CHUNK_BYTES: usize = 256 << 10;

/// Tells from a header whether its object is exported.
pub(crate) type Passes = dyn Fn(Option<&[u8]>) -> bool + Send;

/// The selection of objects to export.
pub(crate) struct Pick {
    /// Only that object, or any.
    pub(crate) id: Option<ObjectId>,
    /// Only objects whose header passes; objects of the server itself have none.
    pub(crate) passes: Box<Passes>,
    /// The spaces to export, in their order.
    pub(crate) spaces: &'static [Space],
}

/// All that an import takes: `Edges`, `Usage`, `Shares` and `Due` follow from these, and `Sockets`
/// belong to clients of the server alone.
pub(crate) const EVERYTHING: &[Space] =
    &[Space::Header, Space::Data, Space::Grants, Space::Alarms, Space::Requests];
/// The spaces that say who can reach an object.
pub(crate) const GRANTS: &[Space] = &[Space::Header, Space::Grants];

/// Takes whole frames; returns whether it wants more.
pub(crate) type TakeFrames<'a> = dyn FnMut(Vec<u8>) -> ControlFlow<()> + 'a;

/// Reads the selected objects, until `take` has enough. `begun` is called once the moment is fixed.
///
/// # Errors
/// `CalledBack` after a call of `recall`; `Corrupt` at a damaged record, or the disk can't be read:
/// the frames taken so far are incomplete.
pub(crate) fn export(
    (reader, recall): (&Reader, &Arc<Recall>),
    pick: &Pick,
    begun: impl FnOnce(),
    take: &mut TakeFrames<'_>,
) -> Result<()> {
    reader.long_snapshot(recall, |snapshot| {
        begun();
        let (frames, records, shard, spaces) = (Vec::new(), Vec::new(), None, pick.spaces);
        let mut export = Export { snapshot, recall, spaces, frames, records, shard, take };
        let mut next = match pick.id {
            Some(id) => Some(id),
            None => scan::next_object(snapshot, None)?,
        };
        while let Some(id) = next {
            let is_wanted = !pick.means(snapshot, id)? || export.object(id)?.is_continue();
            if recall.is_called() {
                return Err(StorageError::CalledBack);
            }
            if !is_wanted {
                return Ok(());
            }
            next = if pick.id.is_some() { None } else { scan::next_object(snapshot, next)? };
        }
        let is_whole = export.finish().is_continue();
        if !is_whole && recall.is_called() { Err(StorageError::CalledBack) } else { Ok(()) }
    })
}

impl Pick {
    fn means(&self, snapshot: &Snapshot<'_>, id: ObjectId) -> Result<bool> {
        let header = RecordPath::new(id, Space::Header, &[])?.record;
        Ok((self.passes)(snapshot.get(&header)?))
    }
}

struct Export<'a, 't> {
    snapshot: &'a Snapshot<'a>,
    recall: &'a Recall,
    spaces: &'static [Space],
    /// Whole frames that weren't handed out yet.
    frames: Vec<u8>,
    /// Records of the current object that are in no frame yet.
    records: Vec<u8>,
    shard: Option<Shard>,
    take: &'a mut TakeFrames<'t>,
}

impl Export<'_, '_> {
    fn object(&mut self, id: ObjectId) -> Result<ControlFlow<()>> {
        let snapshot = self.snapshot;
        let mut is_begun = false;
        for &space in self.spaces {
            let mut failed = Ok(());
            let mut flow = ControlFlow::Continue(());
            scan::scan(snapshot, id, space, &Range::all(), &mut |key, value| {
                if !is_begun {
                    is_begun = true;
                    failed = self.begin(id);
                }
                flow = self.record(&Record { space, key, value });
                if failed.is_err() { ControlFlow::Break(()) } else { flow }
            })?;
            failed?;
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(self.pack())
    }

    fn begin(&mut self, id: ObjectId) -> Result<()> {
        let shard = log_shard(id);
        if self.shard.replace(shard) != Some(shard) {
            let key = shard_key(shard);
            let meta = match self.snapshot.get(&key)? {
                Some(record) => ShardMeta::decode(record).ok_or_else(|| damaged(&key))?,
                None => ShardMeta::default(),
            };
            Frame::Shard(shard, meta).encode(&mut self.frames);
        }
        Frame::Object(id).encode(&mut self.frames);
        Ok(())
    }

    fn record(&mut self, record: &Record<'_>) -> ControlFlow<()> {
        if self.recall.is_called() {
            return ControlFlow::Break(());
        }
        let length = record.key.len() + record.value.len();
        // A value that fills a frame gets one of its own, so that no frame is larger than
        // necessary.
        if !self.records.is_empty() && self.records.len() + length > CHUNK_BYTES {
            self.pack()?;
        }
        record.encode(&mut self.records);
        ControlFlow::Continue(())
    }

    /// Makes a frame of the records, and hands the frames out if there are enough.
    fn pack(&mut self) -> ControlFlow<()> {
        if !self.records.is_empty() {
            Frame::Records(Records::encoded(&self.records)).encode(&mut self.frames);
            self.records.clear();
        }
        if self.frames.len() < CHUNK_BYTES {
            return ControlFlow::Continue(());
        }
        (self.take)(std::mem::take(&mut self.frames))
    }

    fn finish(mut self) -> ControlFlow<()> {
        if self.frames.is_empty() {
            return ControlFlow::Continue(());
        }
        (self.take)(std::mem::take(&mut self.frames))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::log::batch::WriteSet;
    use crate::storage::log::block::ShardBlock;
    use crate::storage::log::local::{LogOptions, open};
    use crate::storage::log::shard_log::{Claim, Outcome, ShardLog};

    /// Its reader would take what came until then for all there is.
    #[test]
    fn an_export_that_is_called_back_at_its_last_part_is_not_whole() {
        let dir = tempfile::tempdir().unwrap();
        let id = ObjectId::from_bytes([1; 16]);
        let (mut log, reader) = open(dir.path(), LogOptions::default(), Arc::default()).unwrap();
        let shard = log_shard(id);
        let Claim { epoch, link: previous } = log.claim(shard).unwrap();
        let mut set = WriteSet::new(id);
        set.put(Space::Data, b"k", b"v").unwrap();
        let block = ShardBlock { shard, epoch, previous, writes: vec![set] };
        assert!(matches!(log.append(&[block])[..], [Outcome::Position(_)]));
        let pick = Pick { id: None, passes: Box::new(|_| true), spaces: EVERYTHING };
        let recall = Recall::new(|| ());
        let exported = export((&reader, &recall), &pick, || (), &mut |_| {
            recall.call();
            ControlFlow::Break(())
        });
        assert!(matches!(exported, Err(StorageError::CalledBack)));
    }
}
