//! Restrictions as Cap'n Proto says them.

use capnp::struct_list;
use capstead_client::sturdyref::{Caveats, Method, Methods};
use ed25519_dalek::VerifyingKey;

use crate::error::{Reason, Result, failed};
use crate::limits::HOLDERS_MAX;
use crate::schema::facet_capnp as capnp_facet;
use crate::schema::sturdyref_capnp::METHODS_MAX;

/// Writes restrictions as an answer.
pub(in crate::host) fn write_caveats(mut to: capnp_facet::caveats::Builder<'_>, caveats: &Caveats) {
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
pub(in crate::host) fn caveats(from: capnp_facet::caveats::Reader<'_>) -> Result<Caveats> {
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
fn methods(list: struct_list::Reader<'_, capnp_facet::methods::Owned>) -> Result<Vec<Method>> {
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
        methods.extend(ordinals.iter().map(|ordinal| Method { interface, ordinal }));
    }
    Ok(methods)
}
