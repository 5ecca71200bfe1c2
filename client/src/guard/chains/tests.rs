//! Chains as honest and hostile peers make them.

use super::*;

fn reason(result: Result<(), Refusal>) -> String {
    let Err(Refusal::Over(_, reason)) = result else { panic!("it is refused") };
    reason
}

/// Resolves each number to the next in the list.
fn chain(chains: &mut Chains, numbers: impl IntoIterator<Item = u32>) -> Result<(), Refusal> {
    let mut numbers = numbers.into_iter();
    let mut from = numbers.next().unwrap();
    for to in numbers {
        chains.resolve(from, to, &Limits::default())?;
        from = to;
    }
    Ok(())
}

#[test]
fn cycles_are_refused() {
    for cycle in [&[5, 5][..], &[5, 6, 5], &[5, 6, 7, 5], &[9, 5, 6, 7, 5]] {
        let refused = reason(chain(&mut Chains::default(), cycle.iter().copied()));
        assert_eq!(refused, "a promise was resolved to itself");
    }
}

#[test]
fn a_cycle_is_seen_also_when_a_promise_within_was_released() {
    let mut chains = Chains::default();
    chain(&mut chains, [5, 6, 7]).unwrap();
    chains.release(6);
    assert_eq!(reason(chain(&mut chains, [7, 5])), "a promise was resolved to itself");
}

#[test]
fn chains_are_as_long_as_the_limit_whichever_end_grows() {
    let too_long = "a promise was resolved to too many promises in a row";
    chain(&mut Chains::default(), 0..=16).unwrap();
    assert_eq!(reason(chain(&mut Chains::default(), 0..=17)), too_long);
    let mut chains = Chains::default();
    for from in (1..17).rev() {
        chain(&mut chains, [from, from + 1]).unwrap();
    }
    assert_eq!(reason(chain(&mut chains, [0, 1])), too_long);
    // Two halves.
    let mut chains = Chains::default();
    chain(&mut chains, 0..=10).unwrap();
    chain(&mut chains, 20..=30).unwrap();
    assert_eq!(reason(chain(&mut chains, [10, 20])), too_long);
}

/// The promises are still there when their numbers are free again.
#[test]
fn numbers_that_are_used_again_make_no_longer_chains() {
    let mut chains = Chains::default();
    for step in 0..16 {
        chain(&mut chains, [step % 2, (step + 1) % 2]).unwrap();
        chains.release(step % 2);
    }
    let refused = reason(chain(&mut chains, [0, 1]));
    assert_eq!(refused, "a promise was resolved to too many promises in a row");
}

#[test]
fn nothing_is_kept_of_what_was_released() {
    let mut chains = Chains::default();
    for start in 0..100 {
        let start = start * 10;
        chain(&mut chains, start..start + 5).unwrap();
        // The beginning was released before its resolution came.
        for id in start + 1..start + 5 {
            chains.release(id);
        }
    }
    assert_eq!(chains.len(), 0);
}

#[test]
fn many_chained_promises_are_refused() {
    let mut chains = Chains::default();
    for from in 1..8192 {
        chain(&mut chains, [from, 0]).unwrap();
    }
    let refused = reason(chain(&mut chains, [8192, 0]));
    assert_eq!(refused, "too many promises were resolved to promises");
    chains.release(0);
    assert_eq!(chains.len(), 0);
}
