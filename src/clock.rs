//! The only place that asks what time it is, so that tests can say what time it is.

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

    /// A clock that stands until the test moves it.
    #[cfg(test)]
    pub(crate) fn test(now: Rc<Cell<u64>>) -> Self {
        Self(Some(now))
    }

    /// Milliseconds since 1970; zero when the system's clock stands before that.
    pub(crate) fn now_ms(&self) -> u64 {
        match &self.0 {
            Some(now) => now.get(),
            None => system_now_ms(),
        }
    }
}

/// A moment to measure how long something took; never to decide what is stored or who may.
#[expect(clippy::disallowed_methods, reason = "this is the module that the others must ask")]
pub(crate) fn monotonic() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "this is the module that the others must ask")]
fn system_now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
