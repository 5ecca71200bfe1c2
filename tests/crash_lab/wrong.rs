//! Records of a storage with a mistake: something is left out, or done too early.
//!
//! The lab `replay` must find each of them out, or it would find nothing. This module knows how the
//! storage orders its writes, and nothing else does.

use super::trace::{File, Step};

/// A way to spoil a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// LMDB's meta page is written before the sync of the pages that it points to.
    MetaBeforeSync,
    /// Entries are acknowledged without a sync of the log.
    LogUnsynced,
    /// Entries are applied without a sync of the log, and nobody is told that they are durable.
    AppliedBeforeSync,
    /// The folder is not synced after a segment was made.
    FolderUnsynced,
    /// A segment is given up before its entries are applied.
    GivenUpEarly,
}

impl Mistake {
    pub(crate) const ALL: [Self; 5] = [
        Self::MetaBeforeSync,
        Self::LogUnsynced,
        Self::AppliedBeforeSync,
        Self::FolderUnsynced,
        Self::GivenUpEarly,
    ];

    /// The steps as they would be with the mistake; `data` is the file of LMDB.
    pub(crate) fn made(self, steps: &[Step], data: File) -> Vec<Step> {
        let mut steps = steps.to_vec();
        match self {
            Self::MetaBeforeSync => meta_before_sync(&mut steps),
            Self::LogUnsynced => unsync_log(&mut steps, data),
            Self::AppliedBeforeSync => {
                unsync_log(&mut steps, data);
                for step in &mut steps {
                    if matches!(step, Step::Acknowledged(_)) {
                        *step = Step::Synced { file: data, before: 0 };
                    }
                }
            }
            Self::FolderUnsynced => {
                for step in &mut steps {
                    if let Step::FolderSynced { before } = step {
                        *before = 0;
                    }
                }
            }
            Self::GivenUpEarly => give_up_early(&mut steps),
        }
        steps
    }
}

/// Each synchronous write, which is a commit record, moves in front of the sync before it, which is
/// of the data that it commits.
fn meta_before_sync(steps: &mut [Step]) {
    for at in 0..steps.len() {
        let Step::Written(write) = steps[at] else { continue };
        let Step::Write { file: meta, .. } = steps[write] else { continue };
        let sync = |step: &Step| matches!(step, Step::Synced { file, .. } if *file == meta);
        if let Some(sync) = steps[..write].iter().rposition(sync) {
            move_back(steps, write, sync);
            move_back(steps, at, sync + 1);
        }
    }
}

fn unsync_log(steps: &mut [Step], data: File) {
    for step in steps {
        if let Step::Synced { file, before } = step
            && *file != data
        {
            *before = 0;
        }
    }
}

/// A segment that loses its name moves in front of the commit record before it.
fn give_up_early(steps: &mut [Step]) {
    for at in 0..steps.len() {
        let Step::Named(changes) = &steps[at] else { continue };
        let given_up =
            |(name, file): &(String, Option<File>)| name.starts_with("segment-") && file.is_none();
        if !changes.iter().any(given_up) {
            continue;
        }
        let commit = |step: &Step| match step {
            Step::Written(write) => Some(*write),
            _ => None,
        };
        if let Some(write) = steps[..at].iter().rev().find_map(commit) {
            move_back(steps, at, write);
        }
    }
}

/// Moves a step to an earlier place. The others refer to the same steps as before.
fn move_back(steps: &mut [Step], from: usize, to: usize) {
    steps[to..=from].rotate_right(1);
    for step in steps {
        match step {
            Step::Written(write) if *write == from => *write = to,
            Step::Written(write) if (to..from).contains(write) => *write += 1,
            Step::Synced { before, .. } | Step::FolderSynced { before }
                if (to + 1..=from).contains(before) =>
            {
                *before += 1;
            }
            _ => {}
        }
    }
}
