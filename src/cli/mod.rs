//! The command line: one file for each verb.

mod alarms;
mod backup;
mod bench;
mod compact;
mod export;
mod grants;
mod import;
mod key;
mod limit;
mod log;
mod method_names;
mod operator;
mod output;
mod program;
mod requests;
mod restore;
mod serve;
mod signals;
mod transfer;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
#[cfg(target_os = "linux")]
use rustix::process::DumpableBehavior;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::host::Class;
use crate::server::{Running, Server, ServerError, host_runtime, stderr};

/// The exit code of a storage failure: a service manager can tell it from a wrong flag.
const STORAGE_FAILED: u8 = 3;
const CANNOT_START: u8 = 1;
/// The exit code of an invalid flag.
const WRONG_COMMAND: u8 = 2;

/// Durable objects as object capabilities.
#[derive(Debug, Parser)]
#[command(name = "capstead", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    serve: serve::Options,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, for a moment")]
enum Verb {
    /// Serve the bundled classes (the default).
    Serve(serve::Options),
    #[command(flatten)]
    Operate(Operate),
    /// Measure the whole system against bare baselines, in one run.
    #[command(disable_help_flag = true)]
    Bench(bench::Options),
}

/// The operator's verbs, which work on the data of any server.
#[derive(Clone, Debug, Subcommand)]
enum Operate {
    /// Take objects out into a file, while the server serves or not
    #[command(after_help = export::AFTER_HELP)]
    Export(export::Options),
    /// Bring objects in from a file, while the server serves or not
    #[command(after_help = import::AFTER_HELP)]
    Import(import::Options),
    /// Write everything into one file, keys included, while the server serves or not
    #[command(after_help = backup::AFTER_HELP)]
    Backup(backup::Options),
    /// Make a new data directory out of a backup
    #[command(after_help = restore::AFTER_HELP)]
    Restore(restore::Options),
    /// Replace the keys that sign references, while the server serves or not
    #[command(after_help = key::AFTER_HELP)]
    Key(key::Options),
    /// Give unused space of a stopped server's data back to the disk
    #[command(after_help = compact::AFTER_HELP)]
    Compact(compact::Options),
    /// Show who can reach an object: its grants, what they were made from, and when they were last
    /// used
    #[command(after_help = grants::AFTER_HELP)]
    Grants(grants::Show),
    /// Make a reference to an object, or to all objects of a class, and print it
    #[command(after_help = grants::AFTER_HELP)]
    Grant(grants::Make),
    /// Show the alarms of an object, those that failed too often included, or cancel one
    #[command(after_help = alarms::AFTER_HELP)]
    Alarms(alarms::Options),
    /// Show which calls of an object have a request id, or forget their ids
    #[command(after_help = requests::AFTER_HELP)]
    Requests(requests::Options),
    /// Revoke a grant: its reference, and everything made from it, ends at once
    #[command(after_help = grants::AFTER_HELP)]
    Revoke(grants::Revoke),
}

impl Operate {
    /// Returns the exit code when the verb is done. The classes are those of this program.
    fn run(&self, classes: &[Class]) -> u8 {
        if let Err(error) = log::selected() {
            return fail(&error);
        }
        signals::of_files();
        match self {
            Self::Export(options) => export::run(options),
            Self::Import(options) => import::run(options),
            Self::Backup(options) => backup::run(options),
            Self::Restore(options) => restore::run(options),
            Self::Key(options) => key::run(options),
            Self::Compact(options) => compact::run(options),
            Self::Grants(options) => grants::show(options, classes),
            Self::Grant(options) => grants::make(options, classes),
            Self::Alarms(options) => alarms::run(options, classes),
            Self::Requests(options) => requests::run(options, classes),
            Self::Revoke(options) => grants::revoke(options),
        }
    }
}

/// Runs the `capstead` command on this process's arguments, for a server of these classes. When
/// that has started, `hints` gives lines that are printed below its references.
///
/// It is for the bundled server: a server of your own begins with [`Server::run`].
///
/// Exits with 0 after an orderly end, 1 when the server can't start, 2 on a wrong command line, and
/// 3 when the storage failed.
pub fn main(server: Server, hints: fn(&Running) -> Vec<String>) -> ExitCode {
    prepare_process();
    let cli = match program::parse::<Cli>(Cli::command()) {
        Ok(cli) => cli,
        Err(code) => return ExitCode::from(code),
    };
    let options = match cli.verb {
        None => cli.serve,
        Some(Verb::Serve(options)) => options,
        Some(Verb::Operate(operate)) => {
            return ExitCode::from(operate.run(&server.known_classes()));
        }
        Some(Verb::Bench(options)) => return bench::run(&options),
    };
    match block_on(serve::serve(server, options, hints)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(fail(&error)),
    }
}

fn block_on<T>(
    serve: impl Future<Output = std::result::Result<T, ServerError>>,
) -> std::result::Result<T, ServerError> {
    let runtime = host_runtime().map_err(capnp::Error::from)?;
    runtime.block_on(serve)
}

/// Raises the limit of open files to its maximum: each connection is an open file, and the usual
/// limit is for programs that have few. If that isn't allowed, connections are refused before files
/// run out.
fn allow_connections() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Makes the process ready for keys and for signals. It comes before everything else, while the
/// process has a single thread.
fn prepare_process() {
    hide_memory();
    signals::take_sigbus();
}

/// Protects the keys in memory: a crash leaves no copy of the memory on a disk, and only an
/// administrator can look into it while the process runs. A system without these means leaves the
/// process unprotected.
fn hide_memory() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Prints the final error before the process exits.
fn fail(error: &ServerError) -> u8 {
    stderr::put(format!("capstead: {error}\n").into_bytes());
    stderr::flush();
    match error {
        ServerError::Storage(_) => STORAGE_FAILED,
        ServerError::Setting(_) => WRONG_COMMAND,
        _ => CANNOT_START,
    }
}
