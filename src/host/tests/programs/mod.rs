//! Random programs: what they do to objects, stubs, promises and hosts breaks no rule of the ledger.
//!
//! A seed makes a small program; see [`plan`]. Thousands of them are played, each in a world of its
//! own, over a model disk that says exactly what is durable. `CAPSTEAD_PROGRAMS_SEED` and
//! `CAPSTEAD_PROGRAMS` say where to begin and how many to play.

mod actor;
mod flows;
mod ledger;
mod links;
mod plan;
mod play;
mod relay;
mod table;

pub(super) use self::actor::Actor;

use std::sync::Once;

use self::ledger::Verdict;
use super::trial::run;

const FIRST_SEED: u64 = 1;
const PROGRAMS: u64 = 2000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

/// Plays the program of `seed`.
fn play(seed: u64) -> Verdict {
    run(async move { play::play(&plan::plan(seed)).await });
    ledger::end()
}

/// Notes where the RPC library panics: that is the end of a connection, and no rule is broken by it.
fn note_panics_of_the_library() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.location().is_some_and(|place| place.file().contains("/capnp-rpc-")) {
                ledger::library_failed();
            } else {
                before(panic);
            }
        }));
    });
}

#[test]
fn random_programs_break_no_rule() {
    note_panics_of_the_library();
    let first = number("CAPSTEAD_PROGRAMS_SEED", FIRST_SEED);
    let count = number("CAPSTEAD_PROGRAMS", PROGRAMS);
    let (mut started, mut excused, mut hung, mut broken) = (0, 0, 0, Vec::new());
    for seed in first..first + count {
        let verdict = play(seed);
        started += verdict.started;
        excused += u64::from(verdict.library_failed);
        if let Some(hang) = verdict.hung {
            eprintln!("seed {seed}: {hang}");
            hung += 1;
        }
        if !verdict.problems.is_empty() {
            broken.push((seed, verdict.problems));
        }
    }
    eprintln!("{count} programs started {started} calls; in {excused} the RPC library failed");
    assert!(started > count, "programs do something");
    assert!(excused <= 1 + count / 50, "the RPC library seldom fails");
    assert!(hung <= 1 + count / 500, "calls seldom have no end after a cut");
    let Some((first, _)) = broken.first() else { return };
    for (seed, problems) in &broken {
        eprintln!("seed {seed}:\n  {}", problems.join("\n  "));
    }
    panic!(
        "{} programs break a rule; the first is {:#?}\nto play it again: \
         CAPSTEAD_PROGRAMS_SEED={first} CAPSTEAD_PROGRAMS=1 cargo test --lib random_programs",
        broken.len(),
        plan::plan(*first),
    );
}
