//! The walks over all objects that end the calls of namespaces' grants: one at a time, however many
//! grants are cut.

use std::cell::Cell;

use tokio::sync::watch;

/// The walks of a vat.
#[derive(Default)]
pub(in crate::host) struct CutWalks {
    /// The number of times that grants were cut.
    wanted: Cell<u64>,
    /// As many of these as the last walk has ended.
    ended: watch::Sender<u64>,
    is_under_way: Cell<bool>,
}

impl CutWalks {
    /// Grants were cut. True if the caller is to begin a walk, since none is under way.
    pub(in crate::host) fn want(&self) -> bool {
        self.wanted.set(self.wanted.get() + 1);
        !self.is_under_way.replace(true)
    }

    /// The number of times that grants were cut until now.
    pub(in crate::host) fn wanted(&self) -> u64 {
        self.wanted.get()
    }

    /// A walk has ended what was cut `upto` its beginning. False if another one is to follow.
    pub(in crate::host) fn end(&self, upto: u64) -> bool {
        self.ended.send_replace(upto);
        let is_last = self.wanted.get() == upto;
        self.is_under_way.set(!is_last);
        is_last
    }

    /// Resolves when everything has ended that was made from grants that are cut by now.
    pub(in crate::host) async fn caught_up(&self) {
        let wanted = self.wanted.get();
        // The sender is `self`.
        let _ = self.ended.subscribe().wait_for(|ended| *ended >= wanted).await;
    }
}
