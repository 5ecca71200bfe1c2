//! The things in a vat that wait for the disk, beside the gates: a flush, a failure, and an
//! instance that follows another one.

use super::instance::Instance;
use super::vat::Vat;
use crate::id::ObjectId;
use crate::limits::FILES_PERIOD;
use crate::storage::{StorageError, Ticket};

impl Vat {
    /// Resolves when everything that was submitted before is durable.
    ///
    /// # Errors
    /// When the storage failed: it is unknown which of those writes are durable.
    pub(crate) async fn flush(&self) -> std::result::Result<(), StorageError> {
        let last = self.store.borrow().last_submitted();
        self.durable_up_to(last).await
    }

    async fn durable_up_to(&self, last: Ticket) -> std::result::Result<(), StorageError> {
        loop {
            let changed = self.changed.notified();
            if let Some(error) = self.store.borrow().failure() {
                return Err(error);
            }
            if self.store.borrow().durable() >= last {
                return Ok(());
            }
            changed.await;
        }
    }

    /// Tells whether nothing waits for the disk.
    pub(in crate::host) fn is_settled(&self) -> bool {
        let store = self.store.borrow();
        store.turn_object().is_none() && store.durable() >= store.last_submitted()
    }

    /// Resolves when all that was written of an object before is durable: then it can be told.
    ///
    /// # Errors
    /// As for `flush`.
    pub(in crate::host) async fn durable_of(
        &self,
        id: ObjectId,
    ) -> std::result::Result<(), StorageError> {
        self.outside_turns().await;
        let last = self.store.borrow().unsettled_ticket(id);
        match last {
            Some(last) => self.durable_up_to(last).await,
            None => Ok(()),
        }
    }

    /// Lets what the instance says from now on wait for what others wrote of the object, as an
    /// operator does.
    pub(in crate::host) fn hold_for_others(&self, instance: &Instance) {
        let unsettled = self.store.borrow().unsettled_ticket(instance.birth.id);
        if unsettled.is_some_and(|ticket| ticket > instance.gate.written()) {
            self.hold_back(instance);
        }
    }

    /// An instance begins: what it says waits for what the object wrote before and isn't durable yet.
    pub(in crate::host) fn hold_back(&self, instance: &Instance) {
        let unsettled = self.store.borrow().unsettled_ticket(instance.birth.id);
        if let Some(ticket) = unsettled {
            instance.follows(ticket);
            // It opens no later than what was submitted since.
            self.sealed.borrow_mut().push_back((ticket, instance.gate.clone()));
        }
    }

    /// Resolves when the storage has failed: nothing will be durable any more. The next commit would find a
    /// change of the files too, and may be far away.
    pub(crate) async fn failure(&self) -> StorageError {
        loop {
            let changed = self.changed.notified();
            let failure = self.store.borrow().failure();
            if let Some(error) = failure {
                return error;
            }
            tokio::select! {
                () = changed => {},
                () = tokio::time::sleep(FILES_PERIOD) => {
                    if let Err(error) = self.store.borrow().check_files() {
                        return error;
                    }
                },
            }
        }
    }
}
