//! Tests of the two judges of the crash lab: good histories pass, bad ones fail, and the judges
//! agree.

#[path = "../crash_lab/history.rs"]
mod history;
#[path = "../crash_lab/linearizable.rs"]
mod linearizable;

use self::history::{Call, Operation, Outcome};
use self::linearizable::{SEARCH_MAX, check, search};
use crate::support::random::Random;

/// An increment by 1 that returned.
fn ok(invoked: u64, returned: u64, value: i64) -> Operation {
    increment(1, invoked, Outcome::Ok { value, returned })
}

fn increment(by: i64, invoked: u64, outcome: Outcome) -> Operation {
    Operation { client: 0, call: Call::Increment(by), invoked, outcome }
}

fn read(invoked: u64, returned: u64, value: i64) -> Operation {
    let outcome = Outcome::Ok { value, returned };
    Operation { client: 0, call: Call::Read, invoked, outcome }
}

fn unknown(by: i64, invoked: u64) -> Operation {
    increment(by, invoked, Outcome::Unknown)
}

fn both(history: &[Operation]) -> bool {
    let (slow, fast) = (search(history), check(history));
    assert_eq!(slow.is_ok(), fast.is_ok(), "{slow:?}, {fast:?}: {history:#?}");
    fast.is_ok()
}

#[test]
fn what_can_be_explained_passes() {
    let good: &[&[Operation]] = &[
        &[],
        &[ok(0, 1, 1), ok(2, 3, 2), read(4, 5, 2)],
        // At the same time, in either order.
        &[ok(0, 9, 2), ok(0, 9, 1), read(0, 9, 0), read(0, 9, 1)],
        // Calls that touch may be in either order too.
        &[ok(0, 5, 2), ok(5, 9, 1)],
        // An unknown call that happened, did not happen, or happened late.
        &[unknown(1, 0), read(1, 2, 1)],
        &[unknown(1, 0), read(1, 2, 0)],
        &[unknown(1, 0), read(1, 2, 0), ok(3, 4, 1), read(5, 6, 2)],
        &[unknown(2, 0), unknown(1, 0), unknown(3, 0), read(1, 2, 3), read(3, 4, 6)],
        // A large call must not be used to explain what the small ones can explain.
        &[unknown(2, 0), unknown(1, 0), unknown(1, 0), read(1, 2, 2), ok(3, 4, 3), read(5, 6, 5)],
        &[increment(7, 0, Outcome::Failed), read(1, 2, 0)],
    ];
    for history in good {
        assert!(both(history), "{history:#?}");
    }
}

#[test]
fn what_can_not_be_explained_is_refused() {
    let bad: &[(&str, &[Operation])] = &[
        ("a lost acknowledgement", &[ok(0, 1, 1), read(2, 3, 0)]),
        ("a lost acknowledgement before another", &[ok(0, 1, 1), ok(2, 3, 1)]),
        ("a stale read", &[ok(0, 1, 1), ok(2, 3, 2), read(4, 5, 1)]),
        ("a read of what comes later", &[read(0, 1, 1), ok(2, 3, 1)]),
        ("reads that go back", &[ok(0, 9, 1), read(1, 2, 1), read(3, 4, 0)]),
        ("a duplicate", &[ok(0, 1, 1), read(2, 3, 2)]),
        ("a duplicate between two", &[ok(0, 1, 1), ok(2, 3, 3)]),
        ("a duplicate of an unknown one", &[unknown(1, 0), read(1, 2, 2)]),
        ("an order against real time", &[ok(0, 1, 2), ok(2, 3, 1)]),
        ("one value twice", &[ok(0, 9, 1), ok(0, 9, 1)]),
        ("an unknown one before it was invoked", &[read(0, 1, 1), unknown(1, 2)]),
        ("unknown ones of another size", &[unknown(2, 0), unknown(2, 0), read(1, 2, 3)]),
        (
            "half an increment",
            &[increment(2, 0, Outcome::Ok { value: 2, returned: 9 }), read(1, 2, 1)],
        ),
        ("a failed one that happened", &[increment(1, 0, Outcome::Failed), read(1, 2, 1)]),
        ("less than nothing", &[read(0, 1, -1)]),
        (
            "one gap filled with what an earlier one took",
            &[unknown(1, 0), read(1, 2, 1), ok(3, 4, 2), read(5, 6, 3)],
        ),
    ];
    for (what, history) in bad {
        assert!(!both(history), "{what}: {history:#?}");
    }
}

/// A history as clients could see it, of calls that really happened one after the other, at 100,
/// 200 and so on.
fn truth(random: &mut Random, length: u64, width: u64) -> Vec<Operation> {
    let (mut history, mut value) = (Vec::new(), 0);
    for number in 1..=length {
        let at = number * 100;
        let (invoked, returned) = (at - random.below(width.min(at)), at + random.below(width));
        let by = 1 + i64::try_from(random.below(3)).expect("it is small");
        let call = if random.below(4) == 0 { Call::Read } else { Call::Increment(by) };
        let happened = random.below(8) > 0;
        if let (Call::Increment(by), true) = (call, happened) {
            value += by;
        }
        let outcome = match (happened, random.below(6)) {
            (true, 1..) => Outcome::Ok { value, returned },
            (false, 0..3) => Outcome::Failed,
            _ => Outcome::Unknown,
        };
        history.push(Operation { client: 0, call, invoked, outcome });
    }
    history
}

/// Changes one call so that the history is no longer true.
fn corrupt(random: &mut Random, history: &mut Vec<Operation>) {
    let at = random.below(history.len() as u64) as usize;
    let by = 1 + i64::try_from(random.below(3)).expect("it is small");
    let operation = &mut history[at];
    match (random.below(4), &mut operation.outcome) {
        (0, Outcome::Ok { value, .. }) => *value += by,
        (1, Outcome::Ok { value, .. }) => *value -= by,
        (2, outcome) => *outcome = Outcome::Failed,
        (_, Outcome::Ok { .. }) => operation.invoked = operation.invoked.saturating_sub(500),
        _ => drop(history.remove(at)),
    }
}

#[test]
fn true_histories_pass_and_the_judges_agree_on_corrupted_ones() {
    let mut random = Random::from_printed_seed();
    let mut refused = 0;
    for _ in 0..4_000 {
        let (length, width) = (1 + random.below(24), 1 + random.below(700));
        let mut history = truth(&mut random, length, width);
        assert!(both(&history), "{history:#?}");
        corrupt(&mut random, &mut history);
        refused += usize::from(!both(&history));
    }
    assert!(refused > 1_000, "only {refused} of 4,000 corrupted histories were refused");
}

#[test]
fn every_wrong_value_in_a_history_without_unknown_calls_is_refused() {
    let mut random = Random::from_printed_seed();
    for _ in 0..200 {
        let mut history = truth(&mut random, 30, 50);
        history.retain(|operation| operation.outcome != Outcome::Unknown);
        let mut value = 0;
        for operation in &mut history {
            if let Outcome::Ok { value: seen, .. } = &mut operation.outcome {
                value += match operation.call {
                    Call::Increment(by) => by,
                    Call::Read => 0,
                };
                *seen = value;
            }
        }
        assert!(both(&history), "{history:#?}");
        for at in 0..history.len() {
            let mut wrong = history.clone();
            let Outcome::Ok { value, .. } = &mut wrong[at].outcome else { continue };
            *value += 1;
            assert!(!both(&wrong), "{wrong:#?}");
        }
    }
}

#[test]
fn a_million_calls_are_judged_at_once() {
    let mut random = Random::from_printed_seed();
    let mut history = truth(&mut random, 1_000_000, 2_000);
    check(&history).unwrap();
    let last = history.iter_mut().rev().find_map(|operation| match &mut operation.outcome {
        Outcome::Ok { value, .. } => Some(value),
        _ => None,
    });
    *last.unwrap() -= 1_000;
    check(&history).unwrap_err();
    assert!(history.len() > SEARCH_MAX);
}

#[test]
fn a_record_is_one_line_of_json() {
    let line = ok(1, 2, 3).json("x");
    let expected = serde_json::json!({
        "object": "x", "client": 0, "call": "increment", "by": 1, "invoked": 1, "outcome": "ok",
        "value": 3, "returned": 2,
    });
    assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), expected);
}
