//! The states of a disk after a loss of power, made from a recorded list of writes and syncs.
//!
//! The model: a write is on the disk once a sync that began after it has ended, or once it has
//! returned if its descriptor is synchronous. Until then each of its sectors of 512 bytes may or
//! may not be there, independently of the others, and so may the length that it gave to the file.
//! This module writes no files.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use super::trace::Step;
use crate::support::random::Random;

/// The unit in which disks write.
const SECTOR: usize = 512;

/// The disk after some step.
#[derive(Clone, Debug)]
pub(crate) struct Disk<'a> {
    steps: &'a [Step],
    /// The number of steps that have happened.
    at: usize,
    safe: Vec<u8>,
    /// The steps of the writes that may still be lost.
    unsafe_writes: Vec<usize>,
}

/// The loss among the writes that may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// All are kept.
    Nothing,
    /// None is kept.
    Everything,
    /// A random choice for each write, and for each sector of some.
    Chance,
}

/// The state that is found after the crash, and a number that distinguishes it from the other
/// images of this step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fingerprint: u64,
}

impl<'a> Disk<'a> {
    /// The disk before the first step, with the file's content at that time.
    pub(crate) fn new(steps: &'a [Step], before: Vec<u8>) -> Self {
        Self { steps, at: 0, safe: before, unsafe_writes: Vec::new() }
    }

    /// Performs the next step; none when there is no more.
    pub(crate) fn step(&mut self) -> Option<&'a Step> {
        let step = self.steps.get(self.at)?;
        match step {
            Step::Write { .. } => self.unsafe_writes.push(self.at),
            Step::Written(write) => self.save(|other| other == *write),
            Step::Synced(before) => self.save(|other| other < *before),
            Step::Acknowledged(_) => {}
        }
        self.at += 1;
        Some(step)
    }

    /// Tells whether a crash now could lose anything.
    pub(crate) fn is_at_risk(&self) -> bool {
        !self.unsafe_writes.is_empty()
    }

    /// The disk after a crash at this step.
    pub(crate) fn crash(&self, loss: Loss, random: &mut Random) -> Image {
        let mut fingerprint = DefaultHasher::new();
        let (mut bytes, mut longest) = (self.safe.clone(), self.safe.len());
        for write in self.unsafe_writes.iter().map(|write| &self.steps[*write]) {
            let Step::Write { at, bytes: new } = write else { continue };
            let at = usize::try_from(*at).expect("a file of a test is small");
            longest = longest.max(at + new.len());
            let fate = match loss {
                Loss::Nothing => 0,
                Loss::Everything => 1,
                Loss::Chance => random.below(3),
            };
            for (from, to) in sectors(at, new.len()) {
                let kept = fate == 0 || fate == 2 && random.below(2) == 0;
                kept.hash(&mut fingerprint);
                if kept {
                    put(&mut bytes, from, &new[from - at..to - at]);
                }
            }
        }
        let grown = loss == Loss::Chance && random.below(2) == 0;
        grown.hash(&mut fingerprint);
        if grown {
            bytes.resize(longest.max(bytes.len()), 0);
        }
        Image { bytes, fingerprint: fingerprint.finish() }
    }

    fn save(&mut self, is_saved: impl Fn(usize) -> bool) {
        let (saved, left) = self.unsafe_writes.iter().partition(|write| is_saved(**write));
        self.unsafe_writes = left;
        let saved: Vec<usize> = saved;
        for step in saved {
            if let Step::Write { at, bytes } = &self.steps[step] {
                put(&mut self.safe, usize::try_from(*at).expect("a small file"), bytes);
            }
        }
    }
}

/// The list as it would be if each synchronous write, which is a commit record, were made before
/// the sync of the data that it commits.
pub(crate) fn meta_before_sync(steps: &[Step]) -> Vec<Step> {
    // Each write that is durable when it returns moves in front of the sync before it.
    let mut order: Vec<usize> = (0..steps.len()).collect();
    for at in 2..steps.len() {
        let is_meta = matches!(steps[at], Step::Written(write) if write == at - 1);
        if is_meta && matches!(steps[at - 2], Step::Synced(_)) {
            order[at - 2..=at].rotate_left(1);
        }
    }
    let place = |old: usize| order.iter().position(|step| *step == old).unwrap_or(old);
    let moved = |step: &Step| match step {
        Step::Written(write) => Step::Written(place(*write)),
        other => other.clone(),
    };
    order.iter().map(|step| moved(&steps[*step])).collect()
}

fn put(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[at..end].copy_from_slice(bytes);
}

/// The places at which a write is cut by the borders of sectors.
fn sectors(at: usize, length: usize) -> impl Iterator<Item = (usize, usize)> {
    let end = at + length;
    let mut from = at;
    std::iter::from_fn(move || {
        let to = end.min((from / SECTOR + 1) * SECTOR);
        let sector = (from < to).then_some((from, to));
        from = to;
        sector
    })
}
