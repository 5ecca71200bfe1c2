//! Many connections to one server: the cost of an idle one, and its effect on busy ones.

use futures::future::try_join_all;

use super::measure::{Sample, Until, drive, float};
use super::process::Capstead;
use super::row::{Row, Target};
use super::rpc::{Counters, read};
use super::{Bench, note};
use capstead::Result;
use capstead::counter_capnp::counter;

/// Names of the rows that this module measures.
pub(crate) const NAMES: [&str; 2] = ["idle-connection-rss", "busy-p99-beside-idle"];

/// Connections that each make one call after the other.
const BUSY: u64 = 100;
/// Connections that are made at the same time.
const DIALLED_AT_ONCE: usize = 64;
/// All connections come from one address.
const FLAGS: [&str; 4] = ["--limit", "connections-per-peer=20000", "--warm", "1h"];

/// Measures the selected rows.
///
/// # Errors
/// When a server doesn't start, or a call fails.
pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    let quiet = Capstead::start(&bench.scratch.path("quiet"), &FLAGS)?;
    let alone = Busy::connect(&quiet).await?;
    let crowded = Capstead::start(&bench.scratch.path("crowded"), &FLAGS)?;
    let busy = Busy::connect(&crowded).await?;
    // Everything that the server needs for the first connection is in memory by now.
    busy.reads(Until::Calls(1_000)).await?;
    let before = crowded.process.resident_bytes()?;
    let idle = rest(&crowded, bench.connections).await?;
    let after = crowded.process.resident_bytes()?;
    let each = (after.0 - before.0) / float(bench.connections) / 1024.0;
    note(&format!("{} idle connections: {each:.1} KiB each", idle.len()));
    let row = Row::new("idle-connection-rss", each, "KiB");
    bench.add(row.target(Target::AtMost(40.0)));

    let name = "busy-p99-beside-idle";
    if bench.wants(name) {
        let baseline = async |until| alone.reads(until).await;
        let measured = async |until| busy.reads(until).await;
        let rounds = bench.plan.alternate(name, baseline, measured).await?;
        let p99 = |sample: &Sample| sample.percentile_us(99);
        let pairs = rounds.iter().map(|(alone, beside)| (p99(alone), p99(beside))).collect();
        let row = Row::paired(name, "us", pairs).latency(rounds.iter().map(|(_, beside)| beside));
        bench.add(row.target(Target::AtMost(1.5)));
    }
    let open = crowded.metric("capstead_connections").await?;
    note(&format!("{open} connections are open at the end"));
    Ok(())
}

/// Opens this many connections. Each gets a counter and then stays idle.
async fn rest(server: &Capstead, count: u64) -> Result<Vec<(Counters, counter::Client)>> {
    let idle = std::cell::RefCell::new(Vec::new());
    drive(DIALLED_AT_ONCE, Until::Calls(count), async |n| {
        let counters = Counters::connect(server).await?;
        let counter = counters.found(&format!("idle-{}", n % BUSY)).await?;
        read(&counter).await?;
        idle.borrow_mut().push((counters, counter));
        Ok(())
    })
    .await?;
    Ok(idle.into_inner())
}

/// Connections with a counter each, among which calls are spread.
struct Busy(Vec<(Counters, counter::Client)>);

impl Busy {
    async fn connect(server: &Capstead) -> Result<Self> {
        let connect = async |n: u64| {
            let counters = Counters::connect(server).await?;
            let counter = counters.found(&format!("busy-{n}")).await?;
            Ok::<_, capnp::Error>((counters, counter))
        };
        Ok(Self(try_join_all((0..BUSY).map(connect)).await?))
    }

    async fn reads(&self, until: Until) -> Result<Sample> {
        let of = |n: u64| &self.0[n as usize % self.0.len()].1;
        drive(self.0.len(), until, async |n| read(of(n)).await).await
    }
}
