//! Very many sleeping objects: their cost on disk and in memory, and the speed of making and waking
//! them.
//!
//! Cold means asleep, in a freshly started server. The system may still have its file in memory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::measure::{Sample, Until, drive, float};
use super::process::Capstead;
use super::row::{Row, Target};
use super::rpc::{Counters, IN_FLIGHT, increment, read};
use super::{Bench, note};
use capstead::{Result, failed};

/// Names of the rows that this module measures.
pub(crate) const NAMES: [&str; 4] =
    ["sleeping-disk", "sleeping-memory", "creations-per-s", "cold-wake"];

/// Objects that are made concurrently.
const CREATIONS_IN_FLIGHT: usize = 4 * IN_FLIGHT;
/// Objects that are woken one after the other.
const WAKES: u64 = 5_000;
/// A prime, so that the objects woken are far from each other.
pub(crate) const STRIDE: u64 = 7_919;

/// Measures the rows of this module.
///
/// # Errors
/// When a server doesn't start or end, or a call fails.
pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    let (objects, data) = (bench.sleeping, bench.scratch.path("sleeping"));
    let empty = idle_bytes(&bench.scratch.path("nothing"))?;
    let server = Capstead::start(&data, &[])?;
    let made = made(&server, objects).await?;
    server.process.terminate()?;
    let before = disk_bytes(&data)?;
    compact(&data)?;
    let each = float(disk_bytes(&data)?) / float(objects);
    note(&format!(
        "{:.0} bytes of disk each, {each:.0} after compaction",
        float(before) / float(objects)
    ));
    bench.add(Row::new("sleeping-disk", each, "bytes").target(Target::AtMost(200.0)));

    let memory = (idle_bytes(&data)? - empty).max(0.0) / float(objects);
    bench.add(Row::new("sleeping-memory", memory, "bytes").target(Target::AtMost(1.0)));
    let row = Row::new("creations-per-s", made.per_second(), "1/s").latency([&made].into_iter());
    bench.add(row.target(Target::AtLeast(50_000.0)));

    let server = Capstead::start(&data, &[])?;
    let counters = Counters::connect(&server).await?;
    drive(1, Until::Calls(1000), async |_| read(&counters.named("warm-up")).await).await?;
    let wake = async |n: u64| read(&counters.named(&key(n * STRIDE % objects))).await;
    let woken = drive(1, Until::Calls(WAKES.min(objects)), wake).await?;
    let row = Row::new("cold-wake", woken.percentile_us(50), "us");
    bench.add(row.latency([&woken].into_iter()));
    Ok(())
}

/// Makes this number of counters, each with one increment.
///
/// # Errors
/// When a call fails.
pub(crate) async fn made(server: &Capstead, objects: u64) -> Result<Sample> {
    note(&format!("making {objects} counters"));
    let counters = Counters::connect(server).await?;
    let one = async |n| increment(&counters.named(&key(n))).await;
    drive(CREATIONS_IN_FLIGHT, Until::Calls(objects), one).await
}

/// The name of a counter, by its number.
pub(crate) fn key(n: u64) -> String {
    format!("object-{n}")
}

/// The server's own memory before its first call.
fn idle_bytes(data: &Path) -> Result<f64> {
    let server = Capstead::start(data, &[])?;
    let (_, anonymous) = server.process.resident_bytes()?;
    server.process.terminate()?;
    Ok(anonymous)
}

fn disk_bytes(data: &Path) -> Result<u64> {
    Ok(std::fs::metadata(data.join("host-0").join("data.mdb"))?.len())
}

fn compact(data: &Path) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    let args = ["compact", "--data"].map(PathBuf::from).into_iter().chain([data.to_owned()]);
    let status = command.args(args).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(failed("the data could not be compacted")) }
}
