//! The few values that a cluster agrees on, such as placement: they can be read, swapped and
//! watched.
//!
//! A value changes only by compare-and-swap, so that two writers can't overwrite each other
//! unnoticed. On one machine the store is an LMDB environment of its own; it never holds data of
//! objects.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::limits::MAP_BYTES;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::dir::Access;
use crate::storage::lmdb::engine::Environment;
use crate::storage::lmdb::layout::{CONFIG_PREFIX_BYTES, Kind, config_key, config_prefix, damaged};
use crate::storage::lmdb::owned::Owner;
use crate::storage::range::{Direction, after_prefix};
use crate::storage::space::check_value;

/// A value with its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Versioned {
    /// Grows with each change of the value, by any number.
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
    /// The answer was lost: the value may be stored or not, and `get` tells.
    #[cfg_attr(not(test), expect(dead_code, reason = "the store of one machine always knows"))]
    Unknown,
}

/// Called with a watched key and its value.
pub(crate) type Observer = Box<dyn Fn(&str, &Versioned) + Send>;

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

    /// Calls `observer` with the present value of every key that begins with `prefix`, in the order
    /// of the keys, and then with every value that is stored under one, in order, after it is
    /// durable. It sees the present values before this returns. An observer must not use the store.
    ///
    /// # Errors
    /// `KeyLength`, `CorruptRecord`, or the store can't be read or watched: the observer sees no
    /// later values.
    #[cfg_attr(not(test), expect(dead_code, reason = "one supervisor has nobody to watch"))]
    fn watch(&self, prefix: &str, observer: Observer) -> Result<()>;
}

/// The config store of a single machine.
pub(crate) struct LocalConfig {
    env: Environment,
    /// Held from a swap until its observers were called, so that they see swaps in order.
    observers: Mutex<Vec<(String, Observer)>>,
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
        let (name, key) = (key, config_key(key)?);
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
            let watching = observers.iter().filter(|(prefix, _)| name.starts_with(prefix));
            watching.for_each(|(_, observer)| observer(name, &stored));
        }
        Ok(outcome)
    }

    fn watch(&self, prefix: &str, observer: Observer) -> Result<()> {
        let from = config_prefix(prefix)?;
        // So that no swap comes between the present values and the later ones.
        let mut observers = self.observers.lock().unwrap_or_else(PoisonError::into_inner);
        let until = after_prefix(&from);
        let _ = self.env.read(|snapshot| {
            snapshot.walk((&from, until.as_deref()), Direction::Up, |key, record| {
                let (version, value) = split(key, record)?;
                let name = str::from_utf8(&key[CONFIG_PREFIX_BYTES..]).map_err(|_| damaged(key))?;
                observer(name, &Versioned { version, value: value.to_vec() });
                Ok(ControlFlow::Continue(()))
            })
        })?;
        observers.push((prefix.to_owned(), observer));
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
