//! The states of a folder after a loss of power, made from a recorded list of writes and syncs.
//!
//! The model: a write is on the disk once a sync of its file that began after it has ended, or once
//! it has returned if its descriptor is synchronous. Until then each of its sectors of 512 bytes
//! may or may not be there, independently of the others, and so may the length that it gave to the
//! file. A new, changed or removed name is on the disk once a sync of the folder that began after
//! it has ended. Until then it may or may not be there, independently of the others and of the
//! bytes; a renamed file has its old name or its new one, and never none. This module writes no
//! files.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use super::trace::{File, Step};
use crate::support::random::Random;

/// The unit in which disks write.
const SECTOR: usize = 512;

/// The content of files, by name.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// The disk after some step.
#[derive(Clone, Debug)]
pub(crate) struct Disk<'a> {
    steps: &'a [Step],
    /// The number of steps that have happened.
    at: usize,
    /// The bytes that are safe, by the number of the file.
    safe: Vec<Vec<u8>>,
    /// The names that are.
    names: BTreeMap<String, File>,
    /// The steps of the writes that may still be lost.
    unsafe_writes: Vec<usize>,
    /// The steps of the changes of names that may.
    unsafe_names: Vec<usize>,
}

/// The loss among what may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// All is kept.
    Nothing,
    /// None is kept.
    Everything,
    /// A random choice for each write and each change of names, and for each sector of some.
    Chance,
}

/// The state that is found after the crash, and a number that distinguishes it from the other
/// images of this step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) files: Files,
    pub(crate) fingerprint: u64,
}

impl<'a> Disk<'a> {
    /// The disk before the first step, with the files of that time, which are numbered in the order
    /// of their names.
    pub(crate) fn new(steps: &'a [Step], before: &Files) -> Self {
        Self {
            steps,
            at: 0,
            safe: before.values().cloned().collect(),
            names: before.keys().cloned().zip(0..).collect(),
            unsafe_writes: Vec::new(),
            unsafe_names: Vec::new(),
        }
    }

    /// Performs the next step; none when there is no more.
    pub(crate) fn step(&mut self) -> Option<&'a Step> {
        let step = self.steps.get(self.at)?;
        match step {
            Step::Write { .. } => self.unsafe_writes.push(self.at),
            Step::Named(_) => self.unsafe_names.push(self.at),
            Step::Written(write) => self.save(|other, _| other == *write),
            Step::Synced { file, before } => {
                self.save(|other, written| written == *file && other < *before);
            }
            Step::FolderSynced { before } => {
                let (saved, left) = self.unsafe_names.iter().partition(|step| *step < before);
                self.unsafe_names = left;
                let saved: Vec<usize> = saved;
                for step in saved {
                    rename(&mut self.names, &self.steps[step]);
                }
            }
            Step::Acknowledged(_) => {}
        }
        self.at += 1;
        Some(step)
    }

    /// Tells whether a crash now could lose anything.
    pub(crate) fn is_at_risk(&self) -> bool {
        !self.unsafe_writes.is_empty() || !self.unsafe_names.is_empty()
    }

    /// The disk after a crash at this step.
    pub(crate) fn crash(&self, loss: Loss, random: &mut Random) -> Image {
        let mut fingerprint = DefaultHasher::new();
        let mut names = self.names.clone();
        for step in &self.unsafe_names {
            let kept = match loss {
                Loss::Nothing => true,
                Loss::Everything => false,
                Loss::Chance => random.below(2) == 0,
            };
            kept.hash(&mut fingerprint);
            if kept {
                rename(&mut names, &self.steps[*step]);
            }
        }
        let mut files = self.safe.clone();
        // By file: its length, if no byte of it is kept that was written, but all lengths are.
        let mut longest = BTreeMap::<File, usize>::new();
        for write in self.unsafe_writes.iter().map(|write| &self.steps[*write]) {
            let Step::Write { file, at, bytes: new } = write else { continue };
            let at = usize::try_from(*at).expect("a file of a test is small");
            let length = longest.entry(*file).or_default();
            *length = (*length).max(at + new.len());
            let fate = match loss {
                Loss::Nothing => 0,
                Loss::Everything => 1,
                Loss::Chance => random.below(3),
            };
            for (from, to) in sectors(at, new.len()) {
                let kept = fate == 0 || fate == 2 && random.below(2) == 0;
                kept.hash(&mut fingerprint);
                if kept {
                    put(content(&mut files, *file), from, &new[from - at..to - at]);
                }
            }
        }
        for (file, longest) in longest {
            let grown = loss == Loss::Chance && random.below(2) == 0;
            grown.hash(&mut fingerprint);
            if grown {
                let bytes = content(&mut files, file);
                bytes.resize(longest.max(bytes.len()), 0);
            }
        }
        let named = |(name, file): (String, File)| (name, content(&mut files, file).clone());
        let files = names.into_iter().map(named).collect();
        Image { files, fingerprint: fingerprint.finish() }
    }

    /// Saves the writes of these places and files.
    fn save(&mut self, is_saved: impl Fn(usize, File) -> bool) {
        let steps = self.steps;
        self.unsafe_writes.retain(|step| {
            let Step::Write { file, at, bytes } = &steps[*step] else { return false };
            let is_saved = is_saved(*step, *file);
            if is_saved {
                let at = usize::try_from(*at).expect("a small file");
                put(content(&mut self.safe, *file), at, bytes);
            }
            !is_saved
        });
    }
}

/// The content of a file, which may be new.
fn content(files: &mut Vec<Vec<u8>>, file: File) -> &mut Vec<u8> {
    if files.len() <= file {
        files.resize(file + 1, Vec::new());
    }
    &mut files[file]
}

fn rename(names: &mut BTreeMap<String, File>, step: &Step) {
    let Step::Named(changes) = step else { return };
    for (name, file) in changes {
        match file {
            Some(file) => names.insert(name.clone(), *file),
            None => names.remove(name),
        };
    }
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
