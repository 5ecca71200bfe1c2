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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{failed, overloaded};

    #[test]
    fn a_call_counts_once_by_its_outcome_and_while_it_is_under_way() {
        let metrics = Metrics::default();
        let ends_with = |end: &dyn Fn(&mut Counted<'_>)| {
            let mut counted = Counted::new(&metrics);
            assert_eq!(metrics.outbound_calls.get(), 1);
            end(&mut counted);
        };
        ends_with(&|counted| counted.ended(&Ok(())));
        ends_with(&|counted| counted.not_sent());
        ends_with(&|counted| {
            counted.not_sent();
            counted.ended(&Err(overloaded("nothing was sent")));
        });
        ends_with(&|counted| counted.ended(&Err(Reason::Unknown.error("it broke off"))));
        ends_with(&|counted| counted.ended(&Err(failed("the object took no more"))));
        ends_with(&|_| {});
        let counts = [
            &metrics.outbound_calls,
            &metrics.outbound_answered_total,
            &metrics.outbound_not_sent_total,
            &metrics.outbound_unknown_total,
            &metrics.outbound_given_up_total,
        ];
        assert_eq!(counts.map(Count::get), [0, 1, 2, 1, 2]);
    }
}
