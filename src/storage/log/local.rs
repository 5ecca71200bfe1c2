//! The log of a single machine: one LMDB transaction applies all the blocks of a group commit.
//!
//! The applied records *are* the log, so there is no history to read or trim, and nothing is
//! written twice. It never applies a part of a block, and never continues after a failed commit.
//!
//! **Invariants:** a shard's meta record names the last block, all of whose writes are applied. A
//! block is applied only under the incarnation that the environment has on disk, which is the epoch
//! of all claims of this process; so a process that was replaced is fenced by the data.

use std::collections::hash_map::Entry;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::clock::monotonic;
use crate::id::{Epoch, ObjectId, Shard};
use crate::limits::{MAP_BYTES, RESERVE_BYTES_MAX, RESERVE_BYTES_MIN};
use crate::metrics::Metrics;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::dir::Access;
use crate::storage::lmdb::disk::Disk;
use crate::storage::lmdb::engine::{Changes, Environment, Snapshot};
use crate::storage::lmdb::layout::keys::{RecordPath, below_prefix, space_prefixes};
use crate::storage::lmdb::layout::{
    ENVIRONMENT_KEY, EnvironmentRecord, Kind, ShardMeta, Usage, damaged, shard_key,
};
use crate::storage::lmdb::owned::Owner;
use crate::storage::lmdb::room::Room;
use crate::storage::lmdb::scan;
use crate::storage::log::batch::Op;
use crate::storage::log::reads::{Reads, VisitObject};
use crate::storage::log::shard_log::{Claim, Outcome, ShardBlock, ShardLog};
use crate::storage::position::{Link, Position};
use crate::storage::range::{Range, Visit};
use crate::storage::space::Space;

/// The options of the local log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogOptions {
    /// Time to sleep before every commit, to simulate a slow disk.
    pub(crate) commit_delay: Duration,
    /// The address space of the environment, in bytes; its data never outgrow it.
    pub(crate) map_bytes: usize,
    /// Bytes of the disk, and of the map, that growth leaves free; `None` for the default.
    pub(crate) reserve_bytes: Option<u64>,
    /// The access: reading alone, or writing too.
    pub(crate) access: Access,
    /// The user that the data belong to, and that writes them.
    pub(crate) owner: Owner,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            commit_delay: Duration::ZERO,
            map_bytes: MAP_BYTES,
            reserve_bytes: None,
            access: Access::Full,
            owner: Owner::ours(),
        }
    }
}

/// The writing side, which applies blocks to the environment. The commit thread owns it.
#[derive(Debug)]
pub(crate) struct LocalLog {
    env: Arc<Environment>,
    commit_delay: Duration,
    metrics: Arc<Metrics>,
    room: Arc<Room>,
    /// The ends of the chains that this log has extended. While the incarnation is ours, no other
    /// process changes them.
    ends: FxHashMap<Shard, Link>,
}

/// Reads the records that the log has applied. The vat thread owns it; it keeps the environment
/// open.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    env: Arc<Environment>,
    metrics: Arc<Metrics>,
}

/// Opens or creates the environment in `path`; returns its log and a reader of it.
///
/// # Errors
/// `NotADirectory`, `NotOurs`, `Format`, `InUse`, `DataMissing`, `CorruptRecord`: the data are
/// unchanged. `Io`, `Lmdb`, `MapFull`: at most, this opening was counted.
pub(crate) fn open(
    path: &Path,
    options: LogOptions,
    metrics: Arc<Metrics>,
) -> Result<(LocalLog, Reader)> {
    let (kind, map_bytes) = (Kind::Objects, options.map_bytes);
    let env = Arc::new(match options.access {
        Access::Full => Environment::open(path, kind, map_bytes)?,
        Access::Read => Environment::open_to_read(path, kind, map_bytes, options.owner)?,
    });
    let reader = Reader { env: env.clone(), metrics: metrics.clone() };
    let room = Arc::new(room(path, &env, options.reserve_bytes)?);
    let (commit_delay, ends) = (options.commit_delay, FxHashMap::default());
    Ok((LocalLog { env, commit_delay, metrics, room, ends }, reader))
}

fn room(path: &Path, env: &Arc<Environment>, reserve: Option<u64>) -> Result<Room> {
    let path = path.to_owned();
    let total = Disk::of(&path)?.total.min(env.map_bytes());
    let usual = (total / 20).clamp(RESERVE_BYTES_MIN, RESERVE_BYTES_MAX);
    let reserve = reserve.unwrap_or(usual);
    // The measure may outlive the storage, if that is closed first.
    let env = Arc::downgrade(env);
    let measure = move || {
        let env = env.upgrade().ok_or(StorageError::Closed)?;
        let left = Disk::of(&path)?.left.min(env.bytes_unmapped());
        // Free pages in the engine count too, but only down to half the reserve: they may be too
        // scattered for a large value, or held back by a reader.
        let may_reuse = (reserve / 2..reserve).contains(&left);
        if may_reuse { Ok(left + env.bytes_reusable()?) } else { Ok(left) }
    };
    Ok(Room::new(reserve, Box::new(measure)))
}

impl Reader {
    /// Runs `body` on a snapshot of the environment, on any thread.
    pub(crate) fn snapshot<T>(&self, body: impl FnOnce(&Snapshot<'_>) -> Result<T>) -> Result<T> {
        self.env.read(body)
    }

    /// The environment itself, to inspect the engine's own records.
    #[cfg(test)]
    pub(crate) fn environment(&self) -> &Arc<Environment> {
        &self.env
    }
}

// Each read takes a fresh snapshot: keeping one would need a reference into this struct itself.
impl Reads for Reader {
    fn check_files(&self) -> Result<()> {
        self.env.check_files()
    }

    fn get(&self, object: ObjectId, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let path = RecordPath::new(object, space, key)?;
        self.metrics.storage_reads_total.add(1);
        self.env.read(|snapshot| Ok(snapshot.get(&path.record)?.map(<[u8]>::to_vec)))
    }

    fn identity(&self, object: ObjectId) -> Result<[Option<Vec<u8>>; 2]> {
        let header = RecordPath::new(object, Space::Header, &[])?.record;
        let usage = RecordPath::new(object, Space::Usage, &[])?.record;
        self.metrics.storage_reads_total.add(1);
        self.env.read(|snapshot| {
            let Some(header) = snapshot.get(&header)?.map(<[u8]>::to_vec) else {
                return Ok([None, None]);
            };
            Ok([Some(header), snapshot.get(&usage)?.map(<[u8]>::to_vec)])
        })
    }

    fn get_many(
        &self,
        object: ObjectId,
        space: Space,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>> {
        self.metrics.storage_reads_total.add(keys.len() as u64);
        self.env.read(|snapshot| {
            let get = |key: &&[u8]| {
                let path = RecordPath::new(object, space, key)?;
                Ok(snapshot.get(&path.record)?.map(<[u8]>::to_vec))
            };
            keys.iter().map(get).collect()
        })
    }

    fn length(&self, object: ObjectId, space: Space, key: &[u8]) -> Result<Option<usize>> {
        let path = RecordPath::new(object, space, key)?;
        self.metrics.storage_reads_total.add(1);
        self.env.read(|snapshot| snapshot.length(&path.record))
    }

    fn scan(
        &self,
        object: ObjectId,
        space: Space,
        range: &Range,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        self.metrics.storage_reads_total.add(1);
        self.env.read(|snapshot| scan::scan(snapshot, object, space, range, visit))
    }

    fn objects(&self, visit: &mut VisitObject<'_>) -> Result<()> {
        self.env.read(|snapshot| {
            let mut last = None;
            while let Some(object) = scan::next_object(snapshot, last)? {
                last = Some(object);
                let header = RecordPath::new(object, Space::Header, &[])?.record;
                let Some(header) = snapshot.get(&header)? else { continue };
                let record = RecordPath::new(object, Space::Usage, &[])?.record;
                let usage = match snapshot.get(&record)? {
                    Some(bytes) => Usage::decode(bytes).ok_or_else(|| damaged(&record))?,
                    None => self.count(object)?,
                };
                visit(object, header, usage);
            }
            Ok(())
        })
    }
}

impl LocalLog {
    /// The room left on disk and in the map.
    pub(crate) fn room(&self) -> Arc<Room> {
        self.room.clone()
    }

    fn meta(&self, shard: Shard) -> Result<ShardMeta> {
        let key = shard_key(shard);
        self.env.read(|snapshot| decode_meta(&key, snapshot.get(&key)?))
    }
}

impl ShardLog for LocalLog {
    fn claim(&mut self, shard: Shard) -> Result<Claim> {
        // Opening the environment durably made the epoch newer than all before it.
        let epoch = Epoch(self.env.incarnation());
        Ok(Claim { epoch, link: self.meta(shard)?.link })
    }

    fn append(&mut self, blocks: &[ShardBlock]) -> Vec<Outcome> {
        let began = monotonic();
        let (ends, delay) = (&mut self.ends, self.commit_delay);
        let committed = self.env.write(|changes| {
            let owner = owner(changes)?;
            let apply = |block| apply(changes, owner, ends, block);
            let outcomes = blocks.iter().map(apply).collect::<Result<Vec<_>>>()?;
            thread::sleep(delay);
            Ok(outcomes)
        });
        let outcomes = match committed {
            Ok(outcomes) => outcomes,
            Err(error) => return vec![Outcome::Unknown(error); blocks.len()],
        };
        self.metrics.commits_total.add(1);
        self.metrics.commit_microseconds_total.add(began.elapsed().as_micros() as u64);
        let sets = blocks.iter().flat_map(|block| &block.writes);
        self.room.committed(sets.map(|set| set.as_bytes().len() as u64).sum());
        for (block, outcome) in blocks.iter().zip(&outcomes) {
            if matches!(outcome, Outcome::Position(_)) {
                self.metrics.turns_committed_total.add(block.writes.len() as u64);
            }
        }
        outcomes
    }

    fn last(&self, shard: Shard) -> Result<Link> {
        Ok(self.meta(shard)?.link)
    }

    fn read(&self, shard: Shard, from: Position) -> Result<Vec<ShardBlock>> {
        let last = self.last(shard)?.position;
        // No block comes before the first, so none can be missing.
        if from.max(Position(1)) <= last {
            Err(StorageError::Trimmed { last })
        } else {
            Ok(Vec::new())
        }
    }

    fn trim(&mut self, _shard: Shard, _upto: Position) -> Result<()> {
        Ok(())
    }
}

/// The only epoch whose blocks are applied.
fn owner(changes: &Changes<'_>) -> Result<Epoch> {
    let record = changes.get(&ENVIRONMENT_KEY)?.ok_or_else(|| damaged(&ENVIRONMENT_KEY))?;
    Ok(Epoch(EnvironmentRecord::decode(record, Kind::Objects)?.incarnation))
}

fn apply(
    changes: &mut Changes<'_>,
    owner: Epoch,
    ends: &mut FxHashMap<Shard, Link>,
    block: &ShardBlock,
) -> Result<Outcome> {
    if block.epoch != owner {
        return Ok(Outcome::Fenced);
    }
    let meta_key = shard_key(block.shard);
    let last = match ends.entry(block.shard) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(unknown) => {
            unknown.insert(decode_meta(&meta_key, changes.get(&meta_key)?)?.link)
        }
    };
    if block.previous != *last {
        return Ok(Outcome::Fenced);
    }
    for set in &block.writes {
        for op in set.ops() {
            apply_op(changes, set.object(), op?)?;
        }
    }
    // If this isn't committed, nothing ever is.
    *last = block.link();
    changes.put(&meta_key, &ShardMeta { epoch: owner, link: *last }.encode())?;
    Ok(Outcome::Position(*last))
}

fn apply_op(changes: &mut Changes<'_>, object: ObjectId, op: Op<'_>) -> Result<()> {
    match op {
        Op::Put { space, key, value } => {
            let path = RecordPath::new(object, space, key)?;
            for link in &path.links {
                // Written without a look at the old record: it must be this one in any case.
                changes.put(link, b"")?;
            }
            changes.put(&path.record, value)
        }
        Op::Delete { space, key } => {
            let path = RecordPath::new(object, space, key)?;
            changes.delete(&path.record)?;
            for link in path.links.iter().rev() {
                if changes.has_any(&below_prefix(link))? {
                    break;
                }
                changes.delete(link)?;
            }
            Ok(())
        }
        Op::Clear { space } => {
            let [top, nodes] = space_prefixes(object, space);
            changes.delete_all(&top)?;
            changes.delete_all(&nodes)
        }
    }
}

fn decode_meta(key: &[u8], record: Option<&[u8]>) -> Result<ShardMeta> {
    record.map_or(Ok(ShardMeta::default()), |record| {
        ShardMeta::decode(record).ok_or_else(|| damaged(key))
    })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::storage::log::batch::WriteSet;

    const OBJECT: ObjectId = ObjectId::from_bytes([3; 16]);
    const SHARD: Shard = Shard(0x0303);
    const MAP: usize = 1 << 20;

    fn start(dir: &TempDir) -> (LocalLog, Reader) {
        let options = LogOptions { map_bytes: MAP, ..LogOptions::default() };
        open(dir.path(), options, Arc::default()).unwrap()
    }

    fn put(object: ObjectId, key: &[u8], value: &[u8]) -> WriteSet {
        let mut set = WriteSet::new(object);
        set.put(Space::Data, key, value).unwrap();
        set
    }

    fn block(claim: Claim, set: WriteSet) -> ShardBlock {
        let shard = set.object().home_shard();
        ShardBlock { shard, epoch: claim.epoch, previous: claim.link, writes: vec![set] }
    }

    fn append(log: &mut LocalLog, block: ShardBlock) -> Option<Link> {
        match log.append(&[block]).as_slice() {
            [Outcome::Position(link)] => Some(*link),
            [Outcome::Fenced] => None,
            other => panic!("{other:?}"),
        }
    }

    fn get(reader: &Reader, key: &[u8]) -> Option<Vec<u8>> {
        reader.get(OBJECT, Space::Data, key).unwrap()
    }

    #[test]
    fn only_what_was_applied_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _reader) = start(&dir);
        let claim = log.claim(SHARD).unwrap();
        let fenced = Claim { epoch: Epoch(0), ..claim };
        let other = put(ObjectId::from_bytes([4; 16]), b"k", b"1");
        log.append(&[block(fenced, other), block(claim, put(OBJECT, b"k", b"1"))]);
        assert_eq!(log.metrics.turns_committed_total.get(), 1);
        assert_eq!(log.metrics.commits_total.get(), 1);
    }

    #[test]
    fn a_failed_append_is_unknown_and_the_last_one() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, reader) = start(&dir);
        let claim = log.claim(SHARD).unwrap();
        let large = block(claim, put(OBJECT, b"k", &vec![0; 2 * MAP]));
        assert!(matches!(log.append(&[large])[..], [Outcome::Unknown(_)]));
        let small = block(claim, put(OBJECT, b"k", b"1"));
        assert!(matches!(log.append(&[small])[..], [Outcome::Unknown(_)]));
        assert_eq!(get(&reader, b"k"), None);
        assert_eq!(log.metrics.commits_total.get(), 0);
        assert!(reader.metrics.storage_reads_total.get() > 0);
    }

    #[test]
    fn a_damaged_value_is_named_and_never_served() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, reader) = start(&dir);
        let claim = log.claim(SHARD).unwrap();
        append(&mut log, block(claim, put(OBJECT, b"k\xff", b"value"))).unwrap();
        let key = RecordPath::new(OBJECT, Space::Data, b"k\xff").unwrap().record;
        let damage = |changes: &mut Changes<'_>| {
            let mut stored = changes.get_raw(&key);
            stored[6] ^= 1;
            changes.put_raw(&key, &stored);
            Ok(())
        };
        log.env.write(damage).unwrap();
        let error = reader.get(OBJECT, Space::Data, b"k\xff").unwrap_err();
        let StorageError::Corrupt { object, space: 1, key } = error else { panic!("{error}") };
        assert_eq!((object, key.as_str()), (OBJECT, "k\\xff"));
    }
}
