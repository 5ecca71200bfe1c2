//! The way of submitted turns: to the commit thread, and out of memory once the records have them.

use std::collections::hash_map::Entry;

use rustc_hash::FxHashSet;

use super::Store;
use crate::id::ObjectId;
use crate::storage::log::committer::Ticket;

impl Store {
    /// Has the submitted turns committed by the commit thread. Call it soon after `submit_turn`,
    /// once for all turns that end together: these then share one sync.
    pub(crate) fn hand_over_submitted(&self) {
        self.committer.wake();
    }

    /// The same for a caller with nothing else to do: it commits a lone turn itself, if the disk is
    /// fast.
    pub(crate) fn commit_submitted(&self) {
        self.committer.commit();
    }

    /// Drops from memory the writes of turns that reads of the disk see; returns the last durable
    /// ticket.
    pub(crate) fn settle(&mut self) -> Ticket {
        let durable = self.committer.durable();
        let applied = self.committer.applied();
        let aside = self.committer.aside();
        for object in std::mem::take(&mut self.aside) {
            self.settle_object(object, applied, &aside);
        }
        while let Some((_, object)) = self.order.pop_front_if(|(ticket, _)| *ticket <= applied) {
            self.settle_object(object, applied, &aside);
        }
        durable
    }

    fn settle_object(&mut self, object: ObjectId, applied: Ticket, aside: &FxHashSet<ObjectId>) {
        if aside.contains(&object) {
            self.aside.insert(object);
            return;
        }
        // A later turn of the object may still be on its way.
        if let Entry::Occupied(mut pending) = self.pending.entry(object)
            && pending.get_mut().settle(applied)
        {
            pending.remove();
        }
    }

    /// The last durable ticket.
    pub(crate) fn durable(&self) -> Ticket {
        self.committer.durable()
    }

    /// Tells whether so much waits for the disk that no new call should start, and none go on.
    pub(crate) fn is_full(&self) -> bool {
        self.committer.is_full()
    }
}
