//! Shared parts of the tests of whole servers: a server for each test, calls on its counters, and
//! raw HTTP.
//!
//! A server is a child process on ports that the operating system chose; it is killed when it is
//! dropped, whatever the outcome of the test. Every wait has a deadline, and none has a fixed
//! length.
#![allow(dead_code, reason = "each file of tests uses some of it")]

pub(crate) mod calls;
pub(crate) mod cargo;
pub(crate) mod commands;
pub(crate) mod echo;
pub(crate) mod exchange;
pub(crate) mod http;
pub(crate) mod operator;
pub(crate) mod own;
pub(crate) mod random;
pub(crate) mod raw;
pub(crate) mod tree;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, PipeReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longer than anything here takes, even on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

/// The time between two checks of a condition that has no event.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The announcement of a server with `--json`.
#[derive(Clone, Debug)]
pub(crate) struct Announced {
    /// `host:port`
    pub(crate) capnp: String,
    /// `host:port`, without the scheme; empty if HTTP is off
    pub(crate) http: String,
    /// `host:port` of the metrics, if they are served
    pub(crate) metrics: Option<String>,
    /// The root reference of each class.
    pub(crate) namespaces: BTreeMap<String, String>,
}

/// A server process with its output in files, so that it never waits for a reader.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    output: TempDir,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Served {
    process: Process,
    pub(crate) announced: Announced,
}

/// The command without any variable of this process's environment that would change it.
pub(crate) fn capstead(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_capstead"));
    let variables = [
        "RUST_LOG",
        "DATA",
        "LISTEN",
        "ADVERTISE",
        "TLS",
        "HTTP",
        "ROUTES",
        "METRICS",
        "HOSTS",
        "LOG",
        "WARM",
    ];
    for name in variables {
        command.env_remove(name).env_remove(format!("CAPSTEAD_{name}"));
    }
    command.args(args).stdin(Stdio::null());
    command
}

/// The factor for bounds of memory: a call on an object of another host takes memory on both hosts.
pub(crate) fn copies() -> u64 {
    std::env::var("CAPSTEAD_TEST_HOSTS").map_or(1, |hosts| if hosts == "1" { 1 } else { 2 })
}

/// `capstead serve` on `data` with free ports.
///
/// `CAPSTEAD_TEST_HOSTS` sets the number of hosts where a test doesn't, so that the same test runs
/// with one host and with several.
pub(crate) fn serve_command(data: &Path, args: &[&str]) -> Command {
    let mut command = capstead(["serve", "--listen", "127.0.0.1:0"]);
    command.arg("--data").arg(data).args(args);
    if !args.contains(&"--http") {
        command.args(["--http", "127.0.0.1:0"]);
    }
    if let Ok(hosts) = std::env::var("CAPSTEAD_TEST_HOSTS")
        && !args.contains(&"--hosts")
    {
        command.args(["--hosts", &hosts]);
    }
    command
}

/// Serves `data`, and the metrics too.
pub(crate) fn serve(data: &Path) -> Served {
    serve_with(data, &[])
}

/// As [`serve`], with more flags.
pub(crate) fn serve_with(data: &Path, args: &[&str]) -> Served {
    let args = [&["--json", "--metrics", "127.0.0.1:0"], args].concat();
    Served::ready(Process::start(serve_command(data, &args)))
}

/// Runs a start that is refused; returns the exit code and standard error.
pub(crate) fn refused_start(command: Command) -> (Option<i32>, String) {
    let mut process = Process::start(command);
    let status = eventually("the refusal", || {
        assert_eq!(process.stdout(), "", "it was not refused");
        process.child.try_wait().expect("the child is ours")
    });
    (status.code(), process.stderr())
}

impl Process {
    pub(crate) fn start(command: Command) -> Self {
        Self::start_to(command, |file| file)
    }

    /// Starts it with standard error where `stderr` says, and not in the file that it gets.
    pub(crate) fn start_to(mut command: Command, stderr: impl FnOnce(File) -> File) -> Self {
        let output = tempfile::tempdir().expect("a folder for the output");
        let file = |name| File::create(output.path().join(name)).expect("a file for the output");
        let child = command.stdout(file("stdout")).stderr(stderr(file("stderr"))).spawn();
        Self { child: child.expect("the command runs"), output }
    }

    pub(crate) fn stdout(&self) -> String {
        self.read("stdout")
    }

    pub(crate) fn stderr(&self) -> String {
        self.read("stderr")
    }

    fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.output.path().join(name)).expect("the output is there");
        String::from_utf8(bytes).expect("output is text")
    }

    /// Waits until `found` returns something for standard output.
    pub(crate) fn wait_for_stdout<T>(&mut self, found: impl Fn(&str) -> Option<T>) -> T {
        eventually("the announcement", || {
            let found = found(&self.stdout());
            if found.is_none()
                && let Some(status) = self.child.try_wait().expect("the child is ours")
            {
                panic!("the server ended with {status} before it was ready: {}", self.stderr());
            }
            found
        })
    }

    /// Sends a signal by its name, without `SIG`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let kill = Command::new("sh").args(["-c", r#"kill -s "$0" "$1""#, name, &pid]).status();
        assert!(kill.expect("there is a shell").success(), "the process takes signals");
    }

    /// `kill -9`, and waits until nothing of the process is left.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the child is ours");
        self.child.wait().expect("the child is ours");
    }

    /// The exit status, if the process has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child is ours")
    }

    /// Waits for the process to end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the end of the process", || child.try_wait().expect("the child is ours"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Served {
    /// Waits for the announcement of a server that was started with `--json`.
    pub(crate) fn ready(mut process: Process) -> Self {
        // A test program prints lines of its own before it.
        let announcement = |line: &&str| line.starts_with('{') && line.ends_with('\n');
        let announced = process
            .wait_for_stdout(|text| text.split_inclusive('\n').find(announcement).map(parse));
        Self { process, announced }
    }

    /// The root reference of the counters.
    pub(crate) fn counters(&self) -> &str {
        &self.announced.namespaces["Counter"]
    }

    /// Sends a signal by its name, without `SIG`, to end the process.
    pub(crate) fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Waits for the end; returns the exit code, standard output and standard error.
    pub(crate) fn wait(mut self) -> (Option<i32>, String, String) {
        let status = self.process.wait();
        (status.code(), self.process.stdout(), self.process.stderr())
    }

    /// Ends the server in order.
    pub(crate) fn stop(self) -> (Option<i32>, String, String) {
        self.signal("TERM");
        self.wait()
    }

    /// The resident memory of the process, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.child.id());
        let status = fs::read_to_string(path).expect("the process runs");
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
        kib.and_then(|kib| kib.trim().parse::<u64>().ok()).expect("it has memory") << 10
    }

    /// The processor time that the server took so far, in seconds.
    pub(crate) fn processor_secs(&self) -> f64 {
        const TICKS_A_SECOND: f64 = 100.0;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it runs");
        // The name of the program is in parentheses, and may contain spaces.
        let (_, fields) = stat.rsplit_once(')').expect("it has a name");
        let ticks = fields.split_whitespace().skip(11).take(2);
        ticks.map(|field| field.parse::<f64>().expect("a number")).sum::<f64>() / TICKS_A_SECOND
    }

    /// The number of times that a limit of connections took effect.
    pub(crate) fn bites(&self, limit: &str) -> u64 {
        self.metric(&format!("limits_total{{limit=\"{limit}\"}}"))
    }

    /// Waits for the end, for whatever reason it comes.
    pub(crate) fn end(&mut self) -> ExitStatus {
        self.process.wait()
    }

    pub(crate) fn stderr(&self) -> String {
        self.process.stderr()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// The metric of that name, without `capstead_`.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let address = self.announced.metrics.as_deref().expect("the numbers are served");
        let page = http::get(address, "/metrics");
        assert_eq!(page.status, 200);
        let start = format!("capstead_{name} ");
        let value = page.body.lines().find_map(|line| line.strip_prefix(&start));
        value.unwrap_or_else(|| panic!("{name} is on the page")).parse().expect("it is a number")
    }
}

fn parse(line: &str) -> Announced {
    let line: serde_json::Value = serde_json::from_str(line).expect("the line is JSON");
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let address = |value: &serde_json::Value| {
        let rest = value.as_str()?.split_once("://")?.1;
        Some(rest.trim_end_matches("/metrics").to_owned())
    };
    let namespaces = line["namespaces"].as_object().expect("there are namespaces").iter();
    let namespaces = namespaces
        .map(|(class, reference)| (class.clone(), text(reference).expect("a reference is text")));
    Announced {
        capnp: text(&line["capnp"]).expect("an address"),
        http: address(&line["http"]).unwrap_or_default(),
        metrics: address(&line["metrics"]),
        namespaces: namespaces.collect(),
    }
}

/// Polls `look` until it returns something; fails at the deadline.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        std::thread::sleep(LOOK_AGAIN);
    }
}

#[expect(clippy::disallowed_methods, reason = "tests measure real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// An address for a server that can't report the one it got. Its port is below those that the
/// system gives to connections, so no other test takes it meanwhile.
pub(crate) fn free_address() -> String {
    let start = getrandom::u32().expect("there is randomness");
    let mut ports = (0..10_000).map(|step| 20_000 + (start.wrapping_add(step) % 10_000) as u16);
    let free = ports.find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    free.expect("a port is free").local_addr().expect("it has an address").to_string()
}

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A new folder, and the path of a data directory in it that doesn't exist yet.
pub(crate) fn scratch() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("capstead.data");
    (folder, data)
}

/// A pipe that takes no more bytes.
pub(crate) fn full_pipe() -> (PipeReader, File) {
    let (reader, writer) = io::pipe().expect("a pipe");
    let mut writer = File::from(std::os::fd::OwnedFd::from(writer));
    let flags = rustix::fs::fcntl_getfl(&writer).expect("it is a pipe");
    rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).expect("it is a pipe");
    while writer.write(&[b'.'; 1 << 12]).is_ok() {}
    while writer.write(b".").is_ok() {}
    rustix::fs::fcntl_setfl(&writer, flags).expect("it is a pipe");
    (reader, writer)
}
