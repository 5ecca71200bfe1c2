//! The same promises by each protocol: HTTP/1.1 and HTTP/2, with TLS, and Cap'n Proto by `wss`.

use std::process::Command;
use std::time::Duration;

use capstead_client::Connection;
use futures::future::join_all;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2 as two};
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::https::{Files, ask, http2, request, secure};
use crate::support::calls::{by_name, increment, run};
use crate::support::{scratch, serve, serve_with};

/// A connection by one of the protocols.
enum Sender {
    One(http1::SendRequest<Empty<Bytes>>),
    Two(two::SendRequest<Empty<Bytes>>),
}

impl Sender {
    /// The status, the head and the body of what is at this path.
    async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap, Bytes) {
        let request = match self {
            Self::One(_) => Request::get(path).header("host", "localhost"),
            Self::Two(_) => Request::get(format!("https://localhost{path}")),
        };
        let request = headers.iter().fold(request, |all, (name, value)| all.header(*name, *value));
        let request = request.body(Empty::new()).unwrap();
        let answer = match self {
            Self::One(sender) => sender.send_request(request).await,
            Self::Two(sender) => sender.send_request(request).await,
        };
        let (head, body) = answer.unwrap().into_parts();
        (head.status.as_u16(), head.headers, body.collect().await.unwrap().to_bytes())
    }
}

#[test]
fn a_file_of_a_class_is_sent_whole_packed_in_part_or_not_again() {
    let ((files, shown), (_folder, data)) = (Files::new(), scratch());
    let served = files.serve(&data, &["--hosts", "2"]);
    for is_two in [false, true] {
        run(async {
            let protocol = if is_two { &b"h2"[..] } else { b"http/1.1" };
            let stream = secure(&served.announced.http, &shown, protocol).await.unwrap();
            let mut sender = if is_two {
                Sender::Two(http2(stream).await)
            } else {
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
                tokio::spawn(connection);
                Sender::One(sender)
            };
            let (status, head, whole) = sender.get("/chat", &[]).await;
            assert_eq!((status, &head["accept-ranges"] == "bytes"), (200, true));
            assert_eq!(head["content-length"], whole.len().to_string());
            let tag = head["etag"].to_str().unwrap().to_owned();
            let (status, head, packed) = sender.get("/chat", &[("accept-encoding", "gzip")]).await;
            assert_eq!((status, &head["content-encoding"] == "gzip"), (200, true));
            let mut unpacked = Vec::new();
            let mut decoder = flate2::read::GzDecoder::new(&packed[..]);
            std::io::Read::read_to_end(&mut decoder, &mut unpacked).unwrap();
            assert!(unpacked == whole, "it is the same page");
            for known in [tag.as_str(), head["etag"].to_str().unwrap()] {
                let gzip = if known == tag { "identity" } else { "gzip" };
                let asked = [("if-none-match", known), ("accept-encoding", gzip)];
                let (status, head, body) = sender.get("/chat", &asked).await;
                assert_eq!((status, head["etag"] == known, body.len()), (304, true, 0));
            }
            // A download that broke off goes on.
            let rest = format!("bytes={}-", 100);
            let asked = [("range", rest.as_str()), ("if-range", &tag), ("accept-encoding", "gzip")];
            let (status, head, part) = sender.get("/chat", &asked).await;
            let place = format!("bytes 100-{}/{}", whole.len() - 1, whole.len());
            assert_eq!((status, head["content-range"] == *place), (206, true));
            assert!(part == whole[100..], "the rest of it");
            let beyond = format!("bytes={}-", whole.len());
            let (status, head, body) = sender.get("/chat", &[("range", &beyond)]).await;
            let place = format!("bytes */{}", whole.len());
            assert_eq!((status, head["content-range"] == *place, body.len()), (416, true, 0));
        });
    }
    served.stop();
}

/// The requests of a connection are answered when the server is told to end, and it says that it
/// takes no more.
#[test]
fn requests_of_http2_are_answered_when_the_server_is_asked_to_end() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--commit-delay", "200"]);
    run(async {
        let before = served.metric("calls_total");
        let stream = TcpStream::connect(&served.announced.http).await.unwrap();
        let sender = http2(stream).await;
        let post = || ask(&sender, Request::post("http://localhost/counter/x/increment"));
        let end = async {
            while served.metric("calls_total") < before + 20 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            served.signal("TERM");
        };
        let (answers, ()) = futures::join!(join_all((0..20).map(|_| post())), end);
        let mut values: Vec<u64> =
            answers.iter().map(|(_, value)| value.parse().unwrap()).collect();
        values.sort_unstable();
        assert_eq!(values, (1..=20).collect::<Vec<_>>());
        let late = request("GET", "/counter/x").body(Empty::<Bytes>::new()).unwrap();
        assert!(sender.clone().send_request(late).await.is_err(), "it was told to go away");
    });
    let (code, _, stderr) = served.wait();
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(crate::support::http::get(&serve(&data).announced.http, "/counter/x").body, "20");
}

/// Tells the other process, which trusts the gateway, what to restore.
const TO_RESTORE: &str = "CAPSTEAD_TEST_WSS_REFERENCE";
/// The URL of its gateway.
const GATEWAY: &str = "CAPSTEAD_TEST_WSS_GATEWAY";

/// The dialling is in a process of its own, since the roots of a machine are for a whole process.
#[test]
fn cap_n_proto_goes_by_wss_where_the_gateway_proves_its_name() {
    if let (Ok(text), Ok(url)) = (std::env::var(TO_RESTORE), std::env::var(GATEWAY)) {
        return run(async {
            let connection = Connection::dial(&url).await.unwrap();
            let counters = connection.restore(&text).unwrap();
            assert_eq!(increment(&by_name(&counters, "x")).await.unwrap(), 1);
        });
    }
    let ((files, _), (_folder, data)) = (Files::new(), scratch());
    let served = files.serve(&data, &[]);
    let port = served.announced.http.rsplit(':').next().unwrap();
    let dial = |roots: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = "protocols::cap_n_proto_goes_by_wss_where_the_gateway_proves_its_name";
        command.args(["--exact", name]).env("SSL_CERT_FILE", roots).env_remove("SSL_CERT_DIR");
        command.env(TO_RESTORE, served.counters());
        command.env(GATEWAY, format!("wss://localhost:{port}/capnp"));
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let (other, _) = Files::new();
    let (is_believed, said) = dial(other.path("chain.pem").to_str().unwrap());
    assert!(!is_believed, "nobody vouches for it: {said}");
    let (is_believed, said) = dial(files.path("chain.pem").to_str().unwrap());
    assert!(is_believed, "{said}");
    assert!(said.contains("1 passed"), "{said}");
    served.stop();
}
