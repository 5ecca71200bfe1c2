//! The command line of the crash lab, with the test runner's own arguments that it must accept.
//!
//! `cargo test` passes its arguments to every target. Those that mean something here are obeyed:
//! names select labs and `--list` lists them. The others are accepted without effect.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::lab::Lab;

/// Crashes the storage and the server in many ways, and checks that no acknowledged write was lost.
///
/// Without arguments every lab runs its Push tier. See docs/crash-lab.md.
#[derive(Clone, Debug, Parser)]
#[command(name = "crash-lab")]
pub(crate) struct Options {
    /// The amount that is tried
    #[arg(long, value_enum, default_value_t)]
    pub(crate) tier: Tier,
    /// The labs to run; all by default
    #[arg(long = "lab", value_name = "LAB", value_enum)]
    pub(crate) labs: Vec<Lab>,
    /// Repeat each lab with these seeds, such as 7 or 1..500; a new one by default
    #[arg(long, value_name = "FIRST..LAST", value_parser = seeds)]
    pub(crate) seeds: Option<RangeInclusive<u64>>,
    /// Append one line of JSON to this file for each run of a lab
    #[arg(long, value_name = "FILE")]
    pub(crate) ledger: Option<PathBuf>,

    /// Run the labs whose names contain one of these
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    /// List the labs
    #[arg(long)]
    pub(crate) list: bool,
    /// Filters are whole names
    #[arg(long)]
    exact: bool,
    /// Leave out the labs whose names contain this
    #[arg(long, value_name = "FILTER")]
    skip: Vec<String>,
    /// Run nothing: no lab is ignored by default
    #[arg(long)]
    ignored: bool,
    #[command(flatten)]
    _runner: Runner,
}

/// The flags of the standard test runner that have no effect here.
#[derive(Clone, Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that somebody else defined")]
struct Runner {
    #[arg(long, hide = true)]
    include_ignored: bool,
    #[arg(long, alias = "no-capture", hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    show_output: bool,
    #[arg(long, short, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    test: bool,
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(long, hide = true)]
    shuffle: bool,
    #[arg(long, hide = true)]
    ensure_time: bool,
    #[arg(long, hide = true)]
    report_time: bool,
    #[arg(long, hide = true)]
    fail_fast: bool,
    #[arg(long, hide = true)]
    test_threads: Option<String>,
    #[arg(long, hide = true)]
    format: Option<String>,
    #[arg(long, hide = true)]
    color: Option<String>,
    #[arg(long, hide = true)]
    logfile: Option<String>,
    #[arg(long, hide = true)]
    shuffle_seed: Option<String>,
    #[arg(short = 'Z', hide = true)]
    unstable: Vec<String>,
}

/// The number of cases to try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// A few minutes in all, for every change
    #[default]
    Push,
    /// As many cases as there are, for nights
    Deep,
}

impl Tier {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Deep => "deep",
        }
    }

    /// The value for this tier.
    pub(crate) fn pick<T>(self, push: T, deep: T) -> T {
        match self {
            Self::Push => push,
            Self::Deep => deep,
        }
    }
}

impl Options {
    /// The labs to run, in order.
    pub(crate) fn selected(&self) -> Vec<Lab> {
        let all = Lab::value_variants().iter().copied();
        let matches = |lab: Lab, filter: &String| {
            if self.exact { lab.name() == filter } else { lab.name().contains(&**filter) }
        };
        all.filter(|lab| !self.ignored && (self.labs.is_empty() || self.labs.contains(lab)))
            .filter(|&lab| {
                self.filters.is_empty() || self.filters.iter().any(|filter| matches(lab, filter))
            })
            .filter(|&lab| !self.skip.iter().any(|filter| matches(lab, filter)))
            .collect()
    }
}

fn seeds(text: &str) -> Result<RangeInclusive<u64>, String> {
    let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is no number"));
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(format!("there are no seeds from {first} to {last}"));
    }
    Ok(first..=last)
}
