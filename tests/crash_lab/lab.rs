//! The labs by name: the requirements of each on the machine, and its implementation.
//!
//! A lab returns its counts, or a sentence that names the broken promise.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;
use tempfile::TempDir;

use crate::options::Tier;
use crate::{full, inject, inject_server, kill, replay, restart, rot, rot_log};

/// The counts of a lab, by name.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

/// The result of a lab: its counts, or the promise that was broken.
pub(crate) type Found = Result<Counts, String>;

/// One way to crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lab {
    /// kill -9 of the server under load
    Kill,
    /// Death or an error at a chosen write or sync of the storage, and of a server
    Inject,
    /// A disk that is really full, and then larger
    Full,
    /// The states that a loss of power may leave of recorded writes
    Replay,
    /// A bit of the data that has changed
    Rot,
}

impl Lab {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Inject => "inject",
            Self::Full => "full",
            Self::Replay => "replay",
            Self::Rot => "rot",
        }
    }

    /// The requirement that the machine doesn't meet, and the way to meet it.
    pub(crate) fn lacks(self) -> Option<&'static str> {
        match self {
            Self::Kill | Self::Rot => None,
            Self::Inject | Self::Replay => {
                let missing = "it needs strace, and the right to trace: install the package strace";
                (!runs("strace", &["-qq", "-o", "/dev/null", "true"])).then_some(missing)
            }
            Self::Full => {
                (!can_mount()).then_some("it needs to mount file systems: run it as root")
            }
        }
    }

    /// Runs the lab once.
    pub(crate) fn run(self, tier: Tier, seed: u64) -> Found {
        match self {
            Self::Kill => {
                let mut counts = kill::run(tier, seed)?;
                if tier == Tier::Deep {
                    add(&mut counts, restart::run(seed)?);
                }
                Ok(counts)
            }
            Self::Inject => {
                let mut counts = inject::run(tier, seed)?;
                add(&mut counts, inject_server::run(tier, seed)?);
                Ok(counts)
            }
            Self::Full => full::run(tier, seed),
            Self::Replay => replay::run(tier, seed),
            Self::Rot => {
                let mut counts = rot::run(tier, seed)?;
                add(&mut counts, rot_log::run(tier, seed)?);
                Ok(counts)
            }
        }
    }
}

/// Adds the counts of two runs. Times are not added: the longer one counts.
pub(crate) fn add(counts: &mut Counts, more: Counts) {
    for (name, count) in more {
        let sum = counts.entry(name).or_default();
        *sum = if name.ends_with("_ms") { count.max(*sum) } else { *sum + count };
    }
}

/// Fails with the sentence unless `holds` is true.
pub(crate) fn ensure(holds: bool, sentence: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(sentence()) }
}

/// A folder in memory if possible: these labs make their own disasters.
pub(crate) fn quick_scratch() -> TempDir {
    let shared_memory = Path::new("/dev/shm");
    tempfile::tempdir_in(shared_memory).or_else(|_| tempfile::tempdir()).expect("a folder")
}

/// The folder for files that explain a failure.
pub(crate) fn evidence(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Tells whether the command exists and succeeds.
pub(crate) fn runs(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn can_mount() -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().display().to_string();
    let mounted = runs("mount", &["-t", "tmpfs", "-o", "size=64k", "crash-lab", &path]);
    mounted && runs("umount", &[&path])
}
