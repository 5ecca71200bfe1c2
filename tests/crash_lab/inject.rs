//! The lab `inject`, first part: the storage dies or gets an error at a chosen call on its files.
//!
//! The writes and syncs of LMDB's file are hit in turn, and those of the log's files, and where
//! these get, change or lose their names, while entries are applied and segments given up. The
//! process is killed there, or the call fails as on a broken or full disk. Afterwards the
//! acknowledged turns must be there, whole and in order, and besides them at most the turns under
//! way. `inject_judge` says how the process must end; the next one continues from there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::checker::Checker;
use crate::folder::DATA;
use crate::inject_judge::{Fault, Files, judge_end};
use crate::lab::{Counts, Found, ensure, quick_scratch};
use crate::options::Tier;
use crate::strace::{How, finished, under};
use crate::support::Process;
use crate::writer::{End, IN_FLIGHT, Log, Script, acknowledged};

const KEYS: u64 = 8;
/// Fewer faults of one kind of files would prove little.
const FAULTS_MIN: u64 = 30;
/// The greatest number of a segment that a run reaches, and more.
const SEGMENTS: u64 = 60;

/// The calls on each kind of file. In the Push tier every third of those that are many is hit, and
/// all of the others.
const CALLS: [(Files, &str, u64); 9] = [
    (Files::Data, "pwrite64", 3),
    (Files::Data, "writev", 3),
    (Files::Data, "fdatasync", 3),
    (Files::Log, "pwrite64", 3),
    (Files::Log, "fdatasync", 3),
    (Files::Log, "fsync", 1),
    (Files::Log, "openat", 1),
    (Files::Log, "rename", 1),
    (Files::Log, "unlink", 1),
];

/// One run: the script, its last turn, the calls that count, and their fault.
struct Run<'a> {
    script: Script,
    turns: u64,
    files: Files,
    fault: Fault,
    what: &'a str,
}

pub(crate) fn run(tier: Tier, seed: u64) -> Found {
    let script = Script { seed, keys: KEYS };
    let turns = tier.pick(60, 100);
    let mut counts = Counts::new();
    let mut checker = Checker::new(script.arguments());
    let made = [Files::Data, Files::Log].map(|files| calls(script, turns, files));
    for (files, call, every) in CALLS {
        let total = made[files as usize].get(call).copied().unwrap_or(0);
        let every = tier.pick(every, 1);
        for fault in Fault::ALL {
            // Each seed hits other calls.
            let first = 1 + seed % every;
            for nth in (first..=total).step_by(usize::try_from(every).expect("it is small")) {
                let what = &format!("{call}:{}:when={nth}", fault.for_strace());
                let run = Run { script, turns, files, fault, what };
                run.go(&mut checker, &mut counts)
                    .map_err(|error| format!("{files:?}, {what}: {error}"))?;
            }
        }
    }
    for kind in [Files::Data.faults(), Files::Log.faults()] {
        let hit = counts.get(kind).copied().unwrap_or(0);
        ensure(hit >= FAULTS_MIN, || format!("only {hit} {kind}"))?;
    }
    Ok(counts)
}

/// The paths of these files.
pub(crate) fn paths(environment: &Path, files: Files) -> Vec<PathBuf> {
    match files {
        Files::Data => vec![environment.join(DATA)],
        Files::Log => {
            let segments = (1..=SEGMENTS).map(|number| format!("segment-{number}"));
            let names = segments.chain(["spare-1".to_owned(), "spare-2".to_owned()]);
            names.map(|name| environment.join(name)).chain([environment.to_owned()]).collect()
        }
    }
}

/// The number of times that a run without faults makes each call on these files, in the thread that
/// makes the most.
fn calls(script: Script, turns: u64, files: Files) -> BTreeMap<String, u64> {
    let folder = quick_scratch();
    let environment = folder.path().join("e");
    script.make(&environment, 0, Log::Usual, End::InOrder);
    let trace = folder.path().join("trace");
    let (what, files) = ("fsync:error=EIO:when=9999".to_owned(), paths(&environment, files));
    let how = How::Inject { what, files: &files };
    let command = script.write(&environment, turns, Log::Busy);
    let mut process = Process::start(under(&how, &trace, &command));
    assert!(process.wait().success(), "{}", process.stderr());
    let trace = finished(&trace);
    let mut made: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let Some((name, _)) = call.trim_start().split_once('(') else { continue };
        *made.entry((name, thread)).or_default() += 1;
    }
    let mut most = BTreeMap::new();
    for ((name, _), number) in made {
        let most: &mut u64 = most.entry(name.to_owned()).or_default();
        *most = number.max(*most);
    }
    most
}

impl Run<'_> {
    /// One run with one fault, and a check of its remains.
    fn go(&self, checker: &mut Checker, counts: &mut Counts) -> Result<(), String> {
        let Self { script, turns, files, fault, what } = *self;
        let folder = quick_scratch();
        let environment = folder.path().join("e");
        script.make(&environment, 0, Log::Usual, End::InOrder);
        let (trace, paths) = (folder.path().join("trace"), paths(&environment, files));
        let how = How::Inject { what: what.to_owned(), files: &paths };
        let command = script.write(&environment, turns, Log::Busy);
        let mut process = Process::start(under(&how, &trace, &command));
        let status = process.wait();
        let trace = finished(&trace);
        *counts.entry("runs").or_default() += 1;
        let acknowledged = acknowledged(&process.stdout());
        let was_whole = status.success() && acknowledged == turns;
        if was_whole && !trace.contains("INJECTED") {
            // Turns were grouped differently this time, and there were fewer calls.
            return Ok(());
        }
        let went_on = judge_end(fault, files, (status, &*process.stderr()), &trace, was_whole)?;
        *counts.entry(files.faults()).or_default() += 1;
        if went_on {
            *counts.entry("faults that cost nothing").or_default() += 1;
        }
        *counts.entry("acknowledged").or_default() += acknowledged;
        let applied = checker.look(&environment)?;
        ensure((acknowledged..=acknowledged + IN_FLIGHT).contains(&applied), || {
            format!("turn {acknowledged} was the last acknowledged, and {applied} turns are there")
        })?;
        go_on(script, &environment, turns, checker)
    }
}

/// Checks that the remains can be written to as before.
fn go_on(
    script: Script,
    environment: &Path,
    turns: u64,
    checker: &mut Checker,
) -> Result<(), String> {
    let mut process = Process::start(script.write(environment, turns, Log::Busy));
    let status = process.wait();
    ensure(status.success(), || format!("it could not go on: {}", process.stderr()))?;
    let applied = checker.look(environment)?;
    ensure(applied == turns, || format!("it went on to turn {turns}, and {applied} are there"))
}
