//! Broadcasts: the WebSockets of one object, which all hear what one client says, against a bare
//! server that does the same with the same library.
//!
//! As with other requests over HTTP, the load comes from a minimal client: messages have one
//! length, so that counting bytes counts them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use capstead::counter_capnp::counter;
use capstead::http::{self, Message, Socket, SocketHandler, Sockets, http_service};
use capstead::{Context, Object, Result, failed};
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;

use super::Bench;
use super::bare::BareServer;
use super::measure::{Plan, Sample, Until, drive};
use super::process::{Capstead, Process};
use super::row::{Row, Target};

/// Names of the rows that this module measures.
pub(crate) const NAMES: [&str; 2] = ["broadcast-100", "broadcast-p99"];

/// Sockets of the room.
const SOCKETS: usize = 100;
/// Messages that are on their way to all at the same time.
const IN_FLIGHT: usize = 8;
/// Messages that a socket of the bare server may leave unread.
const UNSENT_MAX: usize = 1024;
const MESSAGE_BYTES: usize = 64;
/// A message as the server sends it: its head, and the text.
const FRAME_BYTES: usize = 2 + MESSAGE_BYTES;

/// A room that repeats to all what one says.
pub(crate) struct Room(Sockets);

impl Object for Room {
    const CLASS: &'static str = "Room";
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self(ctx.sockets()))
    }
}

impl SocketHandler for Room {
    async fn message(self: Rc<Self>, _: Socket, message: Message) -> Result<()> {
        self.0.broadcast(&message);
        Ok(())
    }
}

impl counter::Server for Room {}

impl http_service::Server for Room {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        http::serve(params, results, async |request| self.0.accept(&self, &request)?.answer()).await
    }
}

type Senders = Rc<RefCell<Vec<mpsc::Sender<tungstenite::Message>>>>;

/// One socket of the bare server: what comes on it goes to all.
pub(crate) async fn repeat(stream: TcpStream, all: Senders) {
    let Ok(socket) = tokio_tungstenite::accept_async(stream).await else { return };
    let (to, mut from) = socket.split();
    let (sender, messages) = mpsc::channel(UNSENT_MAX);
    all.borrow_mut().push(sender);
    tokio::task::spawn_local(send(to, messages));
    while let Some(Ok(message)) = from.next().await {
        for sender in all.borrow().iter() {
            // One that is gone, or doesn't read, hears nothing.
            let _ = sender.try_send(message.clone());
        }
    }
}

/// Messages that wait are written together.
async fn send(
    mut to: SplitSink<WebSocketStream<TcpStream>, tungstenite::Message>,
    mut messages: mpsc::Receiver<tungstenite::Message>,
) {
    while let Some(message) = messages.recv().await {
        let mut next = Some(message);
        while let Some(message) = next {
            if to.feed(message).await.is_err() {
                return;
            }
            next = messages.try_recv().ok();
        }
        if to.flush().await.is_err() {
            return;
        }
    }
}

/// Measures the selected rows.
///
/// # Errors
/// When a server doesn't start, or a socket ends.
pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    let (bare, bare_address) = Process::start(BareServer::Broadcast.args())?;
    let server = Capstead::start(&bench.scratch.path("broadcast"), &[])?;
    let theirs = Load::connect(&bare_address, "/").await?;
    let ours = Load::connect(&server.http, "/room/bench/").await?;
    let baseline = async |until| bare.watch(theirs.run(until)).await;
    let measured = async |until| server.process.watch(ours.run(until)).await;
    let plan: Plan = bench.plan;
    let rounds = plan.alternate(NAMES[0], baseline, measured).await?;
    let deliveries = |sample: &Sample| sample.per_second_of(SOCKETS as u64);
    let rates = rounds.iter().map(|(bare, ours)| (deliveries(bare), deliveries(ours))).collect();
    let rates = Row::paired(NAMES[0], "1/s", rates).target(Target::AtLeast(0.6));
    bench.add(rates.latency(rounds.iter().map(|(_, ours)| ours)));
    let late = |sample: &Sample| sample.percentile_us(99);
    let late = rounds.iter().map(|(bare, ours)| (late(bare), late(ours))).collect();
    bench.add(Row::paired(NAMES[1], "us", late).target(Target::AtMost(1.5)));
    Ok(())
}

/// WebSocket clients in one room. The first client sends; all clients receive.
struct Load {
    speaker: RefCell<Option<OwnedWriteHalf>>,
    heard: Rc<Heard>,
}

/// Messages that each client has heard. All hear them in the same order.
struct Heard {
    counts: RefCell<Vec<u64>>,
    /// All have heard so many.
    by_all: Cell<u64>,
    said: Cell<u64>,
    more: Notify,
    has_ended: Cell<bool>,
}

impl Load {
    async fn connect(address: &str, path: &str) -> Result<Self> {
        let heard = Rc::new(Heard {
            counts: RefCell::new(vec![0; SOCKETS]),
            by_all: Cell::default(),
            said: Cell::default(),
            more: Notify::new(),
            has_ended: Cell::default(),
        });
        let mut speaker = None;
        for number in 0..SOCKETS {
            let (read, write) = shake(address, path).await?.into_split();
            tokio::task::spawn_local(heard.clone().listen(number, read));
            // Dropping a write half would shut down its socket.
            match &speaker {
                None => speaker = Some(write),
                Some(_) => write.forget(),
            }
        }
        Ok(Self { speaker: RefCell::new(speaker), heard })
    }

    async fn run(&self, until: Until) -> Result<Sample> {
        drive(IN_FLIGHT, until, async |_| {
            self.say()?;
            let mine = self.heard.said.get();
            while self.heard.by_all.get() < mine {
                if self.heard.has_ended.get() {
                    return Err(failed("a socket has ended"));
                }
                self.heard.more.notified().await;
            }
            Ok(())
        })
        .await
    }

    /// So little is written at once that it never has to wait.
    fn say(&self) -> Result<()> {
        let mut frame = [b'x'; 6 + MESSAGE_BYTES];
        // A mask of zero leaves the text unchanged.
        frame[..6].copy_from_slice(&[0x81, 0x80 | MESSAGE_BYTES as u8, 0, 0, 0, 0]);
        let speaker = self.speaker.borrow();
        let speaker = speaker.as_ref().ok_or_else(|| failed("nobody speaks"))?;
        match speaker.try_write(&frame)? {
            written if written == frame.len() => {
                self.heard.said.set(self.heard.said.get() + 1);
                Ok(())
            }
            _ => Err(failed("the server doesn't read")),
        }
    }
}

impl Heard {
    async fn listen(self: Rc<Self>, number: usize, mut read: OwnedReadHalf) {
        let (mut buffer, mut bytes) = ([0; 16 << 10], 0);
        while let Ok(more @ 1..) = read.read(&mut buffer).await {
            bytes += more;
            let mut counts = self.counts.borrow_mut();
            let was_last = counts[number] == self.by_all.get();
            counts[number] = (bytes / FRAME_BYTES) as u64;
            if was_last {
                let by_all = counts.iter().copied().min().unwrap_or_default();
                if by_all > self.by_all.replace(by_all) {
                    self.more.notify_waiters();
                }
            }
        }
        self.has_ended.set(true);
        self.more.notify_waiters();
    }
}

/// A connection after the handshake of a WebSocket.
pub(crate) async fn shake(address: &str, path: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    if head.starts_with(b"HTTP/1.1 101 ") {
        return Ok(stream);
    }
    Err(failed(format!("no WebSocket: {}", head.escape_ascii())))
}
