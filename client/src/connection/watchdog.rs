//! A timer for the states of a connection that must not last.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;

use tokio::time::Sleep;

use crate::guard::Watched;

/// Checks that a watched value changes in time. It has a timer only while it watches one.
#[derive(Default)]
pub(super) struct Watchdog {
    watched: Option<(Watched, Pin<Box<Sleep>>)>,
}

impl Watchdog {
    /// Returns a value that didn't change in its time.
    pub(super) fn poll(&mut self, now: Option<Watched>, cx: &mut Context) -> Option<Watched> {
        let Some(now) = now else {
            self.watched = None;
            return None;
        };
        let begin = || tokio::time::sleep(now.time);
        let (before, sleep) = self.watched.get_or_insert_with(|| (now, Box::pin(begin())));
        if *before != now {
            *before = now;
            sleep.set(begin());
        }
        sleep.as_mut().poll(cx).is_ready().then_some(now)
    }
}
