//! `POST /json/CLASS/NAME/METHOD`: calls of any method of an object, with parameters and results in
//! JSON.
//!
//! The gateway has no code of the classes that it serves. It asks each namespace once what its
//! objects' interface is, and makes a table of that, by which it writes and reads the messages of
//! calls; `docs/json.md` has the mapping and the answers.
//!
//! Invariants:
//! - A request reaches the methods of the class's interface, and none of those that every object
//!   answers beside that: a client that only reaches the port gets no lasting reference, unless the
//!   class hands out a capability that may be saved.
//! - An answer never says that a call happened, or didn't, when that isn't known.

mod call;
mod outcome;

use std::rc::Rc;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Response, StatusCode};
use hyper::body::{Bytes, Incoming};

use self::call::{CallOptions, JsonCall};
use self::outcome::{HAPPENED, NOT, refusal_of};
use super::classes::{JsonCalls, JsonClass, JsonPlace};
use super::holdings::Gateway;
use super::limits::Taken;
use super::refusals::{check_name, nothing, own};
use super::route::{Route, route};
use super::upload::read_body;
use crate::error::{Reason, is_revoked};
use crate::http::{OrRefusal, Refusal, is_json, refuse};
use crate::limits::HTTP_BODY_BYTES_MAX;

impl Gateway {
    /// The path behind `/json`, if the request is for it. A class of that name keeps all its paths,
    /// and so does a table of routes beside which nothing is reached.
    pub(super) fn json_path<'a>(&self, path: &'a str) -> Option<(&JsonCalls, &'a str)> {
        let rest = path.strip_prefix("/json").filter(|rest| rest.starts_with('/'))?;
        if self.routes.are_all() {
            return None;
        }
        let calls = self.json.get().filter(|_| !self.objects.has("json"))?;
        Some((calls, rest))
    }

    /// The answer to a request for a path behind `/json`: always JSON.
    pub(super) async fn answer_json(
        &self,
        calls: &JsonCalls,
        path: &str,
        parts: &http::request::Parts,
        body: Incoming,
        taken: &Taken,
    ) -> Response<Bytes> {
        let answer = match (parts.method.clone(), route(path)) {
            (Method::POST, Some(route)) => {
                self.answer_call(calls, &route, parts, (body, None), taken).await
            }
            (Method::GET | Method::HEAD, _) => self.describe(calls, path).await,
            (_, Some(route)) if route.url.len() > 1 => Err(no_method("POST")),
            _ => Err(no_method("GET, HEAD")),
        };
        answer.unwrap_or_else(refused)
    }

    /// The answer to a request for an object whose path names a method, by a row of the table of
    /// routes. The body has so many bytes at most.
    pub(super) async fn answer_route(
        &self,
        route: &Route<'_>,
        place: Option<&JsonPlace>,
        parts: &http::request::Parts,
        body: (Incoming, Option<usize>),
        taken: &Taken,
    ) -> OrRefusal<Response<Bytes>> {
        let calls = self.json.get().ok_or_else(nothing)?;
        let Some(place) = place.filter(|_| parts.method != Method::POST) else {
            return self.answer_call(calls, route, parts, body, taken).await;
        };
        // Behind the path of all methods there are those alone, which are called.
        let behind = route.url.split('?').next().unwrap_or_default();
        if place.method.is_none() && behind.len() > 1 {
            return Err(no_method("POST"));
        }
        let class = self.class(calls, route.class).await?;
        Ok(json_response(class.open_api_at(place)?))
    }

    async fn answer_call(
        &self,
        calls: &JsonCalls,
        route: &Route<'_>,
        parts: &http::request::Parts,
        (body, body_bytes_max): (Incoming, Option<usize>),
        taken: &Taken,
    ) -> OrRefusal<Response<Bytes>> {
        let not = |refusal: Refusal| refusal.with_outcome(NOT);
        check_name(route).map_err(not)?;
        let class = self.class(calls, route.class).await.map_err(not)?;
        let (name, query) = route.url.split_once('?').unwrap_or((&route.url, ""));
        let method = class.method(name.trim_start_matches('/')).map_err(not)?;
        let asked = CallOptions::of(parts, query).map_err(not)?;
        asked.check(&class.table, method).map_err(not)?;
        let kind = parts.headers.get(CONTENT_TYPE);
        if !kind.is_none_or(is_json) {
            let reason = "The body must be JSON: send it with Content-Type: application/json.\n";
            return Err(not(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason)));
        }
        let most = body_bytes_max.unwrap_or(HTTP_BODY_BYTES_MAX).min(HTTP_BODY_BYTES_MAX);
        let body = read_body(body, taken, most).await.map_err(not)?;
        let text = if body.bytes().is_empty() { b"{}" } else { body.bytes() };
        let params = JsonCall { calls, class: &class, method, text };
        let results = self.call(route, &params, &asked, taken).await?;
        let mut held = taken.body();
        if !held.extend(&results) {
            let reason = "There is no room for the results: try again later.\n";
            return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, reason).with_outcome(HAPPENED));
        }
        Ok(json_response(Bytes::from_owner(held)))
    }

    /// The description of a class, as OpenAPI.
    async fn describe(&self, calls: &JsonCalls, path: &str) -> OrRefusal<Response<Bytes>> {
        let path = path.split('?').next().unwrap_or_default();
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let name = match parts[..] {
            [class] | [class, _] | [class, _, ""] if !class.is_empty() => class,
            [class, _, _] if !class.is_empty() => {
                return Err(no_method("POST"));
            }
            _ => return Err(nothing()),
        };
        let class = self.class(calls, name).await?;
        Ok(json_response(class.open_api()?))
    }

    /// The class of that name, in any case.
    async fn class(&self, calls: &JsonCalls, name: &str) -> OrRefusal<Rc<JsonClass>> {
        let key = name.to_lowercase();
        if let Some(class) = calls.classes.borrow().get(&key) {
            return Ok(class.clone());
        }
        let namespace = self.objects.namespace(name).map_err(|error| refusal_of(&error).0)?;
        let Some(namespace) = namespace.filter(|_| !self.routes.are_only_way_to(name)) else {
            return Err(refuse(StatusCode::NOT_FOUND, format!("There is no class {name}.\n")));
        };
        let described = namespace.describe_request().send().promise.await;
        let class = match described.and_then(|described| JsonClass::of(described.get()?)) {
            Ok(class) => Rc::new(class),
            Err(error) => {
                if error.kind == capnp::ErrorKind::Disconnected || is_revoked(&error) {
                    self.objects.forget_namespace(name);
                }
                return Err(refusal_of(&error).0);
            }
        };
        calls.classes.borrow_mut().insert(key, class.clone());
        Ok(class)
    }
}

/// The refusal of other methods than these.
fn no_method(allowed: &'static str) -> Refusal {
    let reason = match allowed {
        "POST" => "A method is called by POST.\n",
        _ => "This path has only the description of the class: use GET.\n",
    };
    refuse(StatusCode::METHOD_NOT_ALLOWED, reason).allow(allowed)
}

/// The answer to a request that is refused: JSON too.
pub(super) fn refused(refusal: Refusal) -> Response<Bytes> {
    // Until these are forgotten, it may take a day.
    let is_soon = refusal.reason() != Some(Reason::TooManyRequestIds);
    let mut response = own(refusal.problem());
    let status = response.status();
    let headers = response.headers_mut();
    match status {
        StatusCode::SERVICE_UNAVAILABLE if is_soon => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    response
}

fn json_response(body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::overloaded;

    /// Request ids are kept for a day.
    #[test]
    fn nobody_is_told_to_try_again_at_once_for_want_of_request_ids() {
        let full = Reason::TooManyRequestIds.error("too many are kept");
        for (error, is_soon) in [(full, false), (overloaded("not now"), true)] {
            let response = refused(refusal_of(&error).0);
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers().contains_key(RETRY_AFTER), is_soon, "{error}");
        }
    }
}
