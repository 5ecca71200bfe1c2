//! `capstead bench`: the whole system against bare baselines, measured in one run.
//!
//! This process generates the load on one thread. The servers are child processes of the same
//! program, on loopback sockets and with their data in the system's temporary directory: Capstead
//! with the bundled classes and one that times its own storage, and the bare ones. Baseline and
//! system alternate, because a figure from another minute means little. Nothing here is asserted: a
//! missed target is shown, and changes neither the exit code nor the other measurements.

mod bare;
mod baseline_lmdb;
mod baseline_log;
mod broadcast;
mod connections;
mod http;
mod inside;
mod many;
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
mod sockets;
mod storage;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use capstead::{Result, failed, lab};
use clap::{Parser, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use self::bare::BareServer;
use self::broadcast::Room;
use self::measure::Plan;
use self::probe::Probe;
use self::row::Row;
use self::scratch::Scratch;

capstead_client::generated! { probe_capnp }

/// Every call makes several small allocations on one thread, as in the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code of a command line that names no measurement.
const USAGE: u8 = 2;

/// Explains that this bench and the `capstead` that starts it were built from different sources.
const OTHER_SOURCES: &str = "can't measure: capstead-bench was built from other sources than the \
     capstead beside it; `cargo build --release` in Capstead's sources builds both";

/// Measure the whole system against bare baselines, in one run.
#[derive(Clone, Debug, Parser)]
#[command(name = "capstead-bench", bin_name = "capstead bench", version, after_help = after_help())]
struct Options {
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
pub(crate) fn after_help() -> String {
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

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("serve" | "compact") => {
            let server =
                capstead::classes::bundled("capstead.data").class::<Probe>().class::<Room>();
            block_on(server.run()).map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
        }
        Some("bare") => match BareServer::from_str(&args.next().unwrap_or_default(), false) {
            Ok(kind) => bare::serve(kind),
            Err(_) => ExitCode::from(USAGE),
        },
        _ => match Options::try_parse() {
            Ok(options) => run(&options),
            // Clap reports `--help` and `--version` as errors.
            Err(answer) if !answer.use_stderr() => show(answer.render().to_string().trim_end()),
            Err(error) => error.exit(),
        },
    }
}

/// Measures and prints. Returns once all children have ended and all data are removed.
fn run(options: &Options) -> ExitCode {
    // Started by `capstead bench`, this measures its own copy of the server.
    if std::env::var(lab::SOURCES_VARIABLE).is_ok_and(|sources| sources != lab::SOURCES) {
        return fail(&failed(OTHER_SOURCES));
    }
    let known: Vec<&str> = names().collect();
    if let Some(name) = options.names.iter().find(|name| !known.contains(&name.as_str())) {
        let known = known.join("\n  ");
        note(&format!("there is no measurement named {name}; known are:\n  {known}"));
        return ExitCode::from(USAGE);
    }
    allow_connections();
    match block_on(measure(options)) {
        Ok(rows) => show(&if options.json { row::json(&rows) } else { row::table(&rows) }),
        Err(error) => fail(&error),
    }
}

/// A closed standard output is no failure; one that can't be written is.
fn show(text: &str) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(&failed(format!("can't write to standard output: {error}")))
        }
        _ => ExitCode::SUCCESS,
    }
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::LocalRuntime::new()?.block_on(work)
}

fn fail(error: &capnp::Error) -> ExitCode {
    note(&format!("capstead: {error}"));
    ExitCode::FAILURE
}

/// Raises the limit of open files: each connection is an open file, and the usual limit is for
/// programs that have few.
fn allow_connections() {
    let limit = getrlimit(Resource::Nofile);
    // If the system refuses, rows that need more connections fail with its error.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// The state that the groups of rows share.
pub(crate) struct Bench {
    plan: Plan,
    names: Vec<String>,
    objects: u64,
    /// The number of objects that sleep.
    sleeping: u64,
    /// The number of idle connections.
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

    /// Keeps a row if the user asked for it: some rows are measured on the way to others.
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
        .chain(broadcast::NAMES)
        .chain(storage::NAMES)
        .chain(puts::NAMES)
        .chain(inside::NAMES)
        .chain(references::NAMES)
        .chain(sleeping::NAMES)
        .chain(many::NAMES)
        .chain(connections::NAMES)
        .chain(sockets::NAMES)
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
    // An interrupted measurement is dropped, which kills its children and removes its data.
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
    if bench.wants_any(&broadcast::NAMES) {
        broadcast::measure(bench).await?;
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
    if bench.wants_any(&sockets::NAMES) {
        sockets::measure(bench).await?;
    }
    if bench.wants_any(&sleeping::NAMES) {
        sleeping::measure(bench).await?;
    }
    if bench.wants_any(&many::NAMES) {
        many::measure(bench).await?;
    }
    Ok(())
}

/// Shows progress on standard error; results go to standard output.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    // `docs/numbers.md` lists exactly the rows of the bench.
    #[test]
    fn the_page_of_numbers_has_the_rows_of_the_bench() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/numbers.md");
        let page = std::fs::read_to_string(page).unwrap();
        let row = |line: &str| Some(line.strip_prefix("| `")?.split_once("` |")?.0.to_owned());
        let shown: Vec<String> = page.lines().filter_map(row).collect();
        assert_eq!(shown, names().collect::<Vec<_>>());
    }
}
