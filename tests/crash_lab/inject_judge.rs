//! The end that a fault must have, judged by the trace of the calls on the files.
//!
//! After an error of a write or sync that an answer waits for, or of LMDB's file, nothing more may
//! be written and synced, and the process must exit with code 3 and one sentence. Errors while a
//! future segment is made, or an old one is given up, cost nothing as long as there is another.

use std::process::ExitStatus;

use crate::lab::ensure;

/// The fault of the chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Kill,
    BrokenDisk,
    FullDisk,
}

/// The files whose calls count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// LMDB's.
    Data,
    /// The segments of the log, the spare ones, and the folder.
    Log,
}

impl Fault {
    pub(crate) const ALL: [Self; 3] = [Self::Kill, Self::BrokenDisk, Self::FullDisk];

    pub(crate) fn for_strace(self) -> &'static str {
        match self {
            Self::Kill => "signal=SIGKILL",
            Self::BrokenDisk => "error=EIO",
            Self::FullDisk => "error=ENOSPC",
        }
    }
}

impl Files {
    /// The name of the count of faults.
    pub(crate) fn faults(self) -> &'static str {
        match self {
            Self::Data => "faults of LMDB's file",
            Self::Log => "faults of the log",
        }
    }
}

/// Checks that the process ended as it must after this fault; returns whether it went on to its
/// last turn, which `was_whole` tells.
pub(crate) fn judge_end(
    fault: Fault,
    files: Files,
    (status, stderr): (ExitStatus, &str),
    trace: &str,
    was_whole: bool,
) -> Result<bool, String> {
    if fault == Fault::Kill {
        ensure(status.code().is_none(), || format!("it was not killed: {status}"))?;
        return Ok(false);
    }
    if was_whole && files == Files::Log && !is_final(fault, trace)? {
        return Ok(true);
    }
    ensure(status.code() == Some(3), || format!("it ended with {status} and not with code 3"))?;
    let is_sentence =
        stderr.starts_with("capstead: the storage failed") && stderr.lines().count() == 1;
    ensure(is_sentence, || format!("standard error is no sentence: {stderr}"))?;
    if files == Files::Data || is_final(fault, trace)? {
        stopped(files, trace)?;
    }
    Ok(false)
}

/// Tells whether the fault must end the process: a failed sync of an entry, or any broken call of
/// the thread that appends entries.
fn is_final(fault: Fault, trace: &str) -> Result<bool, String> {
    let failed = failed(trace)?;
    let is_of_committer = || {
        let is_first = |line: &&str| {
            let makes = line.contains("O_CREAT") || line.contains(" rename(");
            makes && line.contains("/segment-1\"")
        };
        let committer = trace.lines().find(is_first).map(thread);
        committer == Some(thread(failed))
    };
    // At the end it gives up the log, which the next process would do otherwise.
    let is_listing = failed.contains("O_DIRECTORY");
    let to = failed.rsplit_once(", ").map_or("", |(_, to)| to);
    let is_spare = failed.contains(" rename(") && to.contains("/spare-");
    let gives_up = is_listing || is_spare || failed.contains(" unlink(");
    let is_broken = fault == Fault::BrokenDisk && !gives_up;
    Ok(failed.contains(" fdatasync(") || is_broken && is_of_committer())
}

/// Checks that no sync and no write of a turn follows the call that failed: to these files at all,
/// or, to the log, by its thread.
pub(crate) fn stopped(files: Files, trace: &str) -> Result<(), String> {
    let failed = failed(trace)?;
    let mut lines = trace.lines().skip_while(|line| !line.contains("(INJECTED)"));
    lines.next();
    let lines: Vec<&str> =
        lines.filter(|line| files == Files::Data || thread(line) == thread(failed)).collect();
    let count = |calls: &[&str]| {
        let is_one = |line: &&&str| calls.iter().any(|call| line.contains(&format!(" {call}(")));
        lines.iter().filter(is_one).count()
    };
    ensure(count(&["fdatasync", "fsync"]) == 0, || "it synced again after an error".to_owned())?;
    // If LMDB can't write its meta page, it puts the old one back.
    let undone = usize::from(files == Files::Data && failed.contains(" pwrite64("));
    ensure(count(&["pwrite64", "pwritev", "writev", "write"]) <= undone, || {
        "it wrote again after an error".to_owned()
    })
}

fn failed(trace: &str) -> Result<&str, String> {
    let failed = trace.lines().find(|line| line.contains("(INJECTED)"));
    failed.ok_or_else(|| "the fault did not happen".to_owned())
}

/// The thread that made the call.
fn thread(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}
