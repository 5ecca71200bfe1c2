//! The cost of the storage for a method: reads and lists in one method, against bare LMDB and
//! against calls; and references against other values.

use std::time::Duration;

use capnp::capability::FromClientHook;
use capstead_client::Connection;

use super::Bench;
use super::baseline_lmdb::BareLmdb;
use super::measure::{Sample, Until, drive, float};
use super::probe::VALUE_BYTES;
use super::process::Capstead;
use super::row::{Row, Target};
use crate::probe_capnp::probe;
use capstead::{Result, failed};
use capstead_client::restorer_capnp::namespace;

/// Names of the rows that this module measures.
pub(crate) const NAMES: [&str; 5] =
    ["point-read", "list-10000", "list-10000-unapplied", "read-100-keys", "put-ref"];

/// Entries of the list.
const ENTRIES: u32 = 10_000;
/// Entries of the list that only the log has.
const UNAPPLIED: u32 = 1_000;
/// Reads that are timed together.
const POINT_READS: u32 = 10_000;
/// Keys that are read in one method, or in one call each.
const KEYS: u32 = 100;
/// Concurrent writing calls: with this many, the disk doesn't dominate.
const IN_FLIGHT: usize = 256;

/// Measures the selected rows.
///
/// # Errors
/// When the server doesn't start, or a call fails.
pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    let data = bench.scratch.path("inside");
    let server = Capstead::start(&data, &[])?;
    let connection = Connection::dial(&server.capnp).await?;
    let probes: namespace::Client = connection.restore(&server.probes)?;
    let probe = named(&probes, "probe");
    fill(&probe, ENTRIES).await?;
    if bench.wants("point-read") {
        let measured = async |_| point_read(&probe).await;
        let value = bench.plan.repeat("point-read", measured).await?;
        bench.add(Row::new("point-read", value, "us").target(Target::AtMost(2.0)));
    }
    if bench.wants("list-10000") {
        measure_list(bench, "list-10000", &probe).await?;
    }
    if bench.wants("read-100-keys") {
        measure_many(bench, &probe).await?;
    }
    if bench.wants("put-ref") {
        measure_put_ref(bench, &probe, &named(&probes, "references")).await?;
    }
    if bench.wants("list-10000-unapplied") {
        server.process.terminate()?;
        let server = Capstead::start(&data, &["--log-age", "1h"])?;
        let connection = Connection::dial(&server.capnp).await?;
        let probe = named(&connection.restore(&server.probes)?, "probe");
        fill(&probe, UNAPPLIED).await?;
        measure_list(bench, "list-10000-unapplied", &probe).await?;
    }
    Ok(())
}

/// Writes the first entries of the list.
async fn fill(probe: &probe::Client, entries: u32) -> Result<()> {
    let mut request = probe.fill_request();
    request.get().set_entries(entries);
    request.send().promise.await.map(drop)
}

fn named(probes: &namespace::Client, name: &str) -> probe::Client {
    let mut request = probes.by_name_request();
    request.get().set_key(name);
    FromClientHook::new(request.send().pipeline.get_object().as_cap())
}

/// The time of one read in microseconds, from many in one method.
async fn point_read(probe: &probe::Client) -> Result<f64> {
    let mut request = probe.point_reads_request();
    request.get().set_count(POINT_READS);
    let nanoseconds = request.send().promise.await?.get()?.get_nanoseconds();
    Ok(float(nanoseconds) / 1e3 / f64::from(POINT_READS))
}

/// Whole lists in a method, against a cursor that visits the same records.
async fn measure_list(bench: &mut Bench, name: &'static str, probe: &probe::Client) -> Result<()> {
    let bare = BareLmdb::open(&bench.scratch.directory(&format!("bare-{name}"))?)?;
    bare.fill(ENTRIES, VALUE_BYTES)?;
    let baseline = async |until| bare.list(ENTRIES, until);
    let measured = async |until: Until| {
        // The duration inside the method counts, and not that of the call.
        let (mut times, mut sum) = (Vec::new(), Duration::ZERO);
        while !until.is_over(times.len() as u64, sum) {
            let reply = probe.list_request().send().promise.await?;
            if reply.get()?.get_entries() != ENTRIES {
                return Err(failed("the list isn't whole"));
            }
            times.push(Duration::from_nanos(reply.get()?.get_nanoseconds()));
            sum += times.last().copied().unwrap_or_default();
        }
        Ok(Sample::new(sum, times))
    };
    let rounds = bench.plan.alternate(name, baseline, measured).await?;
    bench.add(Row::rates(name, &rounds).target(Target::AtLeast(0.6)));
    Ok(())
}

/// All keys in one call, against one call for each key.
async fn measure_many(bench: &mut Bench, probe: &probe::Client) -> Result<()> {
    let baseline = async |until| {
        drive(1, until, async |_| {
            for n in 0..KEYS {
                let mut request = probe.read_one_request();
                request.get().set_key(n);
                request.send().promise.await?;
            }
            Ok(())
        })
        .await
    };
    let measured = async |until| {
        drive(1, until, async |_| {
            let mut request = probe.read_all_request();
            request.get().set_keys(KEYS);
            request.send().promise.await.map(drop)
        })
        .await
    };
    let rounds = bench.plan.alternate("read-100-keys", baseline, measured).await?;
    bench.add(Row::rates("read-100-keys", &rounds).target(Target::AtLeast(50.0)));
    Ok(())
}

/// Calls that store a reference, against calls that store bytes in another object.
async fn measure_put_ref(
    bench: &mut Bench,
    plain: &probe::Client,
    referring: &probe::Client,
) -> Result<()> {
    let key = |n: u64| (n % 1_000) as u32;
    let baseline = async |until| {
        drive(IN_FLIGHT, until, async |n| {
            let mut request = plain.put_request();
            request.get().set_key(key(n));
            request.send().promise.await.map(drop)
        })
        .await
    };
    let measured = async |until| {
        drive(IN_FLIGHT, until, async |n| {
            let mut request = referring.put_ref_request();
            request.get().set_key(key(n));
            request.send().promise.await.map(drop)
        })
        .await
    };
    let rounds = bench.plan.alternate("put-ref", baseline, measured).await?;
    let each = |sample: &Sample| 1e6 / sample.per_second();
    let pairs = rounds.iter().map(|(put, put_ref)| (each(put), each(put_ref))).collect();
    bench.add(Row::paired("put-ref", "us", pairs).target(Target::AtMost(1.5)));
    Ok(())
}
