//! One suite for every storage: the promises of a log, its reads, a config store, and a `Store`
//! over them.
//!
//! It knows a storage only as a [`Backend`], which can be opened, opened again, taken over by a
//! rival, and ended at any moment. It runs on the local log with LMDB behind it, and on the log in
//! memory. Tests for one of them alone stand beside that one. The suite expects nothing that the
//! documentation of the traits doesn't promise.
//!
//! `PROPTEST_CASES` raises the number of random cases.

mod backends;
mod config;
mod keys;
mod listing;
mod log;
mod offers;
mod oracle;
mod order;
mod script;
mod store;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use proptest::test_runner::Config;

use self::backends::{Disk, Memory};
use crate::id::{ObjectId, ObjectIds, Shard};
use crate::storage::config::ConfigStore;
use crate::storage::lmdb::layout::Usage;
use crate::storage::lmdb::room::Room;
use crate::storage::log::reads::Reads;
use crate::storage::log::shard_log::{Claim, ShardLog};
use crate::storage::space::Space;
use crate::storage::testing::model::Fault;
use crate::storage::testing::model::gate::Gate;

/// Keys and values of one object.
type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// The values of the objects that exist.
type World = BTreeMap<ObjectId, Rc<Map>>;

/// A storage of objects, and the events that can happen to it.
trait Backend: Sized + 'static {
    /// True if a crash loses or keeps a group of blocks only as a whole.
    const WHOLE_GROUPS: bool;
    /// True if blocks can be read again.
    const KEEPS_HISTORY: bool;

    /// Makes an empty storage.
    fn make() -> Self;

    /// Opens it as a starting process does; everything opened before has been dropped. Reads see
    /// what `append` reported.
    fn open(&self) -> Opened;

    /// The same; the records may lag behind what the log reported.
    fn open_behind(&self) -> Opened {
        self.open()
    }

    /// The state that a process finds when it starts after a crash at this moment. `keep` decides
    /// if it isn't certain which blocks are left.
    fn crash(&self, keep: u64) -> Self;

    /// Claims the shard as another process would while this one has the storage open.
    fn rival(&self, shard: Shard) -> Claim;

    /// The gate that holds back the appends of the opened log.
    fn gate(&self) -> &Gate;

    /// Takes the whole host over as another process would.
    fn seal(&self);

    /// Makes the next group fail; returns false if no fault is possible.
    fn inject(&self, fault: Fault) -> bool;

    /// Makes the group with that number fail; returns false if no fault is possible.
    fn inject_at(&self, fault: Fault, group: usize) -> bool;

    /// Loses the last blocks of a shard; returns false if that isn't possible.
    fn lose_tail(&self, shard: Shard, blocks: u64) -> bool;

    /// Loses the answer of the next change of a config value, which is made or not; returns false
    /// if that isn't possible.
    fn lose_answer(&self, is_made: bool) -> bool;

    /// Checks, below the reads, that the opened storage has exactly those records of the object
    /// that these keys of its class need.
    fn check_records(&self, object: ObjectId, space: Space, keys: &Map);

    /// Opens it as a config store instead, as a starting process does; everything opened before has
    /// been dropped.
    fn open_config(&mut self) -> Box<dyn ConfigStore>;
}

/// An open storage.
struct Opened {
    log: Box<dyn ShardLog>,
    reads: Rc<dyn Reads>,
    room: Arc<Room>,
}

/// The usual number of random cases, unless `PROPTEST_CASES` says otherwise.
fn cases(usual: u32) -> Config {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = usual;
    }
    config
}

fn usage(map: &Map) -> Usage {
    let bytes = map.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
    Usage { keys: map.len() as u64, bytes, references: edges(map).len() as u64, ..Usage::default() }
}

/// The beginning of a value that refers to objects.
const REFERS: u8 = b'>';

/// The objects to which the values in these tests refer: one for each 16 bytes, or fewer at the
/// end, after the first two. The second byte says which half of all keys the value is meant for.
fn targets(key: &[u8], value: &[u8]) -> ObjectIds {
    match value {
        [REFERS, half, ids @ ..] if usize::from(half % 2) == key.len() % 2 => {
            let id = |bytes: &[u8]| {
                let mut id = [0; ObjectId::LEN];
                id[..bytes.len()].copy_from_slice(bytes);
                ObjectId::from_bytes(id)
            };
            ids.chunks(ObjectId::LEN).map(id).collect()
        }
        _ => ObjectIds::NONE,
    }
}

/// The edge records for these values.
fn edges(map: &Map) -> Map {
    let edges = map.iter().map(|(key, value)| (key.clone(), targets(key, value)));
    let edges = edges.filter(|(_, targets)| !targets.is_empty());
    edges.map(|(key, targets)| (key, targets.as_bytes().to_vec())).collect()
}

/// Runs each check on both storages.
macro_rules! on_all {
    ($($part:ident { $($check:ident)* })*) => {
        mod on_the_model {
            $(mod $part { $(
                #[test]
                fn $check() { super::super::$part::$check::<super::super::Memory>(); }
            )* })*
        }
        mod on_lmdb {
            $(mod $part { $(
                #[test]
                fn $check() { super::super::$part::$check::<super::super::Disk>(); }
            )* })*
        }
    };
}

on_all! {
    log {
        blocks_chain_and_the_next_claim_is_newer_and_goes_on
        another_epoch_or_another_end_is_fenced_and_nothing_of_it_applied
        a_fenced_block_leaves_the_others_of_its_group_alone
        a_rival_fences_whoever_had_the_shard
        a_group_is_in_a_crash_as_soon_as_it_was_reported
        a_block_that_is_held_back_is_applied_as_a_whole_or_not_at_all
        history_is_read_or_said_to_be_gone
        reads_see_what_was_applied_and_nothing_else
        a_scan_ends_when_its_visitor_has_enough
        keys_out_of_bounds_are_refused
        objects_are_those_with_a_header
    }
    offers {
        a_block_that_is_offered_again_has_its_answer_and_is_not_applied_twice
        a_seal_ends_all_appending_of_the_host_and_keeps_what_was_acknowledged
        a_log_that_lost_its_tail_takes_the_same_blocks_again
        of_entries_offered_ahead_only_the_first_ones_in_a_row_are_acknowledged
        blocks_of_older_epochs_are_read_and_replayed_in_their_order
        a_reader_of_the_history_ends_it_with_its_own_error
    }
    config {
        a_swap_needs_the_present_version
        values_and_versions_survive
        observers_see_what_is_there_and_what_changes_under_their_prefix_alone
        a_swap_whose_answer_is_lost_is_resolved_by_a_read
        what_is_too_long_is_refused
    }
    order {
        lists_are_those_of_a_map_and_no_record_is_left_over
        clearing_many_keys_leaves_none
    }
    store {
        the_store_is_a_map_for_each_object_and_every_crash_a_prefix
    }
}
