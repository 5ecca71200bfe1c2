//! The watchers of a user, and the user's subscriptions while there are any. Both end with the
//! instance.
//!
//! **Invariant:** without a watcher there is no subscription, because each subscription keeps the
//! user and a feed awake.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use capstead::Result;

use super::User;
use super::timeline::Entry;
use crate::feed_capnp::{subscription, watcher, watching};

#[derive(Default)]
pub(super) struct Live {
    next: Cell<u64>,
    watchers: RefCell<BTreeMap<u64, watcher::Client>>,
    /// By the names of the feeds.
    subscriptions: RefCell<BTreeMap<String, subscription::Client>>,
}

/// The handle that a watcher holds. Dropping it ends the watching.
pub(super) struct Watching {
    live: Weak<Live>,
    number: u64,
}

/// The bell that a feed holds: ringing it makes the user read the feed.
pub(super) struct Ringer {
    pub(super) user: Weak<User>,
    /// The user's name for the feed.
    pub(super) feed: String,
}

impl Live {
    pub(super) fn is_watched(&self) -> bool {
        !self.watchers.borrow().is_empty()
    }

    pub(super) fn watch(self: &Rc<Self>, watcher: watcher::Client) -> Watching {
        let number = self.next.replace(self.next.get() + 1);
        self.watchers.borrow_mut().insert(number, watcher);
        Watching { live: Rc::downgrade(self), number }
    }

    /// Shows the entries to all watchers. It doesn't wait for their answers.
    pub(super) fn show(&self, entries: &[Entry]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        for watcher in self.watchers.borrow().values() {
            let mut request = watcher.added_request();
            let mut list = request.get().init_entries(entries.len() as u32);
            for (at, entry) in (0..).zip(entries) {
                list.set_with_caveats(at, entry.get()?)?;
            }
            drop(request.send());
        }
        Ok(())
    }

    pub(super) fn subscribed(&self, feed: &str, subscription: subscription::Client) {
        let before = self.subscriptions.borrow_mut().insert(feed.to_owned(), subscription);
        drop(before);
    }

    pub(super) fn unsubscribe(&self, feed: &str) {
        let ended = self.subscriptions.borrow_mut().remove(feed);
        drop(ended);
    }
}

impl watching::Server for Watching {}

// The values are dropped while nothing is borrowed, since dropping them may in turn end other
// things.
impl Drop for Watching {
    fn drop(&mut self) {
        let Some(live) = self.live.upgrade() else { return };
        let left = live.watchers.borrow_mut().remove(&self.number);
        drop(left);
        if !live.is_watched() {
            drop(live.subscriptions.take());
        }
    }
}
