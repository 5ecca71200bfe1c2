//! The work of an operator's tools on a store beside that of objects: they read all of it elsewhere, and
//! take away the server's own records of an object.
//!
//! It keeps the rules of the store: what changes is written in a turn.

use std::ops::ControlFlow;

use super::Store;
use crate::id::ObjectId;
use crate::storage::error::Result;
use crate::storage::log::local::Reader;
use crate::storage::range::Range;
use crate::storage::space::Space;

impl Store {
    /// Reads what is durable, for another thread. While it is kept the environment stays open.
    pub(crate) fn reader(&self) -> Option<Reader> {
        self.reader.clone()
    }

    /// Removes the records of a space that the class doesn't see, in the open turn.
    ///
    /// # Errors
    /// `OutsideTurn`, `BatchSize`, `Latched`, or that the disk can't be read: some may be removed, and
    /// the turn must be discarded.
    pub(crate) fn clear_records(&mut self, object: ObjectId, space: Space) -> Result<()> {
        let mut keys = Vec::new();
        self.reads.scan(object, space, &Range::all(), &mut |key, _| {
            keys.push(key.to_vec());
            ControlFlow::Continue(())
        })?;
        for layer in self.layers(object) {
            keys.extend(layer.list(space, &Range::all()).map(|(key, _)| key.to_vec()));
        }
        for key in keys {
            self.delete_record(object, space, &key)?;
        }
        Ok(())
    }
}
