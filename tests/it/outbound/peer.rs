//! Servers outside: good ones, and those that do what none should.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

/// A server on this thread.
#[derive(Clone)]
pub(super) struct Peer {
    /// Like `http://127.0.0.1:8080`.
    pub(super) origin: String,
    /// The first lines of requests that came.
    pub(super) seen: Rc<RefCell<Vec<String>>>,
    /// Connections that are open.
    pub(super) open: Rc<Cell<usize>>,
}

impl Peer {
    /// Runs `serve` on each connection.
    async fn start(serve: impl AsyncFn(TcpStream, &Self) + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let (seen, open) = Default::default();
        let peer = Self { origin, seen, open };
        let (one, serve) = (peer.clone(), Rc::new(serve));
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                one.open.set(one.open.get() + 1);
                let (peer, serve) = (one.clone(), serve.clone());
                tokio::task::spawn_local(async move {
                    serve(stream, &peer).await;
                    peer.open.set(peer.open.get() - 1);
                });
            }
        });
        peer
    }

    /// One that answers as its paths say.
    pub(super) async fn good() -> Self {
        Self::start(async |stream, peer| {
            let serve = service_fn(|request| answer(request, peer));
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(hyper_util::rt::TokioTimer::new());
            // The client may leave at any time.
            let _ = http.serve_connection(TokioIo::new(stream), serve).await;
        })
        .await
    }

    /// One that answers each request with these bytes, and then does so.
    pub(super) async fn raw(bytes: &'static [u8], then: Then) -> Self {
        Self::start(async move |mut stream, peer| {
            let mut head = Vec::new();
            while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            peer.seen.borrow_mut().push(String::from_utf8(head).unwrap());
            stream.write_all(bytes).await.unwrap();
            match then {
                Then::Close => {}
                Then::Reset => stream.set_zero_linger().unwrap(),
                // Until the client leaves.
                Then::Stall => while stream.read(&mut [0; 4096]).await.unwrap_or(0) > 0 {},
            }
        })
        .await
    }

    /// One that sends each WebSocket back what comes.
    pub(super) async fn echo() -> Self {
        Self::start(async |stream, _| {
            use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
            #[allow(clippy::result_large_err, reason = "the library wants it")]
            let choose = |request: &Request, mut response: Response| {
                if request.headers().contains_key("sec-websocket-protocol") {
                    let two = "two".parse().unwrap();
                    response.headers_mut().insert("sec-websocket-protocol", two);
                }
                Ok(response)
            };
            let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, choose).await else {
                return;
            };
            while let Some(Ok(message)) = socket.next().await {
                match &message {
                    Message::Text(text) if *text == "drop" => return,
                    Message::Text(text) if *text == "close" => {
                        let frame = CloseFrame { code: 4000.into(), reason: "bye".into() };
                        socket.send(Message::Close(Some(frame))).await.unwrap();
                    }
                    Message::Text(text) if *text == "data" => {
                        socket.send(Message::binary(vec![7; 100_000])).await.unwrap();
                    }
                    Message::Text(_) => socket.send(message).await.unwrap(),
                    _ => {}
                }
            }
        })
        .await
    }

    /// One that accepts a WebSocket, and then neither reads nor writes.
    pub(super) async fn dead_socket() -> Self {
        Self::start(async |stream, _| {
            let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
            let stream = socket.get_mut();
            // It reads nothing as a WebSocket, and so answers no ping.
            while stream.read(&mut [0; 4096]).await.unwrap_or(0) > 0 {}
        })
        .await
    }

    /// One that answers the first text with so many pings, and reads none of what comes meanwhile.
    /// It answers the second one with the bytes of pongs that came before that.
    pub(super) async fn pinging(bytes: usize) -> Self {
        Self::start(async move |stream, _| {
            let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
            let mut pongs = 0;
            let mut said_before = false;
            while let Some(Ok(message)) = socket.next().await {
                match message {
                    Message::Pong(pong) => pongs += pong.len(),
                    Message::Text(_) if said_before => {
                        let text = format!("{} MiB of pongs", pongs >> 20);
                        socket.send(Message::text(text)).await.unwrap();
                    }
                    Message::Text(_) => {
                        said_before = true;
                        let ping = [&[0x89, 125][..], &[b'x'; 125]].concat().repeat(512);
                        for _ in 0..bytes / ping.len() {
                            // The client reads on, whatever becomes of its pongs.
                            socket.get_mut().write_all(&ping).await.unwrap();
                        }
                        socket.send(Message::text("flooded")).await.unwrap();
                    }
                    _ => {}
                }
            }
        })
        .await
    }

    /// Waits until nobody is connected.
    pub(super) async fn left(&self) {
        while self.open.get() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    /// Waits until somebody has asked.
    pub(super) async fn asked(&self) {
        while self.seen.borrow().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
}

/// The behaviour after an answer.
#[derive(Clone, Copy)]
pub(super) enum Then {
    Close,
    Reset,
    Stall,
}

type Body = Either<Full<Bytes>, Incoming>;

fn whole(bytes: impl Into<Bytes>) -> Response<Body> {
    Response::new(Either::Left(Full::new(bytes.into())))
}

async fn answer(request: Request<Incoming>, peer: &Peer) -> hyper::Result<Response<Body>> {
    let (head, body) = request.into_parts();
    peer.seen.borrow_mut().push(format!("{} {}", head.method, head.uri));
    Ok(match head.uri.path() {
        "/echo" => Response::new(Either::Right(body)),
        "/moved" => {
            let mut moved = whole("elsewhere");
            *moved.status_mut() = hyper::StatusCode::FOUND;
            moved.headers_mut().insert("location", "http://127.0.0.1:1/".parse().unwrap());
            moved
        }
        "/never" => std::future::pending().await,
        "/large" => whole(vec![b'x'; 1 << 20]),
        _ => {
            let length = body.collect().await?.to_bytes().len();
            let mut names: Vec<_> = head.headers.keys().map(ToString::to_string).collect();
            names.sort_unstable();
            let host = head.headers["host"].to_str().unwrap();
            let names = names.join(",");
            whole(format!("{} {} {host} {length} {names}", head.method, head.uri))
        }
    })
}
