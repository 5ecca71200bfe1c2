//! The thread that moves entries from the log to the environment, after the log has them.
//!
//! It works in few large transactions, each of which also records the last entry that it applied.
//! So the environment is always the whole state of one entry, and never ahead of the log.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crate::storage::error::{Result, StorageError, io_error};
use crate::storage::lmdb::engine::Environment;
use crate::storage::log::applied::Applied;
use crate::storage::log::apply::{SLICE_BYTES, apply};
use crate::storage::log::entry::Entry;
use crate::storage::log::segments;
use crate::storage::position::End;

/// Applies entries until `close`.
#[derive(Debug)]
pub(super) struct Applier {
    applied: Arc<Applied>,
    thread: Option<JoinHandle<()>>,
}

impl Applier {
    /// Starts the thread for the entries of the log `nonce`.
    ///
    /// # Errors
    /// `Io` when the operating system can't start a thread.
    pub(super) fn start(
        env: Arc<Environment>,
        nonce: [u8; 16],
        applied: Arc<Applied>,
    ) -> Result<Self> {
        let name = "log-apply";
        let theirs = applied.clone();
        let thread = Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let work = AssertUnwindSafe(|| run(&env, nonce, &theirs));
                if catch_unwind(work).is_err() {
                    let text = "the thread that applies the log".to_owned();
                    theirs.fail(Arc::new(StorageError::Panicked(text)));
                }
            })
            .map_err(io_error("start the thread", Path::new(name)))?;
        Ok(Self { applied, thread: Some(thread) })
    }

    /// Applies all that was pushed, and ends the thread; returns false if that failed.
    pub(super) fn close(&mut self) -> bool {
        self.applied.close();
        if let Some(thread) = self.thread.take() {
            // Its panics were latched.
            let _ = thread.join();
        }
        self.applied.failure().is_none()
    }
}

impl Drop for Applier {
    fn drop(&mut self) {
        self.close();
    }
}

fn run(env: &Environment, nonce: [u8; 16], applied: &Applied) {
    let mut taken = VecDeque::new();
    while applied.take(&mut taken) {
        while !taken.is_empty() {
            let (count, bytes) = slice(&taken);
            let entries = &taken.make_contiguous()[..count];
            let end = entries.last().map(|(_, end)| *end).unwrap_or_default();
            let between = applied.between();
            if let Err(failure) = apply(env, nonce, entries, applied.metrics()) {
                // Before others see what it may have left half done.
                return applied.fail(failure);
            }
            drop(between);
            taken.drain(..count);
            // Those that are left are given up with the next, or when the log is closed.
            if let Err(error) = segments::give_up_before(env.path(), end.segment) {
                tracing::warn!(%error, "a part of the log that isn't needed any more is left");
            }
            applied.advance(count as u64, bytes);
        }
    }
}

/// The entries at the front that go into one transaction, and their bytes.
fn slice(entries: &VecDeque<(Entry, End)>) -> (usize, u64) {
    let (mut count, mut bytes) = (0, 0);
    for (entry, _) in entries {
        let length = entry.disk_bytes();
        if count > 0 && bytes + length > SLICE_BYTES {
            break;
        }
        (count, bytes) = (count + 1, bytes + length);
    }
    (count, bytes)
}
