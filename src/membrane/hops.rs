//! Calls that came from another host and go on to a further one.
//!
//! A host hands on what comes for a promise that it doesn't serve itself, at once and without an end:
//! promises that lead to each other pass a call round for ever, and a caller may lay a row of promises
//! through all hosts, as long as it likes, on which each call costs as much as the row is long. No host
//! sees more of it than its own step, but the number of steps travels with the call.
//!
//! **Invariant:** what the calls of one host take that only pass through is bounded, and no call goes on
//! for ever.

use std::cell::Cell;

use crate::error::{Result, failed, overloaded};

/// Most hosts that a call may come through. An object whose capability was handed from host to host is as
/// far away as there were hosts; only promises of promises are farther.
const HOPS_MAX: u8 = 64;

/// Most that the calls may weigh which pass through one host and have no answer. One weighs as much as
/// the hosts that it came through before the last, and the more these are, the less of the room it finds:
/// long rows of promises stop each other before they stop what comes from near. What comes straight from
/// the host where it began weighs nothing; how much that is the connections of its callers bound.
const WEIGHT_MAX: usize = 1 << 14;

thread_local! {
    /// Of all that pass through this host now.
    static WEIGHT: Cell<usize> = const { Cell::new(0) };
}

/// A call on its way through this host, until it is answered.
pub(super) struct Passing {
    hops: u8,
}

impl Passing {
    /// A call that came through so many hosts goes on.
    ///
    /// # Errors
    /// When it came through too many, or too many pass through this host.
    pub(super) fn begin(hops: u8) -> Result<Self> {
        if hops >= HOPS_MAX {
            return Err(failed(format!(
                "too-many-hops: the call came through {HOPS_MAX} hosts; its promise may lead back to itself"
            )));
        }
        let own = weight(hops);
        if own > 0 && WEIGHT.get() + own > WEIGHT_MAX / own {
            return Err(overloaded(
                "too many calls pass through a host to another one, and have no answer",
            ));
        }
        WEIGHT.set(WEIGHT.get() + own);
        Ok(Self { hops })
    }

    /// The hosts that it has come through, when it arrives at the next one.
    pub(super) fn hops(&self) -> u8 {
        self.hops + 1
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        WEIGHT.set(WEIGHT.get() - weight(self.hops));
    }
}

fn weight(hops: u8) -> usize {
    hops.saturating_sub(1).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_with(hops: u8) -> Vec<Passing> {
        (0..).map_while(|_| Passing::begin(hops).ok()).collect()
    }

    #[test]
    fn calls_from_near_find_room_when_those_from_far_do_not() {
        assert!(Passing::begin(HOPS_MAX).is_err(), "it would go on for ever");
        let far = all_with(HOPS_MAX - 1);
        let weight = usize::from(HOPS_MAX - 2);
        assert_eq!(far.len(), WEIGHT_MAX / weight / weight);
        let near = all_with(2);
        assert!(near.len() > WEIGHT_MAX / 2, "{}", near.len());
        assert!(Passing::begin(3).is_err(), "there is an end to it");
        let nearest: Vec<_> = (0..2 * WEIGHT_MAX).map_while(|_| Passing::begin(1).ok()).collect();
        assert_eq!(nearest.len(), 2 * WEIGHT_MAX, "these are none of a row of promises");
        drop((far, near));
        assert_eq!(all_with(2).len(), WEIGHT_MAX, "the answered ones weigh nothing");
    }
}
