//! The rules of order, one by one: small programs that are written by hand, over 0 to 3 hops.
//!
//! The ledger checks each of them as it checks the random ones. Beside that, all calls that should
//! start have started, and no others.

use std::ops::Range;

use super::actor::{Answer, Ending, Step};
use super::ledger::Verdict;
use super::plan::{Fate, How, Kind, Op, Plan};
use super::verdict;

/// The slots that every program begins with: a callback for each of the two clients, and after
/// `open` the first client's facets of object 0 and of object 1, which is in another vat, and the
/// second client's of object 0.
const CALLBACK: usize = 0;
const OBJECT: usize = 2;
const OTHER: usize = 3;
const SECOND: usize = 4;
/// The result of the first call after that, as promised, and as it turned out to be.
const PROMISED: usize = 5;
const KNOWN: usize = 6;

fn open() -> Vec<Op> {
    [(0, 0), (0, 1), (1, 0)]
        .map(|(client, object)| Op::Open { client, object, through: object })
        .into()
}

pub(super) const NOTHING: Step = Step {
    writes: 0,
    calls: 0,
    polls: 0,
    awaits: false,
    early: false,
    keep: false,
    use_kept: false,
    streams: false,
    passes_gift: false,
    tails: false,
    kibibytes: 0,
    caps: 0,
    answer: Answer::Nothing,
    ending: Ending::Return,
    next: None,
};

fn returns(answer: Answer) -> Step {
    Step { polls: 5, answer, ..NOTHING }
}

fn ends(ending: Ending) -> Step {
    Step { ending, ..NOTHING }
}

fn call(slot: usize, step: Step) -> Op {
    call_with(slot, step, None, None)
}

fn call_with(slot: usize, step: Step, on: Option<usize>, gift: Option<usize>) -> Op {
    Op::Call { slot, step, on, gift, how: How::Act, fate: Fate::Awaited }
}

fn stream(slot: usize, step: Step) -> Op {
    Op::Call { slot, step, on: None, gift: None, how: How::Stream, fate: Fate::Awaited }
}

/// Calls on one stub, some of which are never awaited.
fn notes(slot: usize, count: usize) -> impl Iterator<Item = Op> {
    (0..count).map(move |number| {
        let (on, gift, how) = (None, None, How::Act);
        let fate = [Fate::Awaited, Fate::AwaitedLater][number % 2];
        Op::Call { slot, step: NOTHING, on, gift, how, fate }
    })
}

const RUN: Op = Op::Yield { times: 200 };

/// Plays `ops`, in which `started` calls must start, at every distance.
fn check(nearest: usize, started: u64, ops: impl Fn() -> Vec<Op>) {
    check_over(nearest..4, started, ops);
}

fn check_over(distances: Range<usize>, started: u64, ops: impl Fn() -> Vec<Op>) {
    let nearest = distances.start;
    for hops in distances {
        let verdict = played(hops, nearest, ops());
        assert!(verdict.problems.is_empty(), "{hops} hops: {:?}", verdict.problems);
        assert_eq!(verdict.started, started, "{hops} hops");
    }
}

fn played(hops: usize, nearest: usize, ops: Vec<Op>) -> Verdict {
    let ops = open().into_iter().chain(ops).collect();
    let hops = vec![vec![hops; 2], vec![nearest; 2]];
    let clients = vec![Kind::Rust; 2];
    verdict(Plan { clients, hops, objects: vec![0, 1], exclusive: vec![false; 2], ops })
}

#[test]
fn streaming_calls_and_others_keep_their_order() {
    for answer in [Answer::Itself, Answer::Child] {
        check(0, 31, || {
            let mut ops = vec![call(OBJECT, returns(answer))];
            for _ in 0..5 {
                ops.push(stream(PROMISED, Step { polls: 3, writes: 1, ..NOTHING }));
                ops.extend(notes(PROMISED, 2));
            }
            ops.push(RUN);
            for _ in 0..5 {
                ops.push(stream(KNOWN, Step { polls: 3, ..NOTHING }));
                ops.extend(notes(KNOWN, 2));
            }
            ops
        });
    }
}

/// Of an object, and of what an object makes: the failure is that of one call.
#[test]
fn a_streaming_call_that_fails_poisons_nothing() {
    for answer in [Answer::Itself, Answer::Child] {
        check(0, 9, || {
            let mut ops = vec![call(OBJECT, returns(answer)), RUN];
            ops.push(stream(KNOWN, ends(Ending::Fail)));
            ops.push(RUN);
            ops.extend(notes(KNOWN, 3));
            ops.push(stream(KNOWN, NOTHING));
            ops.extend(notes(SECOND, 3));
            ops
        });
    }
}

/// The calls start while the method that offered the capability still runs.
#[test]
fn capabilities_that_are_offered_early_are_called_in_order() {
    for answer in [Answer::Itself, Answer::Child, Answer::Gift, Answer::Promised] {
        for writes in 0..2 {
            let next = Step { answer: Answer::Child, ..NOTHING };
            let calls = u8::from(answer == Answer::Promised);
            let offers = Step {
                early: true,
                polls: 250,
                writes,
                calls,
                answer,
                next: Some(Box::new(next)),
                ..NOTHING
            };
            check(0, 9 + u64::from(calls), || {
                let mut ops = vec![call_with(OBJECT, offers.clone(), Some(OTHER), Some(OTHER))];
                ops.extend(notes(PROMISED, 4));
                ops.push(Op::Yield { times: 100 });
                ops.extend(notes(PROMISED, 4));
                ops
            });
        }
    }
}

/// An object passes what it makes to another one, which calls it; through a callback too.
#[test]
fn capabilities_that_a_class_makes_are_passed_and_called_in_order() {
    for target in [CALLBACK, OBJECT, OTHER] {
        let note = Step { calls: 3, writes: 1, next: Some(Box::new(NOTHING)), ..NOTHING };
        let passes =
            Step { calls: 2, writes: 1, passes_gift: true, next: Some(Box::new(note)), ..NOTHING };
        check(0, 2 * (1 + 2 + 2 * 3), || {
            let pass = || call_with(OBJECT, passes.clone(), Some(target), None);
            vec![pass(), pass()]
        });
    }
}

/// One object passes a client's callback to another one, which calls it, with writes before each
/// call and the disk held.
#[test]
fn a_callback_that_crossed_two_hops_is_called_in_order() {
    let calls_back = Step { calls: 3, writes: 1, next: Some(Box::new(NOTHING)), ..NOTHING };
    let passes = Step { calls: 3, writes: 1, next: Some(Box::new(calls_back)), ..NOTHING };
    check(0, 2 * (1 + 3 + 3 * 3), || {
        let pass = || call_with(OBJECT, passes.clone(), Some(OTHER), Some(CALLBACK));
        vec![Op::Hold { vat: 0 }, Op::Hold { vat: 1 }, pass(), pass(), RUN]
    });
}

/// The promise turns out to be the caller's own while the reply that says so waits in the gate, and
/// calls go on all the time.
#[test]
fn a_promise_that_becomes_the_callers_own_keeps_the_order_behind_a_held_gate() {
    for gift in [CALLBACK, OTHER] {
        let may_give = Step { writes: 1, ..returns(Answer::Gift) };
        check(0, 1 + 12, || {
            let mut ops = vec![Op::Hold { vat: 0 }];
            ops.push(call_with(OBJECT, may_give.clone(), None, Some(gift)));
            ops.extend(notes(PROMISED, 4));
            ops.push(RUN);
            ops.extend(notes(PROMISED, 4));
            ops.push(Op::Release { vat: 0 });
            for _ in 0..4 {
                ops.extend(notes(PROMISED, 1));
                ops.push(Op::Yield { times: 1 });
            }
            ops
        });
    }
}

/// An object that rests and wakes again is the same to its stubs.
#[test]
fn a_stub_lives_on_when_its_object_rests() {
    check(0, 12, || {
        let mut ops = Vec::new();
        for _ in 0..4 {
            ops.extend(notes(OBJECT, 2));
            ops.push(call(OBJECT, Step { writes: 1, ..NOTHING }));
            ops.extend([RUN, Op::Rest { object: 0 }]);
        }
        ops
    });
}

/// The end of a stub, by any cause: it says `disconnected`, which the ledger checks, and delivers
/// nothing more. A new one works.
#[test]
fn a_broken_stub_stays_broken() {
    type Break = fn() -> Op;
    let breaks: [(usize, u64, Break); 5] = [
        (0, 1, || call(OBJECT, ends(Ending::Panic))),
        (0, 1, || call(OBJECT, ends(Ending::Abort))),
        (1, 0, || Op::Kill { vat: 0, keep: 0 }),
        (1, 0, || Op::Kill { vat: 0, keep: u64::MAX }),
        (1, 0, || Op::Cut { client: 0, vat: 0, at: 0 }),
    ];
    for (nearest, itself, breaks) in breaks {
        check(nearest, 3 + itself + 3, || {
            let mut ops: Vec<_> = notes(OBJECT, 3).collect();
            ops.extend([RUN, breaks()]);
            ops.extend(notes(OBJECT, 2));
            ops.push(RUN);
            ops.extend(notes(OBJECT, 2));
            ops.push(Op::Open { client: 0, object: 0, through: 0 });
            ops.extend(notes(PROMISED, 3));
            ops.push(RUN);
            ops.extend(notes(OBJECT, 2));
            ops
        });
    }
}

/// An object calls a promise that turns out to be itself, and calls it again in these calls.
#[test]
fn an_object_may_call_itself_through_a_promise_that_others_made() {
    let stores = Step { keep: true, ..NOTHING };
    let again = Step { use_kept: true, calls: 1, next: Some(Box::new(NOTHING)), ..NOTHING };
    let calls = Step { use_kept: true, calls: 3, next: Some(Box::new(again)), ..NOTHING };
    check_over(0..2, 1 + 1 + 1 + 3 + 3, || {
        let may_give = Step { polls: 30, answer: Answer::Gift, ..NOTHING };
        vec![
            call_with(CALLBACK, may_give, None, Some(OBJECT)),
            call_with(OBJECT, stores.clone(), None, Some(PROMISED)),
            call(OBJECT, calls.clone()),
            RUN,
        ]
    });
}

/// One client asks for something, has the object call what it will get, and leaves before the disk
/// lets the answer go. Nobody will ever take that answer, for which the object's later calls used
/// to wait.
#[test]
fn a_client_that_leaves_holds_back_nothing_of_others() {
    let answers = Step { writes: 1, answer: Answer::Itself, ..NOTHING };
    let calls = Step { calls: 1, awaits: true, next: Some(Box::new(NOTHING)), ..NOTHING };
    check_over(1..2, 3 + 2, || {
        vec![
            Op::Hold { vat: 0 },
            call(OBJECT, answers.clone()),
            call_with(OBJECT, calls.clone(), Some(PROMISED), None),
            RUN,
            Op::Cut { client: 0, vat: 0, at: 0 },
            Op::Release { vat: 0 },
            RUN,
            call_with(SECOND, calls.clone(), Some(CALLBACK + 1), None),
        ]
    });
}

/// The RPC system tells a caller that holds the promised result in a task that runs only while it
/// is polled. It used to be dropped first, and the object waited for ever.
#[test]
fn a_call_on_a_callback_ends_when_its_connection_is_cut() {
    let waits = Step { polls: 200, ..NOTHING };
    let asks = Step { calls: 1, awaits: true, next: Some(Box::new(waits)), ..NOTHING };
    for polls in 1..40 {
        // The ledger counts no call that was lost on its way.
        let verdict = played(
            1,
            1,
            vec![
                call_with(OBJECT, asks.clone(), Some(CALLBACK), None),
                Op::Yield { times: polls },
                Op::Cut { client: 0, vat: 0, at: 0 },
            ],
        );
        assert!(verdict.problems.is_empty(), "{polls} polls: {:?}", verdict.problems);
    }
}
