//! The storages under test: LMDB in a directory of its own, and the model in memory.
//!
//! A crash of LMDB is a copy of its data file and of the log to another directory, between two
//! transactions and between two appends: the state that a killed process leaves. Nothing here
//! checks the promises about a loss of power.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tempfile::TempDir;

use super::{Backend, Map, Opened};
use crate::id::{Epoch, ObjectId, Shard};
use crate::storage::config::{ConfigStore, LocalConfig};
use crate::storage::lmdb::engine::Environment;
use crate::storage::lmdb::layout::keys::{RecordPath, space_prefixes};
use crate::storage::lmdb::layout::{
    ENVIRONMENT_KEY, EnvironmentRecord, Kind, ShardMeta, shard_key,
};
use crate::storage::lmdb::room::Room;
use crate::storage::log::applied::Backlog;
use crate::storage::log::local::{self, LogOptions};
use crate::storage::log::reader::Reader;
use crate::storage::log::reads::Reads as _;
use crate::storage::log::shard_log::{Claim, ShardLog as _};
use crate::storage::range::{Direction, Range, after_prefix};
use crate::storage::space::Space;
use crate::storage::testing::model::config::MemoryConfig;
use crate::storage::testing::model::gate::{Gate, Gated};
use crate::storage::testing::model::{Fault, MemoryLog};

/// LMDB.
pub(super) struct Disk {
    gate: Gate,
    appending: Arc<Mutex<()>>,
    open: RefCell<Weak<Environment>>,
    dir: TempDir,
}

impl Disk {
    fn environment(&self) -> Arc<Environment> {
        self.open.borrow().upgrade().expect("the storage is open")
    }

    fn open_gated(&self) -> (Gated, Reader, Arc<Room>) {
        // So few bytes that some of a script's turns are applied, and others aren't yet.
        let backlog = Backlog { bytes: 40 * 4_096, age: Duration::from_hours(1) };
        let options = LogOptions { reserve_bytes: Some(0), backlog, ..LogOptions::default() };
        let (log, reads) = local::open(self.dir.path(), options, Arc::default()).unwrap();
        self.open.replace(Arc::downgrade(reads.environment()));
        let room = log.room();
        (Gated::new(self.gate.clone(), self.appending.clone(), Box::new(log)), reads, room)
    }
}

impl Backend for Disk {
    const WHOLE_GROUPS: bool = true;
    const KEEPS_HISTORY: bool = false;

    fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { gate: Gate::default(), appending: Arc::default(), open: RefCell::default(), dir }
    }

    fn open(&self) -> Opened {
        let (log, reads, room) = self.open_gated();
        Opened { log: Box::new(log.applying()), reads: Rc::new(reads), room }
    }

    fn open_behind(&self) -> Opened {
        let (log, reads, room) = self.open_gated();
        Opened { log: Box::new(log), reads: Rc::new(reads), room }
    }

    fn crash(&self, _: u64) -> Self {
        let copy = Self::make();
        let _between = self.appending.lock().unwrap();
        let copy_all = || {
            for file in fs::read_dir(self.dir.path()).unwrap() {
                let file = file.unwrap().path();
                let name = file.file_name().unwrap();
                // Applied segments are removed at any time.
                if name != "lock.mdb" && file.exists() {
                    let _ = fs::copy(&file, copy.dir.path().join(name));
                }
            }
        };
        match self.open.borrow().upgrade() {
            // Nothing is applied while this is writing.
            Some(env) => {
                let copied = env.write(|_| {
                    copy_all();
                    Ok(())
                });
                copied.unwrap_or_else(|_| copy_all());
            }
            None => copy_all(),
        }
        copy
    }

    fn rival(&self, shard: Shard) -> Claim {
        // The directory's lock keeps real rivals away; this is what a rival would do that got past
        // it.
        let raise = self.environment().write(|changes| {
            let record = changes.get(&ENVIRONMENT_KEY)?.unwrap();
            let mut record = EnvironmentRecord::decode(record, Kind::Objects)?;
            let last = record.incarnation;
            record.incarnation += 1;
            changes.put(&ENVIRONMENT_KEY, &record.encode(Kind::Objects))?;
            let meta = changes.get(&shard_key(shard))?.map(|meta| ShardMeta::decode(meta).unwrap());
            Ok(Claim { epoch: Epoch(last + 1), link: meta.unwrap_or_default().link })
        });
        raise.unwrap()
    }

    fn gate(&self) -> &Gate {
        &self.gate
    }

    fn seal(&self) {
        // Its opening is that of all shards.
        self.rival(Shard(0));
    }

    fn inject(&self, _: Fault) -> bool {
        false
    }

    fn inject_at(&self, _: Fault, _: usize) -> bool {
        false
    }

    fn lose_tail(&self, _: Shard, _: u64) -> bool {
        false
    }

    fn lose_answer(&self, _: bool) -> bool {
        false
    }

    fn check_records(&self, object: ObjectId, space: Space, keys: &Map) {
        let mut expected = BTreeSet::new();
        for key in keys.keys() {
            let path = RecordPath::new(object, space, key).unwrap();
            expected.extend(path.links.into_iter().chain([path.record]));
        }
        let mut found = BTreeSet::new();
        for prefix in space_prefixes(object, space) {
            let until = after_prefix(&prefix);
            let walked = self.environment().read(|snapshot| {
                snapshot.walk((&prefix, until.as_deref()), Direction::Up, |key, _| {
                    found.insert(key.into());
                    Ok(ControlFlow::Continue(()))
                })
            });
            assert!(walked.unwrap().is_continue());
        }
        assert!(found == expected, "{} records, and {} were needed", found.len(), expected.len());
    }

    fn open_config(&mut self) -> Box<dyn ConfigStore> {
        Box::new(LocalConfig::open(self.dir.path()).unwrap())
    }
}

/// The model.
#[derive(Default)]
pub(super) struct Memory {
    log: MemoryLog,
    config: MemoryConfig,
}

impl Backend for Memory {
    const WHOLE_GROUPS: bool = false;
    const KEEPS_HISTORY: bool = true;

    fn make() -> Self {
        Self::default()
    }

    fn open(&self) -> Opened {
        let (log, reads) = (Box::new(self.log.clone()), Rc::new(self.log.clone()));
        Opened { log, reads, room: Room::endless() }
    }

    fn crash(&self, keep: u64) -> Self {
        Self { log: self.log.crash(keep), ..Self::default() }
    }

    fn rival(&self, shard: Shard) -> Claim {
        self.log.clone().claim(shard).unwrap()
    }

    fn gate(&self) -> &Gate {
        self.log.gate()
    }

    fn seal(&self) {
        self.log.seal();
    }

    fn inject(&self, fault: Fault) -> bool {
        self.log.fail_next(fault);
        true
    }

    fn inject_at(&self, fault: Fault, group: usize) -> bool {
        self.log.fail_at(fault, group, None);
        true
    }

    fn lose_tail(&self, shard: Shard, blocks: u64) -> bool {
        self.log.lose_tail(shard, blocks);
        true
    }

    fn lose_answer(&self, is_made: bool) -> bool {
        self.config.lose_answer(is_made);
        true
    }

    fn check_records(&self, object: ObjectId, space: Space, keys: &Map) {
        let mut found = Map::new();
        let mut keep = |key: &[u8], value: &[u8]| {
            found.insert(key.to_vec(), value.to_vec());
            ControlFlow::Continue(())
        };
        self.log.scan(object, space, &Range::all(), &mut keep).unwrap();
        assert!(found == *keys);
    }

    fn open_config(&mut self) -> Box<dyn ConfigStore> {
        self.config = self.config.reopen();
        Box::new(self.config.clone())
    }
}
