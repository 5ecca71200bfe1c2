//! Any bytes as a file of routes, and as the path, the host and the headers of a request. Built for
//! fuzzers only.

use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::door::Wanted;
use super::routes::Routes;
use super::{bearer, parse_routes, socket};

/// The file for a request whose own bytes are no file of routes.
const FILE: &str = r#"
[[route]]
path = "/visits/{page}/{id:secret}/*"
class = "Counter"
name = "page {page} {id}"
access = "public"
rate = 10
burst = 20
[[route]]
path = "count.example/x/{name:32}"
kind = "json"
class = "Counter"
name = "{name}"
url = "/increment"
access = "public"
[[route]]
path = "/mine/*"
access = "bearer"
sockets = 3
origins = ["https://app.example"]
[[route]]
path = "/link"
kind = "link"
to = "/mine"
access = "public"
"#;

/// A file; behind a byte of zero the path, behind another one the host, and then lines of headers.
pub(crate) fn routes(bytes: &[u8]) {
    let mut parts = bytes.splitn(4, |byte| *byte == 0).map(String::from_utf8_lossy);
    let mut next = || parts.next().unwrap_or_default();
    let (file, path, host, lines) = (next(), next(), next(), next());
    let of_file = parse_routes("routes.toml", &file, &["Counter"]);
    let fixed = parse_routes("routes.toml", FILE, &["Counter"]).expect("it is a file");
    for rows in of_file.into_iter().chain([fixed]) {
        let table = Routes::alone(rows);
        let named = || Some(host.to_lowercase());
        drop((table.find(named, &path), table.by_class(&path)));
    }
    for wanted in [Wanted::Response, Wanted::Socket] {
        let mut headers = headers(&lines);
        let taken = bearer::take(&mut headers, wanted);
        let left = headers.get(SEC_WEBSOCKET_PROTOCOL).map(HeaderValue::as_bytes);
        let left = String::from_utf8_lossy(left.unwrap_or_default());
        let is_secret = |protocol: &str| protocol.trim().starts_with(bearer::PROTOCOL);
        assert!(!left.split(',').any(is_secret), "{left}");
        if let Ok((text, _)) = taken {
            drop(capstead_client::sturdyref::TextReference::parse(&text));
        }
        let mut answered = HeaderMap::new();
        socket::choose(&headers, &mut answered);
        let accepts = HeaderValue::from_static("x");
        assert!(socket::response(&headers, accepts, answered).is_ok());
    }
}

/// Bytes with which a fuzzer begins.
pub(crate) fn samples() -> Vec<Vec<u8>> {
    let request = "/visits/front/00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff/x?y\0\
                   count.example\0authorization: Bearer capstead://h:1/#AAAA\n\
                   sec-websocket-protocol: chat, capstead.bearer.AAAA";
    vec![format!("{FILE}\0{request}").into_bytes(), format!("\0{request}").into_bytes()]
}

fn headers(lines: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines.lines().filter_map(|line| line.split_once(": ")) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.append(name, value);
        }
    }
    headers
}
