//! The lab `inject`, first part: the storage dies or gets an error at a chosen write or sync.
//!
//! Each write and each sync of the data file is hit in turn: the process is killed there, or the
//! call fails as on a broken or full disk. Afterwards the acknowledged turns must be there, whole
//! and in order, and besides them at most the turns under way. After an error the process must sync
//! nothing more, and exit with code 3 and one sentence; the next process continues from there.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitStatus;

use crate::checker::Checker;
use crate::lab::{Counts, Found, ensure, quick_scratch};
use crate::options::Tier;
use crate::strace::{How, finished, under};
use crate::support::Process;
use crate::writer::{IN_FLIGHT, Script, acknowledged};

const KEYS: u64 = 8;
/// Fewer faults would prove little.
const FAULTS_MIN: u64 = 10;
/// The calls of LMDB on its data file.
const CALLS: [&str; 3] = ["pwrite64", "writev", "fdatasync"];

/// The fault of the chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    BrokenDisk,
    FullDisk,
}

impl Fault {
    const ALL: [Self; 3] = [Self::Kill, Self::BrokenDisk, Self::FullDisk];

    fn for_strace(self) -> &'static str {
        match self {
            Self::Kill => "signal=SIGKILL",
            Self::BrokenDisk => "error=EIO",
            Self::FullDisk => "error=ENOSPC",
        }
    }
}

pub(crate) fn run(tier: Tier, seed: u64) -> Found {
    let script = Script { seed, keys: KEYS };
    let turns = tier.pick(60, 100);
    let every = tier.pick(10, 1);
    let mut counts = Counts::new();
    let mut checker = Checker::new(script.arguments());
    for (call, total) in calls(script, turns) {
        for fault in Fault::ALL {
            // Each seed hits other calls.
            let first = 1 + seed % every;
            for nth in (first..=total).step_by(usize::try_from(every).expect("it is small")) {
                let what = format!("{call}:{}:when={nth}", fault.for_strace());
                one(script, turns, fault, &what, &mut checker, &mut counts)
                    .map_err(|error| format!("{what}: {error}"))?;
            }
        }
    }
    let hit = counts.get("faults").copied().unwrap_or(0);
    ensure(hit >= FAULTS_MIN, || format!("only {hit} calls could be hit"))?;
    Ok(counts)
}

/// The number of times that a run without faults makes each call on its data file, in its busiest
/// thread.
fn calls(script: Script, turns: u64) -> Vec<(&'static str, u64)> {
    let folder = quick_scratch();
    let environment = folder.path().join("e");
    script.make(&environment);
    let trace = folder.path().join("trace");
    let (what, file) = ("fsync:error=EIO:when=9999".to_owned(), environment.join("data.mdb"));
    let how = How::Inject { what, file: &file };
    let mut process = Process::start(under(&how, &trace, &script.write(&environment, turns)));
    assert!(process.wait().success(), "{}", process.stderr());
    let trace = finished(&trace);
    let mut made: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let Some((name, _)) = call.trim_start().split_once('(') else { continue };
        *made.entry((name, thread)).or_default() += 1;
    }
    let most = |call| {
        let threads = made.iter().filter(|((name, _), _)| *name == call);
        (call, threads.map(|(_, number)| *number).max().unwrap_or(0))
    };
    CALLS.map(most).to_vec()
}

/// One run with one fault, and a check of its remains.
fn one(
    script: Script,
    turns: u64,
    fault: Fault,
    what: &str,
    checker: &mut Checker,
    counts: &mut Counts,
) -> Result<(), String> {
    let folder = quick_scratch();
    let environment = folder.path().join("e");
    script.make(&environment);
    let (trace, file) = (folder.path().join("trace"), environment.join("data.mdb"));
    let how = How::Inject { what: what.to_owned(), file: &file };
    let mut process = Process::start(under(&how, &trace, &script.write(&environment, turns)));
    let status = process.wait();
    let trace = finished(&trace);
    *counts.entry("runs").or_default() += 1;
    let acknowledged = acknowledged(&process.stdout());
    if status.success() && acknowledged == turns && !trace.contains("INJECTED") {
        // Turns were grouped differently this time, and there were fewer calls.
        return Ok(());
    }
    judge_end(fault, status, &process.stderr(), &trace)?;
    *counts.entry("faults").or_default() += 1;
    *counts.entry("acknowledged").or_default() += acknowledged;
    let applied = checker.look(&environment)?;
    ensure((acknowledged..=acknowledged + IN_FLIGHT).contains(&applied), || {
        format!("turn {acknowledged} was the last one acknowledged, and {applied} turns are there")
    })?;
    go_on(script, &environment, turns, checker)
}

/// Checks that the process ended as it must after this fault.
fn judge_end(fault: Fault, status: ExitStatus, stderr: &str, trace: &str) -> Result<(), String> {
    if fault == Fault::Kill {
        return ensure(status.code().is_none(), || format!("it was not killed: {status}"));
    }
    ensure(status.code() == Some(3), || format!("it ended with {status} and not with code 3"))?;
    let is_sentence =
        stderr.starts_with("capstead: the storage failed") && stderr.lines().count() == 1;
    ensure(is_sentence, || format!("standard error is no sentence: {stderr}"))?;
    stopped(trace)
}

/// Checks that no sync and no write of a turn follows the call that failed.
pub(crate) fn stopped(trace: &str) -> Result<(), String> {
    let mut lines = trace.lines().skip_while(|line| !line.contains("(INJECTED)"));
    let failed = lines.next().ok_or("the fault did not happen")?;
    let count = |calls: &[&str]| {
        let is_one = |line: &&str| calls.iter().any(|call| line.contains(&format!(" {call}(")));
        lines.clone().filter(is_one).count()
    };
    ensure(count(&["fdatasync", "fsync"]) == 0, || "it synced again after an error".to_owned())?;
    // If LMDB can't write its meta page, it puts the old one back.
    let undone = usize::from(failed.contains(" pwrite64("));
    ensure(count(&["pwrite64", "pwritev", "writev", "write"]) <= undone, || {
        "it wrote again after an error".to_owned()
    })
}

/// Checks that the remains can be written to as before.
fn go_on(
    script: Script,
    environment: &Path,
    turns: u64,
    checker: &mut Checker,
) -> Result<(), String> {
    let mut process = Process::start(script.write(environment, turns));
    let status = process.wait();
    ensure(status.success(), || format!("it could not go on: {}", process.stderr()))?;
    let applied = checker.look(environment)?;
    ensure(applied == turns, || format!("it went on to turn {turns}, and {applied} are there"))
}
