//! A process that runs only the storage: it writes turns from a script, and reports the durable
//! ones.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::Process;

/// The first argument with which this program runs only the storage.
pub(crate) const STORAGE: &str = "storage";

/// Turns that wait for the disk at a time; as many may be there without an acknowledgement.
pub(crate) const IN_FLIGHT: u64 = 4;

/// Segments of the log of this length are filled by a few turns.
const SEGMENT_BYTES: u64 = 64 << 10;

/// The script: it determines the turns that are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Script {
    pub(crate) seed: u64,
    /// Keys of each object; with many keys the data grow.
    pub(crate) keys: u64,
}

/// The log of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Log {
    /// As a server has it.
    #[default]
    Usual,
    /// Each entry is applied at once, and the log goes from one short segment to the next.
    Busy,
    /// Segments are as short, and a few entries are applied together.
    Slow,
    /// Nothing is applied before the end.
    Behind,
    /// The same, with segments as a server has them, and without a bound.
    Large,
}

/// The end of a process that has written all its turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Everything was applied, and there is no log any more.
    InOrder,
    /// The process ended without closing the storage.
    Behind,
    /// The same, after everything was applied.
    Applied,
}

impl Log {
    fn arguments(self) -> Vec<String> {
        let all = |backlog: &str, number: u64| {
            let segment = SEGMENT_BYTES.to_string();
            vec!["--segment-bytes".into(), segment, backlog.to_owned(), number.to_string()]
        };
        match self {
            Self::Usual => Vec::new(),
            Self::Busy => all("--backlog-bytes", 8),
            Self::Slow => all("--backlog-ms", 25),
            Self::Behind => all("--backlog-ms", 3_600_000),
            Self::Large => {
                let bytes = (1_u64 << 40).to_string();
                let text = ["--backlog-ms", "3600000", "--backlog-bytes", &bytes];
                text.map(str::to_owned).to_vec()
            }
        }
    }
}

impl Script {
    /// The arguments that the hidden verb takes.
    pub(crate) fn arguments(self) -> Vec<String> {
        let Self { seed, keys } = self;
        vec!["--seed".into(), seed.to_string(), "--keys".into(), keys.to_string()]
    }

    /// Writes the turns after the existing ones, up to and including `last`, with this log.
    pub(crate) fn write(self, environment: &Path, last: u64, log: Log) -> Command {
        let mut command = storage("write");
        command.arg("--dir");
        // Large groups are written sooner.
        let in_flight = if log == Log::Large { 256 } else { IN_FLIGHT };
        let (last, in_flight) = (last.to_string(), in_flight.to_string());
        command.arg(environment).args(self.arguments()).args(log.arguments());
        command.args(["--turns", &last, "--in-flight", &in_flight]);
        command
    }

    /// Makes an environment with this number of turns and this log.
    pub(crate) fn make(self, environment: &Path, turns: u64, log: Log, end: End) {
        let mut command = self.write(environment, turns, log);
        let leave = match end {
            End::InOrder => None,
            End::Behind => Some("behind"),
            End::Applied => Some("applied"),
        };
        command.args(leave.map(|how| ["--leave", how]).iter().flatten());
        let mut process = Process::start(command);
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
