//! A clock that is watched before something is destroyed by it.
//!
//! A clock that is ahead for a moment must not destroy what is good when it is right again. So the
//! time that counts is the least that the clock has shown for a while.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// The time that a clock is watched, unless what is judged by it lasts for a shorter time.
pub(in crate::host) const WATCHED: Duration = Duration::from_hours(1);

/// Of all times in this part of the watch one is remembered, the least.
const PARTS: u32 = 100;

pub(in crate::host) struct WatchedClock {
    watch: Duration,
    since: Option<Instant>,
    /// Times that the clock showed, none greater than those behind it; the last one that is older
    /// than the watch stays.
    shown: VecDeque<(Instant, u64)>,
}

impl Default for WatchedClock {
    fn default() -> Self {
        Self::new(WATCHED)
    }
}

impl WatchedClock {
    /// A clock that is watched for so long; one of no time is believed at once.
    pub(in crate::host) fn new(watch: Duration) -> Self {
        Self { watch, since: None, shown: VecDeque::new() }
    }

    /// The clock shows this now. It is looked at once a minute or more often.
    pub(in crate::host) fn shows(&mut self, now_ms: u64) {
        let now = Instant::now();
        self.since.get_or_insert(now);
        while self.shown.back().is_some_and(|(_, ms)| *ms > now_ms) {
            self.shown.pop_back();
        }
        let is_close = |(at, _): &(Instant, u64)| now.duration_since(*at) < self.watch / PARTS;
        if !self.shown.back().is_some_and(is_close) {
            self.shown.push_back((now, now_ms));
        }
        while self.shown.get(1).is_some_and(|(at, _)| now.duration_since(*at) > self.watch) {
            self.shown.pop_front();
        }
    }

    /// The least time that the clock has shown while it was watched, if that is long enough.
    pub(in crate::host) fn least_ms(&self) -> Option<u64> {
        let since = self.since?;
        let least = if self.watch.is_zero() { self.shown.back() } else { self.shown.front() };
        least.filter(|_| since.elapsed() >= self.watch).map(|(_, ms)| *ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_ahead_for_a_moment_is_not_believed() {
        let mut clock = WatchedClock::default();
        let minute = Duration::from_mins(1);
        let mut shows = 1_000;
        for _ in 0..60 {
            clock.shows(shows);
            assert_eq!(clock.least_ms(), None, "it was not watched for long enough");
            tokio::time::advance(minute).await;
            shows += 60_000;
        }
        clock.shows(u64::MAX);
        assert_eq!(clock.least_ms(), Some(1_000));
        for _ in 0..61 {
            tokio::time::advance(minute).await;
            shows += 60_000;
            clock.shows(shows);
        }
        assert!(clock.least_ms().is_some_and(|least| least < shows && least > 1_000));
        // It is also looked at for each call.
        for _ in 0..10_000 {
            clock.shows(shows);
            shows += 1;
        }
        assert!(clock.shown.len() <= PARTS as usize + 2, "it keeps an hour");
    }

    #[test]
    fn a_clock_that_is_not_watched_is_believed() {
        let mut clock = WatchedClock::new(Duration::ZERO);
        for shows in [5, 9, 7] {
            clock.shows(shows);
            assert_eq!(clock.least_ms(), Some(shows));
        }
    }
}
