//! The operator's hand in a vat: it ends an object's instance, and writes to its storage from outside.
//!
//! It never runs within a turn, and nothing of an object runs between the end of its instance and the
//! write that follows.

use std::rc::Rc;

use super::slot::Start;
use super::vat::Vat;
use crate::error::disconnected;
use crate::id::ObjectId;
use crate::storage::{Account, StorageError, Store};

impl Vat {
    /// Ends the instance of an object, if it is awake or waking, and makes the writes of `work`
    /// one batch. The object's next call wakes it from what is stored then.
    ///
    /// # Errors
    /// That of `work`: nothing was written.
    pub(super) fn write_aside<T>(
        self: &Rc<Self>,
        account: &Rc<Account>,
        work: impl FnOnce(&mut Store) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        // Calls that are made meanwhile start afterwards.
        self.busy(|| {
            self.evict(account.object());
            let mut store = self.store.borrow_mut();
            store.begin(account.clone());
            let written = work(&mut store);
            if written.is_ok() {
                store.seal();
                self.committable.notify_one();
            } else {
                store.discard();
            }
            written
        })
    }

    /// What a panic does to an object: it has no instance any more, and its facets are broken.
    fn evict(&self, id: ObjectId) {
        let Some(slot) = self.slots.borrow().get(&id).cloned() else { return };
        let instance = match slot.awake() {
            Some((instance, _)) => {
                self.metrics.objects_awake.subtract(1);
                Some(instance)
            }
            None => slot.waking.take(),
        };
        let waiting = slot.end();
        // Also those that were made while it slept, or wakes.
        slot.break_facets();
        for Start { call, under_way, .. } in waiting {
            let error = disconnected("the object was replaced: restore its reference");
            call.reply.keep(under_way);
            call.reply.send(Err(error));
        }
        if let Some(instance) = instance {
            instance.end();
        }
        self.release(&slot);
    }
}
