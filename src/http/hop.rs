//! Headers that concern one connection, and nobody beyond it.

use http::header::{CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName};

use super::PEER;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Headers between two neighbours, and not between a client and an object.
pub(crate) fn is_of_one_hop(name: &HeaderName) -> bool {
    [CONNECTION, KEEP_ALIVE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE].contains(name)
        || name.as_str().starts_with("proxy-")
}

/// Takes out of a head what concerns this connection only.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let listed = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named = listed.flat_map(|value| value.split(',')).map(|name| name.trim().parse());
    // The server has set the peer; the client's word for it is dropped.
    let named = named.filter_map(Result::ok).filter(|name| *name != PEER);
    let mut gone: Vec<HeaderName> = named.collect();
    gone.extend(headers.keys().filter(|name| is_of_one_hop(name)).cloned());
    for name in gone {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_the_connection_reaches_no_object() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-One"),
            ("connection", "x-two, capstead-peer"),
            ("capstead-peer", "192.0.2.1"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-connection", "close"),
            ("proxy-authorization", "secret"),
        ] {
            headers.append(HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        }
        strip(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["capstead-peer", "x-three"], "who asks is no concern of a connection");
    }
}
