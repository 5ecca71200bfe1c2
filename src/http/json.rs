//! JSON in requests and responses.

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::refusal::refuse;
use super::{Answer, Body, Refusal};
use crate::error::failed;

/// A response of JSON: any value that serde serializes.
///
/// ```
/// use capstead::http::{self, Answer, Body, Request, StatusCode};
///
/// fn add(request: &Request<Body>) -> Answer {
///     let numbers: Vec<i64> = http::read_json(request)?; // or a 400 that says what is wrong
///     http::json(StatusCode::OK, &numbers.iter().sum::<i64>())
/// }
/// # let request = Request::new(Body::from("[1, 2]"));
/// # assert_eq!(add(&request).unwrap().body().as_bytes(), b"3");
/// ```
///
/// # Errors
/// When the value can't be JSON, as a map can't whose keys are no texts: the client gets a 500.
pub fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Answer {
    let bytes = serde_json::to_vec(value)
        .map_err(|error| failed(format!("the answer can't be written as JSON: {error}")))?;
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

/// The body of a request, which is JSON of a `T`. Like every body that comes whole, it has at most
/// 1 MiB.
///
/// # Errors
/// 415 when the request says that its body is something else, and 400 when it is no JSON, or none
/// of a `T`: with the place and the reason.
pub fn read_json<T: DeserializeOwned>(request: &Request<Body>) -> Result<T, Refusal> {
    let kind = request.headers().get(CONTENT_TYPE);
    if !kind.is_none_or(is_json) {
        let reason = "the body must be JSON: send it with Content-Type: application/json";
        return Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
    }
    let body = request.body().as_bytes();
    if body.is_empty() {
        return Err(refuse(StatusCode::BAD_REQUEST, "the request has no body: send JSON"));
    }
    serde_json::from_slice(body).map_err(|error| {
        let is_json = error.classify() == serde_json::error::Category::Data;
        let what = if is_json { "the JSON isn't what is expected" } else { "the body isn't JSON" };
        refuse(StatusCode::BAD_REQUEST, format!("{what}: {error}"))
    })
}

/// `application/json`, or another kind that is written as JSON.
pub(crate) fn is_json(kind: &HeaderValue) -> bool {
    let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let kind = kind.to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn read(kind: Option<&str>, body: &str) -> Result<BTreeMap<String, u8>, String> {
        let mut request = Request::new(Body::from(body));
        if let Some(kind) = kind {
            request.headers_mut().insert(CONTENT_TYPE, kind.parse().unwrap());
        }
        read_json(&request).map_err(|refusal| {
            let response = refusal.response(request.headers());
            let body = String::from_utf8_lossy(response.body().as_bytes()).into_owned();
            format!("{}: {body}", response.status().as_u16())
        })
    }

    #[test]
    fn what_is_no_json_of_the_type_is_told_so() {
        let whole = BTreeMap::from([("a".to_owned(), 1)]);
        for kind in [None, Some("application/json"), Some("Application/LD+JSON; charset=utf-8")] {
            assert_eq!(read(kind, r#"{"a": 1}"#), Ok(whole.clone()), "{kind:?}");
        }
        for (body, says) in [
            ("", "400: the request has no body"),
            ("{\"a\": 1", "400: the body isn't JSON: EOF"),
            ("{\"a\": 1}}", "400: the body isn't JSON: trailing"),
            ("{\"a\": 300}", "400: the JSON isn't what is expected: "),
            ("[1]", "400: the JSON isn't what is expected: invalid type"),
            ("{\n\"a\": x}", "line 2 column 6"),
            ("{\"a\": \"\u{fffd}\"}", "400: "),
        ] {
            let said = read(None, body).unwrap_err();
            assert!(said.contains(says), "{body}: {said}");
        }
        let deep = "[".repeat(100_000);
        assert!(read(None, &deep).is_err(), "it nests no stack");
        for kind in ["text/plain", "application/x-www-form-urlencoded", "json", "application/jsonp"]
        {
            let said = read(Some(kind), "{}").unwrap_err();
            assert!(said.starts_with("415: ") && said.contains("application/json"), "{said}");
        }
    }

    #[test]
    fn a_value_that_is_no_json_is_the_servers_fault() {
        let odd = BTreeMap::from([(vec![1], 2)]);
        let refused = json(StatusCode::OK, &odd).unwrap_err();
        assert_eq!(refused.response(&http::HeaderMap::new()).status(), 500);
    }
}
