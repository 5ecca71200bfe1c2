//! The memory that all connections hold together, on all threads.
//!
//! Each connection may hold at most as much as is left. So a few that hold much leave as much again
//! for newcomers, and no number of them takes everything: `n` greedy ones end up with one part in
//! `n + 1` each.
//!
//! Memory is counted in steps, so that small calls touch no state shared between threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The bytes in one step. A connection that holds less isn't counted at all.
const STEP_BYTES: usize = 16 << 10;

/// Bytes that connections hold together. Clones share one count.
#[derive(Clone, Debug, Default)]
pub struct Budget(Arc<AtomicUsize>);

impl Budget {
    /// The bytes that all of them hold now, except for each connection's incomplete step.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// One connection's part, until it is dropped.
#[derive(Debug, Default)]
pub(super) struct BudgetPart {
    budget: Budget,
    counted: usize,
}

impl BudgetPart {
    pub(super) fn of(budget: Budget) -> Self {
        Self { budget, counted: 0 }
    }

    /// Notes that the connection holds this many bytes now. Returns whether that is allowed; only
    /// growth can be refused.
    pub(super) fn hold(&mut self, bytes: usize, max: usize) -> bool {
        let now = bytes - bytes % STEP_BYTES;
        let before = std::mem::replace(&mut self.counted, now);
        if now <= before {
            if now < before {
                self.budget.0.fetch_sub(before - now, Ordering::Relaxed);
            }
            return true;
        }
        let total = self.budget.0.fetch_add(now - before, Ordering::Relaxed) + (now - before);
        now <= max.saturating_sub(total)
    }
}

impl Drop for BudgetPart {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_ones_leave_as_much_as_each_of_them_has() {
        let (budget, max) = (Budget::default(), 64 * STEP_BYTES);
        let mut shares: Vec<_> = (0..7).map(|_| BudgetPart::of(budget.clone())).collect();
        let mut held = [0; 7];
        let mut grew = true;
        while std::mem::take(&mut grew) {
            for (share, held) in shares.iter_mut().zip(&mut held) {
                if share.hold(*held + STEP_BYTES, max) {
                    *held += STEP_BYTES;
                    grew = true;
                } else {
                    share.hold(*held, max);
                }
            }
        }
        assert_eq!(held, [8 * STEP_BYTES; 7], "one part in eight each");
        assert_eq!(budget.bytes(), 56 * STEP_BYTES);
        let mut last = BudgetPart::of(budget.clone());
        assert!(last.hold(4 * STEP_BYTES, max));
        drop(shares);
        assert_eq!(budget.bytes(), 4 * STEP_BYTES);
        drop(last);
        assert_eq!(budget.bytes(), 0);
    }

    #[test]
    fn small_change_is_not_counted_and_letting_go_is_always_right() {
        let budget = Budget::default();
        let mut share = BudgetPart::of(budget.clone());
        assert!(share.hold(STEP_BYTES - 1, 0));
        assert_eq!(budget.bytes(), 0);
        assert!(!share.hold(3 * STEP_BYTES, 0));
        assert!(share.hold(2 * STEP_BYTES, 0), "it held more before");
        assert_eq!(budget.bytes(), 2 * STEP_BYTES);
    }
}
