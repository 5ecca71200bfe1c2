//! The operator's hand in a vat: it writes to an object's storage from outside, after its instance
//! ended. Instances that nobody needs are dropped elsewhere: in `rest`.
//!
//! It never runs within a turn, and nothing of an object runs between the end of its instance and
//! the write that follows.

use std::rc::Rc;

use super::ending;
use crate::host::state::vat::Vat;
use crate::storage::{Account, StorageError, Store};

/// Ends the instance of an object, if it is awake or waking, and makes the writes of `work` one
/// batch. The object's next call wakes it from what is stored then.
///
/// # Errors
/// That of `work`: nothing was written.
pub(in crate::host) fn write_aside<T>(
    vat: &Rc<Vat>,
    account: &Rc<Account>,
    work: impl FnOnce(&mut Store) -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    // Calls that are made meanwhile start afterwards.
    vat.busy(|| {
        ending::replace(vat, account.object());
        vat.turns.of_server(account.clone(), || work(&mut vat.turns.store_mut()))
    })
}
