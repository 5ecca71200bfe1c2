//! Attacks by HTTP, and by HTTP requests over Cap'n Proto: unfinished requests, unread responses,
//! and an endless number of names.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capstead::counter_capnp::counter;
use capstead::http::{self, Body, Request, StatusCode, http_service};
use capstead::{Context, Object, Result, Server, Stored};
use capstead_client::http_capnp::HttpMethod;

use super::class::{Exclusive, Passer, Plain};
use super::fortress::{COUNTERS, withstands, withstands_from};
use super::strangers::allow_connections;
use crate::support::calls::{by_name, connect, run};
use crate::support::http::{Http, get};
use crate::support::{DEADLINE, Served, eventually, now, own};

/// The bytes of bodies that HTTP holds in memory by default.
const BODY_BYTES: u64 = 256 << 20;

/// Counters whose answer to a GET has the size that is asked for.
struct Large(Stored<i64>);

impl Object for Large {
    const CLASS: &'static str = "Counter";
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self(ctx.stored("value")?))
    }
}

impl counter::Server for Large {
    async fn increment(
        self: Rc<Self>,
        params: counter::IncrementParams,
        mut results: counter::IncrementResults,
    ) -> Result<()> {
        self.0.set(self.0.get() + params.get()?.get_by())?;
        results.get().set_value(self.0.get());
        Ok(())
    }
}

impl http_service::Server for Large {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        let answer = async |request: Request<Body>| {
            let bytes = http::query(&request, "bytes").map_or(Ok(0), |bytes| bytes.parse());
            let body = "x".repeat(bytes.unwrap_or_default());
            Ok(http::text(StatusCode::OK, body))
        };
        http::serve(params, results, answer).await
    }
}

#[test]
fn a_server_for_slow_readers() {
    let Some(data) = own::data() else { return };
    let hosts = std::env::var("CAPSTEAD_TEST_HOSTS").map_or(1, |hosts| hosts.parse().unwrap());
    let server = Server::new(data).class::<Large>();
    let server = server.class::<Passer<Plain>>().class::<Passer<Exclusive>>();
    own::serve(server.hosts(hosts));
}

pub(crate) fn serve_large(data: &Path) -> Command {
    own::program("over_http::a_server_for_slow_readers", data)
}

/// Sends the bytes, as far as they are accepted within a moment.
fn begin(served: &Served, raw: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(&served.announced.http).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    // The server may have ended the connection by now.
    let _ = stream.write_all(raw);
    stream
}

/// Reads the first bytes of the response, and no more.
fn begin_to_read(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.read_exact(&mut [0; 12]).unwrap();
}

const MANY: [&str; 4] = ["--http-connections", "2000", "--http-connections-per-peer", "2000"];

#[test]
fn bodies_that_stall() {
    allow_connections();
    withstands(&[&MANY[..], &["--http-body-bytes", "64MiB"]].concat(), |served| {
        let head = b"POST /counter/x/increment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 600000\r\n\r\n";
        let request = [&head[..], &vec![b'x'; 300_000]].concat();
        let mut held = Vec::new();
        for _ in 0..12 {
            held.extend((0..100).map(|_| begin(served, &request)));
            assert_eq!(get(&served.announced.http, "/counter/y").status, 200);
        }
        eventually("the refusals", || {
            (served.metric("http_bodies_refused_total") >= 100).then_some(())
        });
        // Small bodies beyond it are allowed too, and the objects have room of their own.
        let most = ((64 + 128) << 20) + held.len() as u64 * (64 << 10);
        assert!(served.metric("http_body_bytes") <= most);
        // Other clients are still served.
        let mut other = Http::connect(&served.announced.http);
        for _ in 0..500 {
            assert_eq!(other.ask("GET", "/counter/y").status, 200);
        }
    });
}

/// Each response could be sent as a whole if its client read it.
#[test]
fn large_responses_that_nobody_reads() {
    withstands_from(serve_large, |served| {
        let before = served.resident_bytes();
        let request = b"GET /counter/x?bytes=6000000 HTTP/1.1\r\nHost: localhost\r\n\r\n";
        // All at once: the bytes on their way from another host take memory too.
        let mut held: Vec<_> = (0..150).map(|_| begin(served, request)).collect();
        held.iter_mut().for_each(begin_to_read);
        eventually("the refusals", || {
            (served.metric("http_bodies_refused_total") >= 50).then_some(())
        });
        assert!(served.metric("http_body_bytes") <= BODY_BYTES);
        // Also counts the bytes on their way between hosts, and those that the allocator keeps.
        let taken = served.resident_bytes() - before;
        assert!(taken < 3 * BODY_BYTES, "{} MiB", taken >> 20);
        assert_eq!(get(&served.announced.http, "/counter/y?bytes=60000").status, 200);
        drop(held);
        eventually("room", || (served.metric("http_body_bytes") < 1 << 20).then_some(()));
        assert_eq!(get(&served.announced.http, "/counter/x?bytes=6000000").status, 200);
    });
}

#[test]
fn heads_that_are_begun() {
    allow_connections();
    withstands(&[&MANY[..], &["--http-head", "3s"]].concat(), |served| {
        let head = [&b"GET /counter/x HTTP/1.1\r\nHost: localhost\r\nx: "[..], &vec![b'x'; 30_000]]
            .concat();
        let held: Vec<_> = (0..1200).map(|_| begin(served, &head)).collect();
        assert_eq!(get(&served.announced.http, "/counter/y").status, 200);
        eventually("their end", || (served.metric("http_connections") < 10).then_some(()));
        drop(held);
    });
}

/// A client that leaves before the end of its request leaves nothing behind.
#[test]
fn bodies_over_rpc_whose_callers_go() {
    const ROUNDS: usize = 6;
    const BODIES: usize = 100;
    withstands(&["--warm", "100ms"], |served| {
        let before = served.resident_bytes();
        for _ in 0..ROUNDS {
            run(async {
                let (connection, counters) = connect(served).await;
                let begun: Vec<_> =
                    (0..BODIES).map(|number| begin_body(&counters, number)).collect();
                // One answer shows that everything before it was read.
                crate::support::calls::read(&by_name(&counters, "last")).await.unwrap();
                connection.disconnect().await;
                drop(begun);
            });
        }
        eventually("the end of the bodies", || {
            (served.metric("objects_awake") <= COUNTERS as u64).then_some(())
        });
        assert!(served.resident_bytes() < before + (256 << 20));
    });
}

fn begin_body(counters: &capstead_client::namespace::Client, number: usize) -> impl Sized + use<> {
    let object: http_service::Client = by_name(counters, &number.to_string()).cast_to();
    let mut call = object.request_request();
    let mut request = call.get().init_request();
    request.set_method(HttpMethod::Post);
    request.set_url("/increment");
    request.get_body_size().set_unknown(());
    let sent = call.send();
    let mut write = sent.pipeline.get_request_body().write_request();
    write.get().init_bytes(500_000);
    (sent, write.send())
}

/// Each name is an object that wakes, and is never asked for again.
#[test]
fn names_without_end() {
    const CLIENTS: usize = 4;
    const AWAKE: u64 = 4000;
    const IN_A_ROW: usize = 16;
    let most = AWAKE.to_string();
    withstands(&["--awake-objects", &most], |served| {
        let before = served.resident_bytes();
        let until = now() + Duration::from_secs(6);
        let asked: usize = std::thread::scope(|scope| {
            let ask = |client: usize| {
                let mut http = Http::connect(&served.announced.http);
                let mut asked = 0;
                while now() < until {
                    let names = (asked..asked + IN_A_ROW).map(|name| {
                        format!("GET /counter/{client}-{name} HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    });
                    http.send(names.collect::<String>().as_bytes());
                    for _ in 0..IN_A_ROW {
                        assert_eq!(http.answer("GET").status, 200);
                    }
                    asked += IN_A_ROW;
                }
                asked
            };
            let clients: Vec<_> =
                (0..CLIENTS).map(|client| scope.spawn(move || ask(client))).collect();
            clients.into_iter().map(|client| client.join().unwrap()).sum()
        });
        assert!(asked as u64 > 2 * AWAKE, "{asked} were too few for the bound");
        let awake = served.metric("objects_awake");
        assert!(awake <= AWAKE + 64, "{awake} objects are awake");
        let grown = served.resident_bytes().saturating_sub(before);
        assert!(grown < 128 << 20, "{asked} names took {grown} bytes");
    });
}
