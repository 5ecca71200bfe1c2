//! Citations: records of what facets stand for, to be stored by those who hold them.

use capnp::any_pointer;

use crate::error::{Reason, Result, failed};
use crate::host::state::facet::Facet;
use crate::host::state::slot::ObjectSpec;
use crate::membrane::Body;
use crate::schema::facet_capnp::facet as facet_schema;
use crate::sturdyref::{Authority, Citation, Nonce, OwnerToken};

/// A record of what a facet stands for, to be stored.
///
/// # Errors
/// `not-a-reference:` when it ends with an instance, or is broken.
pub(in crate::host) fn cite(facet: &Facet) -> Result<Citation> {
    if !facet.is_object() {
        return Err(Reason::NotAReference
            .error("what an object made itself ends with it; store the object"));
    }
    if let Some(error) = facet.broken() {
        return Err(Reason::NotAReference.error(&error.extra));
    }
    let ObjectSpec { id, class, name } = &facet.slot.spec;
    Ok(Citation {
        target: *id,
        class: class.name.to_owned(),
        name: name.as_deref().map(str::to_owned),
        authority: facet.right.grant.as_ref().map_or(Authority::Binding, |live| Authority::Grant {
            target: live.grant_ref.target,
            grant: *live.grant_ref.grant.as_bytes(),
        }),
        caveats: facet.right.caveats().of_object().encode(),
    })
}

/// Answers `Facet.cite`.
///
/// # Errors
/// As for [`cite`], and when the owner isn't what a host of this cluster calls one.
pub(in crate::host) fn answer(facet: &Facet, params: any_pointer::Reader<'_>) -> Result<Body> {
    let params: facet_schema::cite_params::Reader<'_> = params.get_as()?;
    let owner: OwnerToken =
        params.get_owner()?.try_into().map_err(|_| failed("an owner has 32 bytes"))?;
    let citation = facet.vat.reference_cipher.encrypt_citation(&owner, &cite(facet)?, nonce()?);
    let mut body = Body::new();
    let mut results: facet_schema::cite_results::Builder<'_> = body.builder()?.init_as();
    results.set_citation(&citation);
    Ok(body)
}

pub(in crate::host) fn nonce() -> Result<Nonce> {
    let mut nonce = Nonce::default();
    getrandom::fill(&mut nonce).map_err(|error| failed(format!("no randomness: {error}")))?;
    Ok(nonce)
}
