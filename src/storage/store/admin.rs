//! The store's functions for an operator's tools: reading everything on another thread, and
//! removing the server's own records of an object.
//!
//! They keep the rules of the store: every change is written in a turn.

use std::ops::ControlFlow;

use super::Store;
use crate::id::ObjectId;
use crate::storage::error::Result;
use crate::storage::log::reader::Reader;
use crate::storage::range::Range;
use crate::storage::space::Space;

impl Store {
    /// A reader of all durable records, for another thread. It keeps the environment open.
    pub(crate) fn reader(&self) -> Option<Reader> {
        self.reader.clone()
    }

    /// Removes, in the open turn, the records of a space that the class doesn't see.
    ///
    /// # Errors
    /// `OutsideTurn`, `BatchSize`, `Latched`, or the disk can't be read: some records may be
    /// removed, and the turn must be discarded.
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
