//! Transactions within a turn: their writes can be undone without the rest of the turn.

use super::Store;
use crate::id::ObjectId;
use crate::storage::error::Result;
use crate::storage::lmdb::layout::Usage;
use crate::storage::log::batch::Mark;

/// The beginning of a transaction, to go back to.
#[derive(Debug)]
#[must_use]
pub(crate) struct Savepoint {
    writes: Mark,
    undo: usize,
    usage: Usage,
}

impl Store {
    /// Tells whether a transaction is under way, which can be undone.
    pub(crate) fn is_in_transaction(&self) -> bool {
        self.turn.as_ref().is_some_and(|turn| turn.transactions > 0)
    }

    /// Begins a transaction within the open turn: its writes can be undone separately. End each by
    /// [`Store::keep`] or [`Store::undo`], the last one first.
    ///
    /// # Errors
    /// `OutsideTurn`, `Latched`: no transaction began.
    pub(crate) fn savepoint(&mut self, object: ObjectId) -> Result<Savepoint> {
        let turn = self.turn_of(object)?;
        turn.transactions += 1;
        let usage = turn.account.usage();
        Ok(Savepoint { writes: turn.writes.mark(), undo: turn.undo.len(), usage })
    }

    /// Ends a transaction: its writes become part of the enclosing transaction or turn.
    pub(crate) fn keep(&mut self, _: Savepoint) {
        let Some(turn) = &mut self.turn else { return };
        turn.transactions -= 1;
        if turn.transactions == 0 {
            turn.undo.clear();
        }
    }

    /// Ends a transaction and undoes exactly its writes.
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
