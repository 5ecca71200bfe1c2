//! The crash lab: it proves that no acknowledged write is lost, by crashing in every possible way.
//!
//! `docs/crash-lab.md` says what each lab does, and what it can't show. This file runs the selected
//! labs, prints a line for each, and fails on the first broken promise with the seed that repeats
//! it.

mod checker;
mod folder;
mod full;
mod history;
mod images;
mod inject;
mod inject_judge;
mod inject_server;
mod kill;
mod lab;
mod ledger;
mod linearizable;
mod load;
mod options;
mod replay;
mod restart;
mod rot;
mod rot_log;
mod strace;
#[path = "../support/mod.rs"]
mod support;
mod trace;
mod writer;
mod wrong;

use std::io::Write;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;

use lab::{Counts, Found, Lab};
use ledger::Entry;
use options::Options;

/// The variable that, if set to `all`, makes a missing requirement of a lab a failure instead of a
/// reason to skip it.
const VARIABLE: &str = "CAPSTEAD_CRASH_LAB";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.peek().is_some_and(|first| first == writer::STORAGE) {
        return capstead::lab::storage(args);
    }
    let options = Options::parse();
    for lab in options.selected() {
        if options.list {
            say(&format!("{}: test", lab.name()));
        } else if !run(lab, &options) {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Runs a lab with each of the seeds; prints the result, and returns whether all promises held.
fn run(lab: Lab, options: &Options) -> bool {
    let name = lab.name();
    let seeds = options.seeds.clone().unwrap_or_else(|| {
        let seed = getrandom::u32().expect("there is randomness").into();
        seed..=seed
    });
    let start = support::now();
    let must = std::env::var(VARIABLE).is_ok_and(|value| value == "all");
    let mut counts = Counts::new();
    let outcome = match lab.lacks() {
        Some(lacks) if must => Err((*seeds.start(), lacks.to_owned())),
        Some(lacks) => {
            say(&format!("crash-lab: {name} WAS SKIPPED: {lacks}"));
            Ok("skipped")
        }
        None => run_seeds(lab, options, &seeds, &mut counts).map(|()| "held"),
    };
    let seconds = start.elapsed().as_secs_f64();
    let said = outcome.as_ref().map_or_else(|(_, sentence)| sentence.as_str(), |said| *said);
    if let Some(path) = &options.ledger {
        let tier = options.tier;
        let (seeds, counts) = (&seeds, &counts);
        ledger::append(path, &Entry { lab, tier, seeds, counts, seconds, outcome: said });
    }
    match outcome {
        Ok("skipped") => true,
        Ok(_) => {
            let counts: Vec<String> =
                counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
            say(&format!("crash-lab: {name} held in {seconds:.1} s: {}", counts.join(", ")));
            true
        }
        Err((seed, sentence)) => {
            let tier = options.tier.name();
            say(&format!(
                "crash-lab: {name} FAILED after {seconds:.1} s, seed {seed}: {sentence}\n\
                 repeat it: cargo test --test crash-lab -- --tier {tier} --lab {name} --seeds {seed}"
            ));
            false
        }
    }
}

/// Stops at the first seed that breaks a promise.
fn run_seeds(
    lab: Lab,
    options: &Options,
    seeds: &RangeInclusive<u64>,
    counts: &mut Counts,
) -> Result<(), (u64, String)> {
    for seed in seeds.clone() {
        let found: Found = catch_unwind(AssertUnwindSafe(|| lab.run(options.tier, seed)))
            .unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied());
                Err(text.unwrap_or("a test panicked without a reason").to_owned())
            });
        lab::add(counts, found.map_err(|sentence| (seed, sentence))?);
        if seeds.start() != seeds.end() {
            say(&format!("crash-lab: {} held with seed {seed}", lab.name()));
        }
    }
    Ok(())
}

/// One line, or two. A closed standard output is no reason to stop.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
