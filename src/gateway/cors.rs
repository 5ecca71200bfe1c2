//! Pages of origins that `--http-origin` lets in: browsers ask for them first, and hide every
//! answer from them that doesn't allow them to read it (CORS).
//!
//! Invariants:
//! - An origin that was not given is never named, and neither is `*`, which would let in every
//!   page.
//! - Nothing here lets a request in; the door does.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
    VARY,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use hyper::Response;

use crate::http::Body;

/// Seconds for which a browser needn't ask again: short enough for an origin that is taken back.
const MAX_AGE_SECS: u16 = 600;

/// Tells whether a browser only asks what a page may do. Such a request is no object's.
pub(super) fn is_preflight(request: &http::request::Parts) -> bool {
    let headers = &request.headers;
    request.method == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to a page that was let in: it may use that very method, with those very headers.
pub(super) fn preflight(asked: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    for (question, answer) in [
        (ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_ALLOW_METHODS),
        (ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_ALLOW_HEADERS),
    ] {
        for value in asked.get_all(&question) {
            headers.append(&answer, value.clone());
        }
        headers.append(VARY, question.into());
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE_SECS.into());
    response
}

/// Lets the page of that origin read an answer, in place of the class's own headers for that.
/// Without one the answer only says that it may differ by origin, so that no cache gives it to such
/// a page.
pub(super) fn let_read(answer: &mut HeaderMap, origin: Option<HeaderValue>) {
    let vary = answer.get_all(VARY).iter().filter_map(|value| value.to_str().ok());
    let mut names = vary.flat_map(|value| value.split(',')).map(str::trim);
    if !names.any(|name| name == "*" || name.eq_ignore_ascii_case(ORIGIN.as_str())) {
        answer.append(VARY, ORIGIN.into());
    }
    if let Some(origin) = origin {
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
}
