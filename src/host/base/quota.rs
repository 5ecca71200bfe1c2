//! The bytes that the objects of a class may store together on this host.
//!
//! It is not stored: a host adds it up when it starts, for the classes that have a limit.

use std::collections::HashMap;
use std::rc::Rc;

use super::header::Header;
use crate::storage::{ClassAccount, StorageError, Store};

/// The accounts of these classes, each of which has a limit.
///
/// # Errors
/// When the storage can't be read.
pub(in crate::host) fn class_accounts(
    store: &Store,
    limited: &[(&'static str, u64)],
) -> std::result::Result<HashMap<&'static str, Rc<ClassAccount>>, StorageError> {
    let mut sums: HashMap<&str, u64> = limited.iter().map(|(name, _)| (*name, 0)).collect();
    if !sums.is_empty() {
        store.objects(&mut |_, header, usage| {
            // A header that can't be read is reported when its object wakes.
            if let Some(sum) = Header::class_of(header).and_then(|class| sums.get_mut(class)) {
                *sum += usage.total();
            }
        })?;
    }
    Ok(limited.iter().map(|(name, max)| (*name, ClassAccount::new(sums[name], *max))).collect())
}
