//! The responses of classes are checked: a client reads one whole answer to its request, or a 500,
//! and the next answer on the connection belongs to the next request.

use std::rc::Rc;

use crate::support::exchange::{Answer, exchange};
use capnp::capability::FromClientHook;
use capstead::counter_capnp::counter;
use capstead::http::{self, Body, Request, Response, StatusCode, http_service};
use capstead::{Context, Object, Result, Server};
use capstead_client::http_capnp::http_service::client_request_context;
use capstead_client::http_capnp::{http_response, whole_context};
use tokio::net::TcpStream;

/// Responds exactly as the request asks it to.
struct Liar;

impl Object for Liar {
    const CLASS: &'static str = "Liar";
    type Client = counter::Client;

    async fn wake(_: Context) -> Result<Self> {
        Ok(Self)
    }
}

impl counter::Server for Liar {}

/// One response as it goes over the wire.
struct Lie {
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    /// The announced length; none if it is unknown.
    announced: Option<u64>,
    pieces: &'static [&'static str],
    ends: bool,
}

const FINE: Lie =
    Lie { status: 200, headers: &[], announced: Some(4), pieces: &["fine"], ends: true };

/// More than may go by one call; in parts it is right.
const LARGE: &str = match std::str::from_utf8(&[b'x'; (64 << 10) + 1]) {
    Ok(text) => text,
    Err(_) => panic!("letters are text"),
};

/// Responses by path; each is refused.
const LIES: &[Lie] = &[
    Lie { status: 101, ..FINE },
    Lie { status: 100, announced: Some(0), pieces: &[], ..FINE },
    Lie { status: 600, ..FINE },
    Lie { status: 0, ..FINE },
    Lie { status: 65_535, ..FINE },
    Lie { status: 204, ..FINE },
    Lie { status: 304, ..FINE },
    Lie { headers: &[("content-length", "2")], ..FINE },
    Lie { headers: &[("content-length", "40")], ..FINE },
    Lie { headers: &[("content-length", "4"), ("Content-Length", "5")], ..FINE },
    Lie { headers: &[("content-length", "4, 4")], ..FINE },
    Lie { headers: &[("transfer-encoding", "chunked")], ..FINE },
    Lie { headers: &[("Transfer-Encoding", "identity")], ..FINE },
    Lie { headers: &[("connection", "close")], ..FINE },
    Lie { headers: &[("upgrade", "websocket")], ..FINE },
    Lie { headers: &[("x", "a\r\nset-cookie: stolen=1")], ..FINE },
    Lie { headers: &[("x", "a\r\n\r\nHTTP/1.1 200 OK")], ..FINE },
    Lie { headers: &[("x\r\ny", "a")], ..FINE },
    Lie { headers: &[("x: y", "a")], ..FINE },
    Lie { headers: &[("", "a")], ..FINE },
    Lie { headers: &[("x", "a\0b")], ..FINE },
    Lie { announced: Some(3), ..FINE },
    Lie { announced: Some(5), ..FINE },
    Lie {
        announced: Some(0),
        pieces: &[],
        status: 200,
        headers: &[("content-length", "1")],
        ..FINE
    },
    Lie { announced: None, ends: false, ..FINE },
    Lie { announced: None, pieces: &[LARGE], ..FINE },
];

/// Each of these is valid.
const TRUTHS: &[Lie] = &[
    FINE,
    Lie { announced: None, pieces: &["f", "", "ine"], ..FINE },
    Lie { headers: &[("content-length", "4"), ("x", "\u{fc}ber")], ..FINE },
];

impl http_service::Server for Liar {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        let url = params.get()?.get_request()?.get_url()?.to_string()?;
        let Some((lie, way)) = said(&url) else {
            return http::serve(params, results, async |request| Ok(answer(&request))).await;
        };
        assert!(params.get()?.get_takes_whole(), "the gateway says so");
        let context = params.get()?.get_context()?;
        match way {
            Way::AtOnce => lie.tell_at_once(context),
            Way::InParts => lie.tell_in_parts(&context),
        }
        Ok(())
    }
}

/// The calls by which a response goes.
#[derive(Clone, Copy)]
enum Way {
    AtOnce,
    InParts,
}

impl Lie {
    fn write_head(&self, mut response: http_response::Builder<'_>) {
        response.set_status_code(self.status);
        let mut headers = response.reborrow().init_headers(self.headers.len() as u32);
        for (at, (name, value)) in (0..).zip(self.headers) {
            let mut pair = headers.reborrow().get(at).init_uncommon();
            pair.set_name(*name);
            pair.set_value(*value);
        }
        match self.announced {
            Some(bytes) => response.get_body_size().set_fixed(bytes),
            None => response.get_body_size().set_unknown(()),
        }
    }

    fn tell_at_once(&self, context: client_request_context::Client) {
        let context: whole_context::Client = FromClientHook::new(context.into_client_hook());
        let mut respond = context.respond_request();
        self.write_head(respond.get().init_response());
        respond.get().set_body(self.pieces.concat().as_bytes());
        drop(respond.send());
    }

    fn tell_in_parts(&self, context: &client_request_context::Client) {
        let mut start = context.start_response_request();
        self.write_head(start.get().init_response());
        let started = start.send();
        let stream = started.pipeline.get_body();
        for piece in self.pieces {
            let mut write = stream.write_request();
            write.get().set_bytes(piece.as_bytes());
            drop(write.send());
        }
        if self.ends && !self.pieces.is_empty() {
            drop(stream.end_request().send());
        }
    }
}

fn said(url: &str) -> Option<(&'static Lie, Way)> {
    let mut words = url.strip_prefix('/')?.split('/');
    let (kind, way, number) = (words.next()?, words.next()?, words.next()?);
    let number: usize = number.parse().ok()?;
    let lie = if kind == "lie" { LIES.get(number) } else { TRUTHS.get(number) };
    Some((lie?, if way == WAYS[0] { Way::InParts } else { Way::AtOnce }))
}

/// The ways as they stand in paths.
const WAYS: [&str; 2] = ["parts", "once"];

fn answer(request: &Request<Body>) -> Response<Body> {
    match request.uri().path() {
        // Returns the names of all headers of the request, and the bytes of one.
        "/headers" => {
            let mut names: Vec<&str> =
                request.headers().keys().map(http::HeaderName::as_str).collect();
            names.sort_unstable();
            let mut body = names.join(",").into_bytes();
            body.extend(request.headers().get("x").map_or(&[][..], |value| value.as_bytes()));
            let mut response = Response::new(Body::from(body));
            if let Some(value) = request.headers().get("x") {
                response.headers_mut().insert("x", value.clone());
            }
            response
        }
        "/bytes" => {
            let mut response = http::text(StatusCode::OK, "fine");
            let bytes = http::HeaderValue::from_bytes(b"\xff").unwrap();
            response.headers_mut().insert("x", bytes);
            response
        }
        _ => http::text(StatusCode::OK, "next"),
    }
}

/// Runs `work` with a connection to servers on 1, 2 and 4 hosts, or on the number that the
/// environment sets.
fn with_servers(work: impl AsyncFn(&mut TcpStream, &str)) {
    let hosts = std::env::var("CAPSTEAD_TEST_HOSTS").map(|hosts| vec![hosts.parse().unwrap()]);
    for hosts in hosts.unwrap_or_else(|_| vec![1, 2, 4]) {
        let data = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::LocalRuntime::new().unwrap();
        runtime.block_on(async {
            let any = "127.0.0.1:0".parse().unwrap();
            let server = Server::new(data.path().join("data")).class::<Liar>().hosts(hosts);
            let running = server.listen(any).http(any).start().await.unwrap();
            let mut stream = TcpStream::connect(running.http().unwrap()).await.unwrap();
            for object in ["a", "b", "c", "d"] {
                work(&mut stream, object).await;
            }
            running.until(async {}).await.unwrap();
        });
    }
}

fn numbers(lies: &[Lie]) -> impl Iterator<Item = (usize, &'static str)> {
    (0..lies.len()).flat_map(|number| WAYS.map(|way| (number, way)))
}

fn request(method: &str, path: &str, headers: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n").into_bytes()
}

#[test]
fn what_is_not_right_is_a_500_and_changes_no_other_answer() {
    with_servers(async |stream, object| {
        for (number, way) in numbers(LIES) {
            // A whole body has its end, and parts may be as large as that.
            let is_no_lie =
                if way == "once" { !LIES[number].ends } else { LIES[number].pieces == [LARGE] };
            if is_no_lie {
                continue;
            }
            for method in ["GET", "HEAD", "POST"] {
                // The length of the answer to a GET.
                if method == "HEAD" && LIES[number].headers == [("content-length", "1")] {
                    continue;
                }
                let asked = request(method, &format!("/liar/{object}/lie/{way}/{number}"), "");
                let Answer { status, head, .. } = exchange(stream, &asked).await;
                assert_eq!(status, 500, "{method} {way} {number}: {}", head.escape_ascii());
                let asked = request("GET", &format!("/liar/{object}/next"), "");
                let Answer { status, body, .. } = exchange(stream, &asked).await;
                assert_eq!((status, &*body), (200, &b"next"[..]), "after {method} {way} {number}");
            }
        }
    });
}

#[test]
fn what_is_right_is_sent_as_it_is() {
    with_servers(async |stream, object| {
        for (number, way) in numbers(TRUTHS) {
            let asked = request("GET", &format!("/liar/{object}/truth/{way}/{number}"), "");
            let answer = exchange(stream, &asked).await;
            assert_eq!((answer.status, &*answer.body), (200, &b"fine"[..]), "{way} {number}");
            assert_eq!(answer.says("x: \u{fc}ber".as_bytes()), number == 2);
        }
    });
}

#[test]
fn headers_of_the_connection_reach_no_object_and_bytes_are_kept_or_refused() {
    with_servers(async |stream, object| {
        let path = format!("/liar/{object}/headers");
        let headers = "connection: keep-alive, x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\n\
                       te: trailers\r\nproxy-authorization: secret\r\nproxy-connection: close\r\n\
                       trailer: x\r\nupgrade: h2c\r\nx-end: 1\r\n";
        let Answer { status, body, .. } = exchange(stream, &request("GET", &path, headers)).await;
        assert_eq!(
            (status, String::from_utf8(body).unwrap()),
            (200, "capstead-peer,host,x-end".to_owned())
        );

        let answer = exchange(stream, &request("GET", &path, "x: \u{fc}ber\r\n")).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body, "capstead-peer,host,x\u{fc}ber".as_bytes());
        let sent = "x: \u{fc}ber\r\n".as_bytes();
        assert!(answer.says(sent), "{}", answer.head.escape_ascii());

        let mut latin = request("GET", &path, "x: ?ber\r\n");
        let at = latin.iter().position(|byte| *byte == b'?').unwrap();
        latin[at] = 0xfc;
        let Answer { status, body, .. } = exchange(stream, &latin).await;
        assert_eq!(status, 400);
        assert_eq!(&*body, b"The value of the header x is not UTF-8.\n");
        let asked = request("GET", &format!("/liar/{object}/bytes"), "");
        let Answer { status, body, .. } = exchange(stream, &asked).await;
        assert_eq!(status, 500);
        assert!(String::from_utf8(body).unwrap().contains("the header x is not UTF-8"));
    });
}
