//! A host in another process, the line to it, and a gateway in this one.

use std::cell::{Cell, RefCell};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capstead_client::{Connection, namespace};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::super::world::{ask, within};
use crate::error::{Result, failed};
use crate::gateway::{
    Door, Entrance, Gateway, Given, HttpLimits, NamespaceRestore, Proxies, Routes,
};
use crate::http::{self, Answer, Body, Closed, Message, Request, Socket, SocketHandler, Sockets};
use crate::schema::counter_capnp::counter;
use crate::schema::http_capnp::http_service;
use crate::schema::restorer_capnp::restorer;
use crate::{Context, Object, Server, Stored};

/// The variable that holds the data directory in the process that serves.
const SERVE: &str = "CAPSTEAD_TEST_SURVIVE";
/// The variable that says how it serves.
const AS: &str = "CAPSTEAD_TEST_SURVIVE_AS";
/// The test that serves in that process.
const SERVES: &str = "server::tests::survive::serves_in_another_process";

/// The ways to serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum As {
    #[default]
    Usual,
    /// Objects sleep as soon as they can.
    Sleepy,
    /// The class doesn't say any more that its sockets survive.
    Forgetful,
    /// The class refuses to wake.
    Refusing,
}

impl As {
    const ALL: [Self; 4] = [Self::Usual, Self::Sleepy, Self::Forgetful, Self::Refusing];

    /// The one that this process was told.
    fn said() -> Self {
        let said = std::env::var(AS).unwrap_or_default();
        Self::ALL.into_iter().find(|way| format!("{way:?}") == said).unwrap_or_default()
    }
}

/// Answers each message with itself and the number of all that it has heard.
struct Echo {
    sockets: Sockets,
    found: String,
    heard: Stored<i64>,
    ends: RefCell<Vec<String>>,
}

impl Object for Echo {
    const CLASS: &'static str = "Echo";
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        let sockets = match As::said() {
            As::Usual | As::Sleepy => ctx.sockets().surviving::<Self>()?,
            As::Forgetful => ctx.sockets(),
            As::Refusing => return Err(failed("it doesn't wake any more")),
        };
        sockets.auto_reply("are you there?", "I am")?;
        let found = |socket: &Socket| {
            format!(
                "{}: {}",
                socket.tags().join(" "),
                String::from_utf8_lossy(&socket.attachment())
            )
        };
        let found: Vec<_> = sockets.all().iter().map(found).collect();
        let (found, ends) = (found.join(", "), RefCell::default());
        Ok(Self { sockets, found, heard: ctx.stored("heard")?, ends })
    }
}

impl Echo {
    fn http(self: &Rc<Self>, request: &Request<Body>) -> Answer {
        let path = request.uri().path();
        let text = match path {
            "/ends" => self.ends.borrow().join(", "),
            "/open" => self.sockets.len().to_string(),
            "/heard" => self.heard.get().to_string(),
            attach if attach.starts_with("/attach-and-fail/") => {
                for socket in self.sockets.all() {
                    socket.attach(attach.rsplit('/').next().unwrap_or_default())?;
                }
                self.heard.set(1_000)?;
                panic!("as the test wishes")
            }
            push if push.starts_with("/push/") => {
                self.sockets.broadcast(&Message::Text(push.to_owned()));
                String::new()
            }
            tag => return self.sockets.accept(self, request)?.tag(tag).answer(),
        };
        Ok(http::Response::new(Body::from(text)))
    }
}

impl SocketHandler for Echo {
    async fn message(self: Rc<Self>, socket: Socket, message: Message) -> Result<()> {
        let Message::Text(text) = message else { return Err(failed("a text is expected")) };
        if text == "wait" {
            drop(socket.send_text("waiting"));
            return std::future::pending().await;
        }
        if let Some(rest) = text.strip_prefix("attach ") {
            socket.attach(rest)?;
            drop(socket.send_text("attached"));
        } else if text == "found" {
            drop(socket.send_text(&self.found));
        } else if text == "replied" {
            drop(socket.send_text(&socket.auto_replied_ms().is_some().to_string()));
        } else {
            self.heard.set(self.heard.get() + 1)?;
            drop(socket.send_text(&format!("{text} {}", self.heard.get())));
        }
        Ok(())
    }

    async fn closed(self: Rc<Self>, socket: Socket, closed: Closed) -> Result<()> {
        // Nobody would ever delete it.
        if socket.attach("late").is_ok() {
            self.ends.borrow_mut().push("attached after the end".to_owned());
        }
        self.ends.borrow_mut().push(format!("{} {}", closed.code, closed.reason));
        Ok(())
    }
}

impl counter::Server for Echo {
    /// The number of messages.
    async fn read(
        self: Rc<Self>,
        _: counter::ReadParams,
        mut results: counter::ReadResults,
    ) -> Result<()> {
        results.get().set_value(self.heard.get());
        Ok(())
    }
}

impl http_service::Server for Echo {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        http::serve(params, results, async |request| self.http(&request)).await
    }
}

/// Serves until it is killed, if this is the process for that.
pub(super) fn serves() {
    let Some(data) = std::env::var_os(SERVE) else { return };
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    runtime.block_on(async {
        let any = "127.0.0.1:0".parse().unwrap();
        let mut server = Server::new(Path::new(&data)).class::<Echo>().listen(any).http(any);
        if As::said() == As::Sleepy {
            server = server.warm(Duration::from_millis(5));
        }
        let running = server.metrics(any).start().await.unwrap();
        let (capnp, http) = (running.capnp(), running.http().unwrap());
        let metrics = running.metrics().unwrap();
        let reference = &running.namespaces()["Echo"];
        writeln!(std::io::stdout(), "\nserves {capnp} {http} {metrics} {reference}").unwrap();
        running.until(std::future::pending()).await.unwrap();
    });
}

/// A host in another process, which is killed when this is dropped.
pub(super) struct HostProcess {
    process: Child,
    capnp: SocketAddr,
    pub(super) http: SocketAddr,
    metrics: SocketAddr,
    reference: String,
}

impl HostProcess {
    pub(super) fn start(data: &Path) -> Self {
        Self::start_as(data, As::Usual)
    }

    pub(super) fn start_as(data: &Path, way: As) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", SERVES, "--nocapture", "--test-threads=1"]);
        command.env(SERVE, data.join("data")).env(AS, format!("{way:?}"));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let said =
            lines.map_while(std::result::Result::ok).find(|line| line.starts_with("serves "));
        let said = said.expect("the host serves");
        let words: Vec<_> = said.split(' ').collect();
        let [capnp, http, metrics] = [1, 2, 3].map(|at: usize| words[at].parse().unwrap());
        Self { process, capnp, http, metrics, reference: words[4].to_owned() }
    }

    /// Returns when no object is awake.
    pub(super) async fn sleeps(&self) {
        let is_asleep = |page: &str| page.contains("\ncapstead_objects_awake 0\n");
        while !is_asleep(&ask(self.metrics, "GET", "/metrics").await.1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A connection that doesn't lead through the gateway, and all objects over it.
    pub(super) async fn objects(&self) -> (Connection, namespace::Client) {
        let connection = Connection::dial(&self.capnp.to_string()).await.unwrap();
        let objects = connection.restore(&self.reference).unwrap();
        (connection, objects)
    }

    /// Kills it, so that it writes and says nothing more.
    pub(super) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The way to the host, which a gateway asks for again when it broke.
pub(super) struct Far {
    address: Cell<SocketAddr>,
    reference: String,
    /// Locked while it is made.
    connection: tokio::sync::Mutex<Option<Connection>>,
}

impl Far {
    pub(super) fn new(host: &HostProcess) -> Rc<Self> {
        Self::by(host, &host.reference)
    }

    /// The gateway has this reference, and no other.
    pub(super) fn by(host: &HostProcess, reference: &str) -> Rc<Self> {
        let (address, reference) = (Cell::new(host.capnp), reference.to_owned());
        Rc::new(Self { address, reference, connection: tokio::sync::Mutex::default() })
    }

    /// The host is another process.
    pub(super) fn is_at(&self, host: &HostProcess) {
        self.address.set(host.capnp);
    }

    /// The line breaks, and there is no other until it is said where the host is.
    pub(super) async fn breaks(&self) {
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.address.set(nobody.local_addr().unwrap());
        drop(nobody);
        let connection = self.connection.lock().await.take();
        connection.expect("there was a line").disconnect().await;
    }

    async fn connect(&self) -> Result<Connection> {
        let mut present = self.connection.lock().await;
        if let Some(open) = present.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(open.clone());
        }
        let connection = Connection::dial(&self.address.get().to_string()).await?;
        *present = Some(connection.clone());
        Ok(connection)
    }

    /// A gateway that reaches the class by this way alone.
    pub(super) async fn gateway(self: &Rc<Self>, limits: HttpLimits) -> SocketAddr {
        let far = self.clone();
        let again = Box::new(move || -> Result<NamespaceRestore> {
            let connected = far.clone();
            let restorer: restorer::Client =
                capnp_rpc::new_future_client(
                    async move { Ok(connected.connect().await?.bootstrap()) },
                );
            let mut request = restorer.restore_request();
            request.get().set_sturdy_ref(&far.reference);
            Ok(request.send())
        });
        let namespace = again().unwrap().pipeline.get_cap().as_cap();
        let namespace = Some(FromClientHook::new(namespace));
        let given = [("Echo".to_owned(), Given { namespace, again })];
        let restorer: restorer::Client = self.connect().await.unwrap().bootstrap();
        let routes = Routes::default();
        let gateway = Gateway::new(given, restorer.clone(), routes, std::sync::Arc::default());
        gateway.serve_json(restorer);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = Door::new(&[], &[]).unwrap();
        let entrance = Entrance { door, proxies: Proxies::new(&[]).unwrap(), tls: None };
        tokio::task::spawn_local(gateway.serve(listener, entrance, limits, std::future::pending()));
        address
    }

    /// From now on the way leads over a line that is cut again and again.
    pub(super) async fn behind_a_bad_line(self: &Rc<Self>, host: &HostProcess) -> Rc<Cuts> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.address.set(listener.local_addr().unwrap());
        let cuts = Rc::<Cuts>::default();
        let (all, to) = (cuts.clone(), host.capnp);
        tokio::task::spawn_local(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                // A host that was killed is nowhere.
                let Ok(far) = TcpStream::connect(to).await else { continue };
                tokio::task::spawn_local(all.clone().line(near, far));
            }
        });
        cuts
    }
}

/// The ends of a line.
#[derive(Default)]
pub(super) struct Cuts {
    lines: Cell<u64>,
    has_begun: Cell<bool>,
    /// The side whose words don't arrive any more.
    muted: Cell<Option<Side>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Gateway,
    Host,
}

impl Cuts {
    pub(super) fn begin(&self) {
        self.has_begun.set(true);
    }

    /// From now on nothing arrives of what this side says, and the line stays.
    pub(super) fn mute(&self, side: Side) {
        self.muted.set(Some(side));
    }

    pub(super) fn count(&self) -> u64 {
        self.lines.get()
    }

    /// Moves bytes both ways, until so many have gone that another number comes for each line.
    async fn line(self: Rc<Self>, mut near: TcpStream, mut far: TcpStream) {
        let nth = self.lines.get();
        self.lines.set(nth + 1);
        let mut left = 1_000 + nth * 7_919 % 6_007;
        let (mut from_near, mut from_far) = ([0; 512], [0; 512]);
        loop {
            let (side, bytes, to) = tokio::select! {
                read = near.read(&mut from_near) => {
                    (Side::Gateway, &from_near[..read.unwrap_or(0)], &mut far)
                }
                read = far.read(&mut from_far) => {
                    (Side::Host, &from_far[..read.unwrap_or(0)], &mut near)
                }
            };
            if self.muted.get() == Some(side) && !bytes.is_empty() {
                continue;
            }
            let goes =
                if self.has_begun.get() { bytes.len().min(left as usize) } else { bytes.len() };
            if to.write_all(&bytes[..goes]).await.is_err() || goes < bytes.len() || goes == 0 {
                return;
            }
            if self.has_begun.get() {
                left -= goes as u64;
            }
        }
    }
}

/// A client of one socket.
pub(super) struct Window(WebSocketStream<TcpStream>);

/// The parts of one.
pub(super) struct Sender(SplitSink<WebSocketStream<TcpStream>, Frame>);
/// See [`Sender`].
pub(super) struct Receiver(SplitStream<WebSocketStream<TcpStream>>);

/// Opens a socket of the object `x`.
pub(super) async fn window(gateway: SocketAddr, tag: &str) -> Window {
    let request = format!("ws://{gateway}/echo/x/{tag}").into_client_request().unwrap();
    let stream = TcpStream::connect(gateway).await.unwrap();
    Window(within(tokio_tungstenite::client_async(request, stream)).await.unwrap().0)
}

impl Window {
    pub(super) fn split(self) -> (Sender, Receiver) {
        let (sender, receiver) = self.0.split();
        (Sender(sender), Receiver(receiver))
    }

    pub(super) async fn send(&mut self, text: &str) {
        self.0.send(Frame::text(text)).await.unwrap();
    }

    pub(super) async fn text(&mut self) -> String {
        text(&mut self.0).await
    }

    pub(super) async fn close(&mut self, code: u16, reason: &str) {
        let frame = CloseFrame { code: code.into(), reason: reason.into() };
        self.0.close(Some(frame)).await.unwrap();
    }

    /// The code of the close frame with which it ends.
    pub(super) async fn closed(&mut self) -> u16 {
        loop {
            match self.0.next().await.expect("a close frame comes").unwrap() {
                Frame::Close(frame) => return frame.map_or(1005, |frame| frame.code.into()),
                frame => assert!(!frame.is_text(), "{frame}"),
            }
        }
    }
}

impl Sender {
    pub(super) async fn send(&mut self, text: &str) {
        self.0.send(Frame::text(text)).await.unwrap();
    }
}

impl Receiver {
    pub(super) async fn text(&mut self) -> String {
        text(&mut self.0).await
    }
}

async fn text<S>(stream: &mut S) -> String
where
    S: futures::Stream<Item = std::result::Result<Frame, tokio_tungstenite::tungstenite::Error>>
        + Unpin,
{
    loop {
        match tokio::time::timeout(Duration::from_secs(40), stream.next()).await {
            Ok(Some(Ok(Frame::Text(text)))) => return text.to_string(),
            Ok(Some(Ok(Frame::Ping(_) | Frame::Pong(_)))) => {}
            other => panic!("no text, but {other:?}"),
        }
    }
}
