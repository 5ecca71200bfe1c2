//! The few values that a cluster agrees on, such as placement: they can be read, swapped and
//! watched.
//!
//! A value changes only by compare-and-swap, so that two writers can't overwrite each other
//! unnoticed. On one machine the store is an LMDB environment of its own; it never holds data of
//! objects.

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::limits::MAP_BYTES;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::dir::Access;
use crate::storage::lmdb::engine::Environment;
use crate::storage::lmdb::layout::{Kind, config_key, damaged};
use crate::storage::lmdb::owned::Owner;
use crate::storage::space::check_value;

/// A value with the number of times that it was stored, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Versioned {
    /// Grows by one with each change.
    pub(crate) version: u64,
    /// The value that was stored.
    pub(crate) value: Vec<u8>,
}

/// The outcome of a compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CasOutcome {
    /// The value is durable with this version.
    Stored(u64),
    /// Nothing was changed: this is the present version, or `None` if there is no value.
    Conflict(Option<u64>),
}

/// Called with each later value of a watched key.
pub(crate) type Observer = Box<dyn Fn(&Versioned) + Send>;

/// Stores the values that a cluster agrees on.
pub(crate) trait ConfigStore: Send {
    /// The present value.
    ///
    /// # Errors
    /// `KeyLength`, `CorruptRecord`, or the store can't be read; nothing changed.
    fn get(&self, key: &str) -> Result<Option<Versioned>>;

    /// Stores `value` if the present version is `expected`, where `None` means that there is no
    /// value.
    ///
    /// # Errors
    /// `KeyLength`, `ValueLength`: nothing changed. `Latched`: whether the value was stored is
    /// unknown, and the process must be restarted.
    fn compare_and_swap(
        &self,
        key: &str,
        expected: Option<u64>,
        value: &[u8],
    ) -> Result<CasOutcome>;

    /// Calls `observer` with every value stored under `key` from now on, in order, after it is
    /// durable. An observer must not use the store.
    ///
    /// # Errors
    /// `KeyLength`, or the store can't be watched; nothing changed.
    #[cfg_attr(not(test), expect(dead_code, reason = "one supervisor has nobody to watch"))]
    fn watch(&self, key: &str, observer: Observer) -> Result<()>;
}

/// The config store of a single machine.
pub(crate) struct LocalConfig {
    env: Environment,
    /// Held from a swap until its observers were called, so that they see swaps in order.
    observers: Mutex<Vec<(Vec<u8>, Observer)>>,
}

impl LocalConfig {
    /// Opens the store in `path`, a directory of its own, and creates it if it is missing.
    ///
    /// # Errors
    /// As for the environment of objects.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::open_for(path, Access::Full, Owner::ours())
    }

    /// Opens the store of user `owner` in `path` with this access; for reading alone, it must
    /// exist.
    ///
    /// # Errors
    /// As for the environment of objects.
    pub(crate) fn open_for(path: &Path, access: Access, owner: Owner) -> Result<Self> {
        let env = match access {
            Access::Full => Environment::open(path, Kind::Config, MAP_BYTES)?,
            Access::Read => Environment::open_to_read(path, Kind::Config, MAP_BYTES, owner)?,
        };
        Ok(Self { env, observers: Mutex::default() })
    }
}

impl fmt::Debug for LocalConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalConfig").field("env", &self.env).finish_non_exhaustive()
    }
}

impl ConfigStore for LocalConfig {
    fn get(&self, key: &str) -> Result<Option<Versioned>> {
        let key = config_key(key)?;
        self.env.read(|snapshot| {
            let Some(record) = snapshot.get(&key)? else { return Ok(None) };
            let (version, value) = split(&key, record)?;
            Ok(Some(Versioned { version, value: value.to_vec() }))
        })
    }

    fn compare_and_swap(
        &self,
        key: &str,
        expected: Option<u64>,
        value: &[u8],
    ) -> Result<CasOutcome> {
        let key = config_key(key)?;
        check_value(value)?;
        let observers = self.observers.lock().unwrap_or_else(PoisonError::into_inner);
        let swapped = self.env.write(|changes| {
            let record = changes.get(&key)?;
            let present = record.map(|record| split(&key, record)).transpose()?;
            let present = present.map(|(version, _)| version);
            if present != expected {
                return Ok(CasOutcome::Conflict(present));
            }
            let version = present.unwrap_or_default() + 1;
            changes.put(&key, &[&version.to_be_bytes(), value].concat())?;
            Ok(CasOutcome::Stored(version))
        });
        let outcome = swapped.map_err(StorageError::Latched)?;
        if let CasOutcome::Stored(version) = outcome {
            let stored = Versioned { version, value: value.to_vec() };
            let watching = observers.iter().filter(|(watched, _)| *watched == key);
            watching.for_each(|(_, observer)| observer(&stored));
        }
        Ok(outcome)
    }

    fn watch(&self, key: &str, observer: Observer) -> Result<()> {
        let key = config_key(key)?;
        let mut observers = self.observers.lock().unwrap_or_else(PoisonError::into_inner);
        observers.push((key, observer));
        Ok(())
    }
}

fn split<'a>(key: &[u8], record: &'a [u8]) -> Result<(u64, &'a [u8])> {
    let (version, value) = record.split_first_chunk().ok_or_else(|| damaged(key))?;
    Ok((u64::from_be_bytes(*version), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_config_are_not_opened_as_one_another() {
        let dir = tempfile::tempdir().unwrap();
        drop(LocalConfig::open(dir.path()).unwrap());
        let refused = Environment::open(dir.path(), Kind::Objects, MAP_BYTES);
        assert!(matches!(refused, Err(StorageError::NotOurs(_))));
    }
}
