//! The share that each reference has of a route: requests and open WebSockets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::routes::routes_file;
use crate::support::calls::{by_name, connect, run, save};
use crate::support::exchange::{Answer, exchange};
use crate::support::{Served, eventually, now, scratch, serve, serve_with};
use capstead_client::sturdyref::{Caveats, TextReference};
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};

const ROUTES: &str = r#"
[[route]]
path = "/mine/*"
access = "bearer"
rate = 1
burst = 4
[[route]]
path = "/call/*"
kind = "json"
class = "Counter"
access = "bearer"
rate = 1
burst = 4
[[route]]
path = "/live"
access = "bearer"
url = "/live"
sockets = 2
[[route]]
path = "/all/{name}/*"
class = "Counter"
name = "{name}"
access = "public"
rate = 1
burst = 4
sockets = 2
[[route]]
path = "/capnp"
kind = "capnp"
sockets = 1
"#;
const BURST: usize = 4;

/// A server with the routes, and references to so many counters.
fn start(hosts: &str, counters: usize) -> (Served, TempDir, Vec<String>) {
    let (folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", hosts]);
    let texts = run(async {
        let (_connection, all) = connect(&served).await;
        let mut texts = Vec::new();
        for number in 0..counters {
            texts.push(save(&by_name(&all, &format!("n{number}")), "").await);
        }
        texts
    });
    served.stop();
    let file = routes_file(&folder, ROUTES);
    let flags = ["--hosts", hosts, "--routes", file.to_str().unwrap()];
    (serve_with(&data, &flags), folder, texts)
}

fn narrowed(text: &str, at: u64) -> String {
    let parsed = TextReference::parse(text).unwrap();
    let narrow = parsed.reference().narrow(&Caveats::not_after(u64::MAX - at)).unwrap();
    parsed.expose_text_of(&narrow).unwrap()
}

/// A request by a new connection from one of the addresses of this machine.
async fn ask(served: &Served, from: u8, head: &str) -> (Answer, TcpStream) {
    let to: SocketAddr = served.announced.http.parse().unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((IpAddr::V4(Ipv4Addr::new(127, 0, 0, from)), 0).into()).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    let request = format!("{head}host: localhost\r\n\r\n");
    let answer = exchange(&mut stream, request.as_bytes()).await;
    (answer, stream)
}

fn bearer(path: &str, text: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\ncontent-length: 0\r\naccept: application/json\r\n\
         authorization: Bearer {text}\r\n"
    )
}

/// Asks until it is refused. At least as many come in as may at once, and hardly more.
async fn until_refused(served: &Served, ask_once: impl AsyncFn(usize) -> Answer) {
    let (begun, before) = (now(), served.metric("http_route_shares_refused_total"));
    let mut came_in = 0;
    let refused = loop {
        let answer = ask_once(came_in).await;
        if answer.status != 200 {
            break answer;
        }
        came_in += 1;
    };
    let body = String::from_utf8(refused.body.clone()).unwrap();
    assert_eq!(refused.status, 429, "{body}");
    let (least, most) = (BURST, BURST + 1 + begun.elapsed().as_secs() as usize);
    assert!((least..=most).contains(&came_in), "{came_in} came in, and not {least} to {most}");
    assert!(refused.says(b"retry-after: 1\r\n"), "{body}");
    assert!(refused.says(b"content-type: application/problem+json\r\n"), "{body}");
    let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(problem["status"], 429);
    assert!(served.metric("http_route_shares_refused_total") > before);
}

/// The address, the host of the object, and caveats that a holder added make no new share.
#[test]
fn a_reference_has_its_rate_and_takes_none_of_others() {
    for hosts in ["1", "2", "4"] {
        let (served, _folder, texts) = start(hosts, 6);
        run(async {
            let ask = async |at: usize, path: &str, text: &str| {
                ask(&served, 1 + (at % 5) as u8, &bearer(path, text)).await.0
            };
            for text in &texts {
                let by = async |at| ask(at, "/mine/increment", &narrowed(text, at as u64)).await;
                until_refused(&served, by).await;
                // Another row, and another reference, have their own.
                until_refused(&served, async |at| ask(at, "/call/read", text).await).await;
            }
        });
        served.stop();
    }
}

/// Nobody takes the share of a reference by making up others that look alike.
#[test]
fn references_that_are_not_good_take_nothing() {
    let (served, _folder, texts) = start("2", 1);
    let parsed = TextReference::parse(&texts[0]).unwrap();
    let forged = texts[0].replace(&texts[0][texts[0].len() - 20..], "AAAAAAAAAAAAAAAAAAAA");
    let same = TextReference::parse(&forged).unwrap().reference().payload_hash();
    assert!(same == parsed.reference().payload_hash() && forged != texts[0]);
    run(async {
        for at in 0..20 {
            let (answer, _) = ask(&served, 1 + at, &bearer("/mine/increment", &forged)).await;
            assert_eq!(answer.status, 401);
        }
        let ask = async |_| ask(&served, 1, &bearer("/mine/increment", &texts[0])).await.0;
        until_refused(&served, ask).await;
    });
}

#[test]
fn everybody_together_has_one_rate_where_no_reference_is_shown() {
    let (served, _folder, _) = start("2", 0);
    run(async {
        let ask = async |at: usize| {
            let head = format!("GET /all/n{at} HTTP/1.1\r\naccept: application/json\r\n");
            ask(&served, 1 + (at % 5) as u8, &head).await.0
        };
        until_refused(&served, ask).await;
    });
}

/// The place of one that was closed, or of a handshake that came to nothing, is free again.
#[test]
fn a_reference_has_so_many_sockets() {
    const SHAKE: &str = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for hosts in ["1", "2", "4"] {
        let (served, _folder, texts) = start(hosts, 3);
        let open = async |from: u8, path: &str, more: &str| {
            ask(&served, from, &format!("GET {path} HTTP/1.1\r\n{SHAKE}{more}")).await
        };
        run(async {
            for text in &texts {
                let shown = format!("authorization: Bearer {text}\r\n");
                for _ in 0..4 {
                    let refused = open(1, "/live", &shown.replace("Bearer", "Basic")).await;
                    assert_eq!(refused.0.status, 401);
                }
                let one = open(1, "/live", &shown).await;
                let two = open(2, "/live", &shown).await;
                assert_eq!((one.0.status, two.0.status), (101, 101));
                let three = open(3, "/live", &shown).await.0;
                assert_eq!(three.status, 429);
                assert!(three.says(b"retry-after: 5\r\n"));
                drop(one);
                eventually("one has ended", || (served.metric("http_sockets") < 2).then_some(()));
                while open(3, "/live", &shown).await.0.status != 101 {}
                drop(two);
                eventually("all have ended", || (served.metric("http_sockets") == 0).then_some(()));
            }
            let all = [open(1, "/all/x/live", "").await, open(2, "/all/y/live", "").await];
            assert_eq!([all[0].0.status, all[1].0.status], [101, 101]);
            assert_eq!(open(3, "/all/z/live", "").await.0.status, 429);
            let capnp = open(1, "/capnp", "").await;
            assert_eq!(capnp.0.status, 101);
            assert_eq!(open(2, "/capnp", "").await.0.status, 429);
            drop(capnp);
            while open(1, "/capnp", "").await.0.status != 101 {}
        });
        served.stop();
    }
}

/// Without a file of routes, or the keys in it, there is no bound.
#[test]
fn nobody_is_refused_unless_a_route_says_so() {
    let (_folder, data) = scratch();
    let served = serve(&data);
    run(async {
        for _ in 0..20 {
            let (answer, _) = ask(&served, 1, "GET /counter/x HTTP/1.1\r\n").await;
            assert_eq!(answer.status, 200);
        }
    });
}
