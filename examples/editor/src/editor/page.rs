//! The page of a document, and its script.

use capstead::http::{Body, HeaderValue, Response};

const PAGE: &str = include_str!("page.html");
/// CodeMirror makes style sheets of its own, and the page has a few lines of script.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; \
    script-src 'self' 'unsafe-inline'; frame-ancestors 'none'";
const SCRIPT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/editor.js"));

pub(super) fn html() -> Response<Body> {
    file(PAGE, "text/html; charset=utf-8")
}

pub(super) fn script() -> Response<Body> {
    file(SCRIPT, "text/javascript; charset=utf-8")
}

fn file(bytes: impl Into<Vec<u8>>, kind: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes));
    let headers = response.headers_mut();
    for (name, value) in [
        ("content-type", kind),
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
