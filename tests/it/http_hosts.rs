//! Requests with bodies reach objects on every host, through the gateway and over RPC, and none of
//! them delays the end of the server.
#![allow(clippy::disallowed_methods, reason = "how long something takes is what is tested")]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::support::DEADLINE;
use crate::support::echo::Echo;
use crate::support::exchange::exchange;
use capnp::capability::FromClientHook;
use capstead::http::http_service;
use capstead::{Result, Running, Server};
use capstead_client::http_capnp::http_service::client_request_context;
use capstead_client::http_capnp::{HttpMethod, byte_stream};
use capstead_client::{Connection, namespace};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// Every host has some of them.
const OBJECTS: usize = 12;
const LENGTHS: [usize; 4] = [0, 1, 70_000, 1 << 20];

/// Well below the 10 seconds that calls under way have at the end.
const END: Duration = Duration::from_secs(5);

/// Only one test at a time takes room for bodies, because that room is shared by the process.
static ROOM: Mutex<()> = Mutex::new(());

/// Runs `work` with a server on this number of hosts, and then ends it in order, at once.
fn with_server(hosts: u16, work: impl AsyncFnOnce(&Running) -> Vec<TcpStream>) {
    let data = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    let all = async {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::new(data.path().join("data")).class::<Echo>().hosts(hosts);
        let running = server.listen(any).http(any).start().await.unwrap();
        // The connections stay open during the end.
        let _streams = work(&running).await;
        let start = Instant::now();
        running.until(async {}).await.unwrap();
        assert!(start.elapsed() < END, "{hosts} hosts: the end takes {:?}", start.elapsed());
    };
    runtime.block_on(async { tokio::time::timeout(DEADLINE, all).await }).expect("it ends in time");
}

/// A request with a body used never to end when the object wasn't on the gateway's host, and
/// delayed the end of the server.
#[test]
fn the_gateway_hands_bodies_to_objects_on_every_host() {
    let _room = ROOM.lock().unwrap_or_else(PoisonError::into_inner);
    for hosts in [1, 2, 4] {
        with_server(hosts, async |running| {
            let mut streams = Vec::new();
            for object in 0..OBJECTS {
                let mut stream = TcpStream::connect(running.http().unwrap()).await.unwrap();
                for (method, length) in
                    LENGTHS.map(|length| ("POST", length)).into_iter().chain([("GET", 1)])
                {
                    let head = format!(
                        "{method} /echo/n{object}/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n"
                    );
                    let body = vec![b'x'; length];
                    let request = [head.as_bytes(), &body].concat();
                    let answer = exchange(&mut stream, &request).await;
                    assert_eq!(answer.status, 201, "{hosts} hosts");
                    let expected = [format!("{method} /a\n").as_bytes(), &body].concat();
                    assert!(answer.body == expected, "{hosts} hosts: {} bytes", answer.body.len());
                }
                streams.push(stream);
            }
            streams
        });
    }
}

/// A status and a body.
type Taken = (u16, Vec<u8>);

/// Collects the response to one request, and passes it on when its body has ended.
struct Taker {
    status: RefCell<u16>,
    body: RefCell<Vec<u8>>,
    whole: RefCell<Option<oneshot::Sender<Taken>>>,
}

impl client_request_context::Server for Taker {
    async fn start_response(
        self: Rc<Self>,
        params: client_request_context::StartResponseParams,
        mut results: client_request_context::StartResponseResults,
    ) -> Result<()> {
        *self.status.borrow_mut() = params.get()?.get_response()?.get_status_code();
        results.get().set_body(capstead_client::capability(self));
        Ok(())
    }
}

impl byte_stream::Server for Taker {
    async fn write(self: Rc<Self>, params: byte_stream::WriteParams) -> Result<()> {
        self.body.borrow_mut().extend_from_slice(params.get()?.get_bytes()?);
        Ok(())
    }

    async fn end(
        self: Rc<Self>,
        _: byte_stream::EndParams,
        _: byte_stream::EndResults,
    ) -> Result<()> {
        let whole = self.whole.take().expect("a body ends once");
        // The caller may have given up.
        let _ = whole.send((*self.status.borrow(), self.body.take()));
        Ok(())
    }
}

/// Puts a body in pieces, without waiting for the answers to the pieces or to the request.
async fn put(object: &http_service::Client, body: &[u8]) -> Taken {
    let (whole, response) = oneshot::channel();
    let whole = RefCell::new(Some(whole));
    let taker = Taker { status: RefCell::default(), body: RefCell::default(), whole };
    let mut request = object.request_request();
    request.get().set_context(capstead_client::capability(Rc::new(taker)));
    let mut head = request.get().init_request();
    head.set_method(HttpMethod::Put);
    head.set_url("/a");
    head.get_body_size().set_fixed(body.len() as u64);
    let sent = request.send();
    let to = sent.pipeline.get_request_body();
    let mut writes = Vec::new();
    for piece in body.chunks(16 << 10) {
        let mut write = to.write_request();
        write.get().set_bytes(piece);
        writes.push(write.send());
    }
    let end = (!body.is_empty()).then(|| to.end_request().send().promise);
    for write in writes {
        write.await.unwrap();
    }
    if let Some(end) = end {
        end.await.unwrap();
    }
    sent.promise.await.unwrap();
    response.await.unwrap()
}

/// The body's stream used not to be passed on from the object's host to the client's.
#[test]
fn a_client_hands_bodies_to_objects_on_every_host_before_they_answer() {
    let _room = ROOM.lock().unwrap_or_else(PoisonError::into_inner);
    for hosts in [1, 2, 4] {
        with_server(hosts, async |running| {
            let connection = Connection::dial(&running.capnp().to_string()).await.unwrap();
            let all: namespace::Client = connection.restore(&running.namespaces()["Echo"]).unwrap();
            for object in 0..OBJECTS {
                let mut request = all.by_name_request();
                request.get().set_key(format!("n{object}"));
                let object: http_service::Client =
                    request.send().pipeline.get_object().as_cap().cast_to();
                for length in LENGTHS {
                    let body = vec![b'x'; length];
                    let (status, answer) = put(&object, &body).await;
                    assert_eq!(status, 201, "{hosts} hosts");
                    let expected = [b"PUT /a\n", &body[..]].concat();
                    assert!(answer == expected, "{hosts} hosts: {} bytes", answer.len());
                }
            }
            Vec::new()
        });
    }
}

/// Unfinished bodies used to take memory for as long as the server lived.
#[test]
fn bodies_without_an_end_take_bounded_room_on_a_host() {
    let _room = ROOM.lock().unwrap_or_else(PoisonError::into_inner);
    const PIECE: usize = 1 << 20;
    with_server(1, async |running| {
        let connection = Connection::dial(&running.capnp().to_string()).await.unwrap();
        let all: namespace::Client = connection.restore(&running.namespaces()["Echo"]).unwrap();
        let mut request = all.by_name_request();
        request.get().set_key("x");
        let object: http_service::Client = request.send().pipeline.get_object().as_cap().cast_to();
        let mut open = Vec::new();
        for _ in 0..160 {
            let mut request = object.request_request();
            let whole = RefCell::new(Some(oneshot::channel().0));
            let taker = Taker { status: RefCell::default(), body: RefCell::default(), whole };
            request.get().set_context(capstead_client::capability(Rc::new(taker)));
            let mut head = request.get().init_request();
            head.set_method(HttpMethod::Put);
            head.set_url("/a");
            head.get_body_size().set_unknown(());
            let sent = request.send();
            let mut write = sent.pipeline.get_request_body().write_request();
            write.get().set_bytes(&vec![b'x'; PIECE]);
            drop(write.send());
            // A later call on the connection is answered only after the piece arrived.
            let mut request = all.by_name_request();
            request.get().set_key("y");
            request.send().promise.await.unwrap();
            open.push(sent);
        }
        let mut taken = 0;
        for sent in open {
            let end = sent.pipeline.get_request_body().end_request().send();
            taken += usize::from(end.promise.await.is_ok());
            drop(sent.promise.await);
        }
        assert_eq!(taken * PIECE, 128 << 20);
        let (status, answer) = put(&object, &vec![b'x'; PIECE]).await;
        assert_eq!((status, answer.len()), (201, PIECE + "PUT /a\n".len()));
        Vec::new()
    });
}
