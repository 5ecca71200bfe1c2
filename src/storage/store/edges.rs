//! The edges of objects: which of a class's values refer to which other objects.
//!
//! They follow from the values alone, so whoever writes a value writes its edges too, in the same turn:
//! there is no other way to write one. A record under the key of a value has the ids of its targets, in
//! the order in which the value has them; a value that refers to nothing has no record. It knows
//! nothing of how values refer to objects: it is told.
//!
//! **Invariant:** an object's `references` is how many records its `Edges` have; where that is 0, writing
//! a value that refers to nothing never looks for one.

use std::rc::Rc;

use super::Store;
use crate::id::ObjectId;
use crate::storage::error::Result;
use crate::storage::space::Space;
use crate::storage::store::account::Account;

/// Gives the ids of the objects, one after the other, that a value refers to which an object stores
/// under a key; most refer to nothing.
pub(crate) type TargetsOf = Rc<dyn Fn(ObjectId, &[u8], &[u8]) -> Vec<u8>>;

/// The meaning of a write of one value for its edges.
pub(super) struct Edges {
    /// The number of keys that have edges afterwards.
    pub(super) references: u64,
    /// The new record; empty if there is none.
    targets: Vec<u8>,
    /// The record that is there.
    old: Option<Vec<u8>>,
}

impl Store {
    /// From now on this says what values refer to. To be called before anything is written.
    pub(crate) fn find_references(&mut self, targets_of: TargetsOf) {
        self.targets_of = Some(targets_of);
    }

    /// The ids of the objects that a value refers to which `object` stores under `key`.
    pub(super) fn targets(&self, object: ObjectId, key: &[u8], value: &[u8]) -> Vec<u8> {
        let targets_of = self.targets_of.as_ref();
        targets_of.map(|targets_of| targets_of(object, key, value)).unwrap_or_default()
    }

    /// The edges of a value under `key` that refers to these, or of one that is deleted, to none.
    pub(super) fn edges(&self, account: &Account, key: &[u8], targets: Vec<u8>) -> Result<Edges> {
        let before = account.usage().references;
        let old = if before > 0 { self.get(account.object(), Space::Edges, key)? } else { None };
        let references = before - u64::from(old.is_some()) + u64::from(!targets.is_empty());
        Ok(Edges { references, targets, old })
    }

    /// To be called right after the value was written: what can be refused was refused there.
    pub(super) fn write_edges(&mut self, object: ObjectId, key: &[u8], edges: Edges) -> Result<()> {
        match &edges.old {
            Some(old) if *old == edges.targets => {}
            Some(_) if edges.targets.is_empty() => {
                self.delete_record(object, Space::Edges, key)?;
            }
            None if edges.targets.is_empty() => {}
            _ => drop(self.put_record(object, Space::Edges, key, &edges.targets)?),
        }
        Ok(())
    }
}
