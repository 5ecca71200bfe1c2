//! The lab `replay`: does every state that a loss of power may leave contain the acknowledged
//! turns?
//!
//! The writes and syncs of a script are recorded. From the record come images of the disk after a
//! crash at each step: with everything lost that may be lost, with nothing lost, and with random
//! losses. Each image is opened, and must hold the turns that were acknowledged by then, as whole
//! turns in order, and besides them at most those under way.
//!
//! The lab tests itself too: it must detect a record in which the order of writes is wrong.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::checker::Checker;
use crate::images::{Disk, Image, Loss, meta_before_sync};
use crate::lab::{Counts, Found, ensure, evidence, quick_scratch};
use crate::options::Tier;
use crate::strace::{How, finished, under};
use crate::support::Process;
use crate::support::random::Random;
use crate::trace::{Step, parse};
use crate::writer::{IN_FLIGHT, Script};

const TURNS: u64 = 120;
const KEYS: u64 = 8;

/// The traces of one script.
struct Record {
    script: Script,
    /// The file's content before the first step.
    before: Vec<u8>,
    steps: Vec<Step>,
}

pub(crate) fn run(tier: Tier, seed: u64) -> Found {
    let (scripts, images) = tier.pick((4, 5_500), (10, 50_000));
    let mut counts = Counts::new();
    for number in 0..scripts {
        let script = Script { seed: seed.wrapping_mul(1_000).wrapping_add(number), keys: KEYS };
        let record = record(script)?;
        let mut crashes = Crashes::new(script, &mut counts);
        crashes.all(&record, images)?;
        count(&mut counts, &record);
        if number == 0 {
            let caught = caught(&record)?;
            *counts.entry("images of a wrong order until one was caught").or_default() += caught;
        }
    }
    Ok(counts)
}

fn count(counts: &mut Counts, record: &Record) {
    let mut add = |name, is: fn(&Step) -> bool| {
        let number = record.steps.iter().filter(|step| is(step)).count();
        *counts.entry(name).or_default() += number as u64;
    };
    add("writes", |step| matches!(step, Step::Write { .. }));
    add("syncs", |step| matches!(step, Step::Synced(_) | Step::Written(_)));
    add("acknowledged", |step| matches!(step, Step::Acknowledged(_)));
}

/// Runs the script under strace.
fn record(script: Script) -> Result<Record, String> {
    let folder = quick_scratch();
    let environment = folder.path().join("recorded");
    script.make(&environment);
    let data = environment.join("data.mdb");
    let before = fs::read(&data).expect("the data are there");
    let trace = folder.path().join("trace");
    let command = under(&How::Record, &trace, &script.write(&environment, TURNS));
    let mut process = Process::start(command);
    let status = process.wait();
    ensure(status.success(), || format!("the script ended with {status}: {}", process.stderr()))?;
    let steps = parse(&finished(&trace), &data)?;
    let mut disk = Disk::new(&steps, before.clone());
    while disk.step().is_some() {}
    let image = disk.crash(Loss::Nothing, &mut Random::from_seed(0));
    let is_whole = image.bytes == fs::read(&data).expect("the data are there");
    ensure(is_whole, || "the record doesn't add up to the file".to_owned())?;
    Ok(Record { script, before, steps })
}

/// The number of images of a wrongly ordered record that are checked until a bad one is found.
fn caught(record: &Record) -> Result<u64, String> {
    let steps = meta_before_sync(&record.steps);
    ensure(steps != record.steps, || "no order could be made wrong".to_owned())?;
    let mut counts = Counts::new();
    let wrong = Record { script: record.script, before: record.before.clone(), steps };
    let mut crashes = Crashes::new(record.script, &mut counts);
    crashes.keeps_evidence = false;
    ensure(crashes.all(&wrong, 5_000).is_err(), || {
        "this lab is blind: it did not see that the meta page was written before the sync"
            .to_owned()
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
        script.make(folder.path().join("image").as_path());
        let checker = Checker::new(script.arguments());
        Self { seed: script.seed, folder, checker, counts, keeps_evidence: true }
    }

    /// Crashes at every step; all steps together yield about `images` different images.
    fn all(&mut self, record: &Record, images: usize) -> Result<(), String> {
        let mut disk = Disk::new(&record.steps, record.before.clone());
        let mut random = Random::from_seed(self.seed);
        let mut left = Left { images, steps_at_risk: steps_at_risk(record) };
        let (mut acknowledged, mut number) = (0, 0);
        while let Some(step) = disk.step() {
            if let Step::Acknowledged(turn) = step {
                acknowledged = *turn;
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

    fn one(&mut self, image: &Image, acknowledged: u64) -> Result<(), String> {
        let environment = self.folder.path().join("image");
        fs::write(environment.join("data.mdb"), &image.bytes).expect("the image is written");
        let kept = |what: String| {
            let kept = if self.keeps_evidence { keep(&environment, image) } else { PathBuf::new() };
            format!("{what}; the image is kept in {}", kept.display())
        };
        let applied = self.checker.look(&environment).map_err(kept)?;
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
    let mut disk = Disk::new(&record.steps, Vec::new());
    let mut at_risk = 0;
    while disk.step().is_some() {
        at_risk += usize::from(disk.is_at_risk());
    }
    at_risk
}

/// Keeps an environment with the image as it was before it was opened.
fn keep(environment: &Path, image: &Image) -> PathBuf {
    let kept = evidence("crash-image");
    fs::create_dir_all(&kept).expect("a folder for what was found");
    fs::copy(environment.join("CAPSTEAD"), kept.join("CAPSTEAD")).expect("the marker is copied");
    fs::write(kept.join("data.mdb"), &image.bytes).expect("the image is written");
    kept
}
