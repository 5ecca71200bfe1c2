//! A process that runs only the storage: it writes turns from a script, and reports the durable
//! ones.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::Process;

/// The first argument with which this program runs only the storage.
pub(crate) const STORAGE: &str = "storage";

/// Turns that wait for the disk at a time; as many may be there without an acknowledgement.
pub(crate) const IN_FLIGHT: u64 = 4;

/// The script: it determines the turns that are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Script {
    pub(crate) seed: u64,
    /// Keys of each object; with many keys the data grow.
    pub(crate) keys: u64,
}

impl Script {
    /// The arguments that the hidden verb takes.
    pub(crate) fn arguments(self) -> Vec<String> {
        let Self { seed, keys } = self;
        vec!["--seed".into(), seed.to_string(), "--keys".into(), keys.to_string()]
    }

    /// Writes the turns after the existing ones, up to and including `last`.
    pub(crate) fn write(self, environment: &Path, last: u64) -> Command {
        let mut command = storage("write");
        command.arg("--dir");
        let (last, in_flight) = (last.to_string(), IN_FLIGHT.to_string());
        command.arg(environment).args(self.arguments());
        command.args(["--turns", &last, "--in-flight", &in_flight]);
        command
    }

    /// Makes an environment without turns.
    pub(crate) fn make(self, environment: &Path) {
        let mut process = Process::start(self.write(environment, 0));
        assert!(process.wait().success(), "{}", process.stderr());
    }
}

/// This program as the storage alone.
pub(crate) fn storage(verb: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args([STORAGE, verb]).stdin(Stdio::null());
    command
}

/// The last turn that was acknowledged on standard output.
pub(crate) fn acknowledged(output: &str) -> u64 {
    // A line that was cut off by a kill doesn't count.
    let whole = output.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let last = whole.lines().last().and_then(|line| line.strip_prefix("ack ")?.parse().ok());
    last.unwrap_or(0)
}
