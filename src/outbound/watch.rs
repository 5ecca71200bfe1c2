//! The time for which nothing may move.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The watch over the time since the last bytes.
pub(super) struct ProgressWatch {
    last: Cell<Instant>,
    limit: Duration,
    /// The object is slow, and not the other side.
    pub(super) waits: Cell<bool>,
}

impl ProgressWatch {
    pub(super) fn new(limit: Duration) -> Self {
        Self { last: Cell::new(Instant::now()), limit, waits: Cell::new(false) }
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// Something moved.
    pub(super) fn moved(&self) {
        self.last.set(Instant::now());
    }

    /// Resolves when nothing moved for the whole time. Each time when half of it is over, `remind`
    /// is called.
    pub(super) async fn still(&self, remind: impl Fn()) {
        let mut reminded = None;
        loop {
            if self.waits.get() {
                self.moved();
            }
            let last = self.last.get();
            let quiet = last.elapsed();
            if quiet >= self.limit {
                return;
            }
            if quiet < self.limit / 2 {
                sleep_until(last + self.limit / 2).await;
            } else {
                if reminded.replace(last) != Some(last) {
                    remind();
                }
                sleep_until(last + self.limit).await;
            }
        }
    }
}
