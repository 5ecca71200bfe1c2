//! The values that a cluster agrees on, in memory. They keep the promises of `ConfigStore` and
//! never touch a disk.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::storage::config::{CasOutcome, ConfigStore, Observer, Versioned};
use crate::storage::error::Result;
use crate::storage::lmdb::layout::{config_key, config_prefix};
use crate::storage::space::check_value;

/// A handle; all clones refer to the same store.
#[derive(Clone, Default)]
pub(crate) struct MemoryConfig(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    values: BTreeMap<String, Versioned>,
    observers: Vec<(String, Observer)>,
    /// The number of changes of all values, by which their versions grow.
    changes: u64,
    /// The next answer is lost, of a change that is made or not.
    lost: Option<bool>,
}

impl MemoryConfig {
    /// The same values for a process that starts anew, without the observers.
    pub(crate) fn reopen(&self) -> Self {
        let state = self.state();
        let (values, changes) = (state.values.clone(), state.changes);
        Self(Arc::new(Mutex::new(State { values, changes, ..State::default() })))
    }

    /// Loses the answer of the next change, which is made or not.
    pub(crate) fn lose_answer(&self, is_made: bool) {
        self.state().lost = Some(is_made);
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
        config_key(key)?;
        Ok(self.state().values.get(key).cloned())
    }

    fn compare_and_swap(
        &self,
        key: &str,
        expected: Option<u64>,
        value: &[u8],
    ) -> Result<CasOutcome> {
        config_key(key)?;
        check_value(value)?;
        let mut state = self.state();
        let lost = state.lost.take();
        if lost == Some(false) {
            return Ok(CasOutcome::Unknown);
        }
        let present = state.values.get(key).map(|stored| stored.version);
        if present != expected {
            return Ok(CasOutcome::Conflict(present));
        }
        // Like the revisions of a store whose versions are those of all keys.
        state.changes += 1;
        let version = state.changes;
        let stored = Versioned { version, value: value.to_vec() };
        let watching = state.observers.iter().filter(|(prefix, _)| key.starts_with(prefix));
        watching.for_each(|(_, observer)| observer(key, &stored));
        state.values.insert(key.to_owned(), stored);
        Ok(if lost.is_some() { CasOutcome::Unknown } else { CasOutcome::Stored(version) })
    }

    fn watch(&self, prefix: &str, observer: Observer) -> Result<()> {
        config_prefix(prefix)?;
        let mut state = self.state();
        let present = state.values.iter().filter(|(key, _)| key.starts_with(prefix));
        present.for_each(|(key, value)| observer(key, value));
        state.observers.push((prefix.to_owned(), observer));
        Ok(())
    }
}
