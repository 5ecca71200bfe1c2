//! The time for which a thread actually ran: on a busy machine a thread that is ready may have to
//! wait for a processor, and that is no fault of its work.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// The operating system's record of one thread. Without `/proc` there is no record, and all time
/// counts.
#[derive(Debug)]
pub(super) struct Thread {
    state: File,
    schedule: File,
}

/// The state of a thread at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ThreadState {
    /// It runs, or waits only for a processor.
    is_runnable: bool,
    /// The time for which it has run since its beginning.
    ran: Duration,
}

impl Thread {
    /// The calling thread.
    pub(super) fn present() -> Option<Self> {
        let proc = Path::new("/proc");
        let own = proc.join(std::fs::read_link("/proc/thread-self").ok()?);
        let open = |name| File::open(own.join(name)).ok();
        Some(Self { state: open("stat")?, schedule: open("schedstat")? })
    }

    pub(super) fn look(&self) -> Option<ThreadState> {
        let mut buffer = [0; 512];
        let mut read = |file: &File| {
            let length = file.read_at(&mut buffer, 0).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        let (state, schedule) = (read(&self.state)?, read(&self.schedule)?);
        // The name of the thread is in parentheses, and may contain any characters.
        let (_, fields) = state.rsplit_once(") ")?;
        let ran = schedule.split_whitespace().next()?.parse().ok()?;
        // A system that doesn't measure this always reports 0.
        if ran == 0 {
            return None;
        }
        Some(ThreadState { is_runnable: fields.starts_with('R'), ran: Duration::from_nanos(ran) })
    }
}

/// The part of the time between two checks that counts: all of it for a thread that waits for
/// something other than a processor.
pub(super) fn counted(
    passed: Duration,
    before: Option<ThreadState>,
    now: Option<ThreadState>,
) -> Duration {
    match (before, now) {
        (Some(before), Some(now)) if before.is_runnable && now.is_runnable => {
            passed.min(now.ran.saturating_sub(before.ran))
        }
        _ => passed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::monotonic;
    use std::sync::mpsc;

    const PASSED: Duration = Duration::from_millis(20);

    fn seen(is_runnable: bool, ran_ms: u64) -> ThreadState {
        ThreadState { is_runnable, ran: Duration::from_millis(ran_ms) }
    }

    #[test]
    fn waiting_for_a_processor_does_not_count() {
        for (before, now, counts) in [
            (seen(true, 100), seen(true, 100), 0),
            (seen(true, 100), seen(true, 107), 7),
            (seen(true, 100), seen(true, 150), 20),
            (seen(false, 100), seen(false, 100), 20),
            (seen(true, 100), seen(false, 100), 20),
            (seen(false, 100), seen(true, 100), 20),
        ] {
            let counts = Duration::from_millis(counts);
            assert_eq!(counted(PASSED, Some(before), Some(now)), counts, "{before:?}, {now:?}");
        }
        assert_eq!(counted(PASSED, None, None), PASSED, "where nothing is known");
    }

    #[test]
    fn what_a_thread_does_is_seen_from_another() {
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            tell.send(Thread::present().unwrap()).unwrap();
            // It ends when the sender is gone.
            let _ = stopped.recv();
        });
        let thread = told.recv().unwrap();
        let began = monotonic();
        while thread.look().unwrap().is_runnable {
            assert!(began.elapsed() < Duration::from_secs(10), "it waits");
        }
        drop(stop);
        other.join().unwrap();
        assert_eq!(thread.look(), None, "it is gone");

        let own = Thread::present().unwrap();
        let before = own.look().unwrap();
        let began = monotonic();
        let ran = loop {
            let now = own.look().unwrap();
            assert!(now.is_runnable && began.elapsed() < Duration::from_secs(10));
            if now.ran > before.ran {
                break now.ran.saturating_sub(before.ran);
            }
        };
        assert!(ran <= began.elapsed() + PASSED, "{ran:?}");
    }
}
