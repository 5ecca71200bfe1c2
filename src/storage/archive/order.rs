//! The order of the frames in an archive, and their totals.
//!
//! Head, secrets, then for each host its shards, for each shard its objects, for each object its
//! records, then the end. It looks at decoded frames, and keeps none of them.

use super::{Frame, Record, Totals};
use crate::id::{ObjectId, Shard};
use crate::limits::HOSTS_MAX;
use crate::storage::lmdb::layout::log_shard;
use crate::storage::space::Space;

/// The position of a frame in an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    Start,
    Secrets,
    Host,
    Shard,
    Object,
    Records,
    End,
}

/// Follows the frames of one archive.
#[derive(Debug)]
pub(super) struct Order {
    at: At,
    /// The number of hosts that began.
    hosts: u32,
    shard: Option<Shard>,
    /// The last object of the present host.
    object: Option<ObjectId>,
    /// Space and key of the object's last record.
    last: Option<(Space, Vec<u8>)>,
    totals: Totals,
}

/// The fault of a frame that is out of place.
const MISPLACED: &str = "a part of it is not where it should be";
const UNSORTED: &str = "its records are not in their order";
const HOSTS: &str = "no server has as many hosts as it says";
const TOTALS: &str = "it has not as much in it as it says";

impl Order {
    pub(super) fn new() -> Self {
        let totals = Totals::default();
        Self { at: At::Start, hosts: 0, shard: None, object: None, last: None, totals }
    }

    /// The totals so far.
    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// Tells whether the last frame was the end.
    pub(super) fn is_ended(&self) -> bool {
        self.at == At::End
    }

    /// Takes the next frame; the error says what is wrong with it at this place.
    pub(super) fn follow(&mut self, frame: &Frame<'_>) -> Result<(), &'static str> {
        let (next, is_here) = match frame {
            Frame::Head(head) => {
                if !(1..=HOSTS_MAX).contains(&head.hosts) {
                    return Err(HOSTS);
                }
                (At::Secrets, self.at == At::Start)
            }
            Frame::Secret { .. } => (At::Secrets, self.at == At::Secrets),
            Frame::Host(number) => {
                let is_next = u32::from(*number) == self.hosts && self.is_between();
                (self.hosts, self.shard, self.object) = (self.hosts + 1, None, None);
                (At::Host, is_next)
            }
            Frame::Shard(shard, _) => {
                let is_next = self.at >= At::Host && self.is_between() && self.shard < Some(*shard);
                self.shard = Some(*shard);
                (At::Shard, is_next)
            }
            Frame::Object(id) => (At::Object, self.begin_object(*id)),
            Frame::Records(records) => {
                let is_here = matches!(self.at, At::Object | At::Records);
                for record in *records {
                    self.follow_record(&record)?;
                }
                (At::Records, is_here)
            }
            Frame::End(totals, _) => {
                if *totals != self.totals {
                    return Err(TOTALS);
                }
                (At::End, self.is_between())
            }
        };
        self.at = next;
        if is_here { Ok(()) } else { Err(MISPLACED) }
    }

    /// Tells whether a new part may begin here, because every object that began has records.
    fn is_between(&self) -> bool {
        !matches!(self.at, At::Start | At::Object | At::End)
    }

    fn begin_object(&mut self, id: ObjectId) -> bool {
        let is_here = matches!(self.at, At::Shard | At::Records);
        let is_next = self.shard == Some(log_shard(id)) && self.object < Some(id);
        (self.object, self.last) = (Some(id), None);
        is_here && is_next
    }

    fn follow_record(&mut self, record: &Record<'_>) -> Result<(), &'static str> {
        let behind =
            |(space, key): &(Space, Vec<u8>)| (*space, key.as_slice()) < (record.space, record.key);
        let is_left_out = matches!(
            record.space,
            Space::Edges | Space::Usage | Space::Shares | Space::Sockets | Space::Due
        );
        if is_left_out || !self.last.as_ref().is_none_or(behind) {
            return Err(UNSORTED);
        }
        match &mut self.last {
            Some((space, key)) => {
                *space = record.space;
                key.clear();
                key.extend_from_slice(record.key);
            }
            None => self.last = Some((record.space, record.key.to_vec())),
        }
        match record.space {
            Space::Header => self.totals.objects += 1,
            Space::Data => {
                self.totals.keys += 1;
                self.totals.bytes += (record.key.len() + record.value.len()) as u64;
            }
            _ => {}
        }
        Ok(())
    }
}
