//! Standard error, which may be a pipe that nothing reads or a disk that is full: writing a line to
//! it never blocks, and every lost line is counted.
//!
//! Threads put lines into a bounded queue, and one thread writes them. A full queue drops new
//! lines.
//!
//! **Invariant:** once that thread has started, nothing else of a server writes to standard error.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use crate::metrics::LOG_LINES_DROPPED;

/// Lines that wait to be written.
const LINES_MAX: usize = 4096;
/// The bytes of all waiting lines together.
const BYTES_MAX: usize = 8 << 20;
/// The time for which the process waits for its last lines to be written before it ends.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

static QUEUE: OnceLock<Queue> = OnceLock::new();

struct Queue {
    lines: SyncSender<Vec<u8>>,
    bytes: AtomicUsize,
    taken: AtomicU64,
    /// The number of lines that were taken from the queue and are finished.
    done: Mutex<u64>,
    progress: Condvar,
    /// A flush timed out, and nothing has been written since.
    is_stuck: AtomicBool,
}

/// Starts the thread, once.
///
/// # Errors
/// When the operating system gives no thread or descriptor.
pub(crate) fn start() -> io::Result<()> {
    if QUEUE.get().is_some() {
        return Ok(());
    }
    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let (sender, lines) = sync_channel(LINES_MAX);
    let queue = Queue {
        lines: sender,
        bytes: AtomicUsize::default(),
        taken: AtomicU64::default(),
        done: Mutex::default(),
        progress: Condvar::new(),
        is_stuck: AtomicBool::default(),
    };
    let queue = QUEUE.get_or_init(|| queue);
    let write = move || write_all(queue, stderr, &lines);
    std::thread::Builder::new().name("capstead-stderr".into()).spawn(write).map(drop)
}

/// Queues a line, which must end with a line feed; never waits.
pub(crate) fn put(line: Vec<u8>) {
    let Some(queue) = QUEUE.get() else {
        // No server runs yet that could be held up; and an error has nowhere else to go.
        let _ = io::stderr().lock().write_all(&line);
        return;
    };
    let length = line.len();
    let before = queue.bytes.fetch_add(length, Ordering::Relaxed);
    if before + length <= BYTES_MAX && queue.lines.try_send(line).is_ok() {
        queue.taken.fetch_add(1, Ordering::Relaxed);
    } else {
        queue.bytes.fetch_sub(length, Ordering::Relaxed);
        LOG_LINES_DROPPED.add(1);
    }
}

/// Waits a moment for the lines so far to be written; called before the process ends.
pub(crate) fn flush() {
    let Some(queue) = QUEUE.get() else { return };
    let taken = queue.taken.load(Ordering::Relaxed);
    // One flush that timed out has waited for all of them.
    let limit = if queue.is_stuck.load(Ordering::Relaxed) { Duration::ZERO } else { FLUSH_LIMIT };
    let waited = queue.progress.wait_timeout_while(queue.done(), limit, |done| *done < taken);
    let (done, _) = waited.unwrap_or_else(PoisonError::into_inner);
    if *done < taken {
        queue.is_stuck.store(true, Ordering::Relaxed);
    }
}

/// A writer of log lines; each line is written as a whole.
#[derive(Debug)]
pub(crate) struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        put(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Queue {
    /// No code panics under this lock.
    fn done(&self) -> MutexGuard<'_, u64> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_all(queue: &Queue, stderr: File, lines: &Receiver<Vec<u8>>) {
    let mut out = Out { file: stderr, is_cut: false };
    let mut told = 0;
    for line in lines {
        let written = out.write_line(&line);
        queue.bytes.fetch_sub(line.len(), Ordering::Relaxed);
        *queue.done() += 1;
        queue.progress.notify_all();
        if written.is_err() {
            LOG_LINES_DROPPED.add(1);
            continue;
        }
        queue.is_stuck.store(false, Ordering::Relaxed);
        let total = LOG_LINES_DROPPED.get();
        if total > told {
            let dropped = total - told;
            told = total;
            tracing::warn!(dropped, total, "log lines were dropped: standard error took none");
        }
    }
}

struct Out {
    file: File,
    /// The last line was written only in part.
    is_cut: bool,
}

impl Out {
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_cut {
            self.write(b"\n")?;
            self.is_cut = false;
        }
        self.write(line)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => {
                    rest = &rest[length..];
                    self.is_cut = !rest.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Another process that shares the pipe may have made it non-blocking; this thread
                // may wait.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], None)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // On a full disk, the next line began in the middle of a cut one.
    #[test]
    fn a_line_that_was_cut_is_ended_before_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut out = Out { file: File::create(&path).unwrap(), is_cut: false };
        out.write(b"half of a li").unwrap();
        out.is_cut = true;
        out.write_line(b"whole\n").unwrap();
        out.write_line(b"next\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "half of a li\nwhole\nnext\n");
    }
}
