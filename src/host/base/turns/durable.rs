//! Waiting for the disk other than by a gate: a flush, and the failure of the storage.

use std::task::Waker;

use tokio::sync::futures::Notified;

use super::Turns;
use crate::id::ObjectId;
use crate::limits::FILES_PERIOD;
use crate::storage::{StorageError, Ticket};

impl Turns {
    /// Resolves when more has become durable, or the storage has failed.
    pub(in crate::host) fn settled(&self) -> Notified<'_> {
        self.settled.notified()
    }

    /// More has become durable or was applied, or the storage has failed.
    pub(in crate::host) fn tell_settled(&self) {
        self.settled.notify_waiters();
        if self.has_room() || self.store.borrow().failure().is_some() {
            self.held_back.take().into_iter().for_each(Waker::wake);
        }
    }

    /// Resolves when everything that was submitted before is durable.
    ///
    /// # Errors
    /// When the storage failed: it is unknown which of those writes are durable.
    pub(in crate::host) async fn flush(&self) -> Result<(), StorageError> {
        let last = self.store.borrow().last_submitted();
        self.durable_up_to(last).await
    }

    async fn durable_up_to(&self, last: Ticket) -> Result<(), StorageError> {
        loop {
            let settled = self.settled();
            if let Some(error) = self.store.borrow().failure() {
                return Err(error);
            }
            if self.store.borrow().durable() >= last {
                return Ok(());
            }
            settled.await;
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
    pub(in crate::host) async fn durable_of(&self, id: ObjectId) -> Result<(), StorageError> {
        self.outside_turns().await;
        let last = self.store.borrow().unsettled_ticket(id);
        match last {
            Some(last) => self.durable_up_to(last).await,
            None => Ok(()),
        }
    }

    /// Resolves when the storage has failed: nothing will be durable any more. The next commit
    /// would find a change of the files too, and may be far away.
    pub(in crate::host) async fn failure(&self) -> StorageError {
        loop {
            let settled = self.settled();
            let failure = self.store.borrow().failure();
            if let Some(error) = failure {
                return error;
            }
            tokio::select! {
                () = settled => {},
                () = tokio::time::sleep(FILES_PERIOD) => {
                    if let Err(error) = self.store.borrow().check_files() {
                        return error;
                    }
                },
            }
        }
    }
}
