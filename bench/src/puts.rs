//! Durable puts to many objects at once, and to a single one: rates against bare LMDB with the same
//! records, and times against a bare log of as many bytes.
//!
//! Both sides write the same records, without RPC: Capstead through its storage layer, the bare
//! programs on one thread with one transaction, or one sync, per group.

use capstead::Result;
use capstead::lab::Puts;

use super::Bench;
use super::baseline_lmdb::BareLmdb;
use super::baseline_log::BareLog;
use super::measure::{Sample, Until, drive_here};
use super::row::{Row, Target};

/// Names of the rows that this module measures.
pub(crate) const NAMES: [&str; 4] =
    ["durable-puts-64", "durable-puts-512", "durable-put-1", "durable-puts-64-p50"];

/// The key that the bare program writes too.
const KEY: &[u8] = b"value";
const VALUE_BYTES: usize = 100;
/// Puts to each object that may wait for the disk, besides the one under way.
const AHEAD: u64 = 2;

/// Measures the selected rows.
///
/// # Errors
/// When a storage can't be made, or fails.
pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    for (name, objects) in [("durable-puts-64", 64), ("durable-puts-512", 512)] {
        if bench.wants(name) {
            let bare = BareLmdb::open(&bench.scratch.directory(&format!("bare-{name}"))?)?;
            let rounds = rounds(bench, name, objects, |prefixes, until| {
                bare.commit_puts(prefixes, KEY, VALUE_BYTES, until)
            });
            bench.add(Row::rates(name, &rounds.await?).target(Target::AtLeast(2.0)));
        }
    }
    for (name, objects) in [("durable-put-1", 1), ("durable-puts-64-p50", 64)] {
        if !bench.wants(name) {
            continue;
        }
        let bare = BareLog::open(&bench.scratch.directory(&format!("bare-{name}"))?)?;
        let rounds = rounds(bench, name, objects, |prefixes, until| {
            bare.append_puts(prefixes, KEY, VALUE_BYTES, until)
        });
        let rounds = rounds.await?;
        let p50 = |sample: &Sample| sample.percentile_us(50);
        let pairs = rounds.iter().map(|(bare, ours)| (p50(bare), p50(ours))).collect();
        let row = Row::paired(name, "us", pairs).latency(rounds.iter().map(|(_, ours)| ours));
        bench.add(row.target(Target::AtMost(1.5)));
    }
    Ok(())
}

/// Rounds in which every step makes one put to each object durable, by the bare program and by the
/// storage.
async fn rounds(
    bench: &Bench,
    name: &str,
    objects: usize,
    bare: impl Fn(&[([u8; 2], [u8; 16])], Until) -> Result<Sample>,
) -> Result<Vec<(Sample, Sample)>> {
    // For rates, writes continue while a sync runs; for times, each step is awaited.
    let ahead = if name.ends_with("p50") || objects == 1 { 0 } else { AHEAD };
    let storage = Puts::open(&bench.scratch.directory(name)?, objects, ahead)?;
    let prefixes: Vec<_> = storage.objects().collect();
    let baseline = async |until| bare(&prefixes, until);
    let measured =
        async |until| drive_here(until, |n| storage.put_all(KEY, &[n as u8; VALUE_BYTES]));
    bench.plan.alternate(name, baseline, measured).await
}
