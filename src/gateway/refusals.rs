//! Refusals that several ways of a request have in common.

use hyper::body::Bytes;
use hyper::{Response, StatusCode};

use super::route::Route;
use crate::error::{Reason, is_not_begun, is_revoked};
use crate::http::{Body, OrRefusal, Refusal, refuse};
use crate::limits::NAME_BYTES_MAX;

pub(super) fn check_name(route: &Route<'_>) -> OrRefusal<()> {
    if route.name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let reason = format!("The name of an object has at most {NAME_BYTES_MAX} bytes.\n");
    Err(refuse(StatusCode::URI_TOO_LONG, reason))
}

/// No class can set the first two, which are the server's.
pub(super) fn refusal(error: ::capnp::Error) -> Refusal {
    if is_revoked(&error) {
        return Refusal::of(StatusCode::FORBIDDEN, &error);
    }
    if is_not_begun(&error) {
        return Refusal::of(StatusCode::SERVICE_UNAVAILABLE, &error);
    }
    error.into()
}

pub(super) fn nothing() -> Refusal {
    refuse(StatusCode::NOT_FOUND, "There is nothing at this path.\n")
}

pub(super) fn late() -> Refusal {
    refuse(StatusCode::GATEWAY_TIMEOUT, "The object did not answer in time.\n")
}

/// The answer when a reference isn't restored, and may be as good as before: another one would be
/// in vain, too.
pub(super) fn unreached(error: capnp::Error) -> Refusal {
    match Reason::of(&error) {
        Some(Reason::ImportUnfinished | Reason::Damaged) => {
            Refusal::of(StatusCode::SERVICE_UNAVAILABLE, &error)
        }
        _ => refusal(error),
    }
}

/// A response of the gateway's own, which is small.
pub(super) fn own(response: Response<Body>) -> Response<Bytes> {
    response.map(|body| Bytes::from(body.into_bytes()))
}
