//! HTTP by TLS with the operator's certificate, HTTP/2, and what proxies say of their clients.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use capstead::counter_capnp::counter;
use capstead::http::{self, Body, StatusCode, http_service};
use capstead::{Context, Object, Server};
use futures::future::join_all;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::calls::run;
use crate::support::http::{Http, Response, get};
use crate::support::{Served, eventually, refused_start, scratch, serve_command, serve_with};

/// A certificate for `localhost`, in files.
pub(crate) struct Files {
    folder: TempDir,
}

impl Files {
    pub(crate) fn new() -> (Self, CertificateDer<'static>) {
        let files = Self { folder: tempfile::tempdir().unwrap() };
        let shown = files.replace();
        (files, shown)
    }

    /// Puts another pair there.
    fn replace(&self) -> CertificateDer<'static> {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        self.write("chain.pem", "CERTIFICATE", cert.der());
        self.write("key.pem", "PRIVATE KEY", signing_key.serialized_der());
        cert.der().clone()
    }

    fn write(&self, name: &str, label: &str, der: &[u8]) {
        let text =
            format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der));
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn flags(&self) -> [String; 4] {
        let path = |name| self.path(name).to_str().unwrap().to_owned();
        ["--http-tls-cert".into(), path("chain.pem"), "--http-tls-key".into(), path("key.pem")]
    }

    pub(crate) fn serve(&self, data: &Path, args: &[&str]) -> Served {
        let flags = self.flags();
        let flags: Vec<&str> =
            flags.iter().map(String::as_str).chain(args.iter().copied()).collect();
        serve_with(data, &flags)
    }
}

/// A connection to a server that shows this certificate.
pub(crate) async fn secure(
    address: &str,
    shown: &CertificateDer<'static>,
    protocol: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(shown.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
    Ok(stream)
}

pub(crate) type Sender = hyper::client::conn::http2::SendRequest<Empty<Bytes>>;

/// A connection of HTTP/2 over such a stream.
pub(crate) async fn http2(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
) -> Sender {
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    sender
}

pub(crate) async fn ask(
    sender: &Sender,
    request: hyper::http::request::Builder,
) -> (StatusCode, String) {
    let request = request.version(Version::HTTP_2).body(Empty::new()).unwrap();
    let answer = sender.clone().send_request(request).await.unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

pub(crate) fn request(method: &str, path: &str) -> hyper::http::request::Builder {
    Request::builder().method(method).uri(format!("https://localhost{path}"))
}

#[test]
fn many_requests_of_http2_share_a_connection() {
    for hosts in ["1", "2", "4"] {
        let ((files, shown), (_folder, data)) = (Files::new(), scratch());
        let served = files.serve(&data, &["--hosts", hosts]);
        run(async {
            let stream = secure(&served.announced.http, &shown, b"h2").await.unwrap();
            let sender = http2(stream).await;
            let increment = async |n| {
                ask(&sender, request("POST", &format!("/counter/{}/increment", n % 20))).await.0
            };
            let all = join_all((0..200).map(increment)).await;
            assert!(all.iter().all(|status| *status == 200), "{all:?}");
            for n in 0..20 {
                let (_, value) = ask(&sender, request("GET", &format!("/counter/{n}"))).await;
                assert_eq!(value, "10");
            }
            let (status, _) =
                ask(&sender, Request::builder().uri("https://evil.example/counter/1")).await;
            assert_eq!(status, 421, "the host of the request is looked at");
            let cross =
                request("POST", "/counter/1/increment").header("origin", "https://evil.example");
            assert_eq!(ask(&sender, cross).await.0, 403);
            let own = request("POST", "/counter/1/increment").header("origin", "https://localhost");
            assert_eq!(ask(&sender, own).await.0, 200);
            // The requests' own places are free again, and the connection's isn't.
            eventually("their places", || (served.metric("http_connections") == 1).then_some(()));
        });
        served.stop();
    }
}

#[test]
fn http2_is_spoken_in_the_clear_too_and_http1_by_tls() {
    let ((files, shown), (_folder, data)) = (Files::new(), scratch());
    let served = files.serve(&data, &[]);
    run(async {
        let stream = secure(&served.announced.http, &shown, b"http/1.1").await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        for expected in ["1", "2"] {
            let request = Request::post("/counter/x/increment").header("host", "localhost");
            let answer =
                sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), expected);
        }
    });
    served.stop();
    let served = serve_with(&data, &[]);
    run(async {
        let stream = TcpStream::connect(&served.announced.http).await.unwrap();
        let sender = http2(stream).await;
        let request = Request::get("http://localhost/counter/x");
        assert_eq!(ask(&sender, request).await, (StatusCode::OK, "2".to_owned()));
    });
    served.stop();
}

#[test]
fn websockets_come_by_tls() {
    let ((files, shown), (_folder, data)) = (Files::new(), scratch());
    let served = files.serve(&data, &[]);
    run(async {
        use futures::{SinkExt, StreamExt};
        let stream = secure(&served.announced.http, &shown, b"http/1.1").await.unwrap();
        let request = "wss://localhost/api/room/x/websocket".into_client_request().unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        socket.send(Message::text(r#"{"name": "a"}"#)).await.unwrap();
        let first = socket.next().await.unwrap().unwrap();
        assert!(first.to_text().unwrap().contains("joined"), "{first:?}");
    });
    let (code, _, stderr) = served.stop();
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn a_client_that_speaks_in_the_clear_is_told_so() {
    let ((files, _), (_folder, data)) = (Files::new(), scratch());
    let served = files.serve(&data, &[]);
    let answer = get(&served.announced.http, "/counter/x");
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("https://"), "{}", answer.body);
}

#[test]
fn sighup_reads_the_certificate_again_and_a_bad_one_changes_nothing() {
    let ((files, first), (_folder, data)) = (Files::new(), scratch());
    let served = files.serve(&data, &[]);
    let address = &served.announced.http;
    let shows = |shown: &CertificateDer<'static>| run(secure(address, shown, b"h2")).is_ok();
    let told = |word: &str| {
        served.signal("HUP");
        eventually("a line about it", || served.stderr().contains(word).then_some(()));
    };
    assert!(shows(&first));
    fs::write(files.path("key.pem"), "nonsense").unwrap();
    told("stays the one that it was");
    assert!(shows(&first));
    let second = files.replace();
    assert!(!shows(&second), "nobody has said so");
    told("the certificate that is in the file now");
    assert!(shows(&second) && !shows(&first));
    assert!(!served.stderr().contains("PRIVATE"), "{}", served.stderr());
}

#[test]
fn a_certificate_that_cant_be_used_is_refused_at_the_start() {
    let ((files, _), (_folder, data)) = (Files::new(), scratch());
    let [chain_flag, chain, key_flag, key] = files.flags();
    let start = |args: &[&str]| refused_start(serve_command(&data, args));
    let (code, says) = start(&[&chain_flag, &chain]);
    assert_eq!(code, Some(2), "{says}");
    assert!(says.contains("--http-tls-key"), "{says}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let (_, says) = start(&[&chain_flag, &chain, &key_flag, &key]);
    assert!(says.contains("chmod o="), "{says}");
    let (_, says) = start(&[&chain_flag, &chain, &key_flag, &chain]);
    assert!(says.contains("chain.pem"), "{says}");
    let (_, says) = start(&["--http-proxy", "nobody"]);
    assert!(says.contains("nobody"), "{says}");
    assert!(!data.exists(), "nothing was made");
}

/// The size of a large response.
const LARGE_BYTES: usize = 1 << 20;

/// Says what an object sees of a request.
struct Mirror;

impl Object for Mirror {
    const CLASS: &'static str = "Counter";
    type Client = counter::Client;

    async fn wake(_: Context) -> capstead::Result<Self> {
        Ok(Self)
    }
}

impl counter::Server for Mirror {}

impl http_service::Server for Mirror {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> capstead::Result<()> {
        let answer = async |request: http::Request<Body>| {
            let said = |name: &str| {
                let all = request.headers().get_all(name).iter();
                all.map(|value| value.to_str().unwrap()).collect::<Vec<_>>().join("|")
            };
            if request.uri().path() == "/large" {
                return Ok(http::text(StatusCode::OK, "x".repeat(LARGE_BYTES)));
            }
            let peer = http::peer(&request).unwrap();
            let names = ["host", "cookie", "forwarded", "x-forwarded-for", "x-forwarded-proto"];
            let names = names.map(said).join(" ");
            Ok(http::text(StatusCode::OK, format!("{peer} {names}")))
        };
        http::serve(params, results, answer).await
    }
}

fn mirrored(proxies: &[&str], raw: &str) -> String {
    let data = tempfile::tempdir().unwrap();
    run(async {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::new(data.path().join("data")).class::<Mirror>();
        let server = proxies
            .iter()
            .fold(server.listen(any).http(any), |server, proxy| server.http_proxy(*proxy));
        let running = server.start().await.unwrap();
        let address = running.http().unwrap().to_string();
        let raw = raw.to_owned();
        let asked = tokio::task::spawn_blocking(move || {
            let mut http = Http::connect(&address);
            http.send(
                format!("GET /counter/x HTTP/1.1\r\nHost: localhost\r\n{raw}\r\n").as_bytes(),
            );
            http.answer("GET").body
        });
        let body = asked.await.unwrap();
        running.until(async {}).await.unwrap();
        body
    })
}

#[test]
fn a_proxy_that_was_named_says_who_its_client_is() {
    let said = "Forwarded: for=198.51.100.1\r\nX-Forwarded-For: 203.0.113.9, 198.51.100.1\r\nX-Forwarded-Proto: https\r\n";
    assert_eq!(mirrored(&[], said), "127.0.0.1 localhost    ");
    assert_eq!(
        mirrored(&["127.0.0.0/8"], said),
        "198.51.100.1 localhost  for=198.51.100.1 203.0.113.9, 198.51.100.1 https"
    );
    assert_eq!(mirrored(&["192.0.2.0/24"], said), "127.0.0.1 localhost    ");
}

#[test]
fn a_client_of_http2_may_take_its_time_at_the_pace() {
    let data = tempfile::tempdir().unwrap();
    run(async {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::new(data.path().join("data")).class::<Mirror>();
        let mut limits = capstead::HttpLimits::default();
        limits.head = Duration::from_secs(1);
        let running = server.listen(any).http(any).http_limits(limits).start().await.unwrap();
        let stream = TcpStream::connect(running.http().unwrap()).await.unwrap();
        let mut sender = http2(stream).await;
        let request = Request::get("http://localhost/counter/x/large").version(Version::HTTP_2);
        let answer = sender.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
        let (mut body, mut read) = (answer.into_body(), 0);
        while let Some(frame) = body.frame().await {
            read += frame.unwrap().into_data().unwrap().len();
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        assert_eq!(read, LARGE_BYTES, "it was cut off");
        drop(sender);
        running.until(async {}).await.unwrap();
    });
}

#[test]
fn a_client_cant_hide_its_address() {
    let said = "Connection: capstead-peer\r\nCapstead-Peer: 192.0.2.1\r\n";
    assert_eq!(mirrored(&[], said), "127.0.0.1 localhost    ");
}

#[test]
fn classes_see_http2_as_http1() {
    let data = tempfile::tempdir().unwrap();
    run(async {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::new(data.path().join("data")).class::<Mirror>();
        let running = server.listen(any).http(any).start().await.unwrap();
        let stream = TcpStream::connect(running.http().unwrap()).await.unwrap();
        let sender = http2(stream).await;
        let request = Request::get("http://localhost/counter/x")
            .header("cookie", "a=1")
            .header("cookie", "b=2");
        assert_eq!(ask(&sender, request).await.1, "127.0.0.1 localhost a=1; b=2   ");
        drop(sender);
        running.until(async {}).await.unwrap();
    });
}

/// Clients end a stream as malformed if the answer to a HEAD has a body.
#[test]
fn a_head_has_no_body_over_http2_whoever_answers() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--json-calls", "on"]);
    run(async {
        let stream = TcpStream::connect(&served.announced.http).await.unwrap();
        let sender = http2(stream).await;
        for (path, status) in [
            ("/nothing", 404),
            ("/nobody/x", 404),
            ("/counter/x", 200),
            ("/counter/x/gone", 404),
            ("/json/Counter", 200),
            ("/json/Nobody", 404),
            ("/counter/x/live", 426),
        ] {
            let request = |method: &str| {
                let uri = format!("http://localhost{path}");
                Request::builder().method(method).uri(uri).body(Empty::<Bytes>::new()).unwrap()
            };
            let mut lengths = Vec::new();
            for method in ["GET", "HEAD"] {
                let answer = sender.clone().send_request(request(method)).await.unwrap();
                assert_eq!(answer.status(), status, "{method} {path}");
                let said = answer.headers().get("content-length").cloned();
                let body = answer.into_body().collect().await.expect("it is well formed");
                let length = body.to_bytes().len();
                lengths.push(said.map_or(length.to_string(), |said| {
                    said.to_str().expect("it is a number").to_owned()
                }));
                assert!(method == "GET" || length == 0, "{path} has a body");
            }
            assert_eq!(lengths[0], lengths[1], "{path}");
        }
    });
    served.stop();
}

#[test]
fn a_client_that_asks_too_often_is_told_when_to_come_back() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--http-requests", "5"]);
    let mut http = Http::connect(&served.announced.http);
    let answers: Vec<Response> = (0..50).map(|_| http.ask("GET", "/counter/x")).collect();
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!(answers[..5].iter().all(|answer| answer.status == 200));
    assert!(refused.len() >= 20, "{}", refused.len());
    assert!(refused.iter().all(|answer| answer.header("retry-after") == Some("1")));
    eventually("a place for one more", || {
        (http.ask("GET", "/counter/x").status == 200).then_some(())
    });
}
