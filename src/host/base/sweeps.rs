//! The sweeps of a vat: the targets whose dead grants are being removed, and the time by which
//! grants are over, which a [watched clock](super::watched_clock) shows.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::watched_clock::WatchedClock;
use crate::id::ObjectId;

/// The least time after a sweep of a target before another one for want of room.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(in crate::host) struct Sweeps {
    running: RefCell<HashSet<ObjectId>>,
    /// When the last sweeps ended.
    ended: RefCell<HashMap<ObjectId, Instant>>,
    clock: RefCell<WatchedClock>,
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
        self.clock.borrow_mut().shows(now_ms);
    }

    /// The least time that the clock has shown while it was watched, if that is long enough.
    pub(in crate::host) fn least_ms(&self) -> Option<u64> {
        self.clock.borrow().least_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
