//! A class that does with its WebSockets what their clients say, and the clients.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use capnp::capability::FromClientHook;
use capstead::counter_capnp::counter;
use capstead::http::{self, Answer, Body, Closed, Message, Request, StatusCode};
use capstead::http::{Socket, SocketHandler, Sockets, http_service};
use capstead::{Context, HttpLimits, Object, Result, Running, Server, Stored, failed};
use capstead_client::namespace;
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message as Frame};

use crate::support::DEADLINE;
use crate::support::exchange::{self, exchange};

/// The size of the messages that are poured.
pub(super) const POURED_BYTES: usize = 100_000;

pub(super) type Talk = Talker<false>;

/// `ALONE`: it handles one message at a time.
pub(super) struct Talker<const ALONE: bool> {
    ctx: Context,
    sockets: Sockets,
    /// The sockets that were open when it woke, each as `tags: attachment`.
    found: Vec<String>,
    count: Stored<i64>,
    /// The ends of sockets, each as `code reason`.
    ends: RefCell<Vec<String>>,
    /// Messages that were sent with waiting, or that wait.
    under_way: Cell<usize>,
    /// Those that wait may go on.
    go: Notify,
    goes: Cell<bool>,
}

impl<const ALONE: bool> Object for Talker<ALONE> {
    const CLASS: &'static str = if ALONE { "Alone" } else { "Talk" };
    const EXCLUSIVE: bool = ALONE;
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        let (ends, under_way, go, goes) = Default::default();
        let (sockets, count) = (ctx.sockets(), ctx.stored("count")?);
        let found = |socket: Socket| {
            format!(
                "{}: {}",
                socket.tags().join(" "),
                String::from_utf8_lossy(&socket.attachment())
            )
        };
        let found = sockets.all().into_iter().map(found).collect();
        Ok(Self { ctx, sockets, found, count, ends, under_way, go, goes })
    }
}

impl<const ALONE: bool> Talker<ALONE> {
    fn http(self: &Rc<Self>, request: &Request<Body>) -> Answer {
        match request.uri().path() {
            "/refused" => Err(http::refuse(StatusCode::FORBIDDEN, "not you")),
            "/ends" => http::json(StatusCode::OK, &*self.ends.borrow()),
            "/open" => http::json(StatusCode::OK, &self.sockets.len()),
            "/underway" => http::json(StatusCode::OK, &self.under_way.get()),
            "/go" => {
                self.goes.set(true);
                self.go.notify_waiters();
                http::json(StatusCode::OK, &true)
            }
            "/large" => {
                let attachment = vec![0; (16 << 10) + 1];
                self.sockets.accept(self, request)?.attachment(attachment).answer()
            }
            "/peer" => http::json(StatusCode::OK, &http::peer(request)),
            "/protocol" => {
                let accept = self.sockets.accept(self, request)?;
                accept.protocol(http::HeaderValue::from_static("second")).answer()
            }
            "/heavy" => self.sockets.accept(self, request)?.attachment(vec![7; 16 << 10]).answer(),
            "/tagged" => {
                let accept = self.sockets.accept(self, request)?;
                (0..11).fold(accept, |accept, tag| accept.tag(tag.to_string())).answer()
            }
            "/greeted" => self.sockets.accept(self, request)?.attachment("hello").answer(),
            tag => self.sockets.accept(self, request)?.tag(tag).answer(),
        }
    }

    /// Sends so many messages, each when there is room for it.
    async fn pour(&self, socket: &Socket, times: usize) -> Result<()> {
        let filler = vec![0; POURED_BYTES];
        for sent in 1..=times {
            socket.send_data(&filler).await?;
            self.under_way.set(sent);
        }
        Ok(())
    }

    async fn wait(&self) {
        self.under_way.set(self.under_way.get() + 1);
        while !self.goes.get() {
            self.go.notified().await;
        }
    }

    fn told(&self, socket: &Socket, text: &str) -> Result<()> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        match word {
            "all" => self.sockets.broadcast(&rest.into()),
            "tag" => {
                let (tag, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                for socket in self.sockets.tagged(tag) {
                    drop(socket.send_text(rest));
                }
            }
            "count" => {
                self.count.set(self.count.get() + 1)?;
                drop(socket.send_text(&self.count.get().to_string()));
            }
            "flood" => {
                let (times, bytes) = rest.split_once(' ').expect("two numbers");
                let filler = "x".repeat(bytes.parse().expect("a number"));
                for _ in 0..times.parse().expect("a number") {
                    drop(socket.send_text(&filler));
                }
            }
            "close" => {
                let (code, reason) = rest.split_once(' ').unwrap_or((rest, ""));
                socket.close(code.parse().expect("a code"), reason);
                drop(socket.send_text("after the close"));
            }
            "fail" => return Err(failed("as you wish")),
            "found" => drop(socket.send_text(&self.found.join(", "))),
            "attach" => {
                socket.attach(rest)?;
                drop(socket.send_text("attached"));
            }
            "auto" => {
                let (request, reply) = rest.split_once(' ').expect("two texts");
                self.sockets.auto_reply(request, reply)?;
                drop(socket.send_text("set"));
            }
            "manual" => {
                self.sockets.no_auto_reply()?;
                drop(socket.send_text("set"));
            }
            "replied" => drop(socket.send_text(&socket.auto_replied_ms().is_some().to_string())),
            "abort" => return Err(self.ctx.abort("as you wish")),
            "panic" => {
                self.count.set(1_000)?;
                panic!("as the test wishes")
            }
            _ => drop(socket.send_text(text)),
        }
        Ok(())
    }
}

impl<const ALONE: bool> SocketHandler for Talker<ALONE> {
    async fn opened(self: Rc<Self>, socket: Socket) -> Result<()> {
        let greeting = socket.attachment();
        if (1..100).contains(&greeting.len()) {
            drop(socket.send_data(&greeting));
        }
        Ok(())
    }

    async fn message(self: Rc<Self>, socket: Socket, message: Message) -> Result<()> {
        match message {
            Message::Text(text) if text.starts_with("pour ") => {
                self.pour(&socket, text["pour ".len()..].parse().expect("a number")).await
            }
            Message::Text(text) if text.starts_with("wait ") => {
                self.wait().await;
                Ok(())
            }
            Message::Text(text) if text == "nap and panic" => {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                panic!("as the test wishes")
            }
            Message::Text(text) => self.told(&socket, &text),
            data @ Message::Data(_) => {
                drop(socket.send(&data));
                Ok(())
            }
        }
    }

    async fn closed(self: Rc<Self>, socket: Socket, closed: Closed) -> Result<()> {
        assert!(!self.sockets.all().contains(&socket), "it has left");
        assert!(socket.send_text("nobody hears this").await.is_err());
        self.ends.borrow_mut().push(format!("{} {}", closed.code, closed.reason));
        Ok(())
    }
}

impl<const ALONE: bool> counter::Server for Talker<ALONE> {
    /// Pushes a number to all sockets.
    async fn increment(
        self: Rc<Self>,
        params: counter::IncrementParams,
        _: counter::IncrementResults,
    ) -> Result<()> {
        let text = params.get()?.get_by().to_string();
        self.sockets.broadcast(&Message::Text(text));
        Ok(())
    }

    /// By one it panics, by more it aborts.
    async fn decrement(
        self: Rc<Self>,
        params: counter::DecrementParams,
        _: counter::DecrementResults,
    ) -> Result<()> {
        assert_ne!(params.get()?.get_by(), 1, "as the test wishes");
        Err(self.ctx.abort("as the test wishes"))
    }
}

impl<const ALONE: bool> http_service::Server for Talker<ALONE> {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        http::serve(params, results, async |request| self.http(&request)).await
    }
}

/// A server with the class, and nothing said of its limits.
pub(super) fn with_server(hosts: u16, work: impl AsyncFnOnce(&Running)) {
    with_limits(hosts, |_| {}, work);
}

/// Ends the server in order when `work` has ended.
pub(super) fn with_limits(
    hosts: u16,
    limit: impl FnOnce(&mut HttpLimits),
    work: impl AsyncFnOnce(&Running),
) {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let running = start(&data.path().join("data"), hosts, limit).await;
        work(&running).await;
        running.until(async {}).await.unwrap();
    });
}

pub(super) fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(DEADLINE, work).await })
        .expect("it ends in time");
}

pub(super) async fn start(
    data: &std::path::Path,
    hosts: u16,
    limit: impl FnOnce(&mut HttpLimits),
) -> Running {
    server(data, hosts, limit).start().await.unwrap()
}

/// A server with the class, on any port.
pub(super) fn server(
    data: &std::path::Path,
    hosts: u16,
    limit: impl FnOnce(&mut HttpLimits),
) -> Server {
    let any = "127.0.0.1:0".parse().unwrap();
    let mut limits = HttpLimits::default();
    limit(&mut limits);
    let server = Server::new(data).class::<Talk>().class::<Talker<true>>().hosts(hosts);
    server.http_limits(limits).listen(any).http(any).metrics(any)
}

/// A client of one socket.
pub(super) struct Client(pub(super) WebSocketStream<TcpStream>);

impl Client {
    /// Opens a socket at a path of the object `name`.
    pub(super) async fn open(running: &Running, name: &str, path: &str) -> Self {
        Self::open_with(running, name, path, &[]).await.unwrap().0
    }

    /// The same with more headers, and those of the answer.
    pub(super) async fn open_with(
        running: &Running,
        name: &str,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> std::result::Result<(Self, http::Response<Option<Vec<u8>>>), Error> {
        Self::open_at(running, &format!("/talk/{name}{path}"), headers).await
    }

    /// The same at a whole path.
    pub(super) async fn open_at(
        running: &Running,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> std::result::Result<(Self, http::Response<Option<Vec<u8>>>), Error> {
        let address = running.http().unwrap();
        let mut request = format!("ws://{address}{path}").into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(address).await?;
        let (socket, answer) = tokio_tungstenite::client_async(request, stream).await?;
        Ok((Self(socket), answer))
    }

    pub(super) async fn send(&mut self, text: &str) {
        self.0.send(Frame::text(text)).await.unwrap();
    }

    /// The next message, which isn't a ping.
    pub(super) async fn next(&mut self) -> Option<std::result::Result<Frame, Error>> {
        loop {
            match self.0.next().await {
                Some(Ok(Frame::Ping(_) | Frame::Pong(_))) => {}
                other => return other,
            }
        }
    }

    pub(super) async fn text(&mut self) -> String {
        match self.next().await {
            Some(Ok(Frame::Text(text))) => text.to_string(),
            other => panic!("a text was to come, and not {other:?}"),
        }
    }

    /// Says something and hears the answer.
    pub(super) async fn ask(&mut self, text: &str) -> String {
        self.send(text).await;
        self.text().await
    }

    /// Reads up to the close frame, and from there to the end of the connection.
    pub(super) async fn closed(&mut self) -> (u16, String) {
        let closed = loop {
            match self.next().await {
                Some(Ok(Frame::Close(frame))) => break frame,
                Some(Ok(_)) => {}
                other => panic!("a close frame was to come, and not {other:?}"),
            }
        };
        while let Some(Ok(_)) = self.0.next().await {}
        closed.map_or((1005, String::new()), |frame| (frame.code.into(), frame.reason.to_string()))
    }
}

/// The object's answer to a GET, as JSON.
pub(super) async fn get(running: &Running, path: &str) -> serde_json::Value {
    let mut stream = TcpStream::connect(running.http().unwrap()).await.unwrap();
    let request = format!("GET /talk/{path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let answer = exchange(&mut stream, request.as_bytes()).await;
    assert_eq!(answer.status, 200);
    serde_json::from_slice(&answer.body).unwrap()
}

/// Asks until the object says so.
pub(super) async fn until_it_says(running: &Running, path: &str, expected: serde_json::Value) {
    loop {
        let said = get(running, path).await;
        if said == expected {
            return;
        }
        let pause = std::time::Duration::from_millis(2);
        tokio::time::timeout(DEADLINE, tokio::time::sleep(pause)).await.unwrap();
    }
}

/// A handshake as it stands, and the answer to it.
pub(super) async fn shake(
    running: &Running,
    path: &str,
    headers: &str,
) -> (TcpStream, exchange::Answer) {
    let mut stream = TcpStream::connect(running.http().unwrap()).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n{headers}\r\n"
    );
    let answer = exchange(&mut stream, request.as_bytes()).await;
    (stream, answer)
}

/// The headers of a good handshake.
pub(super) const GOOD: &str =
    "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// The object, by Cap'n Proto.
pub(super) async fn object(running: &Running, name: &str) -> counter::Client {
    let all: namespace::Client =
        capstead_client::restore(&running.namespaces()["Talk"]).await.unwrap();
    let mut by_name = all.by_name_request();
    by_name.get().set_key(name);
    by_name.send().pipeline.get_object().as_cap().cast_to()
}
