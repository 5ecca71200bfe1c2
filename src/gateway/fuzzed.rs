//! Any bytes as a file of routes, as the path, the host and the headers of a request, and as all
//! that a client says on a connection. Built for fuzzers only.

use std::rc::Rc;

use capnp::capability::FromClientHook;
use capstead_client::Interface;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncWriteExt, copy, duplex, sink, split};

use super::clients::Proxies;
use super::door::{Door, Wanted};
use super::holdings::Gateway;
use super::http::{Entrance, serve_one};
use super::limits::{HttpLimits, Taken};
use super::objects::Given;
use super::routes::Routes;
use super::{bearer, parse_routes, socket};
use crate::error::{Result, failed};
use crate::http::{Body, http_service, serve_streaming, text};
use crate::schema::counter_capnp::counter;
use crate::schema::restorer_capnp::{namespace, restorer};

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

/// A namespace whose objects tell the path or the body of a request, whole or in parts, and count
/// to any number. As a restorer it gives the same for every reference.
struct Fake;

impl http_service::Server for Fake {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        serve_streaming(params, results, async |request| {
            let (head, body) = request.into_parts();
            let mut response = text(StatusCode::OK, &head.uri);
            if head.uri.path() == "/parts" {
                let mut body = body;
                *response.body_mut() = Body::stream(async move |out| {
                    while let Some(part) = body.next().await? {
                        out.send(part).await?;
                    }
                    Ok(())
                });
            } else if head.method != "GET" {
                *response.body_mut() = body.whole().await?;
            }
            Ok(response)
        })
        .await
    }
}

impl counter::Server for Fake {
    async fn increment(
        self: Rc<Self>,
        params: counter::IncrementParams,
        mut results: counter::IncrementResults,
    ) -> Result<()> {
        results.get().set_value(params.get()?.get_by());
        Ok(())
    }
}

impl namespace::Server for Fake {
    async fn by_name(
        self: Rc<Self>,
        _: namespace::ByNameParams,
        mut results: namespace::ByNameResults,
    ) -> Result<()> {
        let object: counter::Client = capnp_rpc::new_client(Fake);
        results.get().init_object().set_as_capability(object.into_client_hook());
        Ok(())
    }

    async fn describe(
        self: Rc<Self>,
        _: namespace::DescribeParams,
        mut results: namespace::DescribeResults,
    ) -> Result<()> {
        results.get().set_class("Counter");
        results.get().set_interface(<counter::Client as Interface>::ID);
        results.get().set_schema(<counter::Client as Interface>::SCHEMA);
        Ok(())
    }
}

impl restorer::Server for Fake {
    async fn restore(
        self: Rc<Self>,
        _: restorer::RestoreParams,
        mut results: restorer::RestoreResults,
    ) -> Result<()> {
        let object: counter::Client = capnp_rpc::new_client(Fake);
        results.get().init_cap().set_as_capability(object.into_client_hook());
        Ok(())
    }
}

thread_local! {
    static GATEWAY: Rc<Gateway> = gateway();
}

fn gateway() -> Rc<Gateway> {
    let namespace = Some(capnp_rpc::new_client::<namespace::Client, _>(Fake));
    let again = Box::new(|| Err(failed("it is never lost")));
    let given = [("Counter".to_owned(), Given { namespace, again })];
    let restorer: restorer::Client = capnp_rpc::new_client(Fake);
    let rows = parse_routes("routes.toml", FILE, &["Counter"]).expect("it is a file");
    let routes = Routes::new(rows, &[]);
    let gateway = Gateway::new(given, restorer.clone(), routes, std::sync::Arc::default());
    gateway.serve_json(restorer);
    gateway
}

/// A client that says this, reads all that comes, and is gone.
pub(crate) async fn connection(bytes: &[u8]) {
    let gateway = GATEWAY.with(Rc::clone);
    let taken = Taken::new(HttpLimits::default(), gateway.metrics.clone());
    let proxies = Proxies::new(&[]).expect("there are none");
    let entrance = Entrance { door: Door::default(), proxies, tls: None };
    let (near, far) = duplex(64 << 10);
    let (mut heard, mut said) = split(near);
    let mut nowhere = sink();
    let say = async {
        // The server may end it.
        let _ = said.write_all(bytes).await;
        let _ = said.shutdown().await;
    };
    let served = serve_one(gateway, entrance, taken.clone(), far);
    let _ = tokio::join!(say, copy(&mut heard, &mut nowhere), served);
    // Tasks of the connection learn of its end.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(taken.room().has_room(taken.limits.body_bytes), "none of its memory is left");
    assert_eq!(Rc::strong_count(&taken), 1, "nothing of it goes on");
}

/// Any bytes as the frames of a WebSocket.
pub(crate) async fn frames(bytes: &[u8]) {
    socket::frames(bytes).await;
}

pub(crate) fn frame_samples() -> Vec<Vec<u8>> {
    socket::samples()
}

/// Connections with which a fuzzer begins.
pub(crate) fn connection_samples() -> Vec<Vec<u8>> {
    let call = "POST /json/Counter/x/increment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\
                Idempotency-Key: \"8e03978e-40d5-43dd\"\r\n\r\n{\"by\": 5}";
    let parts = "POST /counter/x/parts?y HTTP/1.1\r\nHost: localhost:8080\r\n\
                 Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let socket = "GET /mine/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
                  Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                  Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                  Sec-WebSocket-Protocol: capstead.bearer.AAAA\r\nOrigin: https://app.example\r\n\r\n";
    let preflight = "OPTIONS /mine/x HTTP/1.1\r\nHost: localhost\r\nOrigin: https://app.example\r\n\
                     Access-Control-Request-Method: POST\r\n\r\n";
    let described =
        "GET /json/Counter HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n";
    let named = "HEAD http://count.example/x/a%20b HTTP/1.0\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n";
    let http1 =
        [[call, parts].concat(), socket.into(), preflight.into(), [described, named].concat()];
    http1.into_iter().map(String::into_bytes).chain([http2()]).collect()
}

/// A GET, and a POST of three bytes, as HTTP/2.
fn http2() -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let head = [0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream];
        [head.as_slice(), payload].concat()
    };
    // By the numbers of HPACK's table: the method and the scheme, then path and authority as texts.
    let head =
        |method: u8| [&[method, 0x86], b"\x44\x0b/counter/x/\x41\x09localhost".as_slice()].concat();
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 5, 1, &head(0x82)),
        frame(1, 4, 3, &head(0x83)),
        frame(0, 1, 3, b"abc"),
        frame(8, 0, 0, &[0, 0, 1, 0]),
    ]
    .concat()
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
