//! `capstead bench`: the whole system against bare baselines, measured in one run.
//!
//! This process is the load, on one thread; servers are child processes of the same binary, on
//! loopback sockets and with their data in the system's temporary directory. Baseline and system
//! alternate, because a figure from another minute says little. Nothing here is asserted: a missed
//! target is shown, and changes neither the exit code nor what else is measured.

mod bare;
mod baseline_lmdb;
mod connections;
mod http;
mod inside;
mod measure;
mod objects;
mod other_host;
mod probe;
mod process;
mod puts;
mod references;
mod reflected;
mod row;
mod rpc;
mod scratch;
mod sleeping;
mod storage;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use self::measure::Plan;
use self::row::Row;
use self::scratch::Scratch;
use super::operator;
use crate::error::{Result, failed};

pub(super) use self::bare::{BareServer, serve as serve_bare};
pub(super) use self::probe::Probe;

/// Exit code of a command line that names no measurement.
const USAGE: u8 = 2;

/// The rows to measure, and the form to show them in.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// The rows to measure; everything by default
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Print a JSON list of rows instead of a table
    #[arg(long)]
    json: bool,
    /// Measure a few seconds only, and fewer objects
    #[arg(long)]
    quick: bool,
}

/// The text at the end of `capstead bench --help`.
pub(super) fn after_help() -> String {
    let names: Vec<&str> = names().collect();
    format!(
        "Names: {}.\n\n\
         A ratio is the median of the rounds' ratios, each to the baseline right before it; value \
         and baseline are medians. A target bounds the ratio where there is a baseline, and the \
         value otherwise. Data lie in the temporary directory (TMPDIR) while it runs, so that its \
         disk is what is measured. The exit code is 0 even if targets are missed: this measures, \
         and judges nothing.",
        names.join(", ")
    )
}

/// Measures and prints. Returns when all children have ended and all data are removed.
pub(super) fn run(options: &Options) -> ExitCode {
    let known: Vec<&str> = names().collect();
    if let Some(name) = options.names.iter().find(|name| !known.contains(&name.as_str())) {
        let known = known.join("\n  ");
        note(&format!("there is no measurement named {name}; known are:\n  {known}"));
        return ExitCode::from(USAGE);
    }
    super::allow_connections();
    match super::block_on(async { Ok(measure(options).await?) }) {
        Ok(rows) => {
            let text = if options.json { row::json(&rows) } else { row::table(&rows) };
            ExitCode::from(operator::end(Ok(text), None))
        }
        Err(error) => ExitCode::from(super::fail(&error)),
    }
}

/// The things that the groups share.
pub(crate) struct Bench {
    plan: Plan,
    names: Vec<String>,
    objects: u64,
    /// The number of objects that sleep.
    sleeping: u64,
    /// Connections that rest.
    connections: u64,
    scratch: Scratch,
    rows: Vec<Row>,
}

impl Bench {
    /// Tells whether the user asked for this row.
    fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }

    fn wants_any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.wants(name))
    }

    /// Keeps a row, if the user asked for it: some are measured on the way to others.
    fn add(&mut self, row: Row) {
        if self.wants(row.name) {
            self.rows.push(row);
        }
    }
}

fn names() -> impl Iterator<Item = &'static str> {
    let groups = [&rpc::NAMES[..], &other_host::NAMES, &http::NAMES, &objects::NAMES];
    groups
        .concat()
        .into_iter()
        .chain([reflected::NAME])
        .chain(storage::NAMES)
        .chain(puts::NAMES)
        .chain(inside::NAMES)
        .chain(references::NAMES)
        .chain(sleeping::NAMES)
        .chain(connections::NAMES)
}

async fn measure(options: &Options) -> Result<Vec<Row>> {
    let plan = if options.quick {
        Plan { rounds: 3, round: Duration::from_millis(300) }
    } else {
        Plan { rounds: 5, round: Duration::from_secs(1) }
    };
    let mut bench = Bench {
        plan,
        names: options.names.clone(),
        objects: if options.quick { 20_000 } else { 100_000 },
        sleeping: if options.quick { 100_000 } else { 1_000_000 },
        connections: if options.quick { 2_000 } else { 10_000 },
        scratch: Scratch::new()?,
        rows: Vec::new(),
    };
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // What is dropped here kills its children and removes its data.
    tokio::select! {
        measured = measure_groups(&mut bench) => measured?,
        _ = interrupt.recv() => return Err(failed("interrupted")),
        _ = terminate.recv() => return Err(failed("terminated")),
    }
    Ok(bench.rows)
}

async fn measure_groups(bench: &mut Bench) -> Result<()> {
    if bench.wants_any(&rpc::NAMES) {
        rpc::measure(bench).await?;
    }
    if bench.wants_any(&other_host::NAMES) {
        other_host::measure(bench).await?;
    }
    if bench.wants(reflected::NAME) {
        reflected::measure(bench).await?;
    }
    if bench.wants_any(&http::NAMES) {
        http::measure(bench).await?;
    }
    if bench.wants_any(&objects::NAMES) {
        objects::measure(bench).await?;
    }
    if bench.wants_any(&storage::NAMES) {
        storage::measure(bench).await?;
    }
    if bench.wants_any(&puts::NAMES) {
        puts::measure(bench).await?;
    }
    if bench.wants_any(&inside::NAMES) {
        inside::measure(bench).await?;
    }
    if bench.wants_any(&references::NAMES) {
        references::measure(bench).await?;
    }
    if bench.wants_any(&connections::NAMES) {
        connections::measure(bench).await?;
    }
    if bench.wants_any(&sleeping::NAMES) {
        sleeping::measure(bench).await?;
    }
    Ok(())
}

/// Tells whoever watches; results go to standard output.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
