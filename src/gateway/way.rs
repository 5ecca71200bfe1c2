//! The way that a request goes: by a row of the table of routes, or by the class and the name in
//! its path.

use http::header::ALLOW;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};

use super::classes::JsonCalls;
use super::holdings::Gateway;
use super::manner::Manner;
use super::route::Route;
use super::routes::{RowMatch, RowTerms, To};
use super::{capnp, door};
use crate::http::{Body, refuse};

/// The way that one request goes.
pub(super) enum RequestWay<'a> {
    /// Behind `/json`, with the rest of the path.
    Json(&'a JsonCalls, &'a str),
    /// By a row.
    Row(RowMatch<'a>),
    /// To the door for Cap'n Proto, without a row.
    Capnp,
    /// By a class and a name.
    Class(Route<'a>),
    Nowhere,
}

impl<'a> RequestWay<'a> {
    /// The way of a request for a URL.
    pub(super) fn of(gateway: &'a Gateway, uri: &'a Uri, headers: &HeaderMap) -> Self {
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        if let Some((calls, path)) = gateway.json_path(path) {
            return Self::Json(calls, path);
        }
        if let Some(found) = gateway.routes.find(|| door::named_host(uri, headers), path) {
            return Self::Row(found);
        }
        if path == capnp::PATH && gateway.capnp.get().is_some_and(|door| door.is_at_path) {
            return Self::Capnp;
        }
        gateway.routes.by_class(path).map_or(Self::Nowhere, Self::Class)
    }

    pub(super) fn manner(&self) -> Manner {
        let needs_bearer = self.terms().is_some_and(|terms| terms.needs_bearer);
        Manner { is_json: self.is_json(), needs_bearer }
    }

    /// The terms of the row, if it goes by one.
    pub(super) fn terms(&self) -> Option<&'a RowTerms> {
        match self {
            Self::Row(found) => Some(found.terms),
            _ => None,
        }
    }

    /// Pages of other origins that may go this way, beside those that may go all ways.
    pub(super) fn origins(&self) -> &'a [String] {
        self.terms().map_or(&[], |terms| &terms.origins)
    }

    /// Tells whether the path of the object's own names a method, by a row.
    fn is_json(&self) -> bool {
        matches!(self, Self::Row(RowMatch { to: To::Object { is_json: true, .. }, .. }))
    }

    /// The largest body of a request, if the way has a limit of its own.
    pub(super) fn body_bytes_max(&self) -> Option<usize> {
        self.terms().and_then(|terms| terms.body_bytes)
    }

    /// The answer to a request with a method that doesn't go this way.
    pub(super) fn refuse_method(&self, asked: &Parts) -> Option<Response<Body>> {
        let terms = self.terms()?;
        if terms.takes(&asked.method) {
            return None;
        }
        let methods: Vec<_> = terms.methods.iter().flatten().map(Method::as_str).collect();
        let methods = methods.join(", ");
        let reason = format!("This path takes {methods} alone.\n");
        let refusal = refuse(StatusCode::METHOD_NOT_ALLOWED, reason);
        let mut response =
            if self.is_json() { refusal.problem() } else { refusal.response(&asked.headers) };
        let allow = HeaderValue::try_from(methods).expect("methods are words");
        response.headers_mut().insert(ALLOW, allow);
        Some(response)
    }
}
