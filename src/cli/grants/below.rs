//! All grants that were made from one grant, over all objects and hosts: the operator needs them
//! after a reference fell into the wrong hands.
//!
//! Each record names the grant that it was made from, so reading all grants is enough; there is no
//! index.

use std::collections::BTreeMap;

use capstead_client::sturdyref::GrantId;

use super::shown::{hex, time};
use super::{revoke_one, still_there};
use crate::cli::operator::Failure;
use crate::cli::transfer::{self, Selection};
use crate::id::ObjectId;
use crate::schema::admin_capnp::admin;
use crate::storage::Space;
use crate::storage::archive::{Frame, Frames};
use crate::sturdyref::{Grant, GrantRef, Parent};
use crate::supervisor::owner_of;

/// A grant that was made from the one in question.
pub(super) struct Below {
    target: ObjectId,
    /// The object, in words for people.
    of: String,
    id: GrantId,
    grant: Grant,
}

impl Below {
    /// The grant, in words for people.
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
    from: GrantRef,
) -> Result<Vec<Below>, Failure> {
    let mut search = Search { from, object: None, found: Vec::new() };
    for number in 0..hosts {
        let host = transfer::host(admin, number);
        transfer::read_out(&host, &Selection::Grants, |frames| search.take(frames)).await?;
        search.end_object();
    }
    Ok(search.found)
}

/// Revokes all that are in force, and returns their number; none if nothing was ever made from that
/// grant. Their holders may make further ones meanwhile, which are looked for again.
pub(super) async fn revoke_all(
    admin: &admin::Client,
    hosts: u16,
    from: GrantRef,
) -> Result<Option<usize>, Failure> {
    let mut count = None;
    loop {
        let found = find(admin, hosts, from).await?;
        let revoked = revoke(admin, hosts, &found).await?;
        if !found.is_empty() {
            count = Some(count.unwrap_or_default() + revoked);
        }
        if revoked == 0 {
            return Ok(count);
        }
    }
}

/// Revokes those that are still in force, and returns their number.
async fn revoke(admin: &admin::Client, hosts: u16, found: &[Below]) -> Result<usize, Failure> {
    let mut count = 0;
    for Below { target, id, .. } in found.iter().filter(|found| !found.grant.is_revoked) {
        let host = transfer::host(admin, owner_of(target.home_shard().0, hosts));
        let revoked = revoke_one(&host, *target, id.as_bytes()).await;
        count += usize::from(still_there(revoked)?);
    }
    Ok(count)
}

struct Search {
    from: GrantRef,
    object: Option<Object>,
    found: Vec<Below>,
}

/// The object whose grants follow in the stream.
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

/// Tells whether a grant of the target was made from `from`, directly or not; `grants` holds all
/// grants of the target.
fn is_below(
    target: ObjectId,
    grant: &Grant,
    grants: &BTreeMap<[u8; 16], Grant>,
    from: GrantRef,
) -> bool {
    let mut grant = grant;
    // Bounded by the number of grants: damaged records may form a circle.
    for _ in 0..=grants.len() {
        if grant.before.contains(&from.grant) {
            return true;
        }
        match grant.parent {
            Parent::None => return false,
            Parent::OfNamespace(namespace, id) => {
                let is_of = namespace.as_bytes() == from.target.as_bytes();
                return is_of && id == from.grant;
            }
            Parent::Own(id) if GrantRef::new(target, id) == from => return true,
            Parent::Own(id) => match grants.get(id.as_bytes()) {
                Some(parent) => grant = parent,
                None => return false,
            },
        }
    }
    false
}
