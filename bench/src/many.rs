//! Load on very many sleeping objects, and on one hot object beside them, against the same load on
//! few; then minutes at full rate, and a start after a kill with a full log.

use std::cell::Cell;
use std::path::Path;

use tokio::sync::oneshot;

use super::measure::{Sample, Until, drive, now};
use super::process::Capstead;
use super::row::{Row, Target};
use super::rpc::{Counters, IN_FLIGHT, increment};
use super::sleeping::{STRIDE, key, made};
use super::{Bench, note};
use capstead::Result;
use capstead::counter_capnp::counter;

/// Names of the rows that this module measures.
pub(crate) const NAMES: [&str; 7] = [
    "increments-of-many",
    "hot-beside-many",
    "hot-beside-many-cold",
    "full-rate-last-minute",
    "full-rate-memory",
    "full-rate-lone-p99",
    "start-after-kill",
];

/// Objects in the baseline: a thousand of the same counters.
const FEW: u64 = 1_000;
/// Parts of the time at full rate; in a whole run each takes a minute.
const PARTS: u32 = 10;
/// Lone increments that fill the log of the server that is killed: each takes a page of 4 KiB.
const LOGGED_PAGES: u64 = (256 << 20) / 4_096;

/// Measures the selected rows.
///
/// # Errors
/// When a server doesn't start or end, or a call fails.
pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    if bench.wants_any(&NAMES[..NAMES.len() - 1]) {
        let data = bench.scratch.path("many");
        let server = Capstead::start(&data, &[])?;
        made(&server, bench.sleeping).await?;
        measure_many(bench, &server).await?;
        measure_hot(bench, "hot-beside-many", &server).await?;
        server.process.terminate()?;
        let server = Capstead::start(&data, &[])?;
        measure_hot(bench, "hot-beside-many-cold", &server).await?;
        measure_full_rate(bench, &server).await?;
    }
    if bench.wants("start-after-kill") {
        measure_start(bench).await?;
    }
    Ok(())
}

/// Increments of many objects, far from each other, against the same of few.
async fn measure_many(bench: &mut Bench, server: &Capstead) -> Result<()> {
    let name = "increments-of-many";
    if !bench.wants(name) {
        return Ok(());
    }
    let counters = Counters::connect(server).await?;
    let next = Cell::new(0);
    let of = async |objects, until| {
        let one = async |_| increment(&counters.named(&key(spread(&next, objects)))).await;
        server.process.watch(drive(IN_FLIGHT, until, one)).await
    };
    let (few, many) =
        (async |until| of(FEW, until).await, async |until| of(bench.sleeping, until).await);
    let rounds = bench.plan.alternate(name, few, many).await?;
    bench.add(Row::rates(name, &rounds).target(Target::AtLeast(0.8)));
    Ok(())
}

/// Increments of one counter beside many that sleep, against the same in a server without others.
async fn measure_hot(bench: &mut Bench, name: &'static str, server: &Capstead) -> Result<()> {
    if !bench.wants(name) {
        return Ok(());
    }
    let alone = Capstead::start(&bench.scratch.path(&format!("{name}-alone")), &[])?;
    let ((lone, _alone), (beside, _many)) = (hot(&alone).await?, hot(server).await?);
    let baseline = async |until| drive(IN_FLIGHT, until, async |_| increment(&lone).await).await;
    let measured = async |until| drive(IN_FLIGHT, until, async |_| increment(&beside).await).await;
    let rounds = bench.plan.alternate(name, baseline, measured).await?;
    bench.add(Row::rates(name, &rounds).target(Target::AtLeast(0.95)));
    Ok(())
}

/// A counter, and the connection by which it is reached.
async fn hot(server: &Capstead) -> Result<(counter::Client, Counters)> {
    let counters = Counters::connect(server).await?;
    Ok((counters.found("hot").await?, counters))
}

/// Increments of many objects for minutes, with one lone increment at a time beside them.
async fn measure_full_rate(bench: &mut Bench, server: &Capstead) -> Result<()> {
    if !bench.wants_any(&NAMES[3..6]) {
        return Ok(());
    }
    let part = bench.plan.round * if bench.plan.rounds > 3 { 60 } else { 10 };
    let counters = Counters::connect(server).await?;
    let (next, objects) = (Cell::new(0), bench.sleeping);
    let one = async |_| increment(&counters.named(&key(spread(&next, objects)))).await;
    let (ended, end) = oneshot::channel();
    let beside = tokio::task::spawn_local(lone(Counters::connect(server).await?, end));
    let (mut rates, mut memory) = (Vec::new(), Vec::new());
    for at in 1..=PARTS {
        let run = drive(IN_FLIGHT, Until::Time(part), one).await?;
        let (_, anonymous) = server.process.resident_bytes()?;
        let mib = anonymous / f64::from(1 << 20);
        note(&format!("full rate {at}/{PARTS}: {:.0}/s, {mib:.0} MiB", run.per_second()));
        rates.push(run.per_second());
        memory.push(mib);
    }
    // It listens until the run has ended.
    let _ = ended.send(());
    let lone = beside.await.map_err(|error| capstead::failed(error.to_string()))??;
    let last = rates.len() - 1;
    let row = Row::paired(NAMES[3], "1/s", vec![(rates[1], rates[last])]);
    bench.add(row.target(Target::AtLeast(0.9)));
    let row = Row::paired(NAMES[4], "MiB", vec![(memory[1], memory[last])]);
    bench.add(row.target(Target::AtMost(1.1)));
    let (p50, p99) = (lone.percentile_us(50), lone.percentile_us(99));
    let row = Row::paired(NAMES[5], "us", vec![(p50, p99)]).latency([&lone].into_iter());
    bench.add(row.target(Target::AtMost(3.0)));
    Ok(())
}

/// Increments of one counter, one at a time.
async fn lone(counters: Counters, mut end: oneshot::Receiver<()>) -> Result<Sample> {
    let counter = counters.found("lone").await?;
    let (started, mut latencies) = (now(), Vec::new());
    while end.try_recv().is_err() {
        let begun = now();
        increment(&counter).await?;
        latencies.push(begun.elapsed());
    }
    Ok(Sample::new(started.elapsed(), latencies))
}

/// The time that a server takes to announce itself after a kill, when nothing of its log was
/// applied.
async fn measure_start(bench: &mut Bench) -> Result<()> {
    let data = bench.scratch.path("killed");
    fill_log(&data).await?;
    let started = now();
    let server = Capstead::start(&data, &[])?;
    let took = started.elapsed();
    drop(server);
    let row = Row::new("start-after-kill", took.as_secs_f64(), "s");
    bench.add(row.target(Target::AtMost(3.0)));
    Ok(())
}

async fn fill_log(data: &Path) -> Result<()> {
    let server = Capstead::start(data, &["--log-backlog", "1GiB", "--log-age", "1h"])?;
    let counters = Counters::connect(&server).await?;
    let counter = counters.found("logged").await?;
    drive(1, Until::Calls(LOGGED_PAGES), async |_| increment(&counter).await).await?;
    // Dropped, it is killed.
    Ok(())
}

/// The next object, far from the one before; each of them comes once before any comes again.
fn spread(next: &Cell<u64>, objects: u64) -> u64 {
    next.replace(next.get() + 1) * STRIDE % objects
}
