//! The lab `replay`: does every state that a loss of power may leave contain the acknowledged
//! turns?
//!
//! All that a script does to the files of an environment is recorded: to LMDB's, and to the
//! segments of the log. From the record come images of the disk after a crash at each step: with
//! everything lost that may be lost, with nothing lost, and with random losses. Each image is
//! opened, and must hold the turns that were acknowledged by then, as whole turns in order, and
//! besides them at most those under way.
//!
//! The lab tests itself too: it must detect records with mistakes.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::PathBuf;

use crate::checker::Checker;
use crate::folder::{self, DATA};
use crate::images::{Disk, Files, Image, Loss};
use crate::lab::{Counts, Found, ensure, evidence, quick_scratch};
use crate::options::Tier;
use crate::strace::{How, finished, under};
use crate::support::Process;
use crate::support::random::Random;
use crate::trace::{Step, parse};
use crate::writer::{End, IN_FLIGHT, Log, Script};
use crate::wrong::Mistake;

/// The turns that an earlier process left in its log, which is applied first.
const TURNS_BEFORE: u64 = 30;
const TURNS: u64 = 160;
const KEYS: u64 = 8;
/// The images of a record with a mistake among which one must be bad.
const MISTAKEN: usize = 5_000;
/// The log of each script, and the end of the process before.
const RUNS: [(Log, End); 4] = [
    (Log::Busy, End::Behind),
    (Log::Usual, End::InOrder),
    (Log::Slow, End::Applied),
    (Log::Behind, End::Behind),
];

/// The traces of one script.
struct Record {
    script: Script,
    /// The files before the first step.
    before: Files,
    /// The turns that were acknowledged before; `None` if nobody is told.
    acknowledged: Option<u64>,
    steps: Vec<Step>,
}

pub(crate) fn run(tier: Tier, seed: u64) -> Found {
    let (scripts, images) = tier.pick((RUNS.len(), 5_500), (12, 42_000));
    let mut counts = Counts::new();
    for (number, how) in (0..).zip(RUNS.into_iter().cycle().take(scripts)) {
        let script = Script { seed: seed.wrapping_mul(1_000).wrapping_add(number), keys: KEYS };
        let record = record(script, how)?;
        let mut crashes = Crashes::new(script, &mut counts);
        crashes.all(&record, images)?;
        count(&mut counts, &record);
        if number == 0 {
            for mistake in Mistake::ALL {
                let images = caught(&record, mistake)?;
                *counts.entry("images until mistakes were found").or_default() += images;
            }
        }
    }
    let count = |name| counts.get(name).copied().unwrap_or(0);
    ensure(count("segments given up") > 10 && count("segments of earlier use") > 5, || {
        format!("the log was too short to tell anything: {counts:?}")
    })?;
    Ok(counts)
}

fn count(counts: &mut Counts, record: &Record) {
    let data = data(&record.before);
    let mut add = |name, number: usize| *counts.entry(name).or_default() += number as u64;
    let is_write = |step: &&Step| matches!(step, Step::Write { .. });
    let is_sync = |step: &&Step| matches!(step, Step::Synced { .. } | Step::Written(_));
    let of_data = |step: &&Step| matches!(step, Step::Write { file, .. } if *file == data);
    add("writes", record.steps.iter().filter(is_write).count());
    add("writes of LMDB", record.steps.iter().filter(of_data).count());
    add("syncs", record.steps.iter().filter(is_sync).count());
    // Those that are there before were segments of an earlier process, or will be no segments.
    let mut used: BTreeSet<usize> = (0..record.before.len()).collect();
    for step in &record.steps {
        match step {
            Step::Acknowledged(_) => add("acknowledged", 1),
            Step::FolderSynced { .. } => add("syncs of the folder", 1),
            Step::Named(changes) => {
                for (name, file) in changes {
                    if name.starts_with("segment-") {
                        let was_used = file.is_some_and(|file| !used.insert(file));
                        add("segments given up", usize::from(file.is_none()));
                        add("segments of earlier use", usize::from(was_used));
                    }
                }
            }
            _ => {}
        }
    }
}

/// The number of LMDB's file among these.
fn data(files: &Files) -> usize {
    files.keys().position(|name| name == DATA).expect("there are data")
}

/// Runs the script under strace.
fn record(script: Script, (log, before): (Log, End)) -> Result<Record, String> {
    let folder = quick_scratch();
    let environment = folder.path().join("recorded");
    script.make(&environment, TURNS_BEFORE, Log::Behind, before);
    let before = folder::read(&environment);
    let trace = folder.path().join("trace");
    let command = script.write(&environment, TURNS_BEFORE + TURNS, log);
    let mut process = Process::start(under(&How::Record, &trace, &command));
    let status = process.wait();
    ensure(status.success(), || format!("the script ended with {status}: {}", process.stderr()))?;
    let names: Vec<String> = before.keys().cloned().collect();
    let steps = parse(&finished(&trace), &environment, &names)?;
    let mut disk = Disk::new(&steps, &before);
    while disk.step().is_some() {}
    let image = disk.crash(Loss::Nothing, &mut Random::from_seed(0));
    let is_whole = image.files == folder::read(&environment);
    ensure(is_whole, || "the record doesn't add up to the files".to_owned())?;
    Ok(Record { script, before, acknowledged: Some(TURNS_BEFORE), steps })
}

/// The number of images of a record with this mistake that are checked until a bad one is found.
fn caught(record: &Record, mistake: Mistake) -> Result<u64, String> {
    let steps = mistake.made(&record.steps, data(&record.before));
    ensure(steps != record.steps, || format!("no {mistake:?} could be made"))?;
    let mut counts = Counts::new();
    let acknowledged = record.acknowledged.filter(|_| mistake != Mistake::AppliedBeforeSync);
    let wrong =
        Record { script: record.script, before: record.before.clone(), acknowledged, steps };
    let mut crashes = Crashes::new(record.script, &mut counts);
    crashes.keeps_evidence = false;
    ensure(crashes.all(&wrong, MISTAKEN).is_err(), || {
        format!("this lab is blind: it did not see that there was a {mistake:?}")
    })?;
    Ok(counts["images"])
}

/// Crashes of one record.
struct Crashes<'a> {
    seed: u64,
    folder: tempfile::TempDir,
    checker: Checker,
    counts: &'a mut Counts,
    keeps_evidence: bool,
}

impl<'a> Crashes<'a> {
    fn new(script: Script, counts: &'a mut Counts) -> Self {
        let folder = quick_scratch();
        fs::create_dir(folder.path().join("image")).expect("a folder");
        let checker = Checker::new(script.arguments());
        Self { seed: script.seed, folder, checker, counts, keeps_evidence: true }
    }

    /// Crashes at every step; all steps together yield about `images` different images.
    fn all(&mut self, record: &Record, images: usize) -> Result<(), String> {
        let mut disk = Disk::new(&record.steps, &record.before);
        let mut random = Random::from_seed(self.seed);
        let mut left = Left { images, steps_at_risk: steps_at_risk(record) };
        let (mut acknowledged, mut number) = (record.acknowledged, 0);
        while let Some(step) = disk.step() {
            if let Step::Acknowledged(turn) = step {
                acknowledged = Some(*turn);
            }
            number += 1;
            let mut seen = HashSet::new();
            for loss in left.losses(disk.is_at_risk()) {
                let image = disk.crash(loss, &mut random);
                if !seen.insert(image.fingerprint) {
                    continue;
                }
                *self.counts.entry("images").or_default() += 1;
                let seed = self.seed;
                self.one(&image, acknowledged).map_err(|error| {
                    format!("script {seed}, a crash after step {number} ({loss:?}): {error}")
                })?;
            }
            left.images = left.images.saturating_sub(seen.len());
        }
        Ok(())
    }

    fn one(&mut self, image: &Image, acknowledged: Option<u64>) -> Result<(), String> {
        let environment = self.folder.path().join("image");
        folder::write(&environment, &image.files);
        let kept = |what: String| {
            let kept = if self.keeps_evidence { keep(image) } else { PathBuf::new() };
            format!("{what}; the image is kept in {}", kept.display())
        };
        let applied = self.checker.look(&environment).map_err(kept)?;
        let Some(acknowledged) = acknowledged else { return Ok(()) };
        ensure(applied >= acknowledged, || {
            kept(format!("turn {acknowledged} was acknowledged, and {applied} turns are there"))
        })?;
        ensure(applied <= acknowledged + IN_FLIGHT, || {
            kept(format!("{applied} turns are there, long before they were acknowledged"))
        })
    }
}

/// The work that is left, so that it is spread evenly over the steps.
struct Left {
    images: usize,
    steps_at_risk: usize,
}

impl Left {
    /// The crashes to try at the next step. Some random losses may be equal.
    fn losses(&mut self, is_at_risk: bool) -> Vec<Loss> {
        if !is_at_risk {
            return vec![Loss::Nothing];
        }
        let chances = 2 * self.images / self.steps_at_risk.max(1);
        self.steps_at_risk = self.steps_at_risk.saturating_sub(1);
        let mut losses = vec![Loss::Nothing, Loss::Everything];
        losses.resize(2 + chances, Loss::Chance);
        losses
    }
}

/// The number of steps after which a crash could lose something.
fn steps_at_risk(record: &Record) -> usize {
    let mut disk = Disk::new(&record.steps, &record.before);
    let mut at_risk = 0;
    while disk.step().is_some() {
        at_risk += usize::from(disk.is_at_risk());
    }
    at_risk
}

/// Keeps the image as it was before it was opened.
fn keep(image: &Image) -> PathBuf {
    let kept = evidence("crash-image");
    fs::create_dir_all(&kept).expect("a folder for what was found");
    folder::write(&kept, &image.files);
    kept
}
