//! Transactions within a turn: writes that can be taken back alone.

use super::Store;
use crate::id::ObjectId;
use crate::storage::error::Result;
use crate::storage::lmdb::layout::Usage;
use crate::storage::log::batch::Mark;

/// The place at which a transaction began, to go back to.
#[derive(Debug)]
#[must_use]
pub(crate) struct Savepoint {
    writes: Mark,
    undo: usize,
    usage: Usage,
}

impl Store {
    /// Begins a transaction within the open turn: its writes can be taken back alone. Each is ended
    /// by [`Store::keep`] or [`Store::undo`], the last one first.
    ///
    /// # Errors
    /// `OutsideTurn`, `Latched`: none was begun.
    pub(crate) fn savepoint(&mut self, object: ObjectId) -> Result<Savepoint> {
        let turn = self.turn_of(object)?;
        turn.transactions += 1;
        let usage = turn.account.usage();
        Ok(Savepoint { writes: turn.writes.mark(), undo: turn.undo.len(), usage })
    }

    /// Ends a transaction: its writes are those of what it is in.
    pub(crate) fn keep(&mut self, _: Savepoint) {
        let Some(turn) = &mut self.turn else { return };
        turn.transactions -= 1;
        if turn.transactions == 0 {
            turn.undo.clear();
        }
    }

    /// Ends a transaction: exactly its writes were not made.
    pub(crate) fn undo(&mut self, savepoint: Savepoint) {
        let Some(turn) = &mut self.turn else { return };
        turn.writes.back_to(savepoint.writes);
        for undo in turn.undo.split_off(savepoint.undo).into_iter().rev() {
            turn.layer.undo(undo);
        }
        turn.account.set_back(savepoint.usage);
        turn.transactions -= 1;
    }
}
