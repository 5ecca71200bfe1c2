//! The sweeps of a vat: the targets whose dead grants are being removed, and the time by which
//! grants are over.
//!
//! A clock that is ahead for a moment must not destroy what is good when it is right again. So when
//! grants have to go soon after their time, the time that counts is the least that the clock has
//! shown for an hour.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::id::ObjectId;

/// The time that the clock is watched before grants go that are over by it.
pub(in crate::host) const WATCHED: Duration = Duration::from_hours(1);

/// The least time after a sweep of a target before another one for want of room.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(in crate::host) struct Sweeps {
    running: RefCell<HashSet<ObjectId>>,
    /// When the last sweeps ended.
    ended: RefCell<HashMap<ObjectId, Instant>>,
    /// Times that the clock showed, each less than those behind it; the last one that is older than
    /// [`WATCHED`] stays.
    shown: RefCell<VecDeque<(Instant, u64)>>,
    watched_since: RefCell<Option<Instant>>,
}

impl Sweeps {
    /// A sweep of the target begins. False if one is under way.
    pub(in crate::host) fn begin(&self, target: ObjectId) -> bool {
        self.running.borrow_mut().insert(target)
    }

    /// As [`begin`](Self::begin), for want of room. Holders who ask for too much can't have it done
    /// again and again.
    pub(in crate::host) fn begin_for_room(&self, target: ObjectId) -> bool {
        let is_soon = self.ended.borrow().get(&target).is_some_and(|at| at.elapsed() < PAUSE);
        !is_soon && self.begin(target)
    }

    pub(in crate::host) fn end(&self, target: ObjectId) {
        self.running.borrow_mut().remove(&target);
        let mut ended = self.ended.borrow_mut();
        ended.retain(|_, at| at.elapsed() < PAUSE);
        ended.insert(target, Instant::now());
    }

    /// The clock shows this now. It is looked at once a minute or more often.
    pub(in crate::host) fn clock_shows(&self, now_ms: u64) {
        let (now, mut shown) = (Instant::now(), self.shown.borrow_mut());
        self.watched_since.borrow_mut().get_or_insert(now);
        while shown.back().is_some_and(|(_, ms)| *ms >= now_ms) {
            shown.pop_back();
        }
        shown.push_back((now, now_ms));
        while shown.get(1).is_some_and(|(at, _)| now.duration_since(*at) > WATCHED) {
            shown.pop_front();
        }
    }

    /// The least time that the clock has shown while it was watched, if that is long enough.
    pub(in crate::host) fn least_ms(&self) -> Option<u64> {
        let since = (*self.watched_since.borrow())?;
        let shown = self.shown.borrow();
        shown.front().filter(|_| since.elapsed() >= WATCHED).map(|(_, ms)| *ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_ahead_for_a_moment_is_not_believed() {
        let sweeps = Sweeps::default();
        let minute = Duration::from_mins(1);
        let mut shows = 1_000;
        for _ in 0..60 {
            sweeps.clock_shows(shows);
            assert_eq!(sweeps.least_ms(), None, "it was not watched for long enough");
            tokio::time::advance(minute).await;
            shows += 60_000;
        }
        sweeps.clock_shows(u64::MAX);
        assert_eq!(sweeps.least_ms(), Some(1_000));
        for _ in 0..61 {
            tokio::time::advance(minute).await;
            shows += 60_000;
            sweeps.clock_shows(shows);
        }
        assert!(sweeps.least_ms().is_some_and(|least| least < shows && least > 1_000));
        assert!(sweeps.shown.borrow().len() < 63, "it keeps an hour");
    }

    #[tokio::test(start_paused = true)]
    async fn sweeps_for_room_have_a_pause() {
        let (sweeps, target) = (Sweeps::default(), ObjectId::from_bytes([7; 16]));
        assert!(sweeps.begin_for_room(target) && !sweeps.begin_for_room(target));
        sweeps.end(target);
        assert!(!sweeps.begin_for_room(target) && sweeps.begin(target));
        sweeps.end(target);
        tokio::time::advance(PAUSE).await;
        assert!(sweeps.begin_for_room(target));
        assert!(!sweeps.begin(target));
    }
}
