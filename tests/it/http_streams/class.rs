//! A class that reads and writes bodies as its clients say, and the clients.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use capstead::counter_capnp::counter;
use capstead::http::{self, Answer, Body, HeaderValue, Incoming, Request, Response, StatusCode};
use capstead::http::{Outgoing, http_service};
use capstead::{Context, HttpLimits, Object, Result, Running, Server, failed};
use futures::StreamExt;
use futures::channel::mpsc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::support::DEADLINE;
use crate::support::exchange::exchange;

/// The size of the parts that are written.
const PART_BYTES: u64 = 50_000;

pub(super) struct Streams {
    ctx: Context,
    /// Bytes that were read or written.
    moved: Cell<u64>,
    /// The last error of a body.
    error: RefCell<String>,
    listeners: RefCell<Vec<mpsc::UnboundedSender<String>>>,
    /// Those that wait may go on.
    go: Notify,
    goes: Cell<bool>,
}

impl Object for Streams {
    const CLASS: &'static str = "Streams";
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        let (moved, error, listeners, go, goes) = Default::default();
        Ok(Self { ctx, moved, error, listeners, go, goes })
    }
}

impl Streams {
    async fn http(self: Rc<Self>, request: Request<Incoming>) -> Answer {
        let number = |name| http::query(&request, name).map(|text| text.parse().expect("a number"));
        let (bytes, said): (Option<u64>, Option<u64>) = (number("bytes"), number("said"));
        let text = http::query(&request, "text").unwrap_or_default();
        let (head, mut body) = request.into_parts();
        match head.uri.path() {
            "/echo" => Ok(streamed(None, async move |to| {
                while let Some(part) = body.next().await? {
                    to.send(part).await?;
                }
                Ok(())
            })),
            "/read" => self.read(&mut body).await,
            "/hold" => {
                let first = body.next().await?.unwrap_or_default();
                self.moved.set(first.len() as u64);
                self.wait().await;
                self.read(&mut body).await
            }
            "/whole" => http::json(StatusCode::OK, &body.whole().await?.as_bytes().len()),
            "/large" => Ok(Response::new(vec![b'x'; bytes.unwrap_or_default() as usize].into())),
            "/write" => Ok(streamed(said, async move |to| {
                let written = self.write(to, bytes.unwrap_or_default()).await;
                self.note(written)
            })),
            "/cut" => Ok(streamed(said, async move |to| {
                to.send("one").await?;
                self.wait().await;
                Err(failed("as you wish"))
            })),
            "/events" => {
                let (listener, mut events) = mpsc::unbounded();
                self.listeners.borrow_mut().push(listener);
                Ok(streamed(None, async move |to| {
                    while let Some(event) = events.next().await {
                        to.send(format!("data: {event}\n\n")).await?;
                    }
                    Ok(())
                }))
            }
            "/watched" => Ok(streamed(None, async move |to| {
                to.send("begun").await?;
                to.gone().await;
                self.note(Err(failed(format!("{text} is gone"))))
            })),
            "/emit" => {
                let mut listeners = self.listeners.borrow_mut();
                listeners.retain(|listener| listener.unbounded_send(text.clone()).is_ok());
                http::json(StatusCode::OK, &listeners.len())
            }
            "/store" => Ok(streamed(None, async move |to| {
                to.send("begun").await?;
                self.ctx.storage().put("key", "value")?;
                to.send("stored").await
            })),
            "/never" => {
                self.wait().await;
                self.moved.set(77);
                http::json(StatusCode::OK, "late")
            }
            "/go" => {
                self.goes.set(true);
                self.go.notify_waiters();
                http::json(StatusCode::OK, &true)
            }
            "/moved" => http::json(StatusCode::OK, &self.moved.get()),
            "/error" => http::json(StatusCode::OK, &*self.error.borrow()),
            _ => Err(http::refuse(StatusCode::NOT_FOUND, "nothing")),
        }
    }

    async fn read(&self, body: &mut Incoming) -> Answer {
        loop {
            match body.next().await {
                Ok(Some(part)) => self.moved.set(self.moved.get() + part.len() as u64),
                Ok(None) => return http::json(StatusCode::OK, &self.moved.get()),
                Err(error) => {
                    self.note(Err(error.clone()))?;
                    return Err(error.into());
                }
            }
        }
    }

    async fn write(&self, to: &mut Outgoing, bytes: u64) -> Result<()> {
        let mut left = bytes;
        while left > 0 {
            let part = left.min(PART_BYTES);
            to.send(vec![b'x'; part as usize]).await?;
            left -= part;
            self.moved.set(bytes - left);
        }
        Ok(())
    }

    fn note(&self, outcome: Result<()>) -> Result<()> {
        outcome.inspect_err(|error| drop(self.error.replace(error.extra.clone())))
    }

    async fn wait(&self) {
        while !self.goes.get() {
            self.go.notified().await;
        }
    }
}

fn streamed(
    said: Option<u64>,
    write: impl AsyncFnOnce(&mut Outgoing) -> Result<()> + 'static,
) -> Response<Body> {
    let mut response = Response::new(Body::stream(write));
    if let Some(said) = said {
        response.headers_mut().insert("content-length", HeaderValue::from(said));
    }
    response
}

impl counter::Server for Streams {}

impl http_service::Server for Streams {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        http::serve_streaming(params, results, async |request| self.http(request).await).await
    }
}

/// Takes bodies whole, and runs one call at a time.
pub(super) struct Alone;

impl Object for Alone {
    const CLASS: &'static str = "Alone";
    const EXCLUSIVE: bool = true;
    type Client = counter::Client;

    async fn wake(_: Context) -> Result<Self> {
        Ok(Self)
    }
}

impl counter::Server for Alone {}

impl http_service::Server for Alone {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        http::serve(params, results, async |request| {
            http::json(StatusCode::OK, &request.body().as_bytes().len())
        })
        .await
    }
}

/// A server of both.
pub(super) fn server(data: impl AsRef<std::path::Path>) -> Server {
    Server::new(data.as_ref()).class::<Streams>().class::<Alone>()
}

/// The numbers of hosts to try.
pub(super) fn hosts() -> Vec<u16> {
    let hosts = std::env::var("CAPSTEAD_TEST_HOSTS").map(|hosts| vec![hosts.parse().unwrap()]);
    hosts.unwrap_or_else(|_| vec![1, 2, 4])
}

/// Runs `work` with servers on each of these numbers of hosts.
pub(super) fn with_servers(
    hosts: &[u16],
    change: impl Fn(Server) -> Server,
    work: impl AsyncFn(&Running),
) {
    for hosts in hosts {
        let data = tempfile::tempdir().unwrap();
        let all = async {
            let any = "127.0.0.1:0".parse().unwrap();
            let server = change(server(data.path().join("data")).hosts(*hosts));
            let running = server.listen(any).http(any).metrics(any).start().await.unwrap();
            work(&running).await;
            running.until(async {}).await.unwrap();
        };
        let runtime = tokio::runtime::LocalRuntime::new().unwrap();
        let all = async { tokio::time::timeout(DEADLINE, all).await };
        runtime.block_on(all).expect("it ends in time");
    }
}

/// Limits with this time for an object's answer.
pub(super) fn limits(transfer: std::time::Duration) -> HttpLimits {
    let mut limits = HttpLimits::default();
    limits.transfer = transfer;
    limits
}

/// A connection.
pub(super) struct Client {
    stream: TcpStream,
    /// Bytes that were read and not looked at.
    came: Vec<u8>,
}

impl Client {
    pub(super) async fn open(running: &Running) -> Self {
        let stream = TcpStream::connect(running.http().unwrap()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, came: Vec::new() }
    }

    /// Sends a request's head, with these lines.
    pub(super) async fn begin(&mut self, method: &str, path: &str, lines: &[&str]) {
        let lines = [&["host: localhost"], lines, &["", ""]].concat().join("\r\n");
        let head = format!("{method} {path} HTTP/1.1\r\n{lines}");
        self.send(head.as_bytes()).await;
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Sends what is taken now; the number of bytes.
    pub(super) async fn send_some(&mut self, bytes: &[u8]) -> usize {
        self.stream.write(bytes).await.unwrap()
    }

    /// Sends one chunk; an empty one is the last.
    pub(super) async fn send_chunk(&mut self, bytes: &[u8]) {
        let size = format!("{:x}\r\n", bytes.len());
        self.send(&[size.as_bytes(), bytes, b"\r\n"].concat()).await;
    }

    /// The status of an answer, and its head.
    pub(super) async fn head(&mut self) -> (u16, String) {
        let head = self.until(b"\r\n\r\n").await.expect("there is an answer");
        let head = String::from_utf8(head).unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase())
    }

    /// The next chunk; empty if it is the last, and none if the connection ended before.
    pub(super) async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.until(b"\r\n").await?;
        let size = std::str::from_utf8(&size).unwrap().trim_end();
        let size = usize::from_str_radix(size, 16).unwrap();
        let mut chunk = self.bytes(size + 2).await?;
        chunk.truncate(size);
        Some(chunk)
    }

    /// So many bytes of a body; none if the connection ended before.
    pub(super) async fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.came.len() < count {
            self.more().await?;
        }
        Some(self.came.drain(..count).collect())
    }

    async fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.came.windows(end.len()).position(|window| window == end) {
                return Some(self.came.drain(..at + end.len()).collect());
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Option<()> {
        let read = self.stream.read_buf(&mut self.came).await.unwrap_or(0);
        (read > 0).then_some(())
    }
}

/// A request without a body on a connection of its own.
pub(super) async fn get(running: &Running, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(running.http().unwrap()).await.unwrap();
    let asked = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let answer = exchange(&mut stream, asked.as_bytes()).await;
    (answer.status, String::from_utf8(answer.body).unwrap())
}

/// Asks until the answer is as wished.
pub(super) async fn until(running: &Running, path: &str, is_it: impl Fn(&str) -> bool) -> String {
    loop {
        let (_, said) = get(running, path).await;
        if is_it(&said) {
            return said;
        }
        tokio::task::yield_now().await;
    }
}

/// The metric of that name, without `capstead_`.
pub(super) async fn metric(running: &Running, name: &str) -> u64 {
    let mut stream = TcpStream::connect(running.metrics().unwrap()).await.unwrap();
    let asked = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let page = String::from_utf8(exchange(&mut stream, asked).await.body).unwrap();
    let start = format!("capstead_{name} ");
    let value = page.lines().find_map(|line| line.strip_prefix(&start));
    value.expect("it is on the page").parse().unwrap()
}
