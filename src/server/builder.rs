//! The parts and settings of a server, as its author gives them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use capstead_client::Limits;

use super::data_dir::Group;
use super::watchdog::TurnLimits;
use crate::gateway::{HttpLimits, Row};
use crate::host::{AwakeLimits, Binding, Class, Object, class_of};
use crate::limits::{REQUEST_RETENTION_SECS, WARM_SECS};
use crate::net::CertificateFiles;
use crate::outbound::{Outbound, OutboundLimits};
use crate::storage::LogOptions;

/// The address at which a server listens for Cap'n Proto by default.
pub(crate) const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4000);

/// A server of durable objects: classes, their bindings, a data directory and addresses.
///
/// ```no_run
/// # use capstead::Server;
/// # async fn example() -> capstead::Result<()> {
/// Server::new("capstead.data").class::<capstead::classes::Counter>().run().await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Server {
    pub(super) data: PathBuf,
    pub(super) group: Group,
    pub(super) listen: SocketAddr,
    /// The address at which clients reach `listen`, if it differs.
    pub(super) advertise: Option<String>,
    pub(super) tls: bool,
    /// None if HTTP is off.
    pub(super) http: Option<SocketAddr>,
    pub(super) http_origins: Vec<String>,
    pub(super) http_hosts: Vec<String>,
    pub(super) http_proxies: Vec<String>,
    pub(super) certificate: Option<CertificateFiles>,
    pub(super) json_calls: bool,
    pub(super) capnp_over_http: CapnpOverHttp,
    pub(super) http_limits: HttpLimits,
    pub(super) metrics: Option<SocketAddr>,
    pub(super) hosts: u16,
    pub(super) warm: Duration,
    pub(super) awake: AwakeLimits,
    pub(super) turns: TurnLimits,
    pub(super) log: LogOptions,
    pub(super) retention: Duration,
    pub(super) limits: Limits,
    pub(super) classes: Vec<Class>,
    pub(super) bindings: Vec<(&'static str, Binding)>,
    /// Those that can't be are told at the start.
    pub(super) routes: Vec<Result<Row, String>>,
    pub(super) only_by_routes: Vec<&'static str>,
    pub(super) routes_file: Option<PathBuf>,
    pub(super) quotas: Vec<(String, Quota)>,
    /// The origins that objects may call; none if the class `Outbound` isn't served.
    pub(super) outbound: Option<Vec<String>>,
    pub(super) outbound_limits: OutboundLimits,
    version: Option<String>,
}

/// The addresses of HTTP at which Cap'n Proto is spoken over WebSockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CapnpOverHttp {
    #[default]
    None,
    /// Those of this machine: from anywhere else references would come in the clear.
    Loopback,
    All,
}

/// A limit on the bytes that a class may store.
#[derive(Clone, Copy, Debug)]
pub(super) enum Quota {
    Object(u64),
    Class(u64),
}

impl Server {
    /// A server with its data in `data`, which is made at the first start. It listens on
    /// 127.0.0.1:4000 for Cap'n Proto and on 127.0.0.1:8080 for HTTP.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            group: Group::default(),
            listen: DEFAULT_LISTEN,
            tls: false,
            advertise: None,
            http: Some(SocketAddr::from(([127, 0, 0, 1], 8080))),
            http_origins: Vec::new(),
            http_hosts: Vec::new(),
            http_proxies: Vec::new(),
            certificate: None,
            json_calls: false,
            capnp_over_http: CapnpOverHttp::default(),
            http_limits: HttpLimits::default(),
            metrics: None,
            hosts: 1,
            warm: Duration::from_secs(WARM_SECS),
            awake: AwakeLimits::default(),
            turns: TurnLimits::default(),
            log: LogOptions::default(),
            retention: Duration::from_secs(REQUEST_RETENTION_SECS),
            limits: Limits::default(),
            classes: Vec::new(),
            bindings: Vec::new(),
            routes: Vec::new(),
            only_by_routes: Vec::new(),
            routes_file: None,
            quotas: Vec::new(),
            outbound: None,
            outbound_limits: OutboundLimits::default(),
            version: None,
        }
    }

    /// Keeps the data in this directory instead.
    #[must_use]
    pub fn data(mut self, data: impl Into<PathBuf>) -> Self {
        self.data = data.into();
        self
    }

    /// Serves the objects of class `C`.
    #[must_use]
    pub fn class<C: Object>(mut self) -> Self {
        self.classes.push(class_of::<C>());
        self
    }

    /// Lets objects of class `From` reach those of class `To`, by `ctx.namespace::<To>(name)`.
    #[must_use]
    pub fn bind<From: Object, To: Object>(mut self, name: impl Into<String>) -> Self {
        self.bindings.push((From::CLASS, Binding { name: name.into(), class: To::CLASS }));
        self
    }

    /// Lets HTTP requests for a path reach the object `name` of class `C`, which sees the path
    /// `url` and the query. Of several routes the first that fits counts; paths without one go to
    /// `/CLASS/NAME/…`.
    ///
    /// `/chat` is one path, and `chat.example/chat` is it on one host. Parts in braces take any
    /// text, which `name` may use: `{room}` takes a segment, `{room:32}` one of up to 32
    /// characters, and `{room:secret}` one that is a secret of 64 hex digits. In the name then
    /// stands its [hash](crate::http::secret_hash), and nobody but the gateway sees the secret.
    ///
    /// ```
    /// # use capstead::{Server, classes::Counter};
    /// let server = Server::new("visits.data")
    ///     .class::<Counter>()
    ///     .route::<Counter>("/visits/{page}", "page {page}", "/");
    /// ```
    #[must_use]
    pub fn route<C: Object>(
        mut self,
        path: impl AsRef<str>,
        name: impl AsRef<str>,
        url: impl AsRef<str>,
    ) -> Self {
        self.routes.push(Row::new(path.as_ref(), C::CLASS, name.as_ref(), url.as_ref()));
        self
    }

    /// HTTP reaches the objects of class `C` by routes alone, and not at `/CLASS/NAME/…`.
    #[must_use]
    pub fn only_by_routes<C: Object>(mut self) -> Self {
        self.only_by_routes.push(C::CLASS);
        self
    }

    /// Takes the routes from a file, in place of all that lead to objects by HTTP otherwise: those
    /// of [`route`](Self::route), paths by class and name, and [calls in JSON](Self::json_calls).
    /// `docs/routes.md` has the format.
    #[must_use]
    pub fn routes_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.routes_file = Some(path.into());
        self
    }

    /// Sets the bytes that each object of the class `class` may store, keys and values together; 10
    /// GiB by default. A write beyond that is refused (`over-quota:`).
    #[must_use]
    pub fn object_quota(mut self, class: impl Into<String>, bytes: u64) -> Self {
        self.quotas.push((class.into(), Quota::Object(bytes)));
        self
    }

    /// Sets the bytes that all objects of the class `class` together may store on each host; no
    /// limit by default. A host adds up their sizes when it starts, which takes about a second for
    /// a million objects.
    #[must_use]
    pub fn class_quota(mut self, class: impl Into<String>, bytes: u64) -> Self {
        self.quotas.push((class.into(), Quota::Class(bytes)));
        self
    }

    /// Sets the address space that the storage of each host reserves; its data can never outgrow
    /// it. 1 TiB by default, of which only the used part takes memory or disk.
    #[must_use]
    pub fn map_size(mut self, bytes: usize) -> Self {
        self.log.map_bytes = bytes;
        self
    }

    /// Sets the time for which an object stays in memory without a call; one minute by default. It
    /// stays longer while a call runs in it, a task of it holds it, or a client holds a capability
    /// that the object made itself; its WebSockets don't keep it. References to it stay good when
    /// it falls asleep; state that it had only in memory is gone.
    #[must_use]
    pub fn warm(mut self, time: Duration) -> Self {
        self.warm = time;
        self
    }

    /// Sets the largest number of objects in memory, divided equally among all hosts; 100,000 by
    /// default. At the limit, the least recently used objects fall asleep, those that never wrote
    /// first. A call of a sleeping object fails as `overloaded` if none of the others can sleep.
    #[must_use]
    pub fn awake_objects(mut self, objects: usize) -> Self {
        self.awake.objects = objects;
        self
    }

    /// Sets the largest number of bytes that objects take in memory, as
    /// [`awake_objects`](Self::awake_objects) does for their number; 512 MiB by default. Their
    /// [`Stored`](crate::Stored) values count, and 2,560 bytes for each object; other memory of a
    /// class doesn't. Tags and attachments of open WebSockets count too, also while their objects
    /// sleep; they get half of it at most.
    #[must_use]
    pub fn awake_bytes(mut self, bytes: usize) -> Self {
        self.awake.bytes = bytes;
        self
    }

    /// Sets the time for which one turn may hold up the other objects of its host.
    #[must_use]
    pub fn turn_limits(mut self, limits: TurnLimits) -> Self {
        self.turns = limits;
        self
    }

    /// The turn limits, for flags that override one of them.
    pub(crate) fn turn_limits_mut(&mut self) -> &mut TurnLimits {
        &mut self.turns
    }

    /// Sets the bytes of the disk that stay free: a write that would make the data grow into them
    /// is refused (`low-space:`), while deleting works. 5 % of the disk, at least 128 MiB and at
    /// most 1 GiB, by default. With less than 32 MiB the turns under way may fill the disk, which
    /// ends the server. Imports keep 32 MiB free in any case.
    #[must_use]
    pub fn reserve(mut self, bytes: u64) -> Self {
        self.log.reserve_bytes = Some(bytes);
        self
    }

    /// Sets the bytes of each host's log that may wait to be applied to the database before no new
    /// call starts, 64 MiB by default and at least one. They take as much memory, and several times
    /// as much when most writes are of a few bytes; a start after a crash applies as many.
    #[must_use]
    pub fn log_backlog(mut self, bytes: u64) -> Self {
        self.log.backlog.bytes = bytes.max(1);
        self
    }

    /// Sets the longest time that a group commit waits to be applied together with later ones,
    /// 200 ms by default. No answer waits for it.
    #[must_use]
    pub fn log_age(mut self, time: Duration) -> Self {
        self.log.backlog.age = time;
        self
    }

    /// Sets the address on which to listen for Cap'n Proto. Port 0 takes any free one. An address
    /// other than a loopback one needs [`tls`](Self::tls).
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Sets the address, `host:port`, that references contain, instead of the one listened on: the
    /// one at which clients reach the listener, such as a name or the outer side of a proxy.
    #[must_use]
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.advertise = Some(address.into());
        self
    }

    /// Speaks Cap'n Proto by TLS only. The server shows the cluster's own key, which clients know
    /// from the reference that they have: there are no certificates to get or to renew.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Sets the address on which to listen for HTTP. Port 0 takes any free one. Anyone who reaches
    /// it may use every object that answers HTTP.
    #[must_use]
    pub fn http(mut self, address: SocketAddr) -> Self {
        self.http = Some(address);
        self
    }

    /// The classes, without their bindings and quotas. Flags may add the way out.
    pub(crate) fn known_classes(&self) -> Vec<Class> {
        let mut classes = self.classes.clone();
        if !classes.iter().any(|class| class.name == Outbound::CLASS) {
            classes.push(class_of::<Outbound>());
        }
        classes
    }

    /// Serves the class [`Outbound`], by which objects reach HTTP servers at these origins, like
    /// `https://api.example.com`, or what is below a path of one: those that have a reference to
    /// it, and no others. The operator's flag `--outbound` adds origins, so there may be none here.
    /// The gateway reaches no object of it.
    #[must_use]
    pub fn outbound(mut self, origins: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let all = self.outbound.get_or_insert_default();
        all.extend(origins.into_iter().map(Into::into));
        self
    }

    /// Sets the resources that calls to the outside may use. See [`OutboundLimits::default`].
    #[must_use]
    pub fn outbound_limits(mut self, limits: OutboundLimits) -> Self {
        self.outbound_limits = limits;
        self
    }

    /// The limits of calls to the outside, for flags that override one of them.
    pub(crate) fn outbound_limits_mut(&mut self) -> &mut OutboundLimits {
        &mut self.outbound_limits
    }

    /// Accepts a data directory whose keys its group can read and write, as Kubernetes makes them
    /// on a volume with `fsGroup`: every member of the group can make references to everything.
    #[must_use]
    pub fn trust_group(mut self) -> Self {
        self.group = Group::Trusted;
        self
    }

    /// Turns HTTP off.
    #[must_use]
    pub fn without_http(mut self) -> Self {
        self.http = None;
        self
    }

    /// Lets every method of every object be called over HTTP, with parameters and results in JSON,
    /// by `POST /json/CLASS/NAME/METHOD`. Off by default: a class may have methods that are not for
    /// every client that reaches the port. `docs/json.md` has the details.
    #[must_use]
    pub fn json_calls(mut self) -> Self {
        self.json_calls = true;
        self
    }

    /// The setting, for the command line's flag.
    pub(crate) fn json_calls_mut(&mut self) -> &mut bool {
        &mut self.json_calls
    }

    /// Speaks Cap'n Proto over WebSockets at `/capnp`, where HTTP listens on a loopback address:
    /// for clients of this machine, and for those that come through a proxy on it, which speaks
    /// TLS.
    /// They need references, as all clients of Cap'n Proto do.
    #[must_use]
    pub fn capnp_over_http(mut self) -> Self {
        self.capnp_over_http = CapnpOverHttp::Loopback;
        self
    }

    /// The setting, for the command line's flag.
    pub(crate) fn capnp_over_http_mut(&mut self) -> &mut CapnpOverHttp {
        &mut self.capnp_over_http
    }

    /// Lets pages of this origin, like `https://app.example`, change objects over HTTP, and read
    /// the answers. By default only pages of the server's own address may.
    #[must_use]
    pub fn http_origin(mut self, origin: impl Into<String>) -> Self {
        self.http_origins.push(origin.into());
        self
    }

    /// Answers HTTP requests whose `Host` is this name, like `app.example`. By default a server on
    /// loopback answers only to names of loopback, and any other server to all names.
    #[must_use]
    pub fn http_host(mut self, name: impl Into<String>) -> Self {
        self.http_hosts.push(name.into());
        self
    }

    /// Serves HTTP by TLS, with the certificate and the private key in these files of PEM, for
    /// HTTP/2 and HTTP/1.1. SIGHUP makes [`run`](Self::run) read them again.
    #[must_use]
    pub fn https(mut self, chain: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.certificate = Some(CertificateFiles { chain: chain.into(), key: key.into() });
        self
    }

    /// Believes the proxies at this address, or in this network like `10.0.0.0/8`, when they say in
    /// `X-Forwarded-For` whose request they pass on. From all others such headers are taken out.
    #[must_use]
    pub fn http_proxy(mut self, network: impl Into<String>) -> Self {
        self.http_proxies.push(network.into());
        self
    }

    /// Sets the resources that HTTP clients may use. See [`HttpLimits::default`].
    #[must_use]
    pub fn http_limits(mut self, limits: HttpLimits) -> Self {
        self.http_limits = limits;
        self
    }

    /// The HTTP limits, for flags that override one of them.
    pub(crate) fn http_limits_mut(&mut self) -> &mut HttpLimits {
        &mut self.http_limits
    }

    /// Serves the server's metrics at this address, in the text format of Prometheus. Off by
    /// default.
    #[must_use]
    pub fn metrics(mut self, address: SocketAddr) -> Self {
        self.metrics = Some(address);
        self
    }

    /// Spreads the objects over this number of threads, each with its own storage. The number
    /// belongs to the data directory: it can't be changed later.
    #[must_use]
    pub fn hosts(mut self, hosts: u16) -> Self {
        self.hosts = hosts;
        self
    }

    /// Sets how long request ids are kept, with the replies to their calls, from the beginning of a
    /// call on; 24 hours by default. A call that is repeated later than that counts as a new call.
    #[must_use]
    pub fn request_retention(mut self, time: Duration) -> Self {
        self.retention = time;
        self
    }

    /// Sets the resources that a Cap'n Proto connection may use. See [`Limits::default`].
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The limits of connections, for flags that override one of them.
    pub(crate) fn limits_mut(&mut self) -> &mut Limits {
        &mut self.limits
    }

    /// Makes every commit take longer by this time, to try out a slow disk.
    #[must_use]
    pub fn commit_delay(mut self, delay: Duration) -> Self {
        self.log.commit_delay = delay;
        self
    }

    /// Makes every transaction that applies the log take longer by this time, likewise.
    #[must_use]
    pub fn apply_delay(mut self, delay: Duration) -> Self {
        self.log.apply_delay = delay;
        self
    }

    /// Sets the version of the program, which [`run`](Self::run) prints for `--version`;
    /// `env!("CARGO_PKG_VERSION")` is the version of its package. The default is Capstead's
    /// version.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// See [`version`](Self::version).
    pub(crate) fn program_version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// The path of the data directory, unless a flag overrides it.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.data
    }
}
