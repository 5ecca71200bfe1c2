//! The labs by name: what each needs of the machine, and where its work is done.
//!
//! A lab returns what it counted, or the sentence that says which promise was broken.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;
use tempfile::TempDir;

use crate::options::Tier;
use crate::{full, inject, inject_server, kill, replay, rot};

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

    /// The thing that the machine lacks for it, and the way to mend that.
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

    /// Runs it once.
    pub(crate) fn run(self, tier: Tier, seed: u64) -> Found {
        match self {
            Self::Kill => kill::run(tier, seed),
            Self::Inject => {
                let mut counts = inject::run(tier, seed)?;
                add(&mut counts, inject_server::run(tier, seed)?);
                Ok(counts)
            }
            Self::Full => full::run(tier, seed),
            Self::Replay => replay::run(tier, seed),
            Self::Rot => rot::run(tier, seed),
        }
    }
}

/// Adds up what two runs counted; times are not added: the longest counts.
pub(crate) fn add(counts: &mut Counts, more: Counts) {
    for (name, count) in more {
        let sum = counts.entry(name).or_default();
        *sum = if name.ends_with("_ms") { count.max(*sum) } else { *sum + count };
    }
}

/// Fails with a sentence unless it holds.
pub(crate) fn ensure(holds: bool, sentence: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(sentence()) }
}

/// A folder in memory where that is possible: these labs make their own disasters.
pub(crate) fn quick_scratch() -> TempDir {
    let shared_memory = Path::new("/dev/shm");
    tempfile::tempdir_in(shared_memory).or_else(|_| tempfile::tempdir()).expect("a folder")
}

/// The place of what explains a failure.
pub(crate) fn evidence(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Tells whether the command is there and succeeds.
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
