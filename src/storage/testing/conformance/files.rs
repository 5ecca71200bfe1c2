//! The third storage under test: a log of files, which holds everything by itself.
//!
//! Each opening reads the files of the one before, and writes their blocks as the first entry of
//! new ones. The model in memory only answers reads. A crash is a copy of the files between two
//! appends.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::{Backend, Map, Opened};
use crate::id::{Epoch, ObjectId, Shard};
use crate::storage::config::ConfigStore;
use crate::storage::error::Result;
use crate::storage::lmdb::owned::Owner;
use crate::storage::lmdb::room::Room;
use crate::storage::log::batch::WriteSet;
use crate::storage::log::entry::{Draft, End, Entry, Head, NONCE_BYTES};
use crate::storage::log::reads::Reads as _;
use crate::storage::log::recovery::{LogState, replay};
use crate::storage::log::segments::{self, Segments};
use crate::storage::log::shard_log::{Claim, Outcome, ShardBlock, ShardLog};
use crate::storage::position::{Link, Position};
use crate::storage::range::Range;
use crate::storage::space::Space;
use crate::storage::testing::model::config::MemoryConfig;
use crate::storage::testing::model::gate::{Gate, Gated};
use crate::storage::testing::model::{Fault, MemoryLog};

/// A log of files.
pub(super) struct Files {
    gate: Gate,
    appending: Arc<Mutex<()>>,
    dir: TempDir,
    /// The number of the last opening, by which its folder is named; 0 before the first.
    opening: Cell<u64>,
    /// The newest incarnation: that of the opening, or of a rival.
    owner: Arc<Mutex<u64>>,
    model: RefCell<MemoryLog>,
    config: MemoryConfig,
}

impl Files {
    fn folder(&self, opening: u64) -> PathBuf {
        self.dir.path().join(opening.to_string())
    }

    /// The blocks in the files of the last opening.
    fn blocks(&self) -> Vec<ShardBlock> {
        let mut blocks = Vec::new();
        if self.opening.get() == 0 {
            return blocks;
        }
        let start = End { segment: segments::FIRST, ..End::default() };
        let log = LogState { nonce: nonce(self.opening.get()), applied: start };
        let mut visit = |entry: Entry, _| {
            entry.blocks(|block| {
                let mut writes = Vec::new();
                block.sets(|set| {
                    writes.push(WriteSet::decode(set)?);
                    Ok(())
                })?;
                let (shard, epoch, previous) = (block.shard, block.epoch, block.previous);
                blocks.push(ShardBlock { shard, epoch, previous, writes });
                Ok(())
            })
        };
        replay(&self.folder(self.opening.get()), Owner::ours(), &log, &mut visit).unwrap();
        blocks
    }
}

fn nonce(opening: u64) -> [u8; NONCE_BYTES] {
    let mut nonce = [7; NONCE_BYTES];
    nonce[..8].copy_from_slice(&opening.to_le_bytes());
    nonce
}

impl Backend for Files {
    const WHOLE_GROUPS: bool = true;
    const KEEPS_HISTORY: bool = true;

    fn make() -> Self {
        Self {
            gate: Gate::default(),
            appending: Arc::default(),
            dir: tempfile::tempdir().unwrap(),
            opening: Cell::new(0),
            owner: Arc::default(),
            model: RefCell::default(),
            config: MemoryConfig::default(),
        }
    }

    fn open(&self) -> Opened {
        let blocks = self.blocks();
        self.opening.set(self.opening.get() + 1);
        let folder = self.folder(self.opening.get());
        fs::create_dir(&folder).unwrap();
        let incarnation = {
            let mut owner = self.owner.lock().unwrap();
            *owner += 1;
            *owner
        };
        let model = MemoryLog::default();
        self.model.replace(model.clone());
        let mut log = FileLog {
            segments: Segments::begin(&folder).unwrap(),
            nonce: nonce(self.opening.get()),
            last: End::default(),
            incarnation,
            owner: self.owner.clone(),
            model: model.clone(),
        };
        if !blocks.is_empty() {
            log.write(&blocks.iter().collect::<Vec<_>>()).unwrap();
            for block in &blocks {
                model.replay(block);
            }
        }
        let log = Gated::new(self.gate.clone(), self.appending.clone(), Box::new(log));
        Opened { log: Box::new(log), reads: Rc::new(model), room: Room::endless() }
    }

    fn crash(&self, _: u64) -> Self {
        let copy = Self { opening: self.opening.clone(), ..Self::make() };
        let _between = self.appending.lock().unwrap();
        *copy.owner.lock().unwrap() = *self.owner.lock().unwrap();
        if self.opening.get() > 0 {
            let (from, to) = (self.folder(self.opening.get()), copy.folder(self.opening.get()));
            fs::create_dir(&to).unwrap();
            for number in segments::list(&from).unwrap() {
                fs::copy(segments::path(&from, number), segments::path(&to, number)).unwrap();
            }
        }
        copy
    }

    fn rival(&self, shard: Shard) -> Claim {
        let mut owner = self.owner.lock().unwrap();
        *owner += 1;
        Claim { epoch: Epoch(*owner), link: self.model.borrow().last(shard).unwrap() }
    }

    fn gate(&self) -> &Gate {
        &self.gate
    }

    fn inject(&self, _: Fault) -> bool {
        false
    }

    fn check_records(&self, object: ObjectId, space: Space, keys: &Map) {
        let mut found = Map::new();
        let mut keep = |key: &[u8], value: &[u8]| {
            found.insert(key.to_vec(), value.to_vec());
            std::ops::ControlFlow::Continue(())
        };
        self.model.borrow().scan(object, space, &Range::all(), &mut keep).unwrap();
        assert!(found == *keys);
    }

    fn open_config(&mut self) -> Box<dyn ConfigStore> {
        self.config = self.config.reopen();
        Box::new(self.config.clone())
    }
}

/// Appends to files, and has the model answer reads.
struct FileLog {
    segments: Segments,
    nonce: [u8; NONCE_BYTES],
    last: End,
    incarnation: u64,
    owner: Arc<Mutex<u64>>,
    model: MemoryLog,
}

impl FileLog {
    fn write(&mut self, blocks: &[&ShardBlock]) -> Result<()> {
        let mut draft = Draft::new();
        for block in blocks {
            assert_eq!(draft.add(block), block.link());
        }
        let (number, previous) = (self.last.number + 1, self.last.sum);
        let (nonce, incarnation, durable) = (self.nonce, self.incarnation, self.last.number);
        let entry = draft.finish(&Head { nonce, incarnation, number, durable, previous });
        let segment = self.segments.append(&entry)?;
        self.last = End { number, sum: entry.sum(), segment };
        Ok(())
    }
}

impl ShardLog for FileLog {
    fn claim(&mut self, shard: Shard) -> Result<Claim> {
        Ok(Claim { epoch: Epoch(self.incarnation), link: self.last(shard)? })
    }

    fn append(&mut self, blocks: &[ShardBlock]) -> Vec<Outcome> {
        let owner = Epoch(*self.owner.lock().unwrap());
        let (mut accepted, mut outcomes) = (Vec::new(), Vec::new());
        // One shard has one block in a group; a second one is a duplicate.
        for block in blocks {
            let is_next = block.previous == self.model.last(block.shard).unwrap()
                && !accepted.iter().any(|other: &&ShardBlock| other.shard == block.shard);
            outcomes.push(if block.epoch == owner && is_next {
                accepted.push(block);
                Outcome::Position(block.link())
            } else {
                Outcome::Fenced
            });
        }
        if !accepted.is_empty() {
            self.write(&accepted).unwrap();
            for block in accepted {
                self.model.replay(block);
            }
        }
        outcomes
    }

    fn last(&self, shard: Shard) -> Result<Link> {
        self.model.last(shard)
    }

    fn read(&self, shard: Shard, from: Position) -> Result<Vec<ShardBlock>> {
        self.model.read(shard, from)
    }

    fn trim(&mut self, shard: Shard, upto: Position) -> Result<()> {
        self.model.trim(shard, upto)
    }
}
