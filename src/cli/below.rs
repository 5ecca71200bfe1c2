//! All grants that were made from one, over all objects and hosts: what is looked for when a reference
//! fell into the wrong hands.
//!
//! Records say what they were made from, so that reading the grants of all is enough; nothing is indexed.

use std::collections::BTreeMap;

use capstead_client::sturdyref::GrantId;

use super::grants::{hex, revoke_one, still_there, time};
use super::operator::Failure;
use super::transfer::{self, Selection};
use crate::id::ObjectId;
use crate::schema::admin_capnp::admin;
use crate::storage::Space;
use crate::storage::archive::{Frame, Frames};
use crate::sturdyref::{Grant, Parent};
use crate::supervisor::owner_of;

/// A grant that was made from the one in question.
pub(super) struct Below {
    target: ObjectId,
    /// The object, for people.
    of: String,
    id: GrantId,
    grant: Grant,
}

impl Below {
    /// It for people.
    pub(super) fn said(&self) -> String {
        let Self { of, id, grant, .. } = self;
        let (id, made) = (hex(id.as_bytes()), time(grant.created_ms));
        let independent = if grant.independent { ", independent" } else { "" };
        let revoked = if grant.is_revoked { ", REVOKED" } else { "" };
        format!("{of}  {id}  {:?}, made {made}{independent}{revoked}", grant.label)
    }
}

/// Looks through the grants of all hosts.
pub(super) async fn find(
    admin: &admin::Client,
    hosts: u16,
    (target, grant): (ObjectId, ObjectId),
) -> Result<Vec<Below>, Failure> {
    let from = (target, GrantId::from_bytes(*grant.as_bytes()));
    let mut search = Search { from, object: None, found: Vec::new() };
    for number in 0..hosts {
        let host = transfer::host(admin, number);
        transfer::read_out(&host, &Selection::Grants, |frames| search.take(frames)).await?;
        search.end_object();
    }
    Ok(search.found)
}

/// Revokes those that are in force yet; how many.
pub(super) async fn revoke(
    admin: &admin::Client,
    hosts: u16,
    found: &[Below],
) -> Result<usize, Failure> {
    let mut count = 0;
    for Below { target, id, .. } in found.iter().filter(|found| !found.grant.is_revoked) {
        let host = transfer::host(admin, owner_of(target.home_shard().0, hosts));
        let revoked = revoke_one(&host, *target, id.as_bytes()).await;
        count += usize::from(still_there(revoked)?);
    }
    Ok(count)
}

struct Search {
    from: (ObjectId, GrantId),
    object: Option<Object>,
    found: Vec<Below>,
}

/// The object whose grants come now.
struct Object {
    id: ObjectId,
    said: String,
    grants: BTreeMap<[u8; 16], Grant>,
}

impl Search {
    fn take(&mut self, frames: &[u8]) -> Result<(), Failure> {
        for frame in Frames::of(frames) {
            match frame.map_err(|error| Failure::Cannot(error.to_string()))? {
                Frame::Object(id) => {
                    self.end_object();
                    // A namespace has no header.
                    let said = format!("the namespace {}", hex(id.as_bytes()));
                    self.object = Some(Object { id, said, grants: BTreeMap::new() });
                }
                Frame::Records(records) => {
                    let Some(object) = &mut self.object else { continue };
                    for record in records {
                        match (record.space, record.key.try_into()) {
                            (Space::Header, _) => object.said = transfer::describe(record.value),
                            (Space::Grants, Ok(id)) => {
                                drop(object.grants.insert(id, Grant::decode(record.value)?));
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn end_object(&mut self) {
        let Some(Object { id: target, said, mut grants }) = self.object.take() else { return };
        let below: Vec<[u8; 16]> = grants
            .iter()
            .filter(|(_, grant)| is_below(target, grant, &grants, self.from))
            .map(|(id, _)| *id)
            .collect();
        self.found.extend(below.into_iter().filter_map(|id| {
            let grant = grants.remove(&id)?;
            Some(Below { target, of: said.clone(), id: GrantId::from_bytes(id), grant })
        }));
    }
}

/// Tells whether a grant of the target, which has all of `grants`, was made from `from`, directly
/// or not.
fn is_below(
    target: ObjectId,
    grant: &Grant,
    grants: &BTreeMap<[u8; 16], Grant>,
    from: (ObjectId, GrantId),
) -> bool {
    let mut grant = grant;
    // No more than there are: damaged records may lead round in circles.
    for _ in 0..=grants.len() {
        if grant.before.contains(&from.1) {
            return true;
        }
        match grant.parent {
            Parent::None => return false,
            Parent::OfNamespace(namespace, id) => {
                let is_of = namespace.as_bytes() == from.0.as_bytes();
                return is_of && id == from.1;
            }
            Parent::Own(id) if (target, id) == from => return true,
            Parent::Own(id) => match grants.get(id.as_bytes()) {
                Some(parent) => grant = parent,
                None => return false,
            },
        }
    }
    false
}
