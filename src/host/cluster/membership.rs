//! A host's membership of its cluster, as it lasts over one link after another.
//!
//! Invariants:
//! - The host's shards, its number and its listener stay the same, however often it joins.
//! - Between the end of one link and the next all ways to others are broken ones, which say so.

use std::cell::RefCell;
use std::ops::RangeInclusive;

use capnp::capability::FromClientHook;
use capstead_client::sturdyref::Sturdyref;

use crate::error::{Result, disconnected};
use crate::schema::cluster_capnp::router;
use crate::schema::restorer_capnp::restorer;

/// The facts that this host and its supervisor told each other.
pub(in crate::host) struct Membership {
    pub(super) number: u16,
    pub(in crate::host) shards: Vec<RangeInclusive<u16>>,
    /// The address at which clients reach this host.
    pub(super) address: String,
    pub(in crate::host) hint: ListenerHint,
    pub(super) others: RefCell<Others>,
}

/// The ways to all others. They go by one link, and end with it.
pub(super) struct Others {
    pub(super) router: router::Client,
    pub(super) restorer: restorer::Client,
}

impl Others {
    pub(super) fn none(number: u16) -> Self {
        let broken = || {
            let reason =
                format!("host {number} is cut off from the others for a moment: try again");
            capnp_rpc::new_broken_cap(disconnected(reason)).hook
        };
        Self { router: FromClientHook::new(broken()), restorer: FromClientHook::new(broken()) }
    }
}

impl Membership {
    pub(in crate::host) fn router(&self) -> router::Client {
        self.others.borrow().router.clone()
    }

    pub(in crate::host) fn restorer(&self) -> restorer::Client {
        self.others.borrow().restorer.clone()
    }
}

/// The address at which clients reach the server: the hint in the texts of all its references. It
/// stays the same from start to start where the server's listener does; that of a single host
/// doesn't.
#[derive(Clone, Debug)]
pub(crate) struct ListenerHint {
    /// `host:port`.
    pub(crate) address: String,
    /// The server is spoken to by TLS alone.
    pub(crate) tls: bool,
}

impl ListenerHint {
    /// The text of a reference. **It is secret.**
    ///
    /// # Errors
    /// When it would be too long.
    pub(crate) fn text(&self, reference: &Sturdyref) -> Result<String> {
        let expose = if self.tls { Sturdyref::expose_tls_text } else { Sturdyref::expose_text };
        Ok(expose(reference, &self.address)?)
    }
}
