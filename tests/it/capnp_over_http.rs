//! Cap'n Proto over a WebSocket of the gateway: all that a connection does by TCP, with the same
//! limits, and no page of another origin.

use std::cell::RefCell;
use std::rc::Rc;

use capnp::capability::FromClientHook;
use capstead::http::StatusCode;
use capstead::{Result, Running, Server};
use capstead_client::{Connection, namespace};
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::class::{Passer, Plain};
use crate::passing_capnp::passer;
use crate::routes::start as start_with;
use crate::support::calls::{by_name, increment, revoke, run, save};
use crate::support::http::get;
use crate::support::{Served, raw, scratch, serve, serve_with};

fn with_server(hosts: u16, work: impl AsyncFnOnce(&Running, Connection, namespace::Client)) {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let running = start(&data, hosts).await;
        let connection = Connection::dial(&url(&running)).await.unwrap();
        let all = connection.restore(&running.namespaces()["Plain"]).unwrap();
        work(&running, connection, all).await;
        running.until(async {}).await.unwrap();
    });
}

async fn start(data: &tempfile::TempDir, hosts: u16) -> Running {
    let any = "127.0.0.1:0".parse().unwrap();
    let server = Server::new(data.path().join("data")).class::<Passer<Plain>>().hosts(hosts);
    server.capnp_over_http().listen(any).http(any).start().await.unwrap()
}

fn url(running: &Running) -> String {
    format!("ws://{}/capnp", running.http().unwrap())
}

fn passer(all: &namespace::Client, name: &str) -> passer::Client {
    let mut request = all.by_name_request();
    request.get().set_key(name);
    request.send().pipeline.get_object().as_cap().cast_to()
}

/// A client's own capability, which notes by which number it was called.
#[derive(Default)]
struct Called(RefCell<Vec<u64>>);

impl passer::Server for Called {
    async fn note(
        self: Rc<Self>,
        params: passer::NoteParams,
        mut results: passer::NoteResults,
    ) -> Result<()> {
        let n = params.get()?.get_n();
        self.0.borrow_mut().push(n);
        results.get().set_n(n);
        Ok(())
    }
}

#[test]
fn a_client_restores_pipelines_and_is_called_back() {
    for hosts in [1, 2, 4] {
        with_server(hosts, async |_, _connection, all| {
            for name in 0..8 {
                let object = passer(&all, &name.to_string());
                let called = Rc::new(Called::default());
                let mut call = object.call_request();
                call.get().set_on(capstead_client::capability(called.clone()));
                call.get().set_count(50);
                call.send().promise.await.unwrap();
                assert_eq!(*called.0.borrow(), (0..50).collect::<Vec<_>>(), "{hosts} hosts");
                // A path into an answer that isn't there yet.
                let mut echo = object.echo_request();
                echo.get().set_cap(passer(&all, "other"));
                let mut note = echo.send().pipeline.get_cap().note_request();
                note.get().set_n(7);
                assert_eq!(note.send().promise.await.unwrap().get().unwrap().get_n(), 7);
            }
        });
    }
}

/// Messages that are larger than those of the WebSocket.
#[test]
fn large_messages_go_in_several_both_ways() {
    with_server(2, async |_, _connection, all| {
        for name in ["a", "b", "c"] {
            let object = passer(&all, name);
            let mut large = object.large_request();
            large.get().set_bytes(3 << 20);
            let large = large.send().promise.await.unwrap();
            assert_eq!(large.get().unwrap().get_data().unwrap().len(), 3 << 20);
            let mut take = object.take_request();
            take.get().set_data(&vec![1; 3 << 20]);
            take.send().promise.await.unwrap();
        }
    });
}

#[test]
fn the_end_of_the_server_is_told() {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let running = start(&data, 2).await;
        let connection = Connection::dial(&url(&running)).await.unwrap();
        let all: namespace::Client = connection.restore(&running.namespaces()["Plain"]).unwrap();
        passer(&all, "x").note_request().send().promise.await.unwrap();
        running.until(async {}).await.unwrap();
        let reason = connection.closed().await;
        assert!(reason.extra.contains("the server is shutting down"), "{reason}");
        let late = passer(&all, "x").note_request().send().promise.await.err().unwrap();
        assert_eq!(late.kind, capnp::ErrorKind::Disconnected);
    });
}

#[test]
fn a_revoked_reference_is_refused_at_once() {
    let (_folder, data) = scratch();
    let served = serve(&data);
    run(async {
        let url = format!("ws://{}/capnp", served.announced.http);
        let owner = Connection::dial(&url).await.unwrap();
        let counters: namespace::Client = owner.restore(served.counters()).unwrap();
        let text = save(&by_name(&counters, "x"), "guest").await;
        let guest = Connection::dial(&url).await.unwrap();
        let counter = guest.restore(&text).unwrap();
        assert_eq!(increment(&counter).await.unwrap(), 1);
        revoke(&by_name(&counters, "x"), "guest").await;
        for counter in [counter, guest.restore(&text).unwrap()] {
            let error = increment(&counter).await.unwrap_err();
            assert!(error.extra.contains("revoked:"), "{error}");
        }
    });
}

type Socket = WebSocketStream<TcpStream>;

/// Opens a bare WebSocket, with an origin if it isn't empty.
async fn open(address: &str, path: &str, origin: &str) -> std::result::Result<Socket, StatusCode> {
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    if !origin.is_empty() {
        request.headers_mut().append("origin", origin.parse().unwrap());
    }
    let stream = TcpStream::connect(address).await.unwrap();
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(answer)) => Err(answer.status()),
        Err(error) => panic!("{error}"),
    }
}

/// The code of the close frame, and what came before it.
async fn closed(socket: &mut Socket) -> (u16, Vec<u8>) {
    let mut came = Vec::new();
    loop {
        match socket.next().await {
            Some(Ok(Message::Binary(bytes))) => came.extend_from_slice(&bytes),
            Some(Ok(Message::Close(frame))) => return (frame.unwrap().code.into(), came),
            other => panic!("a close frame was to come, and not {other:?}"),
        }
    }
}

#[test]
fn a_page_of_another_origin_speaks_no_capnp() {
    let check = |served: &Served, path: &str, ours: &str| {
        run(async {
            let address = &served.announced.http;
            for origin in ["https://evil.example", "null", "http://localhost:1"] {
                let refused = open(address, path, origin).await.err();
                assert_eq!(refused, Some(StatusCode::FORBIDDEN), "{origin}");
            }
            for origin in ["", &format!("http://{address}"), ours] {
                open(address, path, origin).await.unwrap();
            }
        });
    };
    let (_folder, data) = scratch();
    let ours = "https://app.example";
    check(&serve_with(&data, &["--http-origin", ours]), "/capnp", ours);
    let row = "[[route]]\npath = \"/rpc\"\nkind = \"capnp\"\norigins = [\"https://app.example\"]\n";
    let (served, _folder) = start_with(row);
    check(&served, "/rpc", ours);
    run(async {
        let refused = open(&served.announced.http, "/capnp", "").await.err();
        assert_eq!(refused, Some(StatusCode::NOT_FOUND));
        let connection = format!("ws://{}/rpc", served.announced.http);
        let connection = Connection::dial(&connection).await.unwrap();
        let counters = connection.restore(served.counters()).unwrap();
        assert_eq!(increment(&by_name(&counters, "x")).await.unwrap(), 1);
    });
}

#[test]
fn what_is_no_cap_n_proto_is_closed_with_its_code() {
    let (_folder, data) = scratch();
    let served = serve(&data);
    let address = &served.announced.http;
    run(async {
        for (message, code) in
            [(Message::text("capstead://"), 1003), (Message::binary(vec![0; (64 << 10) + 1]), 1009)]
        {
            let mut socket = open(address, "/capnp", "").await.unwrap();
            socket.send(message).await.unwrap();
            assert_eq!(closed(&mut socket).await.0, code);
        }
        // Bytes that are no message end as they do by TCP: with the reason.
        let mut socket = open(address, "/capnp", "").await.unwrap();
        socket.send(Message::binary(vec![0xff; 64])).await.unwrap();
        let (code, came) = closed(&mut socket).await;
        assert_eq!(code, 1000);
        let reason = raw::reason_of_end(&*came).unwrap();
        assert!(reason.contains("segments is refused"), "{reason}");
    });
    let plain = get(address, "/capnp");
    assert_eq!((plain.status, plain.header("upgrade")), (426, Some("websocket")));
}

#[test]
fn strangers_have_the_same_time_and_places_as_by_tcp() {
    let (_folder, data) = scratch();
    let limits = ["--limit", "stranger-time=300ms", "--limit", "connections-per-peer=1"];
    let served = serve_with(&data, &limits);
    let address = &served.announced.http;
    run(async {
        let mut socket = open(address, "/capnp", "").await.unwrap();
        let refused = open(address, "/capnp", "").await.err();
        assert_eq!(refused, Some(StatusCode::SERVICE_UNAVAILABLE));
        let (_, came) = closed(&mut socket).await;
        let reason = raw::reason_of_end(&*came).unwrap();
        assert!(reason.contains("no reference was shown"), "{reason}");
    });
    assert_eq!((served.bites("stranger-time"), served.bites("connections-per-peer")), (1, 1));
}

#[test]
fn it_is_spoken_on_this_machine_alone_unless_it_is_turned_on() {
    for (flags, expected) in [
        (&["--http", "0.0.0.0:0"][..], Some(StatusCode::NOT_FOUND)),
        (&["--http", "0.0.0.0:0", "--capnp-over-http", "on"], None),
        (&["--capnp-over-http", "off"], Some(StatusCode::NOT_FOUND)),
        (&[], None),
    ] {
        let (_folder, data) = scratch();
        let served = serve_with(&data, flags);
        let port = served.announced.http.rsplit(':').next().unwrap();
        run(async {
            let opened = open(&format!("127.0.0.1:{port}"), "/capnp", "").await;
            assert_eq!(opened.err(), expected, "{flags:?}");
        });
    }
}
