//! The handshake of a WebSocket (RFC 6455, section 4): whether a request is one, and the answer
//! that accepts it.
//!
//! Invariant: no extension is ever agreed on, so that a message is as large as it is on the wire.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::gateway::door::Wanted;
use crate::http::{Refusal, is_of_one_hop, refuse};

/// The only version that there is.
const VERSION: HeaderValue = HeaderValue::from_static("13");
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// The thing that a request asks for.
pub(in crate::gateway) fn wanted(request: &Parts) -> Wanted {
    if is_upgrade(request) { Wanted::Socket } else { Wanted::Response }
}

/// Tells whether a request asks for a WebSocket, well or badly.
fn is_upgrade(request: &Parts) -> bool {
    let headers = &request.headers;
    let is_on = request.method == Method::GET && request.version >= Version::HTTP_11;
    is_on && names(headers, &CONNECTION, "upgrade") && names(headers, &UPGRADE, "websocket")
}

fn names(headers: &HeaderMap, header: &HeaderName, word: &str) -> bool {
    words(headers, header).any(|named| named.eq_ignore_ascii_case(word))
}

/// The words of a list, in one line or several.
fn words<'a>(headers: &'a HeaderMap, header: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// The value that accepts the handshake.
///
/// # Errors
/// The answer to a handshake that is none.
pub(in crate::gateway) fn asked(headers: &HeaderMap) -> Result<HeaderValue, Refusal> {
    if headers.get(SEC_WEBSOCKET_VERSION) != Some(&VERSION) {
        let reason = "A WebSocket has `Sec-WebSocket-Version: 13`.\n";
        return Err(refuse(StatusCode::UPGRADE_REQUIRED, reason));
    }
    let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).iter();
    let key = match (keys.next(), keys.next()) {
        (Some(key), None) => key.as_bytes(),
        _ => b"",
    };
    let accepts = HeaderValue::try_from(derive_accept_key(key));
    let is_key = STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16);
    accepts.ok().filter(|_| is_key).ok_or_else(|| {
        let reason = "A WebSocket has one `Sec-WebSocket-Key`, of 16 bytes in base64.\n";
        refuse(StatusCode::BAD_REQUEST, reason)
    })
}

/// Tells a client that asks with another version, or for none, which there is.
pub(in crate::gateway) fn say_version<B>(response: &mut Response<B>) {
    if response.status() == StatusCode::UPGRADE_REQUIRED {
        let headers = response.headers_mut();
        headers.insert(SEC_WEBSOCKET_VERSION, VERSION);
        headers.insert(UPGRADE, WEBSOCKET);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// Leaves of a handshake what concerns the object: that it is one, and the protocols that are
/// offered.
pub(in crate::gateway) fn hide(headers: &mut HeaderMap) {
    for name in [SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, SEC_WEBSOCKET_EXTENSIONS] {
        headers.remove(name);
    }
    headers.insert(UPGRADE, WEBSOCKET);
}

/// Takes the first of the protocols that are offered, if the object took none: a client that showed
/// a secret among them would else be left without an answer.
pub(in crate::gateway) fn choose(asked: &HeaderMap, headers: &mut HeaderMap) {
    if headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
        return;
    }
    let offered = asked.get(SEC_WEBSOCKET_PROTOCOL).and_then(|offered| offered.to_str().ok());
    let first = offered.and_then(|offered| offered.split(',').next());
    if let Some(first) = first.and_then(|first| HeaderValue::try_from(first.trim()).ok()) {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, first);
    }
}

/// The head of the answer that accepts a handshake, with the headers of the object.
///
/// # Errors
/// A sentence, when the object said what can't be.
pub(in crate::gateway) fn response(
    asked: &HeaderMap,
    accept: HeaderValue,
    mut headers: HeaderMap,
) -> Result<Response<()>, String> {
    let is_ours = |name: &HeaderName| {
        is_of_one_hop(name)
            || [SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, http::header::CONTENT_LENGTH]
                .contains(name)
    };
    if let Some(name) = headers.keys().find(|name| is_ours(name)) {
        return Err(format!("the header {name} belongs to the connection, which the server keeps"));
    }
    let protocols: Vec<_> = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().collect();
    let is_offered = |chosen: &HeaderValue| {
        let chosen = chosen.to_str().unwrap_or_default();
        // Protocols, other than words of HTTP, differ by case.
        words(asked, &SEC_WEBSOCKET_PROTOCOL).any(|offered| offered == chosen)
    };
    if protocols.len() > 1 || !protocols.iter().all(|chosen| is_offered(chosen)) {
        return Err("it takes a protocol that the client didn't offer".to_owned());
    }
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, WEBSOCKET);
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    let mut head = Response::new(());
    *head.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *head.headers_mut() = headers;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request line, and headers of it, divided by `|`.
    fn parts(request: &str) -> Parts {
        let mut words = request.split('|');
        let mut built = http::Request::builder().method(words.next().unwrap()).uri("/");
        for header in words {
            let (name, value) = header.split_once(": ").unwrap();
            built = built.header(name, value);
        }
        built.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_a_get_that_asks_for_a_websocket_is_a_handshake() {
        for request in [
            "GET|Connection: Upgrade|Upgrade: websocket",
            "GET|Connection: keep-alive, upgrade|Upgrade: h2c, WebSocket",
        ] {
            assert!(is_upgrade(&parts(request)), "{request}");
        }
        for request in [
            "GET|Upgrade: websocket",
            "GET|Connection: upgrade",
            "GET|Connection: upgrade|Upgrade: h2c",
            "POST|Connection: upgrade|Upgrade: websocket",
        ] {
            assert!(!is_upgrade(&parts(request)), "{request}");
        }
    }

    #[test]
    fn a_handshake_has_the_version_and_one_key() {
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
        let asked = |headers: &str| asked(&parts(&format!("GET|{headers}")).headers);
        let accepts = asked(&format!("{key}|Sec-WebSocket-Version: 13")).ok().unwrap();
        assert_eq!(accepts, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "as in RFC 6455");
        for wrong in [
            "Sec-WebSocket-Version: 13".to_owned(),
            key.to_owned(),
            format!("{key}|Sec-WebSocket-Version: 8"),
            format!("{key}|{key}|Sec-WebSocket-Version: 13"),
            "Sec-WebSocket-Key: c2hvcnQ=|Sec-WebSocket-Version: 13".to_owned(),
            "Sec-WebSocket-Key: ?|Sec-WebSocket-Version: 13".to_owned(),
        ] {
            assert!(asked(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_object_takes_a_protocol_that_was_offered_and_nothing_of_the_connection() {
        let offered = parts("GET|Sec-WebSocket-Protocol: a, b").headers;
        let answer = |headers: &str| {
            let said = parts(&format!("GET|{headers}")).headers;
            response(&offered, HeaderValue::from_static("x"), said)
        };
        let head = answer("Sec-WebSocket-Protocol: b|X-Own: 1").unwrap();
        assert_eq!((head.status().as_u16(), head.headers().len()), (101, 5));
        for wrong in [
            "Sec-WebSocket-Protocol: c",
            "Sec-WebSocket-Protocol: a, b",
            "Sec-WebSocket-Protocol: a|Sec-WebSocket-Protocol: b",
            "Sec-WebSocket-Extensions: permessage-deflate",
            "Sec-WebSocket-Accept: y",
            "Upgrade: h2c",
            "Content-Length: 3",
        ] {
            assert!(answer(wrong).is_err(), "{wrong}");
        }
    }
}
