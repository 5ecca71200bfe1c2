//! Calls over Cap'n Proto, against a bare capnp-rpc server that answers the same call.

use capnp::capability::FromClientHook;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capstead_client::Connection;
use futures::future::try_join_all;
use tokio::net::TcpStream;

use super::Bench;
use super::bare::{BareServer, stock};
use super::measure::{Plan, Sample, Until, drive, median};
use super::process::{Capstead, Process};
use super::row::{Row, Target};
use super::storage::AppendedFile;
use capstead::Result;
use capstead::counter_capnp::counter;
use capstead_client::restorer_capnp::namespace;

/// Names of the rows that this module measures.
pub(crate) const NAMES: [&str; 6] = [
    "rpc-read-1",
    "rpc-read-64",
    "rpc-read-64-cost",
    "rpc-increment-1-p50",
    "rpc-increment-64",
    "rpc-increment-64-of-1000",
];

/// Calls that wait for their answers at the same time.
pub(crate) const IN_FLIGHT: usize = 64;
/// Objects among which increments are spread.
const SPREAD: u64 = 1000;
/// Data syncs in one round of the sum with which an increment is compared.
const SYNCS: u64 = 300;
/// The number of data syncs that a durable increment may cost beyond a bare call.
const SYNCS_ALLOWED: f64 = 3.0;

/// Measures the selected rows.
///
/// # Errors
/// When a server doesn't start, or a call fails.
pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    let bare = BareEcho::start(BareServer::Echo).await?;
    let server = Capstead::start(&bench.scratch.path("rpc"), &[])?;
    let counters = Counters::connect(&server).await?;
    let one = counters.found("bench").await?;
    drive(1, Until::Calls(1), async |_| increment(&one).await).await?;
    for (name, in_flight, target) in [("rpc-read-1", 1, 0.7), ("rpc-read-64", IN_FLIGHT, 0.8)] {
        if bench.wants(name) || (in_flight == IN_FLIGHT && bench.wants("rpc-read-64-cost")) {
            let baseline = async |until| bare.reads(in_flight, until).await;
            let measured = async |until| {
                let run = drive(in_flight, until, async |_| read(&one).await);
                server.process.watch(run).await
            };
            let rounds = bench.plan.alternate(name, baseline, measured).await?;
            bench.add(Row::rates(name, &rounds).target(Target::AtLeast(target)));
            if in_flight == IN_FLIGHT {
                // The part of the server's time that the guard, the wrappers, the queue and the
                // turn take.
                let costs =
                    rounds.iter().filter_map(|(b, o)| Some(o.server_us()? - b.server_us()?));
                let row = Row::new("rpc-read-64-cost", median(costs), "us");
                bench.add(row.target(Target::AtMost(2.0)));
            }
        }
    }
    if bench.wants("rpc-increment-1-p50") {
        measure_latency(bench, &bare, &one).await?;
    }
    if bench.wants("rpc-increment-64") {
        let target = ("rpc-increment-64", 0.4);
        measure_increments(bench, target, &bare, &server, &[one]).await?;
    }
    if bench.wants("rpc-increment-64-of-1000") {
        let names: Vec<String> = (0..SPREAD).map(|n| format!("spread-{n}")).collect();
        let many = try_join_all(names.iter().map(|name| counters.found(name))).await?;
        let target = ("rpc-increment-64-of-1000", 0.25);
        measure_increments(bench, target, &bare, &server, &many).await?;
    }
    Ok(())
}

async fn measure_increments(
    bench: &mut Bench,
    (name, target): (&'static str, f64),
    bare: &BareEcho,
    server: &Capstead,
    counters: &[counter::Client],
) -> Result<()> {
    let nth = |n: u64| &counters[n as usize % counters.len()];
    // Every object is awake before the first round.
    let count = counters.len() as u64;
    drive(IN_FLIGHT, Until::Calls(count), async |n| increment(nth(n)).await).await?;
    let baseline = async |until| bare.reads(IN_FLIGHT, until).await;
    let measured = async |until| {
        let run = drive(IN_FLIGHT, until, async |n| increment(nth(n)).await);
        server.process.watch(run).await
    };
    let rounds = bench.plan.alternate(name, baseline, measured).await?;
    bench.add(Row::rates(name, &rounds).target(Target::AtLeast(target)));
    Ok(())
}

/// One increment at a time, against a bare call and three data syncs.
async fn measure_latency(
    bench: &mut Bench,
    bare: &BareEcho,
    counter: &counter::Client,
) -> Result<()> {
    let name = "rpc-increment-1-p50";
    let file = AppendedFile::create(&bench.scratch.path("latency"))?;
    let baseline = async |until| bare.reads(1, until).await;
    let measured = async |until| drive(1, until, async |_| increment(counter).await).await;
    let mut rounds = Vec::new();
    let mut samples = Vec::new();
    let once = Plan { rounds: 1, ..bench.plan };
    for _ in 0..bench.plan.rounds {
        let sync = file.append_and_sync(Until::Calls(SYNCS))?.percentile_us(50);
        let pair = once.alternate(name, baseline, measured).await?;
        for (theirs, ours) in pair {
            let sum = theirs.percentile_us(50) + SYNCS_ALLOWED * sync;
            rounds.push((sum, ours.percentile_us(50)));
            samples.push(ours);
        }
    }
    let row = Row::paired(name, "us", rounds).latency(samples.iter());
    bench.add(row.target(Target::AtMost(1.0)));
    Ok(())
}

/// A bare capnp-rpc server of a counter, and a connection to it.
pub(crate) struct BareEcho {
    echo: counter::Client,
    process: Process,
}

impl BareEcho {
    /// # Errors
    /// When it doesn't start.
    pub(crate) async fn start(kind: BareServer) -> Result<Self> {
        let (process, address) = Process::start(kind.args())?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut system = stock(stream, Side::Client, None);
        let echo = system.bootstrap(Side::Server);
        // The task ends with its server, which is killed when it is dropped.
        tokio::task::spawn_local(async move { system.await.ok() });
        Ok(Self { echo, process })
    }

    /// # Errors
    /// When a call fails.
    pub(crate) async fn reads(&self, in_flight: usize, until: Until) -> Result<Sample> {
        self.process.watch(drive(in_flight, until, async |_| read(&self.echo).await)).await
    }
}

/// A server's counters, reached with the client library that users have.
pub(crate) struct Counters {
    namespace: namespace::Client,
    connection: Connection,
}

impl Counters {
    /// # Errors
    /// When the server can't be reached.
    pub(crate) async fn connect(server: &Capstead) -> Result<Self> {
        let connection = Connection::dial(&server.capnp).await?;
        let namespace = connection.restore(&server.counters)?;
        Ok(Self { namespace, connection })
    }

    /// Asks for the counter of that name and waits for the answer.
    ///
    /// # Errors
    /// When the server doesn't return it.
    pub(crate) async fn found(&self, name: &str) -> Result<counter::Client> {
        let mut request = self.namespace.by_name_request();
        request.get().set_key(name);
        request.send().promise.await?.get()?.get_object().get_as_capability()
    }

    /// The address of the host that owns the target of a reference.
    ///
    /// # Errors
    /// When the server doesn't return it.
    pub(crate) async fn located(&self, text: &str) -> Result<String> {
        self.connection.locate(text).await
    }

    /// The counter of that name, without waiting: calls on it follow the question for it.
    pub(crate) fn named(&self, name: &str) -> counter::Client {
        let mut request = self.namespace.by_name_request();
        request.get().set_key(name);
        FromClientHook::new(request.send().pipeline.get_object().as_cap())
    }
}

/// Makes one read and waits for its answer.
///
/// # Errors
/// When it fails.
pub(crate) async fn read(counter: &counter::Client) -> Result<()> {
    let reply = counter.read_request().send().promise.await?;
    std::hint::black_box(reply.get()?.get_value());
    Ok(())
}

/// Makes one increment and waits until it is durable.
///
/// # Errors
/// When it fails.
pub(crate) async fn increment(counter: &counter::Client) -> Result<()> {
    let reply = counter.increment_request().send().promise.await?;
    std::hint::black_box(reply.get()?.get_value());
    Ok(())
}
