//! `capstead serve`: flags, what is printed when the server is ready, and how it ends.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::limit::{self, Change};
use super::log::{self, LogFormat};
use super::operator;
use crate::limits::HOSTS_MAX;
use crate::server::{Running, Server, ServerError, TurnLimits};

/// The flags of a server. Where the help names a variable, that may be set instead.
#[derive(Args, Clone, Debug)]
#[command(after_help = limit::after_help())]
pub(crate) struct Options {
    /// The data directory; it is made at the first start [default: capstead.data, or the program's]
    #[arg(long, value_name = "DIR", env = "CAPSTEAD_DATA")]
    data: Option<PathBuf>,
    /// Where to listen for Cap'n Proto; port 0 takes any free one [default: 127.0.0.1:4000]
    #[arg(long, value_name = "ADDR", env = "CAPSTEAD_LISTEN")]
    listen: Option<SocketAddr>,
    /// The host:port in the references that are given out, if clients reach the listener at another
    /// address than its own [default: where it listens]
    #[arg(long, value_name = "ADDR", env = "CAPSTEAD_ADVERTISE")]
    advertise: Option<String>,
    /// Speak Cap'n Proto by TLS alone; an address that isn't a loopback one needs it
    #[arg(long, env = "CAPSTEAD_TLS")]
    tls: bool,
    /// Where to listen for HTTP; port 0 takes any free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", env = "CAPSTEAD_HTTP")]
    http: Option<SocketAddr>,
    /// Where to serve /metrics in the format of Prometheus; off by default
    #[arg(long, value_name = "ADDR", env = "CAPSTEAD_METRICS")]
    metrics: Option<SocketAddr>,
    /// Threads that the objects are spread over; it can't be changed later for the same data
    /// [default: 1]
    #[arg(long, value_name = "N", env = "CAPSTEAD_HOSTS", value_parser = clap::value_parser!(u16).range(1..=i64::from(HOSTS_MAX)))]
    hosts: Option<u16>,
    /// Let each object of a class store so much [default: 10GiB each]
    #[arg(long, value_name = "CLASS=SIZE", value_parser = quota)]
    object_quota: Vec<(String, ByteSize)>,
    /// Let all objects of a class store so much together, on each host [default: no limit]
    #[arg(long, value_name = "CLASS=SIZE", value_parser = quota)]
    class_quota: Vec<(String, ByteSize)>,
    /// Keep so much of the disk free: growth is refused then, and deleting works [default: 5 % of it,
    /// 128MiB to 1GiB]
    #[arg(long, value_name = "SIZE", env = "CAPSTEAD_RESERVE")]
    reserve: Option<ByteSize>,
    /// Address space for the data of each host, which never outgrow it [default: 1TiB]
    #[arg(long, value_name = "SIZE", env = "CAPSTEAD_MAP_SIZE")]
    map_size: Option<ByteSize>,
    /// How long an object stays in memory without a call, like 90s or 5m [default: 1m]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, env = "CAPSTEAD_WARM")]
    warm: Option<Duration>,
    /// Warn of a turn, from one await of a method to the next, that takes so long; 0s: never
    /// [default: 100ms]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    turn_warn: Option<Duration>,
    /// Say at /ready that a host isn't ready while a turn takes so long; 0s: never [default: 250ms]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    turn_unready: Option<Duration>,
    /// Abort the process when a turn takes so long; 0s: never [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    turn_abort: Option<Duration>,
    /// Keep request ids, with the replies to their calls, for so long, like 30min or 7d [default: 24h]
    #[arg(long, value_name = "TIME", env = "CAPSTEAD_REQUEST_RETENTION", value_parser = humantime::parse_duration)]
    request_retention: Option<Duration>,
    /// Change a limit of each Cap'n Proto connection, like `calls=2048`, `call-bytes=16MiB` or
    /// `idle=5m`; may be given several times [names and defaults: see below]
    #[arg(long, value_name = "NAME=VALUE", value_parser = limit::parse)]
    limit: Vec<Change>,
    /// Make every commit take so many milliseconds longer, to try out a slow disk
    #[arg(long, value_name = "MS")]
    commit_delay: Option<u64>,
    /// Print one JSON object on standard output when ready, instead of text
    #[arg(long)]
    json: bool,
    /// The form of log lines, on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t, env = "CAPSTEAD_LOG")]
    log: LogFormat,
}

impl Options {
    /// What was given overrides what the program said.
    fn apply_to(&self, mut server: Server) -> Server {
        if let Some(data) = &self.data {
            server = server.data(data);
        }
        if let Some(address) = self.listen {
            server = server.listen(address);
        }
        if let Some(address) = &self.advertise {
            server = server.advertise(address);
        }
        if self.tls {
            server = server.tls();
        }
        if let Some(address) = self.http {
            server = server.http(address);
        }
        if let Some(address) = self.metrics {
            server = server.metrics(address);
        }
        if let Some(hosts) = self.hosts {
            server = server.hosts(hosts);
        }
        for (class, bytes) in &self.object_quota {
            server = server.object_quota(class, bytes.as_u64());
        }
        for (class, bytes) in &self.class_quota {
            server = server.class_quota(class, bytes.as_u64());
        }
        if let Some(bytes) = self.reserve {
            server = server.reserve(bytes.as_u64());
        }
        if let Some(bytes) = self.map_size {
            server = server.map_size(usize::try_from(bytes.as_u64()).unwrap_or(usize::MAX));
        }
        if let Some(time) = self.warm {
            server = server.warm(time);
        }
        let TurnLimits { warn, unready, abort } = server.turn_limits_mut();
        *warn = self.turn_warn.unwrap_or(*warn);
        *unready = self.turn_unready.unwrap_or(*unready);
        *abort = self.turn_abort.unwrap_or(*abort);
        if let Some(time) = self.request_retention {
            server = server.request_retention(time);
        }
        for change in &self.limit {
            change.apply_to(server.limits_mut());
        }
        if let Some(delay) = self.commit_delay {
            server = server.commit_delay(Duration::from_millis(delay));
        }
        server
    }
}

/// The name of a class and a number of bytes.
fn quota(text: &str) -> Result<(String, ByteSize), String> {
    let (class, size) = text.split_once('=').ok_or("give it as CLASS=SIZE, like Counter=1MiB")?;
    Ok((class.to_owned(), size.parse()?))
}

/// What to tell a person beside the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hints {
    /// Lines that work in a clone of the repository.
    Bundled,
    /// The embedder's classes aren't known here.
    Embedded,
}

/// # Errors
/// When the server can't start, or its storage failed.
pub(super) async fn serve(
    mut server: Server,
    options: Options,
    hints: Hints,
) -> Result<(), ServerError> {
    log::start(options.log)?;
    super::allow_connections();
    server = options.apply_to(server);
    // Before anything is served, so that no signal is missed.
    let shutdown = shutdown().map_err(capnp::Error::from)?;
    let running = server.start().await?;
    let ready = if options.json { json(&running) } else { text(&running, hints) };
    match operator::show(&ready) {
        // A closed standard output is no reason not to serve.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            running.until(async {}).await?;
            Err(ServerError::Announce(error))
        }
        _ => running.until(shutdown).await,
    }
}

fn json(running: &Running) -> String {
    let mut ready = serde_json::json!({
        "capnp": running.capnp().to_string(),
        "http": format!("http://{}", running.http()),
        "namespaces": running.namespaces(),
    });
    if let Some(address) = running.metrics() {
        ready["metrics"] = format!("http://{address}/metrics").into();
    }
    ready.to_string()
}

fn text(running: &Running, hints: Hints) -> String {
    let mut lines = vec![
        format!("Cap'n Proto  {}", running.capnp()),
        format!("HTTP         http://{}", running.http()),
    ];
    lines.extend(running.metrics().map(|address| format!("Metrics      http://{address}/metrics")));
    lines.push("\nReferences: whoever has one may use every object of its class.".to_owned());
    let references = running.namespaces().iter();
    lines.extend(references.map(|(class, reference)| format!("  {class}  {reference}")));
    if let (Hints::Bundled, Some(counters)) = (hints, running.namespaces().get("Counter")) {
        lines.push("\nIncrement a counter, from curl, Rust and Python:".to_owned());
        lines.push(format!("  curl -X POST http://{}/counter/x/increment", running.http()));
        lines.push(format!("  cargo run --release -qp counter --bin client -- '{counters}' x"));
        lines.push(format!("  python3 examples/counter/client.py '{counters}' x"));
    }
    lines.join("\n")
}

/// Resolves on the first SIGINT or SIGTERM.
fn shutdown() -> std::io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {},
            _ = terminate.recv() => {},
        }
        tracing::info!("shutting down: calls under way are finished first");
    })
}
