//! What in a vat waits for the disk, beside the gates: a flush, a failure, and an instance that follows
//! another one.

use super::instance::Instance;
use super::vat::Vat;
use crate::storage::StorageError;

impl Vat {
    /// Resolves when everything that was sealed before is durable.
    ///
    /// # Errors
    /// When the storage failed: it is unknown which of those writes are durable.
    pub(crate) async fn flush(&self) -> std::result::Result<(), StorageError> {
        let last = self.store.borrow().last_sealed();
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

    /// An instance begins: what it says waits for what the object wrote before and isn't durable yet.
    pub(super) fn hold_back(&self, instance: &Instance) {
        let unsettled = self.store.borrow().unsettled_ticket(instance.birth.id);
        if let Some(ticket) = unsettled {
            instance.follows(ticket);
            // It opens no later than what was sealed since.
            self.sealed.borrow_mut().push_back((ticket, instance.gate.clone()));
        }
    }

    /// Resolves when the storage has failed: nothing will be durable any more.
    pub(crate) async fn failure(&self) -> StorageError {
        loop {
            let changed = self.changed.notified();
            let failure = self.store.borrow().failure();
            match failure {
                Some(error) => return error,
                None => changed.await,
            }
        }
    }
}
