//! Heads of requests and responses: the parts that concern one connection only, and those that a
//! class may set.
//!
//! Invariant: nothing that a class says decides where its response ends; hyper writes that, from
//! the body.

use std::net::{IpAddr, SocketAddr};

use http::header::{CONTENT_LENGTH, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Version};

use crate::http::{PEER, is_of_one_hop};

/// Puts a head of HTTP/2 as HTTP/1 has it: classes see no difference.
pub(super) fn as_http1(head: &mut http::request::Parts) {
    if head.version < Version::HTTP_2 {
        return;
    }
    let authority = head.uri.authority().and_then(|named| named.as_str().parse().ok());
    if let Some(host) = authority {
        head.headers.insert(HOST, host);
    }
    // A cookie each, so that those which stay the same are sent as a number (RFC 9113, 8.2.3).
    let cookies: Vec<_> = head.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1 {
        // The separator is a byte that a value may have, as theirs are.
        if let Ok(all) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
            head.headers.insert(COOKIE, all);
        }
    }
}

/// The other end of a connection.
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// The value of [`PEER`] for requests that are its own.
    value: HeaderValue,
}

impl Peer {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, value: peer_value(address.ip()) }
    }

    /// Sets the address from which a request comes, in place of the client's own word.
    pub(super) fn say(&self, headers: &mut HeaderMap, client: IpAddr) {
        let is_its_own = client == self.address.ip().to_canonical();
        let value = if is_its_own { self.value.clone() } else { peer_value(client) };
        headers.insert(PEER, value);
    }
}

fn peer_value(address: IpAddr) -> HeaderValue {
    let text = address.to_canonical().to_string();
    HeaderValue::try_from(text).expect("an address is a value of a header")
}

/// The first header whose value is no text: it has no place in a message of Cap'n Proto.
pub(super) fn not_text(headers: &HeaderMap) -> Option<&HeaderName> {
    let found = headers.iter().find(|(_, value)| std::str::from_utf8(value.as_bytes()).is_err());
    found.map(|(name, _)| name)
}

/// The head as it may be sent, with a body of the announced size, and the size of the body as far
/// as that is known now.
///
/// # Errors
/// A sentence, when the class's head is impossible: the client must not see any of it.
pub(super) fn checked(
    asked: &Method,
    mut head: Response<()>,
    announced: Option<u64>,
) -> Result<(Response<()>, Option<u64>), String> {
    let status = head.status();
    if !(200..=599).contains(&status.as_u16()) {
        return Err(format!("{status} is no status of an answer: use 200 to 599"));
    }
    if let Some(name) = head.headers().keys().find(|name| is_of_one_hop(name)) {
        return Err(format!("the header {name} belongs to the connection, which the server keeps"));
    }
    let mut size = announced;
    let has_no_body = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED];
    if has_no_body.contains(&status) && announced.unwrap_or(0) > 0 {
        return Err(format!("a response with status {status} has no body"));
    } else if has_no_body.contains(&status) {
        size = Some(0);
    }
    let Some(length) = said_length(head.headers())? else { return Ok((head, size)) };
    head.headers_mut().remove(CONTENT_LENGTH);
    // It is then the length of the body that a GET would get.
    let is_without = size.unwrap_or(0) == 0 && asked == Method::HEAD;
    if is_without || status == StatusCode::NOT_MODIFIED {
        head.headers_mut().insert(CONTENT_LENGTH, length.into());
        return Ok((head, size));
    }
    match size {
        Some(size) if size != length => {
            Err(format!("Content-Length is {length}, and the body has {size} bytes"))
        }
        _ => Ok((head, Some(length))),
    }
}

fn said_length(headers: &HeaderMap) -> Result<Option<u64>, String> {
    let mut said = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        let digits =
            value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let length = digits.and_then(|digits| digits.parse().ok());
        let length: u64 = length.ok_or("Content-Length is no number")?;
        if said.is_some_and(|said| said != length) {
            return Err("there are two lengths in Content-Length".to_owned());
        }
        said = Some(length);
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        asked: Method,
        status: u16,
        headers: &[(&str, &str)],
        body: u64,
    ) -> Result<Option<String>, String> {
        let mut head = Response::builder().status(status);
        for (name, value) in headers {
            head = head.header(*name, *value);
        }
        let (head, _) = checked(&asked, head.body(()).unwrap(), body.into())?;
        Ok(head.headers().get(CONTENT_LENGTH).map(|value| value.to_str().unwrap().to_owned()))
    }

    #[test]
    fn a_class_decides_neither_the_length_nor_the_connection() {
        let get = |status, headers: &[_], body| check(Method::GET, status, headers, body);
        assert_eq!(get(200, &[("content-length", "3")], 3), Ok(None));
        assert_eq!(get(200, &[("content-length", "3"), ("content-length", "3")], 3), Ok(None));
        assert_eq!(get(304, &[("content-length", "9")], 0), Ok(Some("9".to_owned())));
        assert_eq!(
            check(Method::HEAD, 200, &[("content-length", "9")], 0),
            Ok(Some("9".to_owned()))
        );
        for (headers, body) in [
            (("content-length", "2"), 3),
            (("content-length", "4"), 3),
            (("content-length", "+3"), 3),
            (("content-length", ""), 0),
            (("content-length", "99999999999999999999"), 3),
            (("transfer-encoding", "chunked"), 3),
            (("connection", "close"), 3),
            (("keep-alive", "timeout=5"), 3),
            (("upgrade", "websocket"), 3),
            (("te", "trailers"), 3),
            (("trailer", "x"), 3),
            (("proxy-authenticate", "Basic"), 3),
        ] {
            assert!(get(200, &[headers], body).is_err(), "{headers:?}");
        }
        assert!(get(200, &[("content-length", "3"), ("content-length", "4")], 3).is_err());
        for status in [100, 101, 103, 199, 600, 999] {
            assert!(get(status, &[], 0).is_err(), "{status}");
        }
        for status in [204, 205, 304] {
            assert!(get(status, &[], 1).is_err() && get(status, &[], 0).is_ok(), "{status}");
        }
    }
}
