//! The page of capability links: `/link#capstead://…`. Browsers never send the part behind the `#`,
//! so that no server, proxy or log has it; the page's script shows it as a bearer.
//!
//! Invariant: the page runs this one script, loads nothing, and tells no other server of itself.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Response};
use hyper::body::Bytes;
use sha2::{Digest, Sha256};

/// The script, which the policy of the page names by its hash.
const SCRIPT: &str = include_str!("link.js");

/// The page. `to` is a path of letters, digits and marks that mean nothing in HTML.
pub(super) fn page(to: &str) -> Response<Bytes> {
    let page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>Link</title>\n\
         <body data-to=\"{to}\">\n<p id=\"said\" role=\"status\">Opening…</p>\n<pre id=\"answer\"></pre>\n\
         <noscript>A script on this page shows the secret of the link to the server.</noscript>\n\
         <script>{SCRIPT}</script>\n</body>\n</html>\n"
    );
    let hash = STANDARD.encode(Sha256::digest(SCRIPT));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{hash}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'"
    );
    let mut response = Response::new(Bytes::from(page));
    let headers = response.headers_mut();
    let policy = HeaderValue::try_from(policy).expect("a policy is text");
    headers.insert(CONTENT_SECURITY_POLICY, policy);
    for (name, value) in [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
