//! The page of a document, and its script.

use capstead::http::StaticFile;

/// CodeMirror makes style sheets of its own, and the page has a few lines of script.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; \
    script-src 'self' 'unsafe-inline'; frame-ancestors 'none'";

pub(super) static HTML: StaticFile =
    StaticFile::new("text/html; charset=utf-8", include_bytes!("page.html")).policy(POLICY);

pub(super) static SCRIPT: StaticFile = StaticFile::new(
    "text/javascript; charset=utf-8",
    include_bytes!(concat!(env!("OUT_DIR"), "/editor.js")),
)
.policy(POLICY);
