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
use crate::limits::{MAP_BYTES, RESERVE_BYTES_MAX, RESERVE_BYTES_MIN};
use crate::metrics::Metrics;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::compact::{self, Compacted};
use crate::storage::lmdb::dir::Access;
use crate::storage::lmdb::disk::{self, Disk};
use crate::storage::lmdb::engine::Environment;
use crate::storage::lmdb::layout::{
    ENVIRONMENT_KEY, EnvironmentRecord, Kind, LogState, ShardMeta, damaged, shard_key,
};
use crate::storage::lmdb::owned::Owner;
use crate::storage::lmdb::room::Room;
use crate::storage::log::applied::{Applied, Pace};
use crate::storage::log::applier::Applier;
use crate::storage::log::apply::{SLICE_BYTES, apply, set_log};
use crate::storage::log::entry::{Draft, Head};
use crate::storage::log::reader::Reader;
use crate::storage::log::recovery;
use crate::storage::log::segments::{self, Segments};
use crate::storage::log::shard_log::{Claim, Outcome, ShardBlock, ShardLog};
use crate::storage::position::{End, Link, NONCE_BYTES, Position};

/// The options of the local log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogOptions {
    /// Time to sleep before every commit, to simulate a slow disk.
    pub(crate) commit_delay: Duration,
    /// The address space of the environment, in bytes; its data never outgrow it.
    pub(crate) map_bytes: usize,
    /// Bytes of the disk, and of the map, that growth leaves free; `None` for the default.
    pub(crate) reserve_bytes: Option<u64>,
    /// The sizes at which entries are applied.
    pub(crate) pace: Pace,
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
            pace: Pace::USUAL,
            access: Access::Full,
            owner: Owner::ours(),
        }
    }
}

/// The writing side. The commit thread owns it.
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
    nonce: [u8; NONCE_BYTES],
    last: End,
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
        Access::Full => open_and_apply(path, options.map_bytes)?,
        Access::Read => open_to_read(path, options)?,
    });
    let applied = Arc::<Applied>::default();
    let reader = Reader::new(env.clone(), applied.clone(), metrics.clone());
    let room = Arc::new(room(path, &env, &applied, options.reserve_bytes)?);
    let (writer, failure, ends) = (None, None, FxHashMap::default());
    Ok((LocalLog { env, options, metrics, room, applied, writer, failure, ends }, reader))
}

/// Compacts the environment of objects in `path`, with all that is in its log; `progress` gets the
/// number of records copied and the total.
///
/// # Errors
/// Those of [`open`] and of [`compact::compact`].
pub(crate) fn compact(
    path: &Path,
    map_bytes: usize,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Compacted> {
    let env = Environment::open_to_read(path, Kind::Objects, map_bytes, Owner::ours())?;
    let is_behind = log_of(&env)?.is_some();
    drop(env);
    if is_behind {
        drop(open_and_apply(path, map_bytes)?);
    }
    compact::compact(path, map_bytes, progress)
}

fn open_and_apply(path: &Path, map_bytes: usize) -> Result<Environment> {
    let env = Environment::open(path, Kind::Objects, map_bytes)?;
    if let Some(log) = log_of(&env)? {
        recover(&env, &log)?;
    }
    if !segments::list(env.path())?.is_empty() {
        recovery::remove_all(env.path())?;
    }
    Ok(env)
}

/// Nothing is written unless a process ended out of order and left entries in the log. Then these
/// are applied first, since the environment lacks what was acknowledged.
fn open_to_read(path: &Path, options: LogOptions) -> Result<Environment> {
    let LogOptions { map_bytes, owner, .. } = options;
    let env = Environment::open_to_read(path, Kind::Objects, map_bytes, owner)?;
    let Some(log) = log_of(&env)? else { return Ok(env) };
    let mut left = 0_u64;
    recovery::replay(env.path(), owner, &log, &mut |_, _| {
        left += 1;
        Ok(())
    })?;
    if left == 0 {
        return Ok(env);
    }
    drop(env);
    if owner != Owner::ours() {
        return Err(StorageError::LogUnapplied { path: path.to_owned(), owner: owner.0 });
    }
    drop(open_and_apply(path, map_bytes)?);
    Environment::open_to_read(path, Kind::Objects, map_bytes, owner)
}

/// The log in front of the environment, if it may have more than the environment.
fn log_of(env: &Environment) -> Result<Option<LogState>> {
    env.read(|snapshot| {
        let record = snapshot.get(&ENVIRONMENT_KEY)?.ok_or_else(|| damaged(&ENVIRONMENT_KEY))?;
        Ok(EnvironmentRecord::decode(record, Kind::Objects)?.log)
    })
}

/// Applies all of the log, and records that nothing is left in it.
fn recover(env: &Environment, log: &LogState) -> Result<()> {
    let failed = |failure: Arc<StorageError>| {
        Arc::try_unwrap(failure).unwrap_or_else(StorageError::Latched)
    };
    // Everything is read before anything is applied, so that a damaged log changes nothing.
    recovery::replay(env.path(), Owner::ours(), log, &mut |_, _| Ok(()))?;
    let (mut entries, mut bytes) = (Vec::new(), 0);
    recovery::replay(env.path(), Owner::ours(), log, &mut |entry, end| {
        bytes += entry.as_bytes().len() as u64;
        entries.push((entry, end));
        if bytes >= SLICE_BYTES {
            apply(env, log.nonce, &entries).map_err(failed)?;
            tracing::info!(entry = end.number, "applying what the log has");
            entries.clear();
            bytes = 0;
        }
        Ok(())
    })?;
    apply(env, log.nonce, &entries).map_err(failed)?;
    env.write(|changes| set_log(changes, Some(log.nonce), None)).map_err(failed)
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
    let measure = move || {
        let env = env.upgrade().ok_or(StorageError::Closed)?;
        let left = Disk::of(&path)?.left.min(env.bytes_unmapped());
        // Free pages in the engine count too, but only down to half the reserve: they may be too
        // scattered for a large value, or held back by a reader.
        let may_reuse = (reserve / 2..reserve).contains(&left);
        let left = if may_reuse { left + env.bytes_reusable()? } else { left };
        // What waits will take room in the environment, and records don't fill their pages.
        Ok(left.saturating_sub(2 * applied.bytes()))
    };
    Ok(Room::new(reserve, Box::new(measure)))
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

    /// The only epoch whose blocks are appended.
    fn owner(&self) -> Result<Epoch> {
        self.env.read(|snapshot| {
            let record = snapshot.get(&ENVIRONMENT_KEY)?;
            let record = record.ok_or_else(|| damaged(&ENVIRONMENT_KEY))?;
            Ok(Epoch(EnvironmentRecord::decode(record, Kind::Objects)?.incarnation))
        })
    }

    /// Begins the log: a first segment, and its nonce in the environment.
    fn begin(&mut self) -> Result<()> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce)
            .map_err(|error| StorageError::Panicked(format!("no random bytes: {error}")))?;
        nonce[0] |= 1;
        let segments = Segments::begin(self.env.path())?;
        let last = End { segment: segments::FIRST, ..End::default() };
        let state = LogState { nonce, applied: last };
        let begun = self.env.write(|changes| set_log(changes, None, Some(state)));
        begun.map_err(StorageError::Latched)?;
        let (env, applied) = (self.env.clone(), self.applied.clone());
        let applier = Applier::start(env, nonce, applied, self.options.pace)?;
        self.writer = Some(Writer { nonce, last, segments, applier });
        Ok(())
    }

    fn write(&mut self, blocks: &[ShardBlock]) -> Result<Vec<Outcome>> {
        self.env.check_files()?;
        let owner = self.owner()?;
        let mut draft = Draft::new();
        let mut outcomes = Vec::with_capacity(blocks.len());
        for block in blocks {
            outcomes.push(match self.last_if_next(block, owner)? {
                Some(last) => {
                    *last = draft.add(block);
                    Outcome::Position(*last)
                }
                None => Outcome::Fenced,
            });
        }
        if draft.is_empty() {
            return Ok(outcomes);
        }
        if self.writer.is_none() {
            self.begin()?;
        }
        let Some(writer) = &mut self.writer else { return Ok(outcomes) };
        let (number, previous) = (writer.last.number + 1, writer.last.sum);
        let (incarnation, durable, nonce) = (owner.0, number - 1, writer.nonce);
        let entry = draft.finish(&Head { nonce, incarnation, number, durable, previous });
        thread::sleep(self.options.commit_delay);
        let segment = writer.segments.append(&entry)?;
        // Writes to an environment without a name would be lost when they are applied.
        self.env.check_files()?;
        writer.last = End { number, sum: entry.sum(), segment };
        self.applied.push(entry, writer.last);
        Ok(outcomes)
    }

    /// The end of the block's chain, if the block may follow it.
    fn last_if_next(&mut self, block: &ShardBlock, owner: Epoch) -> Result<Option<&mut Link>> {
        if block.epoch != owner {
            return Ok(None);
        }
        let known = self.last(block.shard)?;
        let last = match self.ends.entry(block.shard) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(known),
        };
        Ok((block.previous == *last).then_some(last))
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
            return vec![Outcome::Unknown(failure.clone()); blocks.len()];
        }
        let outcomes = match self.write(blocks) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                let failure = Arc::new(disk::explained(error, self.env.path()));
                self.failure = Some(failure.clone());
                return vec![Outcome::Unknown(failure); blocks.len()];
            }
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

    fn applied(&self) -> Option<Arc<Applied>> {
        Some(self.applied.clone())
    }

    fn last(&self, shard: Shard) -> Result<Link> {
        self.ends.get(&shard).map_or_else(|| Ok(self.meta(shard)?.link), |last| Ok(*last))
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
        let closed = self.env.write(|changes| set_log(changes, Some(nonce), None));
        if closed.is_ok() {
            // The next opening removes what is left.
            let _ = recovery::remove_all(self.env.path());
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
    use crate::id::ObjectId;
    use crate::storage::lmdb::engine::Changes;
    use crate::storage::lmdb::layout::keys::RecordPath;
    use crate::storage::log::batch::WriteSet;
    use crate::storage::log::reads::Reads as _;
    use crate::storage::space::Space;

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

    /// The log holds it all the same, and a larger map receives it.
    #[test]
    fn a_failed_apply_ends_all_appending_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, reader) = start(&dir);
        let claim = log.claim(SHARD).unwrap();
        let large = vec![0; 2 * MAP];
        let link = append(&mut log, block(claim, put(OBJECT, b"k", &large))).unwrap();
        assert!(matches!(reader.snapshot(|_| Ok(())), Err(StorageError::Latched(_))));
        let small = block(Claim { link, ..claim }, put(OBJECT, b"k", b"1"));
        assert!(matches!(log.append(&[small])[..], [Outcome::Unknown(_)]));
        assert_eq!(get(&reader, b"k"), None);
        assert_eq!(log.metrics.commits_total.get(), 1);
        drop((log, reader));
        let options = LogOptions { map_bytes: 8 * MAP, ..LogOptions::default() };
        let (log, reader) = open(dir.path(), options, Arc::default()).unwrap();
        assert_eq!(get(&reader, b"k").unwrap(), large);
        assert_eq!(log.last(SHARD).unwrap(), link);
    }

    /// Copies the files as a killed process leaves them.
    fn killed(dir: &TempDir) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(dir.path()).unwrap() {
            let file = file.unwrap();
            if file.file_name() != "lock.mdb" {
                std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
            }
        }
        copy
    }

    #[test]
    fn what_only_the_log_has_is_there_after_a_crash_for_writers_readers_and_compaction() {
        let dir = tempfile::tempdir().unwrap();
        let pace = Pace { bytes: u64::MAX, age: Duration::from_secs(3_600) };
        let options = LogOptions { map_bytes: MAP, pace, ..LogOptions::default() };
        let (mut log, reader) = open(dir.path(), options, Arc::default()).unwrap();
        let claim = log.claim(SHARD).unwrap();
        let link = append(&mut log, block(claim, put(OBJECT, b"k", b"1"))).unwrap();
        let claim = Claim { link, ..claim };
        append(&mut log, block(claim, put(OBJECT, b"l", b"2"))).unwrap();
        assert_eq!(get(&reader, b"l"), None, "nothing was applied yet");
        for access in [Access::Full, Access::Read] {
            let copy = killed(&dir);
            let options = LogOptions { access, ..options };
            let (_log, reader) = open(copy.path(), options, Arc::default()).unwrap();
            assert_eq!((get(&reader, b"k"), get(&reader, b"l")).1.unwrap(), b"2");
        }
        let parent = tempfile::tempdir().unwrap();
        let host = parent.path().join("host-0");
        std::fs::rename(killed(&dir).keep(), &host).unwrap();
        compact(&host, MAP, &mut |_, _| ()).unwrap();
        let (_log, after) = open(&host, options, Arc::default()).unwrap();
        assert_eq!(get(&after, b"l").unwrap(), b"2");
        drop((log, reader));
        assert!(segments::list(dir.path()).unwrap().is_empty(), "an end in order needs no log");
    }

    #[test]
    fn a_lost_log_and_a_lost_segment_are_named_and_nothing_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _reader) = start(&dir);
        let claim = log.claim(SHARD).unwrap();
        append(&mut log, block(claim, put(OBJECT, b"k", b"1"))).unwrap();
        let copy = killed(&dir);
        std::fs::remove_file(copy.path().join("segment-1")).unwrap();
        let error = open(copy.path(), LogOptions::default(), Arc::default()).unwrap_err();
        assert!(matches!(error, StorageError::LogDamaged { .. }), "{error}");
    }

    #[test]
    fn a_damaged_value_is_named_and_never_served() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, reader) = start(&dir);
        let claim = log.claim(SHARD).unwrap();
        append(&mut log, block(claim, put(OBJECT, b"k\xff", b"value"))).unwrap();
        reader.snapshot(|_| Ok(())).unwrap();
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
