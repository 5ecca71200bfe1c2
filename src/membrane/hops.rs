//! Calls that came from another host and go on to a further one.
//!
//! A host hands a call on a promise of another host's on at once, without looking where it ends.
//! Promises that lead to each other pass a call round and round, and a caller may lay a row of
//! promises through all hosts, as long as they like, on which each call costs as much as the row is
//! long. No host sees more of it than its own step, but the number of steps travels with the call.
//!
//! **Invariant:** calls that only pass through a host take a bounded part of it, and no call goes
//! round without an end.

use std::cell::Cell;

use crate::error::{Reason, Result, overloaded};

/// The most hosts that a call may come through. A capability that was handed from host to host
/// leads through each of them; only promises of promises make longer ways.
const HOPS_MAX: u8 = 64;

/// The room for calls that pass through one host and have no answer yet, as a sum of weights.
///
/// A call's weight is the number of hosts it came through, less one. The heavier it is, the less of
/// the room it may fill ([`room`]), so calls in long rows of promises are refused before calls that
/// came a short way. A call that comes straight from its first host weighs nothing: the limits of
/// its caller's connection bound these.
const WEIGHT_MAX: usize = 1 << 14;

thread_local! {
    /// The sum of the weights of all calls that pass through now.
    static WEIGHT: Cell<usize> = const { Cell::new(0) };
}

/// Holds a passing call's room until it is dropped, when the call is answered.
pub(super) struct Passing {
    /// The number of hosts that the call came through, without this one.
    hops: u8,
}

impl Passing {
    /// Takes the room for a call that came through `hops` hosts.
    ///
    /// # Errors
    /// When it came through too many hosts, or there is no room for it.
    pub(super) fn begin(hops: u8) -> Result<Self> {
        if hops >= HOPS_MAX {
            return Err(Reason::TooManyHops.error(format_args!(
                "the call came through {HOPS_MAX} hosts; its promise may lead back to itself"
            )));
        }
        let own = weight(hops);
        if own > 0 && WEIGHT.get() + own > room(own) {
            return Err(overloaded(
                "too many calls pass through a host to another one, and have no answer",
            ));
        }
        WEIGHT.set(WEIGHT.get() + own);
        Ok(Self { hops })
    }

    /// The number of hosts at the next one, with this one.
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

/// The sum of weights up to which a call of the weight `own`, at least 1, still finds room.
///
/// All of it for the lightest calls, half for a weight of 5, a sixteenth for the heaviest. An
/// honest client with eight rounds of promises of promises in flight gets to 800, at a weight of
/// 18.
fn room(own: usize) -> usize {
    4 * WEIGHT_MAX / (own + 3)
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
        assert_eq!(far.len(), room(weight) / weight);
        assert!(far.len() * weight < WEIGHT_MAX / 15, "most of the room is kept for others");
        let near = all_with(2);
        assert!(near.len() > WEIGHT_MAX / 10 * 9, "{}", near.len());
        assert!(Passing::begin(3).is_err(), "there is an end to it");
        let nearest: Vec<_> = (0..2 * WEIGHT_MAX).map_while(|_| Passing::begin(1).ok()).collect();
        assert_eq!(nearest.len(), 2 * WEIGHT_MAX, "these are none of a row of promises");
        drop((far, near));
        let honest: Vec<_> = all_with(19);
        assert!(honest.len() * 18 > 2_400, "three times what an honest client was seen to take");
        drop(honest);
        assert_eq!(all_with(2).len(), WEIGHT_MAX, "the answered ones weigh nothing");
    }
}
