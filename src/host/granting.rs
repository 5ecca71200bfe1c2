//! The calls by which grants are made, listed and revoked: on any facet, as turns of its object; and what
//! they say in Cap'n Proto.
//!
//! Whoever makes a grant gives no more than they have; whoever lists or revokes reaches those grants that were
//! made from their own.

use std::fmt;
use std::rc::Rc;

use capnp::capability::{Params, Promise, Results};
use capnp::traits::HasTypeId;
use capnp::{any_pointer, struct_list};
use capstead_client::sturdyref::{Caveats, GrantId, Methods, Target};
use ed25519_dalek::VerifyingKey;

use super::facet::Facet;
use super::grants::{Terms, target_id};
use super::instance::Instance;
use super::right::Right;
use super::vat::Vat;
use crate::error::{Reason, Result, failed, no_such_method};
use crate::id::ObjectId;
use crate::limits::{GRANTS_LISTED_MAX, HOLDERS_MAX};
use crate::schema::facet_capnp::{self as capnp_facet, facet, grant, persistent, terms};
use crate::schema::sturdyref_capnp::METHODS_MAX;
use crate::storage::Space;
use crate::sturdyref::{Grant, Parent};

/// The methods of the interface `Facet` that are turns.
const GRANTS: u16 = 3;
/// See [`GRANTS`].
const REVOKE: u16 = 4;
/// The method of the interface `Persistent`.
const SAVE: u16 = 0;

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

/// Tells whether a call is one of those here.
pub(super) fn is_granting(interface: u64) -> bool {
    interface == facet::Client::TYPE_ID || interface == persistent::Client::TYPE_ID
}

/// Tells whether the holder of `right` may make a call: one that the caveats leave out looks as if
/// it weren't there. A call that makes a capability or a reference which is no more than the
/// holder's own is never left out.
#[inline]
pub(super) fn may_call(right: &Right, interface: u64, method: u16) -> bool {
    match (interface, method) {
        (persistent::Client::TYPE_ID, _) => true,
        (facet::Client::TYPE_ID, GRANTS | REVOKE) => right.allows(interface, method),
        (facet::Client::TYPE_ID, _) => true,
        _ => right.allows(interface, method),
    }
}

/// Answers such a call on a facet of the instance, in a turn of it.
pub(super) fn dispatch(
    instance: &Rc<Instance>,
    facet: &Facet,
    (interface, method): (u64, u16),
    params: Params<Untyped>,
    mut results: Results<Untyped>,
) -> Promise<(), capnp::Error> {
    let mut answer = || {
        if facet.made.is_some() {
            return Err(Reason::NotAReference
                .error("what an object made itself ends with it, and has no grants"));
        }
        let (params, results) = (params.get()?, results.get());
        let right = &facet.right;
        // What is said of grants may tell of those that the operator made or took back.
        instance.vat.hold_for_others(instance);
        match (interface, method) {
            (persistent::Client::TYPE_ID, SAVE) if facet.request().is_some() => {
                Err(Reason::NotRepeatable
                    .error("a reference is a secret, and isn't kept as a reply; save again"))
            }
            (persistent::Client::TYPE_ID, SAVE) => {
                let params: persistent::save_params::Reader<'_> = params.get_as()?;
                let mut results: persistent::save_results::Builder<'_> = results.init_as();
                let granted = save(instance, right, wanted(params.get_seal_for()?)?)?;
                results.set_sturdy_ref(granted.text);
                Ok(())
            }
            (facet::Client::TYPE_ID, GRANTS) => {
                let params: facet::grants_params::Reader<'_> = params.get_as()?;
                let after = params.get_after()?;
                let vat = &instance.vat;
                let listed = list(vat, instance.birth.id, right, after)?;
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
            (interface, method) => Err(no_such_method(interface, method)),
        }
    };
    match answer() {
        Ok(()) => Promise::ok(()),
        Err(error) => Promise::err(error),
    }
}

/// Makes a grant of the instance's own object, and the reference that it makes valid, in the present turn.
pub(super) fn save(instance: &Instance, right: &Right, terms: Terms) -> Result<Granted> {
    let (agent, target) = (instance.vat.agent()?, Target::Object(target_id(instance.birth.id)));
    let ready = instance.vat.prepare(&agent.keys(), target, right, terms)?;
    let text = agent.text(&ready.reference)?;
    instance.vat.store.borrow().check_records(&instance.account, ready.record.len())?;
    instance.write_grant(|vat, object| vat.put_grant(object, &ready))?;
    Ok(Granted { id: ready.id, text })
}

/// Takes a grant of the instance's own object back, in the present turn.
pub(super) fn revoke(instance: &Instance, right: &Right, id: GrantId) -> Result<()> {
    let (vat, object) = (&instance.vat, instance.birth.id);
    let grant = check_reach(vat, object, right, id)?;
    match grant.revoked(false) {
        Some(left) => instance.write_record(Space::Grants, id.as_bytes(), Some(&left))?,
        None => instance.write_grant(|vat, object| vat.delete_grant((object, id)))?,
    }
    vat.metrics.grants_revoked_total.add(1);
    vat.cut(object, &[id]);
    vat.sweep(object);
    Ok(())
}

/// The grant, if the holder of `right` has a say over it.
///
/// # Errors
/// When there is no such grant, or the holder has none.
pub(super) fn check_reach(
    vat: &Vat,
    target: ObjectId,
    right: &Right,
    id: GrantId,
) -> Result<Grant> {
    let grant = vat.grant((target, id))?.filter(|grant| !grant.is_revoked);
    if let Some(grant) = grant
        && reaches(vat, target, right, &grant)?
    {
        return Ok(grant);
    }
    Err(Reason::NoSuchGrant.error("no grant of this id was made from the grant of this one"))
}

/// Tells whether the holder of `right` has a say over a grant: it was made from the holder's own.
/// One that has none by a binding, or is the object, has a say over all, unless that is less than
/// everything.
fn reaches(vat: &Vat, target: ObjectId, right: &Right, grant: &Grant) -> Result<bool> {
    match &right.grant {
        None => Ok(!right.is_restricted()),
        Some(own) => vat.was_made_from(target, grant, own.of),
    }
}

/// Some grants, and the last one that was looked at if there are more.
pub(super) type Listed = (Vec<(GrantId, Grant)>, Option<GrantId>);

/// Some of the grants that the holder of `right` may know of, behind `after`.
pub(super) fn list(vat: &Vat, target: ObjectId, right: &Right, after: &[u8]) -> Result<Listed> {
    let after = if after.is_empty() { None } else { Some(grant_id(after)?) };
    let mut some = vat.grants_behind(target, after, GRANTS_LISTED_MAX)?;
    let last = some.last().filter(|_| some.len() == GRANTS_LISTED_MAX).map(|(id, _)| *id);
    let mut listed = Vec::new();
    for (id, grant) in some.drain(..) {
        // What is dead and not yet swept is as if it were gone; what was revoked and left a record is known.
        if reaches(vat, target, right, &grant)?
            && (grant.is_revoked || !vat.is_dead(target, &grant)?)
        {
            listed.push((id, grant));
        }
    }
    Ok((listed, last))
}

/// Writes a list of grants as an answer.
pub(super) fn write_grants(
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

fn write_caveats(mut to: capnp_facet::caveats::Builder<'_>, caveats: &Caveats) {
    if let Some(last) = caveats.not_after_ms() {
        to.set_not_after(last);
    }
    to.set_dependent(caveats.is_dependent());
    let holders = caveats.holders();
    let mut keys = to.reborrow().init_holders(holders.len() as u32);
    for (at, holder) in (0..).zip(holders) {
        keys.set(at, holder.as_bytes());
    }
    if let Some(methods) = caveats.methods() {
        write_methods(methods, |count| to.reborrow().init_methods(count));
    }
    if let Some(methods) = caveats.object_methods() {
        write_methods(methods, |count| to.reborrow().init_object_methods(count));
    }
}

fn write_methods<'a>(
    methods: &Methods,
    init: impl FnOnce(u32) -> struct_list::Builder<'a, capnp_facet::methods::Owned>,
) {
    let by_interface = methods.by_interface();
    let mut list = init(by_interface.len() as u32);
    for (at, (interface, methods)) in (0..).zip(by_interface) {
        let mut of_interface = list.reborrow().get(at);
        of_interface.set_interface(interface);
        let mut ordinals = of_interface.init_ordinals(methods.len() as u32);
        for (at, ordinal) in (0..).zip(methods) {
            ordinals.set(at, *ordinal);
        }
    }
}

/// The restrictions that a caller asks for.
///
/// # Errors
/// When there are too many, or a key is none.
pub(super) fn caveats(from: capnp_facet::caveats::Reader<'_>) -> Result<Caveats> {
    let mut caveats = Caveats::none();
    if from.get_not_after() != u64::MAX {
        caveats = caveats.with_not_after(from.get_not_after());
    }
    if from.has_methods() {
        caveats = caveats.with_methods(methods(from.get_methods()?)?)?;
    }
    if from.has_object_methods() {
        caveats = caveats.with_object_methods(methods(from.get_object_methods()?)?)?;
    }
    if from.get_dependent() {
        caveats = caveats.dependent();
    }
    let holders = from.get_holders()?;
    if holders.len() as usize > HOLDERS_MAX {
        return Err(Reason::TooManyHolders.error(format_args!("at most {HOLDERS_MAX} keys")));
    }
    for holder in holders {
        let key = holder?.try_into().ok().and_then(|key| VerifyingKey::from_bytes(key).ok());
        let key = key.ok_or_else(|| failed("a holder is an Ed25519 public key of 32 bytes"))?;
        caveats = caveats.with_holder(key)?;
    }
    Ok(caveats)
}

/// # Errors
/// When there are too many.
fn methods(list: struct_list::Reader<'_, capnp_facet::methods::Owned>) -> Result<Vec<(u64, u16)>> {
    let mut methods = Vec::new();
    // Looked at first, since what a caller sends may be long.
    if list.len() > METHODS_MAX.into() {
        return Err(Reason::TooManyMethods.error(format_args!("at most {METHODS_MAX}")));
    }
    for of_interface in list {
        let interface = of_interface.get_interface();
        let ordinals = of_interface.get_ordinals()?;
        if methods.len() + ordinals.len() as usize > usize::from(METHODS_MAX) {
            return Err(Reason::TooManyMethods.error(format_args!("at most {METHODS_MAX}")));
        }
        methods.extend(ordinals.iter().map(|ordinal| (interface, ordinal)));
    }
    Ok(methods)
}

/// The grant that a caller wants.
///
/// # Errors
/// As for `caveats`, and when the label is no text.
pub(super) fn wanted(from: terms::Reader<'_>) -> Result<Terms> {
    Ok(Terms {
        label: from.get_label()?.to_string()?,
        caveats: caveats(from.get_caveats()?)?,
        independent: from.get_independent(),
        allows_independent: from.get_allow_independent(),
    })
}

/// # Errors
/// When it isn't the id of a grant.
pub(super) fn grant_id(bytes: &[u8]) -> Result<GrantId> {
    bytes.try_into().map(GrantId::from_bytes).map_err(|_| failed("a grant's id has 16 bytes"))
}
