//! Opening an environment whose process may have ended out of order: what the log has is applied
//! first.
//!
//! **Invariant:** nobody sees an environment that lacks what was acknowledged.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::Metrics;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::compact::{self, Compacted};
use crate::storage::lmdb::engine::Environment;
use crate::storage::lmdb::layout::{ENVIRONMENT_KEY, EnvironmentRecord, Kind, LogState, damaged};
use crate::storage::lmdb::owned::Owner;
use crate::storage::log::apply::{CLEARING_BYTES, SLICE_BYTES, Target, set_log};
use crate::storage::log::{recovery, segments};

/// Compacts the environment of objects in `path`, with all that is in its log; `progress` gets the
/// number of records copied and the total.
///
/// # Errors
/// Those of opening it, and of [`compact::compact`].
pub(crate) fn compact(
    path: &Path,
    map_bytes: usize,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Compacted> {
    let env = Environment::open_to_read(path, Kind::Objects, map_bytes, Owner::ours())?;
    let is_behind = record_of(&env)?.log.is_some();
    drop(env);
    if is_behind {
        drop(open_to_write(path, map_bytes, &Metrics::default())?);
    }
    compact::compact(path, map_bytes, progress)
}

/// Opens or makes the environment in `path`, for writing.
///
/// # Errors
/// Those of [`Environment::open`], and of replaying and applying its log.
pub(super) fn open_to_write(
    path: &Path,
    map_bytes: usize,
    metrics: &Metrics,
) -> Result<Environment> {
    let env = Environment::open(path, Kind::Objects, map_bytes)?;
    let record = record_of(&env)?;
    recovery::check_identity(env.path(), Owner::ours(), &record.identity)?;
    if let Some(log) = record.log
        && let Err(failure) = recover(&env, &log, metrics)
    {
        // The environment keeps the first failure of its writes, too.
        drop(env);
        return Err(match failure {
            StorageError::Latched(cause) => {
                Arc::try_unwrap(cause).unwrap_or_else(StorageError::Latched)
            }
            failure => failure,
        });
    }
    segments::give_up_before(env.path(), u64::MAX)?;
    segments::make_spares(env.path())?;
    Ok(env)
}

/// Opens the environment in `path` for reading. Nothing is written unless a process ended out of
/// order and left entries in the log. Then these are applied first, since the environment lacks
/// what was acknowledged.
///
/// # Errors
/// Those of [`Environment::open_to_read`] and of [`open_to_write`]; `LogUnapplied`.
pub(super) fn open_to_read(
    path: &Path,
    map_bytes: usize,
    owner: Owner,
    metrics: &Metrics,
) -> Result<Environment> {
    let env = Environment::open_to_read(path, Kind::Objects, map_bytes, owner)?;
    let EnvironmentRecord { identity, log, .. } = record_of(&env)?;
    let Some(log) = log else { return Ok(env) };
    recovery::check_identity(env.path(), owner, &identity)?;
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
    drop(open_to_write(path, map_bytes, metrics)?);
    Environment::open_to_read(path, Kind::Objects, map_bytes, owner)
}

/// The environment's record about itself, with the log in front of it.
pub(super) fn record_of(env: &Environment) -> Result<EnvironmentRecord> {
    env.read(|snapshot| {
        let record = snapshot.get(&ENVIRONMENT_KEY)?.ok_or_else(|| damaged(&ENVIRONMENT_KEY))?;
        EnvironmentRecord::decode(record, Kind::Objects)
    })
}

/// Applies all of the log, and records that nothing is left in it.
fn recover(env: &Environment, log: &LogState, metrics: &Metrics) -> Result<()> {
    // Everything is read before anything is applied, so that a damaged log changes nothing.
    let mut last = 0;
    recovery::replay(env.path(), Owner::ours(), log, &mut |entry, _| {
        last = entry.number();
        Ok(())
    })?;
    let (nonce, low, clearing) = (log.nonce, 0, CLEARING_BYTES);
    let target = Target { env, nonce, metrics, low, clearing, delay: Duration::ZERO };
    let (mut entries, mut bytes) = (Vec::new(), 0);
    recovery::replay(env.path(), Owner::ours(), log, &mut |entry, end| {
        bytes += entry.disk_bytes();
        entries.push((entry, end));
        if bytes >= SLICE_BYTES {
            target.apply(&entries).map_err(StorageError::Latched)?;
            tracing::info!(entry = end.number, last, "applying what the log has");
            entries.clear();
            bytes = 0;
        }
        Ok(())
    })?;
    target.apply(&entries).map_err(StorageError::Latched)?;
    env.write(|changes| set_log(changes, Some(log.nonce), None)).map_err(StorageError::Latched)
}
