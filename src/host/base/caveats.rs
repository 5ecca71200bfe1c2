//! Caveats as callers ask for them, by Cap'n Proto.

use capnp::struct_list;
use capstead_client::sturdyref::{Caveats, Method};
use ed25519_dalek::VerifyingKey;

use crate::error::{Reason, Result, failed};
use crate::limits::HOLDERS_MAX;
use crate::schema::facet_capnp as capnp_facet;
use crate::schema::sturdyref_capnp::METHODS_MAX;

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
    // Checked first, since a caller may send a long list.
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
