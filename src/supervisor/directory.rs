//! The hosts that have joined, and the capabilities to reach them.
//!
//! Invariant: a host is reachable only while the link by which it last joined is whole.

use std::cell::RefCell;

use tokio::sync::Notify;

use super::placement;
use crate::error::{Result, disconnected, failed};
use crate::id::Shard;
use crate::schema::cluster_capnp::host;
use crate::storage::{CasOutcome, ConfigStore, LocalConfig};

/// The number of hosts that the placement is for. It is written once: shards can't be moved yet.
const HOSTS: &str = "placement/hosts";

#[derive(Clone)]
pub(super) struct Member {
    pub(super) host: host::Client,
    pub(super) address: String,
}

/// The state of a host in the placement.
fn damaged() -> capnp::Error {
    failed("the placement in the data directory is damaged")
}

#[derive(Clone)]
enum Place {
    /// It hasn't joined since the start, so it holds nothing.
    Expected,
    Joined(Member),
    /// Its link broke. It still serves its own clients, and will join again.
    CutOff,
    /// It won't come back while this process runs.
    Ended,
}

pub(super) struct Directory {
    hosts: u16,
    places: RefCell<Vec<Place>>,
    /// Notified when a host has joined.
    joined: Notify,
}

impl Directory {
    /// # Errors
    /// The placement can't be read or written, or was made for another number of hosts.
    pub(super) fn open(config: &LocalConfig, hosts: u16) -> Result<Self> {
        // Read first, because a process that opened the data for reading must not write.
        let written = loop {
            if let Some(written) = Self::written(config)? {
                break written;
            }
            match config.compare_and_swap(HOSTS, None, &hosts.to_be_bytes())? {
                CasOutcome::Stored(_) => break hosts,
                CasOutcome::Conflict(_) => break Self::written(config)?.ok_or_else(damaged)?,
                CasOutcome::Unknown => {}
            }
        };
        if written != hosts {
            return Err(failed(format!(
                "the data was placed on {written} hosts, not on {hosts}: start with --hosts {written}"
            )));
        }
        let places = RefCell::new(vec![Place::Expected; usize::from(hosts)]);
        Ok(Self { hosts, places, joined: Notify::new() })
    }

    fn written(config: &LocalConfig) -> Result<Option<u16>> {
        let Some(value) = config.get(HOSTS)?.map(|versioned| versioned.value) else {
            return Ok(None);
        };
        Ok(Some(u16::from_be_bytes(value.try_into().map_err(|_| damaged())?)))
    }

    /// # Errors
    /// The placement has no such host.
    pub(super) fn join(&self, number: u16, member: Member) -> Result<()> {
        if !self.put(number, Place::Joined(member)) {
            return Err(failed(format!("there is no host {number} in the placement")));
        }
        self.joined.notify_waiters();
        Ok(())
    }

    /// The host's link broke; the host is expected back.
    pub(super) fn cut_off(&self, number: u16) {
        self.put(number, Place::CutOff);
    }

    pub(super) fn end(&self, number: u16) {
        self.put(number, Place::Ended);
    }

    fn put(&self, number: u16, place: Place) -> bool {
        let mut places = self.places.borrow_mut();
        let old = places.get_mut(usize::from(number)).map(|old| std::mem::replace(old, place));
        drop(places);
        // Dropped last: dropping a host's capability may call back into the directory.
        old.is_some()
    }

    /// Resolves when the host can be reached.
    pub(super) async fn joined(&self, number: u16) {
        loop {
            let joined = self.joined.notified();
            if self.member(number).is_ok() {
                return;
            }
            joined.await;
        }
    }

    /// All hosts that hold something, with an error for each that can't be reached now.
    pub(super) fn members(&self) -> Vec<Result<Member>> {
        let places = self.places.borrow();
        let member = |(number, place): (u16, &Place)| match place {
            Place::Expected | Place::Ended => None,
            Place::Joined(member) => Some(Ok(member.clone())),
            Place::CutOff => Some(Err(cut_off(number))),
        };
        (0..).zip(&*places).filter_map(member).collect()
    }

    pub(super) fn shards_of(&self, number: u16) -> Vec<std::ops::RangeInclusive<u16>> {
        placement::shards_of(number, self.hosts).collect()
    }

    /// # Errors
    /// The owner of the shard has not joined.
    pub(super) fn owner(&self, shard: Shard) -> Result<Member> {
        self.member(placement::owner_of(shard.0, self.hosts))
    }

    /// # Errors
    /// The host has not joined, or its link broke.
    pub(super) fn member(&self, number: u16) -> Result<Member> {
        match self.places.borrow().get(usize::from(number)) {
            Some(Place::Joined(member)) => Ok(member.clone()),
            Some(Place::CutOff) => Err(cut_off(number)),
            Some(Place::Ended) => {
                Err(disconnected(format!("host {number} has ended, and the server ends with it")))
            }
            _ => Err(disconnected(format!("host {number} is not up; try again later"))),
        }
    }
}

fn cut_off(number: u16) -> capnp::Error {
    disconnected(format!(
        "host {number} is cut off for a moment, and is being joined again: try again soon"
    ))
}
