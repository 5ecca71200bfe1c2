//! The cost of durability: syncs shared by increments, against bare LMDB and a bare data sync.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::Bench;
use super::baseline_lmdb::BareLmdb;
use super::measure::{Sample, Until, drive, drive_here, float, median};
use super::process::Capstead;
use super::row::{Row, Target};
use super::rpc::{Counters, IN_FLIGHT, increment};
use capstead::Result;

/// Names of the rows that this module measures.
pub(crate) const NAMES: [&str; 3] = ["syncs-per-1000", "storage-group-commit", "storage-fdatasync"];

/// The least time that every commit takes, in milliseconds.
const COMMIT_DELAY: &str = "5";
/// The approximate size of an increment's records.
const RECORD_BYTES: usize = 100;

/// Measures the selected rows.
///
/// # Errors
/// When the server doesn't start, or a call fails.
pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    if bench.wants("syncs-per-1000") {
        measure_syncs(bench).await?;
    }
    if bench.wants("storage-group-commit") {
        measure_group_commit(bench).await?;
    }
    if bench.wants("storage-fdatasync") {
        let name = "storage-fdatasync";
        let file = AppendedFile::create(&bench.scratch.path("fdatasync"))?;
        let rounds = 0..bench.plan.rounds;
        let rounds = rounds.map(|_| file.append_and_sync(Until::Time(bench.plan.round)));
        let rounds = rounds.collect::<Result<Vec<_>>>()?;
        let rate = median(rounds.iter().map(Sample::per_second));
        bench.add(Row::new(name, rate, "1/s").latency(rounds.iter()));
    }
    Ok(())
}

/// Commits per 1,000 increments on a slow disk: each commit is one data sync.
async fn measure_syncs(bench: &mut Bench) -> Result<()> {
    let name = "syncs-per-1000";
    let server = Capstead::start(&bench.scratch.path("slow"), &["--commit-delay", COMMIT_DELAY])?;
    let counters = Counters::connect(&server).await?;
    let counter = counters.found("bench").await?;
    let measured = async |until| {
        let before = server.metric("capstead_commits_total").await?;
        let run = drive(IN_FLIGHT, until, async |_| increment(&counter).await).await?;
        let commits = server.metric("capstead_commits_total").await? - before;
        Ok(1000.0 * float(commits) / float(run.calls()))
    };
    let value = bench.plan.repeat(name, measured).await?;
    bench.add(Row::new(name, value, "syncs").target(Target::AtMost(40.0)));
    Ok(())
}

/// Increments of one counter, against the same records in bare LMDB in groups of the same size.
async fn measure_group_commit(bench: &mut Bench) -> Result<()> {
    let name = "storage-group-commit";
    let server = Capstead::start(&bench.scratch.path("groups"), &[])?;
    let counters = Counters::connect(&server).await?;
    let counter = counters.found("bench").await?;
    let bare = BareLmdb::open(&bench.scratch.directory("bare-lmdb")?)?;
    let counts = async || {
        let turns = server.metric("capstead_turns_committed_total").await?;
        Ok::<_, capnp::Error>((turns, server.metric("capstead_commits_total").await?))
    };
    let group = Cell::new(IN_FLIGHT as u64);
    let measured = async |until| {
        let before = counts().await?;
        let run = drive(IN_FLIGHT, until, async |_| increment(&counter).await).await?;
        let after = counts().await?;
        group.set(((after.0 - before.0) / (after.1 - before.1).max(1)).max(1));
        Ok::<_, capnp::Error>(run)
    };
    measured(Until::Time(bench.plan.round)).await?;
    let mut rounds = Vec::new();
    let mut samples = Vec::new();
    for round in 1..=bench.plan.rounds {
        let size = group.get();
        let theirs = bare.commit_groups(size, Until::Time(bench.plan.round))?.per_second_of(size);
        let ours = measured(Until::Time(bench.plan.round)).await?;
        let (of, rate) = (bench.plan.rounds, ours.per_second());
        super::note(&format!(
            "{name} {round}/{of}: {rate:.0}/s, baseline {theirs:.0}/s in groups of {size}"
        ));
        rounds.push((theirs, rate));
        samples.push(ours);
    }
    bench.add(Row::paired(name, "1/s", rounds).latency(samples.iter()));
    Ok(())
}

/// A file to which each record is appended with a data sync.
pub(crate) struct AppendedFile(File);

impl AppendedFile {
    /// # Errors
    /// When the file can't be made, or is there already.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        Ok(Self(File::create_new(path)?))
    }

    /// Appends records, and syncs each.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn append_and_sync(&self, until: Until) -> Result<Sample> {
        drive_here(until, |_| {
            (&self.0).write_all(&[b'x'; RECORD_BYTES])?;
            Ok(self.0.sync_data()?)
        })
    }
}
