//! Random programs: what they do to objects, stubs, promises and hosts breaks no rule of the ledger.
//!
//! A seed makes a small program; see [`plan`]. Thousands of them are played, each in a world of its
//! own, over a model disk that says exactly what is durable. `CAPSTEAD_PROGRAMS_SEED` and
//! `CAPSTEAD_PROGRAMS` say where to begin and how many to play.

mod actor;
mod ledger;
mod links;
mod plan;
mod play;

pub(super) use self::actor::Actor;

use super::trial::run;

const FIRST_SEED: u64 = 1;
const PROGRAMS: u64 = 2000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

/// Plays the program of `seed`: how many calls it started, and what it broke.
fn play(seed: u64) -> (u64, Vec<String>) {
    run(async move { play::play(&plan::plan(seed)).await });
    ledger::end()
}

#[test]
fn random_programs_break_no_rule() {
    let first = number("CAPSTEAD_PROGRAMS_SEED", FIRST_SEED);
    let count = number("CAPSTEAD_PROGRAMS", PROGRAMS);
    let mut started = 0;
    for seed in first..first + count {
        let (calls, problems) = play(seed);
        started += calls;
        assert!(
            problems.is_empty(),
            "{}\n{:#?}\nplay it again: CAPSTEAD_PROGRAMS_SEED={seed} CAPSTEAD_PROGRAMS=1 \
             cargo test --lib random_programs",
            problems.join("\n"),
            plan::plan(seed),
        );
    }
    eprintln!("{count} programs from seed {first} started {started} calls");
    assert!(started > count, "programs do something");
}
