//! The present work of a host's thread, for a watchdog on another thread.
//!
//! One thread writes, at the beginning and the end of each turn: some stores, no lock and no clock.
//! Others look as often as they like, and see a turn as a whole or not at all.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use capstead_client::sturdyref::Method;

use super::alarm::ALARM;
use crate::id::ObjectId;

thread_local! {
    /// The activity of the host which runs on this thread.
    static HERE: RefCell<Option<Arc<Activity>>> = const { RefCell::new(None) };
}

/// The turn that runs on this thread, for the report of a panic in it.
pub(crate) fn present_turn() -> Option<Turn> {
    let look = |here: &RefCell<Option<Arc<Activity>>>| here.try_borrow().ok()?.as_ref()?.current();
    HERE.try_with(look).ok().flatten()
}

/// Notes that this thread has nothing to do now; for the runtime of a host, before it sleeps.
pub(crate) fn rests() {
    HERE.with_borrow(|here| {
        if let Some(activity) = here {
            activity.rested.store(true, Ordering::Relaxed);
        }
    });
}

/// A host's present turn.
#[derive(Debug)]
pub(crate) struct Activity {
    /// Rises at the beginning of each turn, when it becomes odd, and at its end.
    beats: AtomicU64,
    class: AtomicU32,
    object: [AtomicU64; 2],
    /// 0: the object wakes.
    interface: AtomicU64,
    ordinal: AtomicU32,
    /// The thread waits for the disk.
    at_disk: AtomicBool,
    /// The thread had nothing to do since it last committed a turn.
    rested: AtomicBool,
    classes: Vec<&'static str>,
}

/// A turn that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// No two turns of a host have the same.
    pub(crate) beat: u64,
    pub(crate) class: &'static str,
    pub(crate) object: ObjectId,
    /// None: the object wakes.
    pub(crate) method: Option<Method>,
}

impl Turn {
    /// The method by its numbers, which every schema has.
    pub(crate) fn method_name(&self) -> String {
        match self.method {
            None => "wake".to_owned(),
            Some(ALARM) => "alarm".to_owned(),
            Some(Method { interface, ordinal }) => format!("@{interface:#x}.@{ordinal}"),
        }
    }
}

impl Activity {
    pub(in crate::host) fn new(classes: Vec<&'static str>) -> Self {
        Self {
            beats: AtomicU64::default(),
            class: AtomicU32::default(),
            object: Default::default(),
            interface: AtomicU64::default(),
            ordinal: AtomicU32::default(),
            at_disk: AtomicBool::default(),
            rested: AtomicBool::default(),
            classes,
        }
    }

    /// Says that the host runs on this thread.
    pub(crate) fn runs_here(self: &Arc<Self>) {
        HERE.set(Some(self.clone()));
    }

    /// A turn of the object begins, for a call of that method, or for its waking.
    pub(in crate::host) fn begin(&self, class: u32, object: ObjectId, method: Option<Method>) {
        let Method { interface, ordinal } = method.unwrap_or_default();
        let object = u128::from_be_bytes(*object.as_bytes());
        self.next();
        self.class.store(class, Ordering::Relaxed);
        self.object[0].store((object >> 64) as u64, Ordering::Relaxed);
        self.object[1].store(object as u64, Ordering::Relaxed);
        self.interface.store(interface, Ordering::Relaxed);
        self.ordinal.store(ordinal.into(), Ordering::Relaxed);
    }

    pub(in crate::host) fn end(&self) {
        self.next();
    }

    /// Only the host's thread comes here, so nothing is lost between the two steps.
    fn next(&self) {
        let beats = self.beats.load(Ordering::Relaxed);
        self.beats.store(beats + 1, Ordering::Release);
        fence(Ordering::Release);
    }

    /// Runs `commit`, which may wait for the disk. A slow disk is no fault of a class.
    pub(in crate::host) fn at_disk(&self, commit: impl FnOnce()) {
        struct AtDisk<'a>(&'a AtomicBool);
        impl Drop for AtDisk<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::Relaxed);
            }
        }
        self.at_disk.store(true, Ordering::Relaxed);
        let _until_done = AtDisk(&self.at_disk);
        commit();
    }

    /// Tells whether the thread had nothing to do since this was last asked: then hardly another
    /// call waits for it.
    pub(in crate::host) fn has_rested(&self) -> bool {
        self.rested.swap(false, Ordering::Relaxed)
    }

    /// Tells whether the thread waits for the disk.
    pub(crate) fn is_at_disk(&self) -> bool {
        self.at_disk.load(Ordering::Relaxed)
    }

    /// Rises with each turn, twice.
    pub(crate) fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// The present turn; none between two turns, or if the turn changed meanwhile.
    pub(crate) fn current(&self) -> Option<Turn> {
        let beat = self.beats.load(Ordering::Acquire);
        let half = |at: usize| u128::from(self.object[at].load(Ordering::Relaxed));
        let object = ObjectId::from_bytes(((half(0) << 64) | half(1)).to_be_bytes());
        let class = self.class.load(Ordering::Relaxed) as usize;
        let interface = self.interface.load(Ordering::Relaxed);
        let ordinal = self.ordinal.load(Ordering::Relaxed) as u16;
        fence(Ordering::Acquire);
        let same = beat % 2 == 1 && self.beats.load(Ordering::Relaxed) == beat;
        let class = self.classes.get(class).copied()?;
        let method = (interface != 0).then_some(Method { interface, ordinal });
        same.then_some(Turn { beat, class, object, method })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_rested_once_since_its_thread_had_nothing_to_do() {
        let activity = Arc::new(Activity::new(Vec::new()));
        rests();
        assert!(!activity.has_rested(), "no host runs here yet");
        activity.runs_here();
        rests();
        assert!(activity.has_rested());
        assert!(!activity.has_rested(), "it has worked since");
    }
}
