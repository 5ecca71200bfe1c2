//! `capstead serve`: its flags, its output when the server is ready, and its end.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args};
use tokio::sync::Notify;

use super::limit::{self, Change};
use super::log::{self, LogFormat};
use super::operator;
use super::signals;
use crate::gateway::HttpLimits;
use crate::limits::HOSTS_MAX;
use crate::net::Certificate;
use crate::server::{CapnpOverHttp, Group, Running, Server, ServerError, TurnLimits, stderr};

/// The flags of a server. A variable that the help names can be set instead of its flag.
#[derive(Args, Clone, Debug)]
#[command(after_help = limit::after_help())]
pub(crate) struct Options {
    /// The data directory; it is made at the first start [default: capstead.data, or the program's]
    #[arg(long, value_name = "DIR", env = "CAPSTEAD_DATA")]
    data: Option<PathBuf>,
    #[command(flatten)]
    trust: operator::Trust,
    /// The address to listen on for Cap'n Proto; port 0 takes any free one [default:
    /// 127.0.0.1:4000]
    #[arg(long, value_name = "ADDR", env = "CAPSTEAD_LISTEN")]
    listen: Option<SocketAddr>,
    /// The host:port in the references that are given out, if clients reach the listener at another
    /// address than its own [default: the address that it listens on]
    #[arg(long, value_name = "ADDR", env = "CAPSTEAD_ADVERTISE")]
    advertise: Option<String>,
    /// Speak Cap'n Proto by TLS only; required for an address that isn't a loopback one. The
    /// variable takes true, yes, on or 1, and false, no, off or 0
    #[arg(long, env = "CAPSTEAD_TLS", value_parser = BoolishValueParser::new(), action = ArgAction::SetTrue)]
    tls: bool,
    /// Address to listen at for HTTP, or `off`; port 0 takes any free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", value_parser = door, env = "CAPSTEAD_HTTP")]
    http: Option<HttpDoor>,
    /// Let pages of this origin change objects over HTTP, and read the answers; may be given
    /// several times
    #[arg(long, value_name = "URL")]
    http_origin: Vec<String>,
    /// Let every method of every object be called over HTTP in JSON, by POST
    /// /json/CLASS/NAME/METHOD, or not: `on` or `off` [default: as the program's author says]
    #[arg(long, value_name = "ON|OFF", value_parser = BoolishValueParser::new())]
    json_calls: Option<bool>,
    /// Speak Cap'n Proto over WebSockets at /capnp, on any address of HTTP, or not: `on` or `off`
    /// [default: as the program's author says, and on loopback alone]
    #[arg(long, value_name = "ON|OFF", value_parser = BoolishValueParser::new(), conflicts_with = "routes")]
    capnp_over_http: Option<bool>,
    /// Take the routes of HTTP from this file, in TOML: then nothing else is reached by HTTP.
    /// docs/routes.md has the format
    #[arg(long, value_name = "FILE", env = "CAPSTEAD_ROUTES", conflicts_with = "json_calls")]
    routes: Option<PathBuf>,
    /// Also answer HTTP requests whose Host is this name, not only those of loopback; may be given
    /// several times
    #[arg(long, value_name = "NAME")]
    http_host: Vec<String>,
    /// Serve HTTP by TLS with the certificate in this file of PEM, and those that lead to its
    /// authority. SIGHUP makes the server read it again
    #[arg(long, value_name = "FILE", requires = "http_tls_key", env = "CAPSTEAD_HTTP_TLS_CERT")]
    http_tls_cert: Option<PathBuf>,
    /// The private key of that certificate, a file of PEM
    #[arg(long, value_name = "FILE", requires = "http_tls_cert", env = "CAPSTEAD_HTTP_TLS_KEY")]
    http_tls_key: Option<PathBuf>,
    /// Believe the X-Forwarded-For of a proxy at this address, or in this network like 10.0.0.0/8;
    /// may be given several times
    #[arg(long, value_name = "NET")]
    http_proxy: Vec<String>,
    /// HTTP requests per second from one client, and as many at once [default: no limit]
    #[arg(long, value_name = "N")]
    http_requests: Option<NonZeroU32>,
    /// HTTP connections of all clients [default: 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    http_connections: Option<u32>,
    /// HTTP connections from one address [default: 512]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    http_connections_per_peer: Option<u32>,
    /// Time limit for the head of an HTTP request [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    http_head: Option<Duration>,
    /// Time limit for a small body of an HTTP request, for a pause in a large one, for an object to
    /// begin its response, and for the client to read a response [default: 2m]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    http_transfer: Option<Duration>,
    /// Minimum bytes per second of a body or a response, on average, after 10 seconds [default:
    /// 16KiB]
    #[arg(long, value_name = "SIZE", value_parser = operator::size)]
    http_rate: Option<ByteSize>,
    /// Bytes of HTTP bodies held in memory, of requests and responses together [default: 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = operator::size)]
    http_body_bytes: Option<ByteSize>,
    /// The largest message that the client of a WebSocket may send [default: 1MiB]
    #[arg(long, value_name = "SIZE", value_parser = operator::size)]
    http_socket_message: Option<ByteSize>,
    /// Bytes that the client of a WebSocket may leave unread: with more it is cut [default: 4MiB]
    #[arg(long, value_name = "SIZE", value_parser = operator::size)]
    http_socket_unsent: Option<ByteSize>,
    /// Cut a WebSocket whose client says nothing for so long; it is pinged after half of it
    /// [default: 1m]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    http_socket_idle: Option<Duration>,
    /// Let objects that have a grant or a binding for it call the HTTP server at this origin, like
    /// https://api.example.com, or what is below a path of it; may be given several times
    #[arg(long, value_name = "ORIGIN")]
    outbound: Vec<String>,
    /// End a call to such a server when nothing moves for so long [default: 2m]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    outbound_idle: Option<Duration>,
    /// Bytes of the body of a request to such a server, and of a response [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = operator::size)]
    outbound_body: Option<ByteSize>,
    /// Calls to such servers, and WebSockets, at once [default: 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    outbound_connections: Option<u32>,
    /// Address to serve /metrics at, in the format of Prometheus; off by default
    #[arg(long, value_name = "ADDR", env = "CAPSTEAD_METRICS")]
    metrics: Option<SocketAddr>,
    /// Threads over which the objects are spread; it can't be changed later for the same data
    /// [default: 1]
    #[arg(long, value_name = "N", env = "CAPSTEAD_HOSTS", value_parser = clap::value_parser!(u16).range(1..=i64::from(HOSTS_MAX)))]
    hosts: Option<u16>,
    /// Let each object of a class store this much [default: 10GiB each]
    #[arg(long, value_name = "CLASS=SIZE", value_parser = quota)]
    object_quota: Vec<(String, ByteSize)>,
    /// Let all objects of a class together store this much, on each host [default: no limit]
    #[arg(long, value_name = "CLASS=SIZE", value_parser = quota)]
    class_quota: Vec<(String, ByteSize)>,
    /// Keep this much of the disk free: then growth is refused, and deleting works [default: 5 % of
    /// it, 128MiB to 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = operator::size, env = "CAPSTEAD_RESERVE")]
    reserve: Option<ByteSize>,
    /// Address space for the data of each host, which can never outgrow it [default: 1TiB]
    #[arg(long, value_name = "SIZE", value_parser = operator::size, env = "CAPSTEAD_MAP_SIZE")]
    map_size: Option<ByteSize>,
    /// Bytes of the log that may wait to be applied to the database before no new call starts
    /// [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = operator::size, env = "CAPSTEAD_LOG_BACKLOG")]
    log_backlog: Option<ByteSize>,
    /// The longest time that they wait, like 200ms [default: 200ms]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, env = "CAPSTEAD_LOG_AGE")]
    log_age: Option<Duration>,
    /// Time for which an object stays in memory without a call, like 90s or 5m [default: 1m]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, env = "CAPSTEAD_WARM")]
    warm: Option<Duration>,
    /// Keep at most this number of objects in memory, on all hosts together [default: 100000]
    #[arg(long, value_name = "N", env = "CAPSTEAD_AWAKE_OBJECTS")]
    awake_objects: Option<usize>,
    /// Let the objects in memory take this much, with their stored values, on all hosts together
    /// [default: 512MiB]
    #[arg(long, value_name = "SIZE", value_parser = operator::size, env = "CAPSTEAD_AWAKE_BYTES")]
    awake_bytes: Option<ByteSize>,
    /// Warn of a turn, from one await of a method to the next, that takes this long; 0s: never
    /// [default: 100ms]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    turn_warn: Option<Duration>,
    /// Report at /ready that a host isn't ready while a turn takes this long; 0s: never [default:
    /// 250ms]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    turn_unready: Option<Duration>,
    /// Abort the process when a turn takes this long; 0s: never [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    turn_abort: Option<Duration>,
    /// Keep request ids, with the replies to their calls, for this time, like 30min or 7d [default:
    /// 24h]
    #[arg(long, value_name = "TIME", env = "CAPSTEAD_REQUEST_RETENTION", value_parser = humantime::parse_duration)]
    request_retention: Option<Duration>,
    /// Change a limit of each Cap'n Proto connection, like `calls=2048`, `call-bytes=16MiB` or
    /// `idle=5m`; may be given several times [names and defaults: see below]
    #[arg(long, value_name = "NAME=VALUE", value_parser = limit::parse)]
    limit: Vec<Change>,
    /// Make every commit take this many milliseconds longer, to try out a slow disk
    #[arg(long, value_name = "MS")]
    commit_delay: Option<u64>,
    /// Make the log be applied this many milliseconds later, each time, to try out a slow disk
    #[arg(long, value_name = "MS")]
    apply_delay: Option<u64>,
    /// Print one JSON object on standard output when ready, instead of text
    #[arg(long)]
    json: bool,
    /// The form of log lines, on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t, env = "CAPSTEAD_LOG")]
    log: LogFormat,
}

impl Options {
    /// Sets who may come in by HTTP, and for what.
    fn open_http(&self, mut server: Server) -> Server {
        match self.http {
            None => {}
            Some(HttpDoor::Off) => server = server.without_http(),
            Some(HttpDoor::At(address)) => server = server.http(address),
        }
        self.limit_http(server.http_limits_mut());
        if let Some(on) = self.json_calls {
            *server.json_calls_mut() = on;
        }
        if let Some(on) = self.capnp_over_http {
            *server.capnp_over_http_mut() =
                if on { CapnpOverHttp::All } else { CapnpOverHttp::None };
        }
        if let Some(file) = &self.routes {
            server = server.routes_file(file);
        }
        for origin in &self.http_origin {
            server = server.http_origin(origin);
        }
        for name in &self.http_host {
            server = server.http_host(name);
        }
        for network in &self.http_proxy {
            server = server.http_proxy(network);
        }
        if let (Some(chain), Some(key)) = (&self.http_tls_cert, &self.http_tls_key) {
            server = server.https(chain, key);
        }
        server
    }

    /// Sets where objects may call, and how much.
    fn open_outbound(&self, mut server: Server) -> Server {
        if !self.outbound.is_empty() {
            server = server.outbound(&self.outbound);
        }
        let limits = server.outbound_limits_mut();
        limits.idle = self.outbound_idle.unwrap_or(limits.idle);
        limits.body_bytes = self.outbound_body.map_or(limits.body_bytes, |size| size.as_u64());
        let connections = self.outbound_connections.map(|number| number as usize);
        limits.connections = connections.unwrap_or(limits.connections);
        server
    }

    /// # Errors
    /// When a flag asks for something that another flag turns off.
    fn check(&self) -> Result<(), ServerError> {
        if self.log_backlog.is_some_and(|bytes| bytes.as_u64() == 0) {
            let reason = "--log-backlog 0 would let nothing be written: leave it out for 64MiB";
            return Err(ServerError::Setting(reason.to_owned()));
        }
        if !matches!(self.http, Some(HttpDoor::Off)) {
            return Ok(());
        }
        let asked = [
            ("--routes", self.routes.is_some()),
            ("--json-calls", self.json_calls == Some(true)),
            ("--capnp-over-http", self.capnp_over_http == Some(true)),
            ("--http-tls-cert", self.http_tls_cert.is_some()),
            ("--http-origin", !self.http_origin.is_empty()),
            ("--http-host", !self.http_host.is_empty()),
            ("--http-proxy", !self.http_proxy.is_empty()),
        ];
        match asked.into_iter().find(|(_, is_asked)| *is_asked) {
            None => Ok(()),
            Some((flag, _)) => Err(ServerError::Setting(format!(
                "{flag} needs HTTP, and --http off turns it off: leave one of them out"
            ))),
        }
    }

    /// Overrides the program's settings with the flags that were given.
    fn apply_to(&self, mut server: Server) -> Server {
        if let Some(data) = &self.data {
            server = server.data(data);
        }
        if self.trust.group() == Group::Trusted {
            server = server.trust_group();
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
        server = self.open_outbound(self.open_http(server));
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
        if let Some(bytes) = self.log_backlog {
            server = server.log_backlog(bytes.as_u64());
        }
        if let Some(time) = self.log_age {
            server = server.log_age(time);
        }
        if let Some(time) = self.warm {
            server = server.warm(time);
        }
        if let Some(objects) = self.awake_objects {
            server = server.awake_objects(objects);
        }
        if let Some(bytes) = self.awake_bytes {
            server = server.awake_bytes(usize::try_from(bytes.as_u64()).unwrap_or(usize::MAX));
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
        if let Some(delay) = self.apply_delay {
            server = server.apply_delay(Duration::from_millis(delay));
        }
        server
    }

    fn limit_http(&self, limits: &mut HttpLimits) {
        let count = |flag: Option<u32>, limit| flag.map_or(limit, |count| count as usize);
        let bytes = |flag: Option<ByteSize>, limit: usize| {
            flag.map_or(limit, |size| usize::try_from(size.as_u64()).unwrap_or(usize::MAX))
        };
        limits.connections = count(self.http_connections, limits.connections);
        limits.connections_per_peer =
            count(self.http_connections_per_peer, limits.connections_per_peer);
        limits.requests_per_second = self.http_requests.or(limits.requests_per_second);
        limits.head = self.http_head.unwrap_or(limits.head);
        limits.transfer = self.http_transfer.unwrap_or(limits.transfer);
        limits.bytes_per_second = bytes(self.http_rate, limits.bytes_per_second);
        limits.body_bytes = bytes(self.http_body_bytes, limits.body_bytes);
        limits.socket_message_bytes = bytes(self.http_socket_message, limits.socket_message_bytes);
        limits.socket_unsent_bytes = bytes(self.http_socket_unsent, limits.socket_unsent_bytes);
        limits.socket_idle = self.http_socket_idle.unwrap_or(limits.socket_idle);
    }
}

/// The address at which HTTP is served, if any.
#[derive(Clone, Copy, Debug)]
enum HttpDoor {
    Off,
    At(SocketAddr),
}

fn door(text: &str) -> Result<HttpDoor, String> {
    match text.parse() {
        Ok(address) => Ok(HttpDoor::At(address)),
        Err(_) if text == "off" => Ok(HttpDoor::Off),
        Err(_) => Err("give it as ADDR:PORT, like 127.0.0.1:8080, or off".to_owned()),
    }
}

/// Parses the name of a class and a number of bytes.
fn quota(text: &str) -> Result<(String, ByteSize), String> {
    let (class, size) = text.split_once('=').ok_or("give it as CLASS=SIZE, like Counter=1MiB")?;
    Ok((class.to_owned(), operator::size(size)?))
}

/// Lines about the classes of a server, which are printed below its addresses for a person.
type Hints = fn(&Running) -> Vec<String>;

/// # Errors
/// When the server can't start, or its storage failed.
pub(super) async fn serve(
    mut server: Server,
    options: Options,
    hints: Hints,
) -> Result<(), ServerError> {
    log::start(options.log)?;
    super::allow_connections();
    options.check()?;
    server = options.apply_to(server);
    // Taken before anything is served, so that no signal is missed.
    let (shutdown, hangups) = signals::shutdown().map_err(capnp::Error::from)?;
    let running = server.start().await?;
    let certificate = running.certificate();
    let ready = if options.json { json(&running) } else { text(&running, hints) };
    let unannounced = announce(ready).map_err(capnp::Error::from)?;
    let mut announced = Ok(());
    let stop = async {
        tokio::select! {
            () = shutdown => {},
            never = hang_up(&hangups, certificate.as_deref()) => match never {},
            error = unannounced => announced = Err(ServerError::Announce(error)),
        }
    };
    let ended = running.until(stop).await;
    stderr::flush();
    ended.and(announced)
}

/// Reads the certificate again whenever the operator hangs up.
async fn hang_up(hangups: &Notify, certificate: Option<&Certificate>) -> Infallible {
    loop {
        hangups.notified().await;
        match certificate.map(Certificate::reload) {
            Some(Ok(())) => {
                tracing::info!(
                    "SIGHUP: new HTTP connections see the certificate that is in the file now"
                );
            }
            Some(Err(error)) => {
                tracing::error!(%error, "SIGHUP: the certificate for HTTP stays the one that it was");
            }
            None => tracing::info!("SIGHUP changes nothing: SIGTERM ends the server"),
        }
    }
}

/// Prints that the server is ready, on a thread of its own, because the output may have no reader.
/// Resolves only if printing fails.
fn announce(ready: String) -> std::io::Result<impl Future<Output = std::io::Error>> {
    let (failed, has_failed) = tokio::sync::oneshot::channel();
    let show = move || match operator::show(&ready) {
        // A closed standard output is no reason to stop serving.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => drop(failed.send(error)),
        _ => {}
    };
    std::thread::Builder::new().name("capstead-stdout".into()).spawn(show)?;
    Ok(async {
        match has_failed.await {
            Ok(error) => error,
            Err(_) => std::future::pending().await,
        }
    })
}

fn json(running: &Running) -> String {
    let mut ready = serde_json::json!({
        "capnp": running.capnp().to_string(),
        "namespaces": running.namespaces(),
    });
    if let Some(url) = running.http_url() {
        ready["http"] = url.into();
    }
    if let Some(address) = running.metrics() {
        ready["metrics"] = format!("http://{address}/metrics").into();
    }
    ready.to_string()
}

fn text(running: &Running, hints: Hints) -> String {
    let mut lines = vec![format!("Cap'n Proto  {}", running.capnp())];
    lines.extend(running.http_url().map(|url| format!("HTTP         {url}")));
    lines.extend(running.metrics().map(|address| format!("Metrics      http://{address}/metrics")));
    lines.push("\nReferences: whoever has one may use every object of its class.".to_owned());
    let references = running.namespaces().iter();
    lines.extend(references.map(|(class, reference)| format!("  {class}  {reference}")));
    lines.extend(hints(running));
    lines.join("\n")
}
