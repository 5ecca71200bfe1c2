//! A server of the bundled classes in this process, with ways to break it that only tests have.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use capnp::capability::{Client, FromClientHook};
use capstead_client::{Connection, namespace};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::classes::bundled;
use crate::error::Result;
use crate::id::{ObjectId, Pool};
use crate::schema::counter_capnp::counter;
use crate::schema::facet_capnp::facet;
use crate::server::error::ServerError;
use crate::server::link::{Latest, Probe};
use crate::supervisor::owner_of;

/// Longer than anything here takes, even on a busy machine.
pub(super) const DEADLINE: Duration = Duration::from_mins(1);

/// Runs a test where capabilities can live, and fails it at the deadline.
pub(super) fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    runtime.block_on(within(work))
}

pub(super) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.expect("it ends before the deadline")
}

/// A running server.
pub(super) struct World {
    pub(super) hosts: u16,
    pub(super) capnp: SocketAddr,
    pub(super) http: SocketAddr,
    metrics: SocketAddr,
    pub(super) counters: String,
    links: Vec<Latest>,
    probes: Vec<mpsc::Sender<Probe>>,
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<std::result::Result<(), ServerError>>,
}

impl World {
    pub(super) async fn start(data: &Path, hosts: u16) -> Self {
        Self::start_slow(data, hosts, Duration::ZERO).await
    }

    /// Starts a server in which every commit takes longer by `delay`.
    pub(super) async fn start_slow(data: &Path, hosts: u16, delay: Duration) -> Self {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = bundled(data).hosts(hosts).listen(any).http(any).metrics(any);
        let server = server.commit_delay(delay);
        let running = server.start().await.unwrap();
        let threads = &running.parts.threads;
        let links = threads.iter().map(|thread| thread.latest.clone()).collect();
        let probes = threads.iter().map(|thread| thread.probes.clone()).collect();
        let (capnp, http) = (running.capnp(), running.http().unwrap());
        let (metrics, counters) =
            (running.metrics().unwrap(), running.namespaces()["Counter"].clone());
        let (stop, stopped) = oneshot::channel();
        let until = running.until(async { drop(stopped.await) });
        let (stop, ended) = (Some(stop), tokio::task::spawn_local(until));
        Self { hosts, capnp, http, metrics, counters, links, probes, stop, ended }
    }

    /// Ends the link of a host from the supervisor's side, at once.
    pub(super) fn break_link(&self, host: u16) {
        let link = self.links[usize::from(host) - 1].borrow().clone().unwrap();
        tokio::task::spawn_local(async move { link.disconnect().await });
    }

    /// Runs `probe` on a host's thread.
    pub(super) async fn on_host(&self, host: u16, probe: Probe) {
        assert!(self.probes[usize::from(host) - 1].send(probe).await.is_ok());
    }

    /// The name of a counter that lives on the host.
    pub(super) fn name_on(&self, host: u16, nth: usize) -> String {
        let id = |name: &String| ObjectId::named(Pool::default(), "Counter", name);
        let is_there = |name: &String| owner_of(id(name).home_shard().0, self.hosts) == host;
        (0..).map(|n| format!("counter-{n}")).filter(is_there).nth(nth).unwrap()
    }

    /// The host that has the namespace of counters.
    pub(super) fn namespace_is_on(&self) -> u16 {
        owner_of(ObjectId::namespace(Pool::default(), "Counter").home_shard().0, self.hosts)
    }

    /// A connection to the first host's listener, and all counters over it.
    pub(super) async fn connect(&self) -> (Connection, namespace::Client) {
        let connection = Connection::dial(&self.capnp.to_string()).await.unwrap();
        let counters = connection.restore(&self.counters).unwrap();
        (connection, counters)
    }

    /// The status and body of a response.
    pub(super) async fn ask(&self, method: &str, path: &str) -> (u16, String) {
        ask(self.http, method, path).await
    }

    pub(super) async fn post(&self, name: &str) -> (u16, String) {
        self.ask("POST", &format!("/counter/{name}/increment")).await
    }

    /// The value of a counter, by HTTP.
    pub(super) async fn value(&self, name: &str) -> i64 {
        let (status, body) = self.ask("GET", &format!("/counter/{name}")).await;
        assert_eq!(status, 200, "{body}");
        body.parse().unwrap()
    }

    pub(super) async fn metric(&self, name: &str) -> u64 {
        let (_, page) = ask(self.metrics, "GET", "/metrics").await;
        let start = format!("capstead_{name} ");
        page.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
    }

    pub(super) async fn is_ready(&self) -> bool {
        ask(self.metrics, "GET", "/ready").await.0 == 200
    }

    /// Ends the server in order.
    pub(super) async fn stop(mut self) -> std::result::Result<(), ServerError> {
        drop(self.stop.take());
        self.ended().await
    }

    /// Waits for the server to end by itself, and returns how it ended.
    pub(super) async fn ended(self) -> std::result::Result<(), ServerError> {
        let ended = within(self.ended).await.expect("the server doesn't panic");
        drop(self.stop);
        ended
    }
}

pub(super) async fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut page = String::new();
    within(stream.read_to_string(&mut page)).await.unwrap();
    let (head, body) = page.split_once("\r\n\r\n").expect("a response is whole");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

pub(super) fn by_name(counters: &namespace::Client, name: &str) -> counter::Client {
    let mut request = counters.by_name_request();
    request.get().set_key(name);
    request.send().pipeline.get_object().as_cap().cast_to()
}

/// Makes the call at once; the result gives up at the deadline.
pub(super) fn increment(counter: &counter::Client) -> impl Future<Output = Result<i64>> + use<> {
    let sent = counter.increment_request().send().promise;
    async move { Ok(within(sent).await?.get()?.get_value()) }
}

/// A reference with a grant of its own.
pub(super) async fn save(of: &impl FromClientHook, label: &str) -> String {
    within(capstead_client::share(of, capstead_client::Terms::new(label))).await.unwrap()
}

/// A counter through a reference of its own, so that its path crosses no other host.
pub(super) async fn straight(front: &Connection, by_name: &counter::Client) -> counter::Client {
    front.restore(&save(by_name, "straight").await).unwrap()
}

/// Makes the call that revokes the grant with this label.
pub(super) async fn revoke(of: &impl FromClientHook, label: &str) -> Result<()> {
    let of = facet::Client { client: Client::new(of.as_client_hook().add_ref()) };
    let reply = within(of.grants_request().send().promise).await?;
    let mut grants = reply.get()?.get_grants()?.iter();
    let grant = grants.find(|grant| grant.get_label().unwrap().to_str() == Ok(label)).unwrap();
    let mut request = of.revoke_request();
    request.get().set_grant(grant.get_id()?);
    within(request.send().promise).await.map(drop)
}

/// The server's address, from a reference.
pub(super) fn address_in(text: &str) -> String {
    text.trim_start_matches("capstead://").split('/').next().unwrap().to_owned()
}
