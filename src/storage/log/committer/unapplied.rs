//! The turns that the log has, and of which nobody has seen yet that they were applied.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use super::Ticket;

/// The last ticket of each entry that is durable and was not seen to be applied.
#[derive(Default)]
pub(super) struct Unapplied(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    tickets: VecDeque<Ticket>,
    /// The number of entries before these, and the last ticket of the last of them.
    before: u64,
    ticket: Ticket,
}

impl Unapplied {
    /// The log has one more entry, which ends with this ticket.
    pub(super) fn push(&self, ticket: Ticket) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.tickets.push_back(ticket);
    }

    /// The last ticket of the first `count` entries, as far as they are `durable`.
    pub(super) fn last_applied(&self, count: u64, durable: Ticket) -> Ticket {
        // No code that holds this lock can panic.
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while entries.before < count
            && let Some(ticket) = entries.tickets.pop_front_if(|ticket| *ticket <= durable)
        {
            entries.before += 1;
            entries.ticket = ticket;
        }
        entries.ticket
    }
}
