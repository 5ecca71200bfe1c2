//! The time for which request ids are kept.

use std::cell::RefCell;
use std::time::Duration;

use super::watched_clock::{WATCHED, WatchedClock};
use crate::clock::Clock;

/// The time for which ids are kept, by a clock.
pub(crate) struct Retention {
    clock: Clock,
    millis: u64,
    /// The same clock, for what can be forgotten by it.
    watched: RefCell<WatchedClock>,
}

impl Retention {
    /// Ids that are kept for `time` by the clock, which is watched for an hour, or for `time` if
    /// that is shorter, before anything is forgotten by it.
    pub(crate) fn new(clock: Clock, time: Duration) -> Self {
        Self::watching(clock, time, time.min(WATCHED))
    }

    pub(in crate::host) fn watching(clock: Clock, time: Duration, watch: Duration) -> Self {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self { clock, millis, watched: RefCell::new(WatchedClock::new(watch)) }
    }

    /// Looks at the clock, so that it is watched also while no calls with ids come.
    pub(in crate::host) fn watch(&self) {
        self.watched.borrow_mut().shows(self.clock.now_ms());
    }

    pub(in crate::host) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    pub(in crate::host) fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// Tells whether a call that began then can be forgotten by now. A clock that was put back
    /// forgets later, and one that is ahead for a moment forgets nothing.
    pub(in crate::host) fn is_over(&self, began: u64) -> bool {
        self.watch();
        let least = self.watched.borrow().least_ms();
        least.is_some_and(|least| least >= began.saturating_add(self.millis))
    }

    /// Tells whether the call of that number can be forgotten by now. A call that began later than
    /// now was begun by a clock that was ahead. Its time counts from the moment at which that was
    /// noticed, for as long as its time lies ahead, because the clock may also be behind now.
    pub(in crate::host) fn is_call_over(&self, number: u64, began: u64, kept: KeptNumbers) -> bool {
        let was_noticed = number < kept.by_then.0 && self.is_ahead(began);
        self.is_over(began) || (was_noticed && self.is_over(kept.by_then.1))
    }

    pub(in crate::host) fn is_ahead(&self, time: u64) -> bool {
        time > self.clock.now_ms()
    }
}

/// Numbers of calls, from the oldest that is not passed by to the next one.
#[derive(Clone, Copy)]
pub(in crate::host) struct KeptNumbers {
    pub(in crate::host) first: u64,
    pub(in crate::host) next: u64,
    /// All calls before this number had begun by this time.
    pub(in crate::host) by_then: (u64, u64),
}
