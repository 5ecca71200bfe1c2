//! The way that a request goes: by a row of the table of routes, or by the class and the name in its
//! path.

use http::header::ALLOW;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};

use super::json::JsonCalls;
use super::route::Route;
use super::routes::{Found, Terms};
use crate::http::{Body, refuse};
use crate::limits::HTTP_BODY_BYTES_MAX;

/// The way that one request goes.
pub(super) enum Way<'a> {
    /// Behind `/json`, with the rest of the path.
    Json(&'a JsonCalls, &'a str),
    /// By a row.
    Row(Found<'a>),
    /// By a class and a name.
    Class(Route<'a>),
    Nowhere,
}

impl<'a> Way<'a> {
    /// The terms of the row, if it goes by one.
    fn terms(&self) -> Option<&'a Terms> {
        match self {
            Self::Row(found) => Some(found.terms),
            _ => None,
        }
    }

    /// Pages of other origins that may go this way, beside those that may go all ways.
    pub(super) fn origins(&self) -> &'a [String] {
        self.terms().map_or(&[], |terms| &terms.origins)
    }

    /// The largest body of a request.
    pub(super) fn body_bytes_max(&self) -> usize {
        self.terms().map_or(HTTP_BODY_BYTES_MAX, |terms| terms.body_bytes)
    }

    /// The answer to a request with a method that doesn't go this way.
    pub(super) fn refuse_method(&self, asked: &Parts) -> Option<Response<Body>> {
        let Self::Row(Found { terms, is_json, .. }) = self else { return None };
        if terms.takes(&asked.method) {
            return None;
        }
        let methods: Vec<_> = terms.methods.iter().flatten().map(Method::as_str).collect();
        let methods = methods.join(", ");
        let reason = format!("This path takes {methods} alone.\n");
        let refusal = refuse(StatusCode::METHOD_NOT_ALLOWED, reason);
        let mut response =
            if *is_json { refusal.problem() } else { refusal.response(&asked.headers) };
        let allow = HeaderValue::try_from(methods).expect("methods are words");
        response.headers_mut().insert(ALLOW, allow);
        Some(response)
    }
}
