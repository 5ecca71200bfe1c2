//! Rewrites an environment that isn't in use into a new one, in the order of its keys.
//!
//! Deleted records leave free pages, and random writes leave pages half full; neither goes back to
//! the disk by itself. The new environment lies beside the old one until it is durable, and gets
//! the old one's name in one step.
//!
//! **Invariant:** at every moment the name stands for one whole environment with all records. An
//! attempt that was cut short leaves files under the other name only, and the next attempt removes
//! them.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::storage::error::io_error;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::dir;
use crate::storage::lmdb::disk::{self, Disk};
use crate::storage::lmdb::engine::{Bulk, Environment};
use crate::storage::lmdb::layout::{CHECKSUM_BYTES, Kind};
use crate::storage::lmdb::owned::Owner;
use crate::storage::lmdb::pairs::Pairs;
use crate::storage::range::Direction;

/// Bytes that are copied in one transaction.
const STEP_BYTES: usize = 16 << 20;

/// The sizes of an environment before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compacted {
    /// All records, those of objects and others.
    pub(crate) records: u64,
    /// The bytes that the data took on disk.
    pub(crate) before: u64,
    /// The bytes that it takes now.
    pub(crate) after: u64,
}

/// Compacts the environment of objects in `path`; `progress` gets the number of records copied and
/// the total.
///
/// # Errors
/// The environment has all its records, compacted or not. `NoSpace`: nothing was begun, unless
/// something else used up the space in the meantime.
pub(crate) fn compact(
    path: &Path,
    map_bytes: usize,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Compacted> {
    let beside = beside(path);
    check_neighbour(path)?;
    // An earlier attempt may have exchanged the two without a sync.
    sync_parent(path)?;
    remove(&beside)?;
    check_room(path, map_bytes)?;
    DirBuilder::new().mode(0o700).create(&beside).map_err(io_error("create", &beside))?;
    let env = Environment::open(path, Kind::Objects, map_bytes)?;
    let before = size(path)?;
    let copied = copy(&env, &beside, map_bytes, progress).and_then(|records| {
        dir::write_marker(&beside, Kind::Objects)?;
        exchange(path, &beside)?;
        Ok(records)
    });
    let records = match copied {
        Ok(records) => records,
        Err(error) => {
            let error = disk::explained(error, path);
            // This frees its space. Files that can't be removed are left for the next attempt.
            let _ = remove(&beside);
            return Err(error);
        }
    };
    // If this fails, both are left: after a loss of power either may have the name.
    sync_parent(path)?;
    // The directory's lock belongs to the old files, under either name.
    drop(env);
    let after = size(path)?;
    remove(&beside)?;
    Ok(Compacted { records, before, after })
}

/// Checks that there is room for a second copy. The check changes nothing, because that takes space
/// too.
fn check_room(path: &Path, map_bytes: usize) -> Result<()> {
    /// The bytes that an environment needs in addition to its records.
    const BESIDE_BYTES: u64 = 1 << 20;
    let env = Environment::open_to_read(path, Kind::Objects, map_bytes, Owner::ours())?;
    if Disk::check_room(path, env.bytes_used()? + BESIDE_BYTES).is_ok() {
        return Ok(());
    }
    // Half-full pages are merged. When that decides, this reads all records.
    Disk::check_room(path, packed_bytes(&env)? + BESIDE_BYTES)
}

/// The bytes that all records take in full pages, as LMDB lays them out.
fn packed_bytes(env: &Environment) -> Result<u64> {
    const HEADER: u64 = 16;
    const NODE: u64 = 8;
    const PLACE: u64 = 2;
    let page = env.page_bytes();
    let node_max = (((page - HEADER) / 2) & !1) - PLACE;
    let (mut pages, mut free, mut above) = (0, 0, 0);
    env.read(|snapshot| {
        let _ = snapshot.walk((&[0], None), Direction::Up, |key, record| {
            let (key, stored) = (key.len() as u64, (record.len() + CHECKSUM_BYTES) as u64);
            let mut node = NODE + key + stored;
            if node > node_max {
                // The value has pages of its own.
                pages += (HEADER + stored).div_ceil(page);
                node = NODE + key + NODE;
            }
            let node = node.next_multiple_of(2) + PLACE;
            if node > free {
                (pages, free) = (pages + 1, page - HEADER);
                above += NODE + key.next_multiple_of(2) + PLACE;
            }
            free -= node;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(())
    })?;
    // The branch pages above the leaves, and those above them.
    pages += 2 * above.div_ceil(page - HEADER);
    Ok(pages * page)
}

/// The path at which the new environment is made, and to which the old one moves.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".compact");
    PathBuf::from(name)
}

fn copy(
    env: &Environment,
    to: &Path,
    map_bytes: usize,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<u64> {
    let expected = env.entries()?;
    let bulk = Bulk::make(to, map_bytes)?;
    let mut step = Pairs::default();
    let mut copied = 0;
    env.read(|snapshot| {
        let _ = snapshot.walk((&[0], None), Direction::Up, |key, record| {
            step.push(key, record);
            copied += 1;
            if step.bytes() >= STEP_BYTES {
                bulk.append(step.iter())?;
                step.clear();
                progress(copied, expected);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        bulk.append(step.iter())
    })?;
    progress(copied, expected);
    let found = bulk.finish()?;
    if copied != expected || found != expected {
        return Err(StorageError::Miscounted { expected, found: found.min(copied) });
    }
    Ok(found)
}

/// Exchanges the names of the two.
fn exchange(path: &Path, beside: &Path) -> Result<()> {
    renameat_with(CWD, path, CWD, beside, RenameFlags::EXCHANGE)
        .map_err(|error| io_error("put the compacted storage in the place of", path)(error.into()))
}

fn sync_parent(path: &Path) -> Result<()> {
    let parent = parent(path);
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(io_error("sync", parent))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Checks that the new environment can get the name: no name can be given to a file system.
fn check_neighbour(path: &Path) -> Result<()> {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    let devices = device(path).and_then(|own| Ok((own, device(parent(path))?)));
    match devices.map_err(io_error("look at", path))? {
        (own, around) if own == around => Ok(()),
        _ => {
            let reason = "it is a file system of its own, which can't be exchanged: export its \
                          objects and import them, or mount the whole data directory";
            let source = io::Error::new(io::ErrorKind::CrossesDevices, reason);
            Err(io_error("compact", path)(source))
        }
    }
}

fn size(path: &Path) -> Result<u64> {
    let data = path.join(dir::DATA);
    let metadata = fs::metadata(&data).map_err(io_error("measure", &data))?;
    Ok(metadata.blocks() * 512)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAP_BYTES;

    fn fill(path: &Path, keys: std::ops::Range<u32>) {
        let env = Environment::open(path, Kind::Objects, MAP_BYTES).unwrap();
        env.write(|changes| {
            // Backwards, so that pages split as they do with random writes.
            keys.clone()
                .rev()
                .try_for_each(|key| changes.put(&[[1; 4], key.to_be_bytes()].concat(), &[7; 90]))
        })
        .unwrap();
        env.write(|changes| {
            keys.filter(|key| key % 3 != 0)
                .try_for_each(|key| changes.delete(&[[1; 4], key.to_be_bytes()].concat()))
        })
        .unwrap();
    }

    type Records = Vec<(Vec<u8>, Vec<u8>)>;

    /// The incarnation, and all other records.
    fn all(path: &Path) -> (u64, Records) {
        let env = Environment::open(path, Kind::Objects, MAP_BYTES).unwrap();
        let mut all = Vec::new();
        let walked = env.read(|snapshot| {
            snapshot.walk((&[1], None), Direction::Up, |key, record| {
                all.push((key.to_vec(), record.to_vec()));
                Ok(ControlFlow::Continue(()))
            })
        });
        assert!(walked.unwrap().is_continue());
        (env.incarnation(), all)
    }

    #[test]
    fn a_compacted_environment_has_the_same_records_in_less_space() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host-0");
        fill(&path, 0..20_000);
        let (incarnation, expected) = all(&path);
        // The remains of an earlier attempt.
        fs::create_dir(beside(&path)).unwrap();
        fs::write(beside(&path).join("data.mdb"), "half").unwrap();
        let mut last = (0, 0);
        let compacted = compact(&path, MAP_BYTES, &mut |done, of| last = (done, of)).unwrap();
        assert!(compacted.after * 2 < compacted.before, "{compacted:?}");
        assert_eq!(compacted.records as usize, expected.len() + 1);
        assert_eq!(last, (compacted.records, compacted.records));
        assert!(!beside(&path).exists());
        // No epoch is given out twice.
        let (later, found) = all(&path);
        assert!(later > incarnation);
        assert_eq!(found, expected);
    }

    #[test]
    fn the_room_for_a_copy_is_known_before_it_is_made() {
        for sizes in [vec![3], vec![90, 1_900, 2_100], vec![90, 5_000, 20_000]] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("host-0");
            let env = Environment::open(&path, Kind::Objects, MAP_BYTES).unwrap();
            env.write(|changes| {
                let sizes = sizes.iter().cycle();
                (0..3_000_u32).rev().zip(sizes).try_for_each(|(key, bytes)| {
                    changes
                        .put(&[[1; 20].as_slice(), &key.to_be_bytes()].concat(), &vec![7; *bytes])
                })
            })
            .unwrap();
            let packed = packed_bytes(&env).unwrap();
            assert!(packed < env.bytes_used().unwrap(), "{sizes:?}");
            drop(env);
            let after = compact(&path, MAP_BYTES, &mut |_, _| ()).unwrap().after;
            let spared = after.saturating_sub(packed);
            assert!(spared < 1 << 18 && packed < after * 11 / 10, "{sizes:?}: {packed}, {after}");
        }
    }

    #[test]
    fn a_damaged_record_is_not_copied_and_the_environment_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host-0");
        fill(&path, 0..100);
        let env = Environment::open(&path, Kind::Objects, MAP_BYTES).unwrap();
        env.write(|changes| {
            changes.put_raw(&[9; 30], b"not what was written");
            Ok(())
        })
        .unwrap();
        drop(env);
        let before = fs::read(path.join(dir::DATA)).unwrap().len();
        assert!(compact(&path, MAP_BYTES, &mut |_, _| ()).is_err());
        assert_eq!(fs::read(path.join(dir::DATA)).unwrap().len(), before);
        compact(&path, MAP_BYTES, &mut |_, _| ()).unwrap_err();
        assert!(!beside(&path).exists(), "a failed attempt gives its space back");
    }
}
