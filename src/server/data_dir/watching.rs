//! The files of a served directory that no other process may change, except those of the hosts,
//! which watch their own: the lock, the format, the supervisor's data, and the keys.
//!
//! A server that lost one of them goes on by what it has in memory, and the next start is refused.
//! So the operator hears of it while the rest is still whole.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{FORMAT_FILE, KEYS, LOCK_FILE, SUPERVISOR, ServerError, failed};
use crate::limits::FILES_PERIOD;
use crate::storage::{StorageError, Watched};

/// The watch over a directory; it watches nothing before it begins.
#[derive(Debug, Default)]
pub(super) struct Watch(RefCell<Option<Arc<Watched>>>);

impl Watch {
    /// Watches the files that are there now.
    ///
    /// # Errors
    /// When one can't be inspected.
    pub(super) fn begin(&self, root: &Path) -> Result<(), ServerError> {
        let names = [LOCK_FILE, FORMAT_FILE].map(|name| root.join(name));
        let folders = [SUPERVISOR, KEYS].map(|name| files(&root.join(name)));
        let files = folders.into_iter().collect::<io::Result<Vec<_>>>();
        let files = files.map_err(failed(root, "look into the data directory"))?;
        let watched = Watched::new(names.into_iter().chain(files.into_iter().flatten()));
        let watched = watched.map_err(|error| ServerError::Storage(error.to_string()))?;
        self.0.replace(Some(watched));
        Ok(())
    }

    /// Watches those that are there after our own change, if it had begun.
    pub(super) fn renew(&self, root: &Path) -> Result<(), ServerError> {
        if self.0.borrow().is_some() { self.begin(root) } else { Ok(()) }
    }

    /// Resolves when another process has changed one of them.
    pub(super) async fn changed(&self) -> Arc<StorageError> {
        loop {
            tokio::time::sleep(FILES_PERIOD).await;
            let files = self.0.borrow().clone();
            if let Some(Err(error)) = files.map(|files| files.check()) {
                return Arc::new(error);
            }
        }
    }
}

fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}
