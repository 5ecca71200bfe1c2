//! Servers in separate processes, which end with their owner, and their announcements and metrics.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::measure::{Cpu, Sample, float};
use capstead::{Result, failed};

/// The ticks in which the kernel counts processor time; the same on every Linux that user programs
/// see.
const TICKS_PER_SECOND: f64 = 100.0;

/// A child process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// Kept open, because a server that can't print may end.
    stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts this program with `args`, and waits for the line that says it is ready.
    ///
    /// # Errors
    /// When the process ends before that; its complaint is on standard error.
    pub(crate) fn start(args: impl IntoIterator<Item: AsRef<OsStr>>) -> Result<(Self, String)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        // Settings for the user's own servers don't apply to this one.
        let ours = std::env::vars_os().map(|(name, _)| name);
        for name in ours.filter(|name| name.to_string_lossy().starts_with("CAPSTEAD_")) {
            command.env_remove(name);
        }
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "warn");
        }
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| failed("the child has no output"))?;
        let mut process = Self { child, stdout: BufReader::new(stdout) };
        let mut ready = String::new();
        process.stdout.read_line(&mut ready)?;
        if ready.is_empty() {
            return Err(failed("a server ended before it was ready"));
        }
        Ok((process, ready.trim_end().to_owned()))
    }

    /// Asks the process to end in order, and waits until it has.
    ///
    /// # Errors
    /// When it can't be asked, or ends with another code than 0.
    pub(crate) fn terminate(mut self) -> Result<()> {
        let id = self.child.id().to_string();
        let asked = Command::new("sh").args(["-c", "kill -TERM \"$1\"", "kill", &id]).status()?;
        if !asked.success() {
            return Err(failed("a server can't be asked to end"));
        }
        let ended = self.child.wait()?;
        if ended.success() { Ok(()) } else { Err(failed(format!("a server ended: {ended}"))) }
    }

    /// Runs a measurement, and records its processor time in this process and in the child.
    ///
    /// # Errors
    /// When the measurement fails, or the system doesn't report the times.
    pub(crate) async fn watch(&self, run: impl Future<Output = Result<Sample>>) -> Result<Sample> {
        let id = self.child.id().to_string();
        let (load, server) = (cpu_seconds("self")?, cpu_seconds(&id)?);
        let sample = run.await?;
        let (load, server) = (cpu_seconds("self")? - load, cpu_seconds(&id)? - server);
        Ok(sample.costing(Cpu { load, server }))
    }

    /// The resident memory in bytes: all of it, and the part that isn't backed by files.
    ///
    /// # Errors
    /// When the system doesn't report it.
    pub(crate) fn resident_bytes(&self) -> Result<(f64, f64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kilobytes: Option<u64> =
                line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            kilobytes
                .map(|kilobytes| float(kilobytes * 1024))
                .ok_or_else(|| failed("no memory figures"))
        };
        Ok((field("VmRSS:")?, field("RssAnon:")?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processor time that a process has used, in seconds.
fn cpu_seconds(process: &str) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name may contain spaces; the third field follows its closing parenthesis.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks = fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap_or_default());
    Ok(float(ticks.sum()) / TICKS_PER_SECOND)
}

/// A whole Capstead server.
#[derive(Debug)]
pub(crate) struct Capstead {
    pub(crate) process: Process,
    pub(crate) capnp: String,
    /// `host:port`.
    pub(crate) http: String,
    metrics: String,
    /// The reference of the counters.
    pub(crate) counters: String,
    /// The sturdyref of the namespace of `Probe`.
    pub(crate) probes: String,
}

impl Capstead {
    /// Serves the data in `data`, with additional flags.
    ///
    /// # Errors
    /// When the server doesn't start, or doesn't announce its addresses.
    pub(crate) fn start(data: &Path, flags: &[&str]) -> Result<Self> {
        let fixed = "--json --listen 127.0.0.1:0 --http 127.0.0.1:0 --metrics 127.0.0.1:0 --data";
        let args = ["serve"].into_iter().chain(fixed.split(' ')).map(PathBuf::from);
        let args = args.chain([data.to_owned()]);
        let (process, ready) = Process::start(args.chain(flags.iter().map(PathBuf::from)))?;
        let ready: Value =
            serde_json::from_str(&ready).map_err(|error| failed(error.to_string()))?;
        let text = |value: &Value| {
            let text = value.as_str().map(|text| text.trim_start_matches("http://").to_owned());
            text.ok_or_else(|| failed("the server doesn't say where it is"))
        };
        Ok(Self {
            process,
            capnp: text(&ready["capnp"])?,
            http: text(&ready["http"])?,
            metrics: text(&ready["metrics"])?.trim_end_matches("/metrics").to_owned(),
            counters: text(&ready["namespaces"]["Counter"])?,
            probes: text(&ready["namespaces"]["Probe"])?,
        })
    }

    /// The metric of this name from the server's page.
    ///
    /// # Errors
    /// When the page can't be read, or lacks this metric.
    pub(crate) async fn metric(&self, name: &str) -> Result<u64> {
        let mut stream = TcpStream::connect(&self.metrics).await?;
        let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut page = String::new();
        stream.read_to_string(&mut page).await?;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = line.and_then(|value| value.trim().parse().ok());
        value.ok_or_else(|| failed(format!("the server has no metric named {name}")))
    }
}
