//! The hosts that have joined, and where each is reached.

use std::cell::RefCell;

use super::placement;
use crate::error::{Result, disconnected, failed};
use crate::id::Shard;
use crate::schema::cluster_capnp::host;
use crate::storage::{CasOutcome, ConfigStore, LocalConfig};

/// The number of hosts, as placement knows it. It is written once: moving shards comes later.
const HOSTS: &str = "placement/hosts";

#[derive(Clone)]
pub(super) struct Member {
    pub(super) host: host::Client,
    pub(super) address: String,
}

pub(super) struct Directory {
    hosts: u16,
    members: RefCell<Vec<Option<Member>>>,
}

impl Directory {
    /// # Errors
    /// When the placement can't be read or written, or was made for another number of hosts.
    pub(super) fn open(config: &LocalConfig, hosts: u16) -> Result<Self> {
        let written = match config.compare_and_swap(HOSTS, None, &hosts.to_be_bytes())? {
            CasOutcome::Stored(_) => hosts,
            CasOutcome::Conflict(_) => Self::written(config)?,
        };
        if written != hosts {
            return Err(failed(format!(
                "the data was placed on {written} hosts, not on {hosts}: start with --hosts {written}"
            )));
        }
        let members = RefCell::new(vec![None; usize::from(hosts)]);
        Ok(Self { hosts, members })
    }

    fn written(config: &LocalConfig) -> Result<u16> {
        let value = config.get(HOSTS)?.map(|versioned| versioned.value);
        let number = value.and_then(|value| value.try_into().ok().map(u16::from_be_bytes));
        number.ok_or_else(|| failed("the placement in the data directory is damaged"))
    }

    pub(super) fn join(&self, number: u16, member: Member) -> Result<()> {
        match self.members.borrow_mut().get_mut(usize::from(number)) {
            Some(place) => *place = Some(member),
            None => return Err(failed(format!("there is no host {number} in the placement"))),
        }
        Ok(())
    }

    /// The hosts that have joined.
    pub(super) fn members(&self) -> Vec<Member> {
        self.members.borrow().iter().flatten().cloned().collect()
    }

    pub(super) fn shards_of(&self, number: u16) -> Vec<std::ops::RangeInclusive<u16>> {
        placement::shards_of(number, self.hosts).collect()
    }

    /// # Errors
    /// When the owner of the shard has not joined.
    pub(super) fn owner(&self, shard: Shard) -> Result<Member> {
        self.member(placement::owner_of(shard.0, self.hosts))
    }

    /// # Errors
    /// When the host has not joined.
    pub(super) fn member(&self, number: u16) -> Result<Member> {
        let member = self.members.borrow().get(usize::from(number)).cloned().flatten();
        member.ok_or_else(|| disconnected(format!("host {number} is not up; try again later")))
    }
}
