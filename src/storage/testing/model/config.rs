//! The values that a cluster agrees on, in memory. They keep the promises of `ConfigStore` and
//! never touch a disk.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::storage::config::{CasOutcome, ConfigStore, Observer, Versioned};
use crate::storage::error::Result;
use crate::storage::lmdb::layout::config_key;
use crate::storage::space::check_value;

/// A handle; all clones refer to the same store.
#[derive(Clone, Default)]
pub(crate) struct MemoryConfig(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    values: BTreeMap<Vec<u8>, Versioned>,
    observers: Vec<(Vec<u8>, Observer)>,
}

impl MemoryConfig {
    /// The same values for a process that starts anew, without the observers.
    pub(crate) fn reopen(&self) -> Self {
        let values = self.state().values.clone();
        Self(Arc::new(Mutex::new(State { values, observers: Vec::new() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl fmt::Debug for MemoryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryConfig").field("values", &self.state().values).finish_non_exhaustive()
    }
}

impl ConfigStore for MemoryConfig {
    fn get(&self, key: &str) -> Result<Option<Versioned>> {
        Ok(self.state().values.get(&config_key(key)?).cloned())
    }

    fn compare_and_swap(
        &self,
        key: &str,
        expected: Option<u64>,
        value: &[u8],
    ) -> Result<CasOutcome> {
        let key = config_key(key)?;
        check_value(value)?;
        let mut state = self.state();
        let present = state.values.get(&key).map(|stored| stored.version);
        if present != expected {
            return Ok(CasOutcome::Conflict(present));
        }
        let version = present.unwrap_or_default() + 1;
        let stored = Versioned { version, value: value.to_vec() };
        let watching = state.observers.iter().filter(|(watched, _)| *watched == key);
        watching.for_each(|(_, observer)| observer(&stored));
        state.values.insert(key, stored);
        Ok(CasOutcome::Stored(version))
    }

    fn watch(&self, key: &str, observer: Observer) -> Result<()> {
        let key = config_key(key)?;
        self.state().observers.push((key, observer));
        Ok(())
    }
}
