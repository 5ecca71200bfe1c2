//! The form of a refusal: plain text or JSON, and the words for a reference that was shown.

use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::body::Bytes;

use super::json;
use super::refusals::own;
use crate::error::{Reason, is_no_such_method};
use crate::http::Refusal;

/// The form of a refusal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    pub(super) is_json: bool,
    pub(super) needs_bearer: bool,
}

impl Manner {
    /// The answer to a request with these headers.
    pub(super) fn refuse(self, refusal: Refusal, asked: &HeaderMap) -> Response<Bytes> {
        let refusal = if self.needs_bearer { judged(refusal) } else { refusal };
        let mut refused =
            if self.is_json { json::refused(refusal) } else { own(refusal.response(asked)) };
        if self.needs_bearer {
            say_scheme(&mut refused);
        }
        refused
    }
}

/// The answer in place of the one that a request without a reference would get.
fn judged(refusal: Refusal) -> Refusal {
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
fn say_scheme<B>(refused: &mut Response<B>) {
    if refused.status() == StatusCode::UNAUTHORIZED {
        refused.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
}
