//! Snapshots that are held for long, as by an export whose reader is slow.
//!
//! While one is held, the engine uses no page again that was freed after its beginning, and tells
//! nobody which pages these are. So the room in free pages is reckoned: those that were free at the
//! beginning, less all that was written since. When too little room is left, a snapshot is called
//! back: an export can begin again, and what was accepted must reach the environment.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The way to call a snapshot back from its holder.
pub(crate) struct Recall {
    is_called: AtomicBool,
    tell: Box<dyn Fn() + Send + Sync>,
}

impl Recall {
    /// `tell` is called once, on any thread: the holder of the snapshot must let go of it soon.
    pub(crate) fn new(tell: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { is_called: AtomicBool::new(false), tell: Box::new(tell) })
    }

    /// Tells whether the snapshot has to be let go of.
    pub(crate) fn is_called(&self) -> bool {
        self.is_called.load(Ordering::Relaxed)
    }

    /// Calls the snapshot back.
    pub(in crate::storage) fn call(&self) {
        if !self.is_called.swap(true, Ordering::Relaxed) {
            (self.tell)();
        }
    }
}

impl fmt::Debug for Recall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recall").field("is_called", &self.is_called).finish_non_exhaustive()
    }
}

/// The snapshots of one environment that are held for long.
#[derive(Debug, Default)]
pub(crate) struct HeldSnapshots {
    held: Mutex<Vec<Held>>,
    released: Condvar,
}

#[derive(Debug)]
struct Held {
    recall: Arc<Recall>,
    /// The bytes of free pages at its beginning.
    free: u64,
    /// The bytes written since.
    written: u64,
}

/// A snapshot counts as held as long as this exists.
#[derive(Debug)]
pub(crate) struct Holding<'a> {
    snapshots: &'a HeldSnapshots,
    recall: Arc<Recall>,
}

impl HeldSnapshots {
    /// From now on a snapshot is held, which began when this many bytes were in free pages.
    pub(super) fn hold(&self, recall: Arc<Recall>, free: u64) -> Holding<'_> {
        self.held().push(Held { recall: recall.clone(), free, written: 0 });
        Holding { snapshots: self, recall }
    }

    /// The bytes of the free pages, of which there are `free` in all, that can be used again.
    pub(super) fn reusable(&self, free: u64) -> u64 {
        let held = self.held();
        held.iter().map(|held| held.free.saturating_sub(held.written)).fold(free, u64::min)
    }

    /// A transaction has copied about this many bytes of pages.
    pub(crate) fn written(&self, bytes: u64) {
        for held in self.held().iter_mut() {
            held.written += bytes;
        }
    }

    /// Calls those snapshots back that keep more room than the bytes that are `left`, and waits
    /// until they were let go of. Returns whether there were any.
    pub(crate) fn call_back(&self, left: u64) -> bool {
        let held = self.held();
        let keeps = |held: &Held| held.written > left;
        if !held.iter().any(keeps) {
            return false;
        }
        held.iter().filter(|held| keeps(held)).for_each(|held| held.recall.call());
        let are_left = |held: &mut Vec<Held>| held.iter().any(keeps);
        drop(self.released.wait_while(held, are_left).unwrap_or_else(PoisonError::into_inner));
        true
    }

    /// No code that holds this lock can panic, but for `tell`, which changes nothing here.
    fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.snapshots.held().retain(|held| !Arc::ptr_eq(&held.recall, &self.recall));
        self.snapshots.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn pages_freed_after_the_oldest_snapshot_are_not_counted() {
        let snapshots = HeldSnapshots::default();
        snapshots.written(5);
        assert_eq!(snapshots.reusable(70), 70);
        let first = snapshots.hold(Recall::new(|| ()), 70);
        snapshots.written(40);
        let second = snapshots.hold(Recall::new(|| ()), 50);
        snapshots.written(10);
        assert_eq!(snapshots.reusable(90), 20);
        drop(first);
        assert_eq!(snapshots.reusable(90), 40);
        drop(second);
        assert_eq!(snapshots.reusable(90), 90);
    }

    #[test]
    fn only_a_snapshot_that_keeps_more_than_is_left_is_called_back_and_waited_for() {
        let snapshots = HeldSnapshots::default();
        let (tell, told) = channel();
        let [large, small] = [(), ()].map(|()| {
            let tell = tell.clone();
            Recall::new(move || tell.send(()).unwrap())
        });
        std::thread::scope(|scope| {
            let holding = snapshots.hold(large.clone(), 0);
            snapshots.written(20);
            let _other = snapshots.hold(small.clone(), 0);
            assert!(!snapshots.call_back(20));
            let calling = scope.spawn(|| snapshots.call_back(19));
            told.recv().unwrap();
            assert!(large.is_called() && !small.is_called() && !calling.is_finished());
            drop(holding);
            assert!(calling.join().unwrap());
        });
    }
}
