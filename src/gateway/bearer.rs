//! Requests that show a sturdyref, `Authorization: Bearer capstead:…`, and are for the object that
//! it names.
//!
//! Invariants:
//! - The reference goes to the restorer and nowhere else: no object, log or answer has it.
//! - A request with a reference that is refused, or was revoked, reaches no object.

use capstead_client::sturdyref::TextReference;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::objects::Objects;
use super::route::Route;
use super::routes::{Found, Reference, To};
use super::way::Way;
use crate::error::{Reason, is_no_such_method, is_reference_refused};
use crate::http::{Refusal, refuse};

/// Finds the object of a request that goes such a way. Others go theirs.
///
/// # Errors
/// The answer to a request that shows no reference, or none that is good.
pub(super) async fn find<'a>(
    objects: &Objects,
    way: Way<'a>,
    headers: &mut HeaderMap,
) -> Result<Way<'a>, Refusal> {
    match way {
        Way::Row(Found { terms, to: To::Object { is_json, route } }) if terms.needs_bearer => {
            let route = Route::held(route.class, take(headers)?, route.url);
            objects.restore(&route).await.map_err(unrestored)?;
            Ok(Way::Row(Found { terms, to: To::Object { is_json, route } }))
        }
        way => Ok(way),
    }
}

/// Takes the reference out of the head of a request.
///
/// # Errors
/// The answer to a request that shows none.
fn take(headers: &mut HeaderMap) -> Result<Reference, Refusal> {
    let mut shown = headers.get_all(AUTHORIZATION).iter();
    let value = match (shown.next(), shown.next()) {
        (Some(value), None) => Some(value.clone()),
        _ => None,
    };
    headers.remove(AUTHORIZATION);
    let text = value.as_ref().and_then(|value| value.to_str().ok());
    let (scheme, text) = text.and_then(|text| text.split_once(' ')).ok_or_else(missing)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(missing());
    }
    let text = text.trim();
    // Most of what is none never gets to a host.
    TextReference::parse(text).map_err(|_| refused())?;
    Ok(Reference::new(text))
}

fn missing() -> Refusal {
    let reason =
        "This path is for those who show a reference: `Authorization: Bearer capstead://…`.\n";
    refuse(StatusCode::UNAUTHORIZED, reason)
}

fn refused() -> Refusal {
    let reason = "The reference that was shown is refused: ask its giver for another one.\n";
    refuse(StatusCode::UNAUTHORIZED, reason)
}

/// The answer when a reference isn't restored. Why it is refused is for its giver to know.
fn unrestored(error: capnp::Error) -> Refusal {
    if is_reference_refused(&error) { refused() } else { unreached(error) }
}

/// The answer when a reference isn't restored, and may be as good as before: another one would be
/// in vain, too.
pub(super) fn unreached(error: capnp::Error) -> Refusal {
    match Reason::of(&error) {
        Some(Reason::ImportUnfinished | Reason::Damaged) => {
            Refusal::of(StatusCode::SERVICE_UNAVAILABLE, &error)
        }
        _ => super::http::refusal(error),
    }
}

/// The answer in place of the one that a request without a reference would get.
pub(super) fn judged(refusal: Refusal) -> Refusal {
    match refusal.reason() {
        Some(Reason::Revoked | Reason::Expired) => refusal.with_status(StatusCode::UNAUTHORIZED),
        _ if refusal.status() == StatusCode::NOT_IMPLEMENTED
            && is_no_such_method(refusal.said()) =>
        {
            refusal.with_status(StatusCode::FORBIDDEN).saying("The reference doesn't allow this: ")
        }
        _ => refusal,
    }
}

/// Says in a refusal by which scheme a client gets in.
pub(super) fn say_scheme<B>(refused: &mut Response<B>) {
    if refused.status() == StatusCode::UNAUTHORIZED {
        refused.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
}
