//! The edges of objects: the other objects to which a class's values refer.
//!
//! They follow from the values alone, so the code that writes a value writes its edges too, in the
//! same turn; there is no other way to write one. A record under the key of a value has the ids of
//! its targets, in the order in which the value has them; a value that refers to nothing has no
//! record. This file doesn't know how values refer to objects: it is given a function that does.
//!
//! **Invariant:** an object's `references` is the number of records in its `Edges`; where that is
//! 0, writing a value that refers to nothing never looks for one.

use std::rc::Rc;

use super::Store;
use crate::id::{ObjectId, ObjectIds};
use crate::storage::error::Result;
use crate::storage::space::Space;
use crate::storage::store::account::Account;

/// Gives the objects that a value refers to. The arguments are the object that stores the value,
/// the key, and the value. Most values refer to no object.
pub(crate) type TargetsOf = Rc<dyn Fn(ObjectId, &[u8], &[u8]) -> ObjectIds>;

/// The change that a write of one value makes to the edges.
pub(super) struct Edges {
    /// The number of keys with edges afterwards.
    pub(super) references: u64,
    /// Those of the new record; empty if there is to be none.
    targets: ObjectIds,
    /// The present record.
    old: Option<Vec<u8>>,
}

impl Store {
    /// Sets the function that finds the targets of values. Call it before anything is written.
    pub(crate) fn find_references(&mut self, targets_of: TargetsOf) {
        self.targets_of = Some(targets_of);
    }

    /// The objects that `value`, which `object` stores under `key`, refers to.
    pub(super) fn targets(&self, object: ObjectId, key: &[u8], value: &[u8]) -> ObjectIds {
        let targets_of = self.targets_of.as_ref();
        targets_of.map_or(ObjectIds::NONE, |targets_of| targets_of(object, key, value))
    }

    /// The change of the edges when the value under `key` refers to `targets`, which are empty for
    /// a deleted value.
    pub(super) fn edges(&self, account: &Account, key: &[u8], targets: ObjectIds) -> Result<Edges> {
        let before = account.usage().references;
        let old = if before > 0 { self.get(account.object(), Space::Edges, key)? } else { None };
        let references = before - u64::from(old.is_some()) + u64::from(!targets.is_empty());
        Ok(Edges { references, targets, old })
    }

    /// Call this right after the value was written; everything that could be refused was refused
    /// there.
    pub(super) fn write_edges(&mut self, object: ObjectId, key: &[u8], edges: Edges) -> Result<()> {
        match &edges.old {
            Some(old) if *old == edges.targets.as_bytes() => {}
            Some(_) if edges.targets.is_empty() => {
                self.delete_record(object, Space::Edges, key)?;
            }
            None if edges.targets.is_empty() => {}
            _ => drop(self.put_record(object, Space::Edges, key, edges.targets.as_bytes())?),
        }
        Ok(())
    }
}
