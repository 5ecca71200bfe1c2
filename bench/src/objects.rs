//! Many objects in one server: their memory, the speed of waking them, and the cost of reading warm
//! ones.

use super::measure::{Sample, Until, drive, float, median};
use super::process::Capstead;
use super::row::{Row, Target};
use super::rpc::{Counters, IN_FLIGHT, increment, read};
use super::{Bench, note};
use capstead::Result;

/// Names of the rows that this module measures.
pub(crate) const NAMES: [&str; 5] = [
    "rss-per-awake",
    "rss-per-awake-anonymous",
    "wakes-per-s",
    "warm-read-syncs",
    "warm-read-storage-reads",
];

/// Objects that wake at the same time, each by two calls in a row.
const WAKES_IN_FLIGHT: usize = 256;
/// Reads that must cost nothing.
const WARM_READS: u64 = 10_000;

/// Measures the selected rows.
///
/// # Errors
/// When the server doesn't start or end, or a call fails.
pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    if bench.wants_any(&NAMES[..3]) {
        measure_wakes(bench).await?;
    }
    if bench.wants_any(&NAMES[3..]) {
        measure_warm_reads(bench).await?;
    }
    Ok(())
}

/// Flags of a server whose objects don't fall asleep.
const STAY_AWAKE: [&str; 6] =
    ["--warm", "1h", "--awake-objects", "10000000", "--awake-bytes", "20GiB"];

/// Makes objects, and wakes them all in a freshly started server, once in each round.
async fn measure_wakes(bench: &mut Bench) -> Result<()> {
    let objects = bench.objects;
    note(&format!("making {objects} objects"));
    let server = Capstead::start(&bench.scratch.path("objects"), &STAY_AWAKE)?;
    let counters = Counters::connect(&server).await?;
    let made = drive(WAKES_IN_FLIGHT, Until::Calls(objects), async |n| {
        increment(&counters.named(&key(n))).await
    });
    note(&format!("made {:.0} objects a second", made.await?.per_second()));
    server.process.terminate()?;

    let (mut wakes, mut all, mut anonymous) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=bench.plan.rounds {
        let woken = wake_all(bench, objects).await?;
        let (name, rounds, rate) = ("wakes-per-s", bench.plan.rounds, woken.sample.per_second());
        let (bytes, ours) = woken.bytes;
        let cpu = woken.sample.server_us().unwrap_or_default();
        note(&format!(
            "{name} {round}/{rounds}: {rate:.0}/s at {cpu:.1} us of processor time, \
             {bytes:.0} bytes each, {ours:.0} anonymous"
        ));
        wakes.push(woken.sample);
        all.push(bytes);
        anonymous.push(ours);
    }
    let limit = Target::AtMost(1536.0);
    bench.add(Row::new("rss-per-awake", median(all), "bytes").target(limit));
    bench.add(Row::new("rss-per-awake-anonymous", median(anonymous), "bytes"));
    let rate = median(wakes.iter().map(Sample::per_second));
    let row = Row::new("wakes-per-s", rate, "1/s").latency(wakes.iter());
    bench.add(row.target(Target::AtLeast(30_000.0)));
    Ok(())
}

struct Woken {
    sample: Sample,
    /// The growth of the server's memory for each object: in all, and without file-backed memory.
    bytes: (f64, f64),
}

async fn wake_all(bench: &Bench, objects: u64) -> Result<Woken> {
    let server = Capstead::start(&bench.scratch.path("objects"), &STAY_AWAKE)?;
    let counters = Counters::connect(&server).await?;
    // This loads the connection and the code into memory; the object doesn't exist.
    drive(IN_FLIGHT, Until::Calls(1000), async |_| read(&counters.named("warm-up")).await).await?;
    let before = server.process.resident_bytes()?;
    let wake = async |n| read(&counters.named(&key(n))).await;
    let run = drive(WAKES_IN_FLIGHT, Until::Calls(objects), wake);
    let sample = server.process.watch(run).await?;
    let after = server.process.resident_bytes()?;
    let awake = server.metric("capstead_objects_awake").await?;
    if awake < objects {
        note(&format!("only {awake} objects are awake: the rest went to sleep again"));
    }
    server.process.terminate()?;
    let each = |before: f64, after: f64| (after - before) / float(objects);
    Ok(Woken { sample, bytes: (each(before.0, after.0), each(before.1, after.1)) })
}

fn key(n: u64) -> String {
    format!("object-{n}")
}

/// Reads of an object that is awake reach neither the disk nor the store.
async fn measure_warm_reads(bench: &mut Bench) -> Result<()> {
    let server = Capstead::start(&bench.scratch.path("warm"), &STAY_AWAKE)?;
    let counters = Counters::connect(&server).await?;
    let counter = counters.found("bench").await?;
    increment(&counter).await?;
    let counts = async || {
        let commits = server.metric("capstead_commits_total").await?;
        let reads = server.metric("capstead_storage_reads_total").await?;
        Ok::<_, capnp::Error>((commits, reads))
    };
    let before = counts().await?;
    drive(IN_FLIGHT, Until::Calls(WARM_READS), async |_| read(&counter).await).await?;
    let after = counts().await?;
    let nothing = Target::AtMost(0.0);
    let [commits, reads] = [after.0 - before.0, after.1 - before.1].map(float);
    bench.add(Row::new("warm-read-syncs", commits, "in 10,000").target(nothing));
    bench.add(Row::new("warm-read-storage-reads", reads, "in 10,000").target(nothing));
    Ok(())
}
