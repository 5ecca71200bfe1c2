//! Random programs: what they do to objects, stubs, promises and hosts breaks no rule of the
//! ledger.
//!
//! A seed makes a small program; see [`plan`]. Thousands of them are played, each in a world of its
//! own, over a model disk that says exactly what is durable. `CAPSTEAD_PROGRAMS_SEED` and
//! `CAPSTEAD_PROGRAMS` say where to begin and how many to play.

mod actor;
mod flows;
mod kj;
mod ledger;
mod links;
mod plan;
mod play;
mod relay;
mod shrink;
mod table;

pub(super) use self::actor::Actor;

use std::sync::Once;

use self::ledger::Verdict;
use self::plan::Plan;
use super::trial::run;

const FIRST_SEED: u64 = 1;
const PROGRAMS: u64 = 2000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

/// Plays a program.
fn verdict(plan: Plan) -> Verdict {
    run(async move { play::play(&plan).await });
    ledger::end()
}

/// A panic of the RPC library is a broken rule: an honest peer is never its reason.
fn note_panics_of_the_library() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.location().is_some_and(|place| place.file().contains("/capnp-rpc-")) {
                ledger::problem(panic.to_string());
            }
            before(panic);
        }));
    });
}

#[test]
fn random_programs_break_no_rule() {
    note_panics_of_the_library();
    let first = number("CAPSTEAD_PROGRAMS_SEED", FIRST_SEED);
    let count = number("CAPSTEAD_PROGRAMS", PROGRAMS);
    let (mut started, mut broken) = (0, Vec::new());
    for seed in first..first + count {
        let verdict = verdict(plan::plan(seed));
        started += verdict.started;
        if !verdict.problems.is_empty() {
            eprintln!("seed {seed}:\n  {}", verdict.problems.join("\n  "));
            broken.push(seed);
        }
    }
    eprintln!("{count} programs started {started} calls; {} broke a rule", broken.len());
    assert!(started > count, "programs do something");
    let seen = kj::seen();
    eprintln!("peers as in C++: {seen:?}");
    let often = seen.values().filter(|times| **times > 10).count();
    // A `Disembargo` of the server's is rare: it has no promises that are resolved.
    assert!(count < PROGRAMS || often >= 7, "all of the protocol is used");
    let Some(first) = broken.first() else { return };
    if number("CAPSTEAD_PROGRAMS_SHRINK", 0) > 0 {
        let fails = |plan: &Plan| !verdict(plan.clone()).problems.is_empty();
        let Plan { clients, hops, objects, exclusive, ops } =
            shrink::shrink(plan::plan(*first), fails);
        eprintln!(
            "clients {clients:?} over {hops:?}, objects {objects:?}, exclusive {exclusive:?}"
        );
        ops.iter().enumerate().for_each(|(at, op)| eprintln!("op {at}: {op:?}"));
    }
    panic!(
        "{broken:?} break a rule; to see the first as a small program: \
         CAPSTEAD_PROGRAMS_SEED={first} CAPSTEAD_PROGRAMS=1 CAPSTEAD_PROGRAMS_SHRINK=1 \
         cargo test --lib random_programs",
    );
}
