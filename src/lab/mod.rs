//! The storage alone, without a server around it: for the crash lab and for `capstead-bench`.
//!
//! `storage` is a program that runs turns derived from a seed, prints which of them are durable,
//! and checks how many are there after a crash. `records` lists everything that an environment
//! holds, for tests that read it with code of their own. `Puts` makes turns durable as fast as it
//! can.
//!
//! `SOURCES` says of which sources the library is, for a bench beside another server.
//!
//! Nothing here is for users: neither the functions nor their output are stable.
#![allow(missing_docs, reason = "there are no users but the tests and the bench")]

mod puts;
mod script;

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::puts::Puts;
use self::script::{LAST, Record, Script, States};
use crate::error;
use crate::storage::{
    self, Before, Kind, LogOptions, Owner, Presence, Range, Reads as _, Space, StorageError, Store,
    StoreOptions, Usage,
};

/// A hash of the sources of this library, by its build script.
pub const SOURCES: &str = env!("CAPSTEAD_SOURCES_HASH");
/// The variable by which `capstead bench` tells the bench of its own sources.
pub const SOURCES_VARIABLE: &str = "CAPSTEAD_SOURCES";

/// The exit code after a failure of the storage; 1 is for failures of the lab itself.
const STORAGE_FAILED: u8 = 3;

/// The storage alone.
#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Run turns on the storage in DIR, after those that it holds, and print `ack N` once turn N is
    /// durable.
    Write {
        /// The directory of the environment; it is made if it isn't there.
        #[arg(long)]
        dir: PathBuf,
        #[command(flatten)]
        script: Script,
        /// The last turn.
        #[arg(long)]
        turns: u64,
        /// Turns that may wait for the disk at a time.
        #[arg(long, default_value_t = 4)]
        in_flight: u64,
        #[command(flatten)]
        log: Log,
        /// End without closing the storage, as if killed, with a log like this.
        #[arg(long, value_enum)]
        leave: Option<Leave>,
    },
    /// Read paths of environments from standard input, and print what each holds, as JSON.
    Check {
        #[command(flatten)]
        script: Script,
    },
}

/// The log in front of the storage; without arguments as a server has it, but without a reserve.
#[derive(Args, Clone, Copy, Debug, Default)]
struct Log {
    /// The bytes that may wait to be applied.
    #[arg(long)]
    backlog_bytes: Option<u64>,
    /// The milliseconds that an entry may wait to be applied.
    #[arg(long)]
    backlog_ms: Option<u64>,
    /// The most bytes of a segment.
    #[arg(long)]
    segment_bytes: Option<u64>,
}

/// The state of the log at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Leave {
    /// The applier has done what it happened to do.
    Behind,
    /// Everything was applied, and the log is still there.
    Applied,
}

impl Log {
    fn options(self) -> LogOptions {
        // The lab's disks are small, and are meant to be filled.
        let mut log = LogOptions { reserve_bytes: Some(0), ..LogOptions::default() };
        log.backlog.bytes = self.backlog_bytes.unwrap_or(log.backlog.bytes);
        log.backlog.age = self.backlog_ms.map_or(log.backlog.age, Duration::from_millis);
        log.segment_bytes = self.segment_bytes.unwrap_or(log.segment_bytes);
        log
    }
}

/// One record, with the id of its object and the number of its space.
#[derive(Debug)]
pub struct OnDisk<'a> {
    pub object: &'a [u8],
    pub space: u8,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

/// The reason why the lab ended early.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the storage failed: {0}")]
    Storage(#[from] StorageError),
    #[error("the storage holds what no turn wrote: {0}")]
    Wrong(String),
    #[error("standard input or output failed: {0}")]
    Pipe(#[from] std::io::Error),
}

/// Runs the program, given the arguments after its name. It exits with 3 and one sentence when the
/// storage failed, and with 1 when the lab itself did.
pub fn storage(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let ended = match &Options::parse_from(args).what {
        What::Write { dir, script, turns, in_flight, log, leave } => {
            open(dir, *log).map_err(Failure::from).and_then(|(mut store, progressed)| {
                write(&mut store, &progressed, *script, *turns, *in_flight)?;
                close(store, *leave)
            })
        }
        What::Check { script } => check(*script),
    };
    let Err(failure) = ended else { return ExitCode::SUCCESS };
    let _ = writeln!(std::io::stderr().lock(), "capstead: {failure}");
    match failure {
        Failure::Storage(_) => ExitCode::from(STORAGE_FAILED),
        Failure::Wrong(_) | Failure::Pipe(_) => ExitCode::FAILURE,
    }
}

/// Runs the turns after those that are there, and acknowledges each once it is durable.
fn write(
    store: &mut Store,
    progressed: &Receiver<()>,
    script: Script,
    turns: u64,
    in_flight: u64,
) -> Result<(), Failure> {
    let before = applied(store, &RefCell::new(States::new(script)))?;
    let (mut submitted, mut acknowledged) = (before, before);
    while acknowledged < turns {
        while submitted < turns && submitted - acknowledged < in_flight {
            submitted += 1;
            turn(store, script, submitted)?;
            // The first is committed alone, while the others gather.
            store.commit_submitted();
        }
        // An error means that the commit thread ended, which the store knows.
        let _ = progressed.recv();
        let durable = before + store.settle().0;
        for turn in acknowledged + 1..=durable {
            acknowledge(turn)?;
        }
        acknowledged = durable;
        if let Some(failure) = store.failure() {
            return Err(failure.into());
        }
    }
    Ok(())
}

fn close(mut store: Store, leave: Option<Leave>) -> Result<(), Failure> {
    let Some(leave) = leave else { return Ok(store.close()?) };
    if leave == Leave::Applied {
        // A snapshot has everything.
        store.reader().ok_or(StorageError::Closed)?.snapshot(|_| Ok(()))?;
    }
    std::process::exit(0)
}

/// Prints one line by one system call, so that a trace has it at the right place.
fn acknowledge(turn: u64) -> std::io::Result<()> {
    std::io::stdout().lock().write_all(format!("ack {turn}\n").as_bytes())
}

fn turn(store: &mut Store, script: Script, number: u64) -> Result<(), StorageError> {
    let turn = script.turn(number);
    let account = store.account(turn.object, Presence::Present, u64::MAX, None)?;
    store.begin(account.clone());
    for (key, value) in &turn.writes {
        match value {
            Some(value) => Some(store.put(&account, key, value, Before::Unknown)?),
            None => store.delete(&account, key, Before::Unknown)?,
        };
    }
    store.submit_turn();
    Ok(())
}

fn open(dir: &Path, log: Log) -> Result<(Store, Receiver<()>), StorageError> {
    // One token is enough: the receiver then checks everything that has happened.
    let (progress, progressed) = sync_channel(1);
    let on_progress = Box::new(move || {
        // If there is a token already, nothing is lost.
        let _ = progress.try_send(());
    });
    let log = log.options();
    let options = StoreOptions { name: "lab".to_owned(), log, metrics: Arc::default() };
    Ok((Store::open(dir, options, on_progress)?, progressed))
}

/// Visits each record in `dir`, an environment that isn't otherwise in use.
///
/// # Errors
/// The storage can't be opened, or fails. Nothing was changed.
pub fn records(dir: &Path, mut visit: impl FnMut(OnDisk)) -> error::Result<()> {
    let (mut store, _progressed) = open(dir, Log::default())?;
    let mut objects = Vec::new();
    store.objects(&mut |object, _, _| objects.push(object))?;
    let reader = store.reader().ok_or(StorageError::Closed)?;
    for object in objects {
        for space in (0..=u8::MAX).filter_map(Space::from_byte) {
            reader.scan(object, space, &Range::all(), &mut |key, value| {
                visit(OnDisk { object: object.as_bytes(), space: space as u8, key, value });
                ControlFlow::Continue(())
            })?;
        }
    }
    Ok(store.close()?)
}

/// Answers each path with one line.
fn check(script: Script) -> Result<(), Failure> {
    let states = RefCell::new(States::new(script));
    for line in std::io::stdin().lock().lines() {
        let found = check_one(Path::new(&line?), &states);
        let answer = match found {
            Ok(applied) => serde_json::json!({ "applied": applied }),
            Err(failure) => serde_json::json!({ "wrong": failure.to_string() }),
        };
        writeln!(std::io::stdout().lock(), "{answer}")?;
    }
    Ok(())
}

/// The number of turns that are there. It checks before it opens, as a server does.
fn check_one(dir: &Path, states: &RefCell<States>) -> Result<u64, Failure> {
    storage::check(dir, Kind::Objects, Owner::ours())?;
    let (mut store, _progressed) = open(dir, Log::default())?;
    let applied = applied(&store, states)?;
    store.close()?;
    Ok(applied)
}

/// The number of turns that are there, provided that all their writes are, and nothing else.
fn applied(store: &Store, states: &RefCell<States>) -> Result<u64, Failure> {
    let (mut applied, mut states) = (0, states.borrow_mut());
    for object in Script::objects() {
        let last = store.get(object, Space::Data, LAST)?.unwrap_or_default();
        let last = <[u8; 8]>::try_from(last).map_or(0, u64::from_be_bytes);
        applied = applied.max(last);
    }
    let expected = states.after(applied);
    for Record { object, key } in states.script().records() {
        let found = store.get(object, Space::Data, &key)?;
        let expected = expected.get(&(object, key.clone())).map(|value| &value[..]);
        if found.as_deref() != expected {
            let key = key.escape_ascii();
            let (found, expected) = (found.map(|value| value.len()), expected.map(<[u8]>::len));
            return Err(Failure::Wrong(format!(
                "after turn {applied}, key {key} of object {object:?} has {found:?} bytes, and \
                 {expected:?} bytes were written"
            )));
        }
    }
    for object in Script::objects() {
        let records = expected.iter().filter(|((of, _), _)| *of == object);
        let expected = records.fold(Usage::default(), |usage, ((_, key), value)| {
            usage.changed(key.len(), None, Some(value.len()))
        });
        let found = store.account(object, Presence::Present, u64::MAX, None)?.usage();
        if found != expected {
            let text = format!("object {object:?} has {found:?} on record, and {expected:?}");
            return Err(Failure::Wrong(text));
        }
    }
    Ok(applied)
}
