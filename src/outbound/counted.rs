//! The count of a call to the outside, by its outcome.

use crate::error::{Reason, Result};
use crate::metrics::{Count, Metrics};

/// One call that is under way. It counts as given up if it ends without another outcome.
pub(super) struct Counted<'a> {
    metrics: &'a Metrics,
    outcome: &'a Count,
}

impl<'a> Counted<'a> {
    pub(super) fn new(metrics: &'a Metrics) -> Self {
        metrics.outbound_calls.add(1);
        Self { metrics, outcome: &metrics.outbound_given_up_total }
    }

    /// Nothing was sent to the server.
    pub(super) fn not_sent(&mut self) {
        self.outcome = &self.metrics.outbound_not_sent_total;
    }

    /// It ended so, after something may have been sent.
    pub(super) fn ended(&mut self, how: &Result<()>) {
        match how {
            Ok(()) => self.outcome = &self.metrics.outbound_answered_total,
            Err(error) if Reason::of(error) == Some(Reason::Unknown) => {
                self.outcome = &self.metrics.outbound_unknown_total;
            }
            // The object's side failed.
            Err(_) => {}
        }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.metrics.outbound_calls.subtract(1);
        self.outcome.add(1);
    }
}
