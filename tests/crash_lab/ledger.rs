//! The ledger: one line of JSON for each run of a lab, appended to a file.
//!
//! A line tells what was tried, where, when, and the result, so that the runs of many nights add
//! up.

use std::fs::OpenOptions;
use std::io::Write;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;

use crate::lab::{Counts, Lab};
use crate::options::Tier;
use crate::support;

/// The content of a line.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) lab: Lab,
    pub(crate) tier: Tier,
    pub(crate) seeds: &'a RangeInclusive<u64>,
    pub(crate) counts: &'a Counts,
    pub(crate) seconds: f64,
    /// `held`, `skipped`, or the sentence that names the broken promise.
    pub(crate) outcome: &'a str,
}

/// Appends the line. If the ledger can't be written, the run fails, because the user asked for it.
pub(crate) fn append(path: &Path, entry: &Entry<'_>) {
    let line = serde_json::json!({
        "lab": entry.lab.name(),
        "tier": entry.tier.name(),
        "seeds": [entry.seeds.start(), entry.seeds.end()],
        "counts": entry.counts,
        "commit": said("git", &["rev-parse", "HEAD"]),
        "kernel": said("uname", &["-sr"]),
        "date": said("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
        "seconds": (entry.seconds * 100.0).round() / 100.0,
        "outcome": entry.outcome,
    });
    let file = OpenOptions::new().create(true).append(true).open(path);
    let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    written
        .unwrap_or_else(|error| panic!("the ledger {} can't be written: {error}", path.display()));
}

/// The output of a system command; none if the command doesn't exist.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).current_dir(support::root()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
