//! Refused requests: a status, and a sentence in the form that the client wants.

use std::fmt;
use std::time::Duration;

use capnp::ErrorKind;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE, RETRY_AFTER, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::body::Body;
use super::text;
use crate::error::{Reason, conflict_reason, said};

/// A value for the answer to a request, or the refusal in its place.
pub(crate) type OrRefusal<T> = std::result::Result<T, Refusal>;

/// The refusal of a request, which [`serve`](super::serve) answers.
///
/// Errors become one by `?`: 409 for a [`conflict`](crate::conflict), 503 for `overloaded`, 502 for
/// `disconnected`, 501 for `unimplemented`, 500 for all others. [`refuse`] makes one with another
/// status.
///
/// A client that accepts JSON gets it as a problem (RFC 9457, `application/problem+json`) with the
/// status, the sentence, and the [`Reason`], if it has one; all others get plain text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    status: StatusCode,
    said: String,
    reason: Option<Reason>,
    /// One word for the fate of the call, if that is told.
    outcome: Option<&'static str>,
    /// The time after which the client may ask again, if that is told.
    wait: Option<Duration>,
    /// The methods that would be answered, if that is told.
    allow: Option<&'static str>,
}

/// A refusal with a status and a sentence for the client.
///
/// ```
/// use capstead::http::{self, Answer, Body, Request, StatusCode};
///
/// fn answer(request: &Request<Body>) -> Answer {
///     match request.uri().path() {
///         "/" => Ok(http::text(StatusCode::OK, "hello")),
///         _ => Err(http::refuse(StatusCode::NOT_FOUND, "there is nothing but /")),
///     }
/// }
/// # assert!(answer(&Request::new(Body::default())).is_ok());
/// ```
pub fn refuse(status: StatusCode, why: impl fmt::Display) -> Refusal {
    Refusal { status, said: why.to_string(), reason: None, outcome: None, wait: None, allow: None }
}

impl Refusal {
    /// The same, which says the methods that would be answered, like `GET, HEAD`. A refusal with
    /// the status 405 must say them (RFC 9110, section 15.5.6).
    #[must_use]
    pub fn allow(self, methods: &'static str) -> Self {
        Self { allow: Some(methods), ..self }
    }

    /// The response for a client that sent these headers.
    pub(crate) fn response(self, asked: &HeaderMap) -> Response<Body> {
        self.in_form(Form::wanted(asked))
    }

    /// As a problem, whatever the client accepts.
    pub(crate) fn problem(self) -> Response<Body> {
        self.in_form(Form::Problem)
    }

    /// The same, with the fate of the call.
    pub(crate) fn with_outcome(self, outcome: &'static str) -> Self {
        Self { outcome: Some(outcome), ..self }
    }

    /// The same, which says when the client may ask again.
    pub(crate) fn after(self, wait: Duration) -> Self {
        Self { wait: Some(wait), ..self }
    }

    /// The same with another status.
    pub(crate) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// The sentence.
    pub(crate) fn said(&self) -> &str {
        &self.said
    }

    /// The same, with these words before it.
    pub(crate) fn saying(self, before: &str) -> Self {
        Self { said: format!("{before}{}", self.said), ..self }
    }

    pub(super) fn in_form(self, form: Form) -> Response<Body> {
        let Self { status, said, reason, outcome, wait, allow } = self;
        let mut response = match form {
            Form::Text => text(status, said),
            Form::Problem => {
                let mut problem = serde_json::json!({
                    "title": status.canonical_reason().unwrap_or("Error"),
                    "status": status.as_u16(),
                    "detail": said.trim_end(),
                });
                if let Some(reason) = reason {
                    problem["reason"] = reason.word().into();
                }
                if let Some(outcome) = outcome {
                    problem["outcome"] = outcome.into();
                }
                let mut response = Response::new(Body::from(problem.to_string()));
                *response.status_mut() = status;
                let kind = HeaderValue::from_static("application/problem+json");
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
        };
        response.headers_mut().insert(VARY, ACCEPT.into());
        if let Some(wait) = wait {
            response.headers_mut().insert(RETRY_AFTER, seconds(wait));
        }
        if let Some(methods) = allow {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
        }
        response
    }

    /// One that has this status whatever the kind of the error.
    pub(crate) fn of(status: StatusCode, error: &capnp::Error) -> Self {
        // Errors of `capnp` itself have a kind and no text.
        let said = match said(error) {
            "" => error.kind.to_string(),
            said => said.to_owned(),
        };
        Self { status, said, reason: Reason::of(error), outcome: None, wait: None, allow: None }
    }
}

impl From<capnp::Error> for Refusal {
    fn from(error: capnp::Error) -> Self {
        if let Some(why) = conflict_reason(&error) {
            let reason = Some(Reason::Conflict);
            let status = StatusCode::CONFLICT;
            return Self {
                status,
                said: why.to_owned(),
                reason,
                outcome: None,
                wait: None,
                allow: None,
            };
        }
        let status = match error.kind {
            ErrorKind::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Disconnected => StatusCode::BAD_GATEWAY,
            ErrorKind::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        // The same wherever the object lives.
        Self::of(status, &error)
    }
}

/// The value of `Retry-After`: whole seconds, and never none.
fn seconds(wait: Duration) -> HeaderValue {
    wait.as_nanos().div_ceil(1_000_000_000).max(1).try_into().unwrap_or(u64::MAX).into()
}

/// The form in which a client wants its errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Problem,
}

impl Form {
    /// JSON for clients that name it. People read the output of those that take anything.
    pub(super) fn wanted(asked: &HeaderMap) -> Self {
        let values = asked.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut ranges = values.flat_map(|value| value.split(','));
        let is_problem = |range: &str| {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let is_json = ["application/problem+json", "application/json"]
                .iter()
                .any(|json| kind.eq_ignore_ascii_case(json));
            let is_refused = |part: &str| {
                let quality = part.split_once('=').filter(|(name, _)| name.trim() == "q");
                quality.is_some_and(|(_, q)| q.trim().parse() == Ok(0.0))
            };
            is_json && !parts.any(is_refused)
        };
        if ranges.any(is_problem) { Self::Problem } else { Self::Text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{conflict, disconnected, failed, overloaded, unimplemented};

    fn wanted(values: &[&str]) -> Form {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(ACCEPT, value.parse().unwrap());
        }
        Form::wanted(&headers)
    }

    #[test]
    fn json_is_for_those_who_name_it() {
        for values in [
            &["application/json"][..],
            &["text/html, application/problem+json;q=0.5"],
            &["text/html", "Application/JSON ; charset=utf-8"],
            &["*/*;q=0, application/json"],
        ] {
            assert_eq!(wanted(values), Form::Problem, "{values:?}");
        }
        for values in [
            &[][..],
            &["*/*"],
            &["text/html,application/xml;q=0.9,*/*;q=0.8"],
            &["application/json;q=0"],
            &["application/json; q=0.000, text/plain"],
            &["application/jsonp, json, "],
        ] {
            assert_eq!(wanted(values), Form::Text, "{values:?}");
        }
    }

    #[test]
    fn whoever_may_ask_again_is_told_after_how_many_seconds() {
        for (millis, seconds) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (60_000, "60")] {
            let refusal = refuse(StatusCode::TOO_MANY_REQUESTS, "later");
            for form in [Form::Text, Form::Problem] {
                let refusal = refusal.clone().after(Duration::from_millis(millis));
                assert_eq!(refusal.in_form(form).headers()[RETRY_AFTER], seconds);
            }
        }
        let refusal = refuse(StatusCode::NOT_FOUND, "nothing");
        assert!(!refusal.in_form(Form::Text).headers().contains_key(RETRY_AFTER));
    }

    #[test]
    fn the_kind_of_an_error_is_its_status_and_the_word_stays() {
        for (error, status, detail, reason) in [
            (conflict("it is full"), 409, "it is full", Some("conflict")),
            (Reason::OverQuota.error("too much"), 500, "over-quota: too much", Some("over-quota")),
            (failed("no"), 500, "no", None),
            (overloaded("later"), 503, "later", None),
            (disconnected("gone"), 502, "gone", None),
            (unimplemented("none"), 501, "none", None),
        ] {
            let response = Refusal::from(error.clone()).in_form(Form::Text);
            assert_eq!(response.status(), status, "{error}");
            assert_eq!(response.body().as_bytes(), detail.as_bytes());
            let response = Refusal::from(error).in_form(Form::Problem);
            let problem: serde_json::Value =
                serde_json::from_slice(response.body().as_bytes()).unwrap();
            assert_eq!(problem["status"], status);
            assert_eq!(problem["detail"], detail);
            assert_eq!(problem.get("reason").and_then(|reason| reason.as_str()), reason);
        }
    }
}
