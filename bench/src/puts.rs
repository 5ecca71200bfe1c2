//! Durable puts to many objects at once, and to a single one, against bare LMDB with the same
//! records.
//!
//! The storage is driven directly, without calls; the bare program commits the same records in one
//! transaction on one thread.

use capstead::Result;
use capstead::lab::Puts;

use super::Bench;
use super::baseline_lmdb::BareLmdb;
use super::measure::{Sample, drive_here};
use super::row::{Row, Target};

/// Names of the rows that this module measures.
pub(crate) const NAMES: [&str; 3] = ["durable-puts-64", "durable-puts-512", "durable-put-1"];

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
            let rounds = rounds(bench, name, objects).await?;
            bench.add(Row::rates(name, &rounds).target(Target::AtLeast(0.8)));
        }
    }
    let name = "durable-put-1";
    if bench.wants(name) {
        let rounds = rounds(bench, name, 1).await?;
        let p50 = |sample: &Sample| sample.percentile_us(50);
        let pairs = rounds.iter().map(|(bare, ours)| (p50(bare), p50(ours))).collect();
        let row = Row::paired(name, "us", pairs).latency(rounds.iter().map(|(_, ours)| ours));
        bench.add(row.target(Target::AtMost(1.3)));
    }
    Ok(())
}

/// Rounds in which every step makes one put to each object durable.
async fn rounds(bench: &Bench, name: &str, objects: usize) -> Result<Vec<(Sample, Sample)>> {
    let bare = BareLmdb::open(&bench.scratch.directory(&format!("bare-{name}"))?)?;
    // With many objects, writes continue while a sync runs; a single put is awaited.
    let ahead = if objects > 1 { AHEAD } else { 0 };
    let storage = Puts::open(&bench.scratch.directory(name)?, objects, ahead)?;
    let prefixes: Vec<_> = storage.objects().collect();
    let baseline = async |until| bare.commit_puts(&prefixes, KEY, VALUE_BYTES, until);
    let measured =
        async |until| drive_here(until, |n| storage.put_all(KEY, &[n as u8; VALUE_BYTES]));
    bench.plan.alternate(name, baseline, measured).await
}
