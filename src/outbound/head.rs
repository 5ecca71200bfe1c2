//! Heads of requests as they may go out, and of the responses that come in.
//!
//! Invariant: nothing that an object says decides where its request ends; hyper writes that, from
//! the body.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{HeaderValue, Request, Uri};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::origin::Destination;
use crate::error::{Result, failed};
use crate::http::{PEER, is_of_one_hop, is_upgrade, read_request};
use crate::schema::http_capnp::http_request;

/// A request that may go out.
pub(super) struct OutboundRequest {
    pub(super) request: Request<()>,
    /// The key of the handshake, if it asks for a WebSocket.
    pub(super) key: Option<String>,
}

/// # Errors
/// When it is impossible, or leads away.
pub(super) fn asked(
    asked: http_request::Reader<'_>,
    target: &Destination,
) -> Result<OutboundRequest> {
    use http_request::body_size::{Fixed, Unknown};
    let path = target.path(asked.get_url()?.to_str()?).map_err(failed)?;
    let size = match asked.get_body_size().which()? {
        Fixed(size) => Some(size),
        Unknown(()) => None,
    };
    let mut request = read_request(asked, ())?;
    *request.uri_mut() = Uri::from(path);
    let is_upgrade = is_upgrade(&request);
    let headers = request.headers_mut();
    if is_upgrade {
        if size != Some(0) {
            return Err(failed("a request for a WebSocket has no body"));
        }
        headers.remove(CONNECTION);
        headers.remove(UPGRADE);
    }
    check(headers, size).map_err(failed)?;
    for name in [CONTENT_LENGTH, PEER, SEC_WEBSOCKET_EXTENSIONS] {
        headers.remove(name);
    }
    headers.insert(HOST, value(&target.origin.authority())?);
    let mut key = None;
    if is_upgrade {
        let new = key.insert(new_key()?);
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_KEY, value(new)?);
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    } else {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(OutboundRequest { request, key })
}

/// # Errors
/// A sentence, when the server would understand something else than was meant, or another server.
fn check(headers: &HeaderMap, size: Option<u64>) -> std::result::Result<(), String> {
    let is_ours = |name: &&HeaderName| **name == HOST || is_of_one_hop(name);
    if let Some(name) = headers.keys().find(is_ours) {
        return Err(format!(
            "the header {name} belongs to the connection, which the server keeps: take it out of \
             the request"
        ));
    }
    let said = |value: &HeaderValue| {
        let digits = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        digits.and_then(|digits| digits.parse().ok())
    };
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter().map(said);
    if lengths.all(|length: Option<u64>| length.is_some() && length == size) {
        return Ok(());
    }
    Err("the Content-Length isn't the size of the request's body".to_owned())
}

fn value(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(|error| failed(error.to_string()))
}

fn new_key() -> Result<String> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|error| failed(format!("no randomness: {error}")))?;
    Ok(STANDARD.encode(nonce))
}

/// Tells whether this head accepts the handshake that was asked for, with none of what wasn't.
pub(super) fn accepts(key: &str, offered: Option<&HeaderValue>, headers: &HeaderMap) -> bool {
    let only = |name: &HeaderName| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none()).and_then(|value| value.to_str().ok())
    };
    let is = |name, word: &str| only(&name).is_some_and(|said| said.eq_ignore_ascii_case(word));
    let is_offered = |chosen: &str| {
        let offered = offered.and_then(|offered| offered.to_str().ok()).unwrap_or_default();
        offered.split(',').any(|protocol| protocol.trim() == chosen)
    };
    let takes_offered = !headers.contains_key(SEC_WEBSOCKET_PROTOCOL)
        || only(&SEC_WEBSOCKET_PROTOCOL).is_some_and(is_offered);
    // A list, in one line or several (RFC 6455, section 4.1).
    let connection = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let mut words = connection.flat_map(|value| value.split(','));
    let has_upgrade = words.any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    is(UPGRADE, "websocket")
        && has_upgrade
        && only(&SEC_WEBSOCKET_ACCEPT) == Some(&*derive_accept_key(key.as_bytes()))
        && !headers.contains_key(SEC_WEBSOCKET_EXTENSIONS)
        && takes_offered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(headers: &[(&str, &str)], size: Option<u64>) -> Result<OutboundRequest> {
        let mut message = capnp::message::Builder::new_default();
        let mut to = message.init_root::<http_request::Builder<'_>>();
        to.set_url("/x");
        match size {
            Some(size) => to.reborrow().get_body_size().set_fixed(size),
            None => to.reborrow().get_body_size().set_unknown(()),
        }
        let mut list = to.reborrow().init_headers(headers.len() as u32);
        for (at, (name, value)) in (0..).zip(headers) {
            let mut pair = list.reborrow().get(at).init_uncommon();
            pair.set_name(name);
            pair.set_value(value);
        }
        asked(to.into_reader(), &Destination::parse("http://a:1").unwrap())
    }

    #[test]
    fn an_object_decides_neither_the_length_nor_the_connection_nor_the_host() {
        let good = ask(&[("content-length", "3"), ("capstead-peer", "::1"), ("x", "y")], Some(3));
        let names: Vec<_> = good.unwrap().request.headers().keys().cloned().collect();
        assert_eq!(names, ["x", "host", "connection"]);
        for (headers, size) in [
            (&[("host", "b")][..], Some(0)),
            (&[("connection", "keep-alive")], Some(0)),
            (&[("transfer-encoding", "chunked")], None),
            (&[("te", "trailers")], Some(0)),
            (&[("trailer", "x")], Some(0)),
            (&[("upgrade", "h2c")], Some(0)),
            (&[("proxy-authorization", "x")], Some(0)),
            (&[("content-length", "4")], Some(3)),
            (&[("content-length", "+3")], Some(3)),
            (&[("content-length", "3")], None),
            (&[("content-length", "3"), ("content-length", "4")], Some(3)),
            (&[("x", "y\r\nhost: b")], Some(0)),
            (&[("x\r\nhost", "b")], Some(0)),
            (&[("upgrade", "websocket")], Some(1)),
            (&[("upgrade", "websocket"), ("transfer-encoding", "chunked")], Some(0)),
        ] {
            assert!(ask(headers, size).is_err(), "{headers:?}");
        }
    }

    #[test]
    fn a_handshake_is_accepted_by_what_was_asked_for_alone() {
        let OutboundRequest { request, key } = ask(&[("upgrade", "WebSocket")], Some(0)).unwrap();
        let key = key.unwrap();
        assert_eq!(request.headers()[SEC_WEBSOCKET_KEY], *key);
        let accept = derive_accept_key(key.as_bytes());
        let good = [("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")];
        let offered = HeaderValue::from_static("one, two");
        let check = |more: &[(&'static str, &str)]| {
            let all = good.iter().chain(more);
            let headers = all.map(|(name, text)| {
                (HeaderName::from_static(name), HeaderValue::from_str(text).unwrap())
            });
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(name, value);
            }
            accepts(&key, Some(&offered), &map)
        };
        let accept = ("sec-websocket-accept", &*accept);
        assert!(check(&[accept]));
        assert!(check(&[accept, ("sec-websocket-protocol", "two")]));
        for more in [
            &[][..],
            &[("sec-websocket-accept", "x")],
            &[accept, accept],
            &[accept, ("sec-websocket-protocol", "three")],
            &[accept, ("sec-websocket-protocol", "one"), ("sec-websocket-protocol", "two")],
            &[accept, ("sec-websocket-extensions", "permessage-deflate")],
            &[accept, ("upgrade", "h2c")],
        ] {
            assert!(!check(more), "{more:?}");
        }
    }
}
