//! The calls by which grants are made, listed and revoked: on any facet, as turns of its object.
//!
//! Invariants:
//! - A holder gives no more than they have.
//! - A holder lists and revokes only grants that were made from their own.

use std::fmt;
use std::rc::Rc;

use capnp::capability::{Params, Promise, Results};
use capnp::traits::HasTypeId;
use capnp::{any_pointer, struct_list};
use capstead_client::sturdyref::{GrantId, Method, Target};
use capstead_client::{Terms, write_caveats};

use super::giving::{self, Grantor};
use super::records::{self, depends, target_id};
use super::sweep;
use crate::error::{Reason, Result, failed, no_such_method};
use crate::host::base::caveats::caveats;
use crate::host::base::right::Right;
use crate::host::base::right::{GRANTS, GrantRef, REVOKE, SAVE};
use crate::host::state::facet::Facet;
use crate::host::state::instance::Instance;
use crate::host::state::vat::Vat;
use crate::id::ObjectId;
use crate::limits::GRANTS_LISTED_MAX;
use crate::schema::facet_capnp::{facet, grant, persistent, terms};
use crate::storage::Space;
use crate::sturdyref::{Grant, Parent, TargetKind};

type Untyped = any_pointer::Owned;

/// A grant that was made, and the reference that it makes valid.
#[derive(Clone)]
#[non_exhaustive]
pub struct Granted {
    /// The id by which the grant is revoked. Knowing it is no right.
    pub id: GrantId,
    /// The reference. **It is secret.**
    pub text: String,
}

impl fmt::Debug for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Granted").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Answers such a call on a facet of the instance, in its present turn.
pub(in crate::host) fn dispatch(
    instance: &Rc<Instance>,
    facet: &Facet,
    method: Method,
    params: Params<Untyped>,
    mut results: Results<Untyped>,
) -> Promise<(), capnp::Error> {
    let mut answer = || {
        if !facet.is_object() {
            return Err(Reason::NotAReference
                .error("what an object made itself ends with it, and has no grants"));
        }
        let (params, results) = (params.get()?, results.get());
        let right = &facet.right;
        // The answer may tell of grants that the operator made or took back a moment ago.
        instance.follow_later_writes();
        match (method.interface, method.ordinal) {
            (persistent::Client::TYPE_ID, SAVE) if facet.request().is_some() => {
                Err(Reason::NotRepeatable
                    .error("a reference is a secret, and isn't kept as a reply; save again"))
            }
            (persistent::Client::TYPE_ID, SAVE) => {
                let params: persistent::save_params::Reader<'_> = params.get_as()?;
                let mut results: persistent::save_results::Builder<'_> = results.init_as();
                let by = (right, Grantor::Holder);
                let granted = save(instance, by, wanted(params.get_seal_for()?)?)?;
                results.set_sturdy_ref(granted.text);
                Ok(())
            }
            (facet::Client::TYPE_ID, GRANTS) => {
                let params: facet::grants_params::Reader<'_> = params.get_as()?;
                let after = params.get_after()?;
                let vat = &instance.vat;
                let listed = list(vat, instance.spec.id, right, after)?;
                let mut results: facet::grants_results::Builder<'_> = results.init_as();
                if let Some(next) = listed.1 {
                    results.set_next(next.as_bytes());
                }
                write_grants(results.init_grants(listed.0.len() as u32), &listed.0);
                Ok(())
            }
            (facet::Client::TYPE_ID, REVOKE) => {
                let params: facet::revoke_params::Reader<'_> = params.get_as()?;
                revoke(instance, right, grant_id(params.get_grant()?)?)
            }
            _ => Err(no_such_method(method)),
        }
    };
    match answer() {
        Ok(()) => Promise::ok(()),
        Err(error) => Promise::err(error),
    }
}

/// Makes a grant of the instance's own object, and the reference that it makes valid, in the
/// present turn.
pub(in crate::host) fn save(
    instance: &Instance,
    by: (&Right, Grantor),
    terms: Terms,
) -> Result<Granted> {
    let (agent, target) = (instance.vat.agent()?, Target::Object(target_id(instance.spec.id)));
    let ready = giving::prepare(&instance.vat, &agent.keys(), target, by, &terms)?;
    let text = agent.text(&ready.reference)?;
    instance.vat.turns.store().check_records(&instance.account, ready.record.len())?;
    instance.write_grant(|vat, object| giving::put(vat, object, &ready))?;
    Ok(Granted { id: ready.id, text })
}

/// Takes a grant of the instance's own object back, in the present turn.
pub(in crate::host) fn revoke(instance: &Instance, right: &Right, id: GrantId) -> Result<()> {
    let (vat, object) = (&instance.vat, instance.spec.id);
    let (grant, grant_ref) = (check_reach(vat, object, right, id)?, GrantRef::new(object, id));
    match grant.revoked(TargetKind::Object) {
        Some(left) => instance.write_record(Space::Grants, id.as_bytes(), Some(&left))?,
        None => instance.write_grant(|vat, _| records::delete(vat, grant_ref))?,
    }
    vat.live_grants.revoke(grant_ref);
    sweep::sweep(vat, object);
    Ok(())
}

/// The grant, if the holder of `right` has a say over it.
///
/// # Errors
/// When there is no such grant, or the holder has none.
pub(in crate::host) fn check_reach(
    vat: &Vat,
    target: ObjectId,
    right: &Right,
    id: GrantId,
) -> Result<Grant> {
    let grant = records::get(vat, GrantRef::new(target, id))?.filter(|grant| !grant.is_revoked);
    if let Some(grant) = grant
        && reaches(vat, target, right, &grant)?
    {
        return Ok(grant);
    }
    Err(Reason::NoSuchGrant.error("no grant of this id was made from the grant of this one"))
}

/// Tells whether the holder of `right` has a say over a grant: it was made from the holder's own. A
/// holder without a grant, by a binding or as the object itself, has a say over all, unless their
/// right is restricted.
fn reaches(vat: &Vat, target: ObjectId, right: &Right, grant: &Grant) -> Result<bool> {
    match &right.grant {
        None => Ok(!right.is_restricted()),
        Some(own) => records::was_made_from(vat, target, grant, own.grant_ref),
    }
}

/// Some grants, and the last one that was looked at if there are more.
pub(in crate::host) type Listed = (Vec<(GrantId, Grant)>, Option<GrantId>);

/// Some of the grants that the holder of `right` may know of, behind `after`.
pub(in crate::host) fn list(
    vat: &Rc<Vat>,
    target: ObjectId,
    right: &Right,
    after: &[u8],
) -> Result<Listed> {
    let after = if after.is_empty() { None } else { Some(grant_id(after)?) };
    let mut some = records::list_behind(vat, target, after, GRANTS_LISTED_MAX)?;
    let last = some.last().filter(|_| some.len() == GRANTS_LISTED_MAX).map(|(id, _)| *id);
    let mut listed = Vec::new();
    for (id, grant) in some.drain(..) {
        // A dead grant that isn't swept yet is as if it were gone. A revoked one that left a record
        // is listed.
        if reaches(vat, target, right, &grant)?
            && (grant.is_revoked || !sweep::is_dead(vat, target, &grant)?)
        {
            // If nobody here uses the namespace's grant that it depends on, it may be dead: the
            // next list knows.
            let namespace = depends(target, &grant).filter(|of| of.target != target);
            if namespace.is_some_and(|of| vat.live_grants.get(of).is_none()) {
                sweep::sweep_for_room(vat, target);
            }
            listed.push((id, grant));
        }
    }
    Ok((listed, last))
}

/// Writes a list of grants as an answer.
pub(in crate::host) fn write_grants(
    mut list: struct_list::Builder<'_, grant::Owned>,
    grants: &[(GrantId, Grant)],
) {
    for (at, (id, grant)) in (0..).zip(grants) {
        write_grant(list.reborrow().get(at), *id, grant);
    }
}

/// Writes what is known of a grant.
fn write_grant(mut to: grant::Builder<'_>, id: GrantId, grant: &Grant) {
    to.set_id(id.as_bytes());
    match &grant.parent {
        Parent::None => {}
        Parent::Own(parent) => to.set_parent(parent.as_bytes()),
        Parent::OfNamespace(_, parent) => to.set_namespace(parent.as_bytes()),
    }
    to.set_label(&*grant.label);
    to.set_independent(grant.independent);
    to.set_allow_independent(grant.allows_independent);
    to.set_revoked(grant.is_revoked);
    to.set_created(grant.created_ms);
    to.set_last_restored(grant.restored_ms);
    write_caveats(to.init_caveats(), &grant.caveats);
}

/// The grant that a caller wants.
///
/// # Errors
/// As for `caveats`, and when the label is no text.
pub(in crate::host) fn wanted(from: terms::Reader<'_>) -> Result<Terms> {
    let mut terms =
        Terms::new(from.get_label()?.to_string()?).caveats(&caveats(from.get_caveats()?)?);
    if from.get_independent() {
        terms = terms.independent();
    }
    if from.get_allow_independent() {
        terms = terms.allow_independent();
    }
    Ok(terms)
}

/// # Errors
/// When it isn't the id of a grant.
pub(in crate::host) fn grant_id(bytes: &[u8]) -> Result<GrantId> {
    bytes.try_into().map(GrantId::from_bytes).map_err(|_| failed("a grant's id has 16 bytes"))
}
