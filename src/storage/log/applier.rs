//! The thread that moves entries from the log to the environment, after the log has them.
//!
//! It works in few large transactions, each of which also records the last entry that it applied.
//! So the environment is the whole state of one entry, and never ahead of the log. While a large
//! object is cleared, it has later writes to other objects, too, and nobody takes a snapshot.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, MutexGuard};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::storage::error::{StorageError, io_error};
use crate::storage::lmdb::engine::Environment;
use crate::storage::log::applied::Applied;
use crate::storage::log::apply::sweeps::Sweeps;
use crate::storage::log::apply::{CLEARING_BYTES, SLICE_BYTES, Target};
use crate::storage::log::entry::Entry;
use crate::storage::log::segments;
use crate::storage::position::{End, NONCE_BYTES};

/// The options of the thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct ApplierOptions {
    /// The name of the log whose entries it applies.
    pub(super) nonce: [u8; NONCE_BYTES],
    /// Snapshots are called back when fewer bytes than these are left.
    pub(super) low: u64,
    /// Time to sleep before every transaction.
    pub(super) delay: Duration,
}

/// Applies entries until `close`.
#[derive(Debug)]
pub(super) struct Applier {
    applied: Arc<Applied>,
    thread: Option<JoinHandle<()>>,
}

impl Applier {
    /// Starts the thread.
    ///
    /// # Errors
    /// `Io` when the operating system can't start a thread.
    pub(super) fn start(
        env: Arc<Environment>,
        options: ApplierOptions,
        applied: Arc<Applied>,
    ) -> Result<Self, StorageError> {
        let name = "log-apply";
        let theirs = applied.clone();
        let thread = Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let work = AssertUnwindSafe(|| {
                    let (metrics, clearing) = (theirs.metrics(), CLEARING_BYTES);
                    let ApplierOptions { nonce, low, delay } = options;
                    let target = Target { env: &env, nonce, metrics, low, clearing, delay };
                    Run::new(target, &theirs).run();
                });
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

struct Run<'a> {
    target: Target<'a>,
    applied: &'a Applied,
    sweeps: Sweeps,
    /// The end of the last entry that was applied, and the bytes that still wait with `sweeps`.
    end: End,
    waiting: u64,
    /// Held while the environment has some writes and lacks earlier ones.
    between: Option<MutexGuard<'a, ()>>,
}

impl<'a> Run<'a> {
    fn new(target: Target<'a>, applied: &'a Applied) -> Self {
        let (sweeps, end) = (Sweeps::default(), End::default());
        Self { target, applied, sweeps, end, waiting: 0, between: None }
    }

    fn run(&mut self) {
        let mut taken = VecDeque::new();
        loop {
            if self.sweeps.is_empty() {
                if !self.applied.take(&mut taken) {
                    return;
                }
            } else if self.sweeps.kept() < self.applied.kept_max() && self.target.has_plenty() {
                self.applied.take_due(&mut taken);
            }
            let went = self.entries(&mut taken).and_then(|()| self.sweep());
            if let Err(failure) = went {
                // Before others see what it may have left half done.
                return self.applied.fail(failure);
            }
        }
    }

    fn entries(&mut self, taken: &mut VecDeque<(Entry, End)>) -> Result<(), Arc<StorageError>> {
        while !taken.is_empty() {
            let (count, bytes) = slice(taken);
            let entries = &taken.make_contiguous()[..count];
            self.end = entries.last().map(|(_, end)| *end).unwrap_or_default();
            self.between.get_or_insert_with(|| self.applied.between());
            let before = self.sweeps.waiting();
            self.target.apply_beside(entries, Some(&mut self.sweeps))?;
            taken.drain(..count);
            let mut done = bytes;
            if self.sweeps.is_empty() {
                self.recorded();
            } else {
                done = self.sweeps.count(bytes, before);
                self.waiting += bytes - done;
                self.applied.set_aside(self.sweeps.objects());
            }
            self.applied.advance(count as u64, done);
        }
        Ok(())
    }

    /// Goes on with a clearing.
    fn sweep(&mut self) -> Result<(), Arc<StorageError>> {
        if self.sweeps.is_empty() {
            return Ok(());
        }
        self.target.sweep(&mut self.sweeps)?;
        self.applied.set_aside(self.sweeps.objects());
        if self.sweeps.is_empty() {
            self.recorded();
            self.applied.advance(0, std::mem::take(&mut self.waiting));
        }
        Ok(())
    }

    /// The environment is the whole state of an entry again.
    fn recorded(&mut self) {
        // Those that are left are given up with the next, or when the log is closed.
        if let Err(error) = segments::give_up_before(self.target.env.path(), self.end.segment) {
            tracing::warn!(%error, "a part of the log that isn't needed any more is left");
        }
        self.between = None;
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
