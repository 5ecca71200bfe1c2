//! The only code that asks for the time, so that tests can set it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Wall-clock time, in milliseconds since 1970 (Unix time). Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Clock(Option<Rc<Cell<u64>>>);

impl Clock {
    /// The clock of the operating system.
    pub(crate) fn real() -> Self {
        Self(None)
    }

    /// A clock that stands still until the test moves it.
    #[cfg(test)]
    pub(crate) fn test(now: Rc<Cell<u64>>) -> Self {
        Self(Some(now))
    }

    /// Milliseconds since 1970; zero when the system's clock is before that.
    pub(crate) fn now_ms(&self) -> u64 {
        match &self.0 {
            Some(now) => now.get(),
            None => system_now_ms(),
        }
    }
}

/// A moment for measuring durations. Never use it to decide what is stored or allowed.
#[expect(clippy::disallowed_methods, reason = "this is the module that the others must ask")]
pub(crate) fn monotonic() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "this is the module that the others must ask")]
fn system_now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
