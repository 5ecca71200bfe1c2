//! A server of one's own, and clients that speak as `y-websocket` does, with the documents of
//! `yrs`.
//!
//! Nothing here waits without a deadline, or for a fixed time.
#![allow(dead_code, reason = "each file of tests uses some of it")]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Frame;
use yrs::sync::awareness::AwarenessUpdateEntry;
use yrs::sync::{AwarenessUpdate, Message, SyncMessage};
use yrs::updates::decoder::Decode;
use yrs::updates::encoder::Encode;
use yrs::{ClientID, Doc, GetString, OffsetKind, Options, ReadTxn, StateVector};
use yrs::{Text, TextRef, Transact, Update};

/// Longer than anything here takes on a machine that is busy with something else.
const DEADLINE: Duration = Duration::from_mins(3);

/// A data directory, which servers have one after the other.
pub(crate) struct Data(TempDir);

/// A server that is ready, killed when it is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) http: SocketAddr,
    metrics: Option<SocketAddr>,
}

impl Data {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub(crate) fn serve(&self) -> Server {
        self.serve_with(&[])
    }

    pub(crate) fn serve_with(&self, options: &[&str]) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_editor"));
        let any = "127.0.0.1:0";
        command.args(["--json", "--listen", any, "--http", any, "--data"]);
        command.arg(self.path()).args(options).stdin(Stdio::null()).stdout(Stdio::piped());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path());
        command.stderr(log.expect("a file for the log"));
        let mut child = command.spawn().expect("the server starts");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("it is ours");
        BufReader::new(stdout).read_line(&mut line).expect("it says when it is ready");
        let said: serde_json::Value = serde_json::from_str(&line).expect("it is JSON");
        let http = said["http"].as_str().expect("an address").trim_start_matches("http://");
        let metrics = said["metrics"].as_str().map(|url| url.trim_start_matches("http://"));
        let metrics = metrics.and_then(|page| page.trim_end_matches("/metrics").parse().ok());
        Server { child, http: http.parse().expect("an address"), metrics }
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("editor.data")
    }

    fn log_path(&self) -> PathBuf {
        self.0.path().join("log")
    }

    /// All that its servers have said on standard error.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).expect("a server has run")
    }

    /// Tells whether the bytes are in any file.
    pub(crate) fn contains(&self, bytes: &[u8]) -> bool {
        let mut folders = vec![self.path()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else if std::fs::read(&path)
                    .is_ok_and(|file| file.windows(bytes.len()).any(|found| found == bytes))
                {
                    return true;
                }
            }
        }
        false
    }
}

async fn get_at(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("it is served");
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it is asked for");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it is text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head[9..12].parse().expect("a status"), body.to_owned())
}

impl Server {
    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// The processor's time of all its threads.
    pub(crate) fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("Linux");
        let of_task = |path: PathBuf| {
            let stat = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
            stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
        };
        Duration::from_nanos(tasks.map(|task| of_task(task.expect("a task").path())).sum())
    }

    /// The most memory that it ever had, in bytes.
    pub(crate) fn peak_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib << 10
    }

    /// Returns when no document is awake; the metrics are served.
    pub(crate) async fn until_all_sleep(&self) {
        let page = self.metrics.expect("the metrics are served");
        while !get_at(page, "/metrics").await.1.contains("\ncapstead_objects_awake 0\n") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The status and the body of a GET.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        get_at(self.http, path).await
    }

    /// The text of a document, as the server has it.
    pub(crate) async fn text(&self, name: &str) -> String {
        let (status, text) = self.get(&format!("/editor/{name}/text")).await;
        assert_eq!(status, 200);
        text
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `work` and fails when it takes too long.
pub(crate) fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::LocalRuntime::new().expect("a runtime");
    let work = async { tokio::time::timeout(DEADLINE, work).await };
    runtime.block_on(work).expect("it ends before the deadline")
}

pub(crate) type Socket = WebSocketStream<TcpStream>;

/// Somebody who writes, with their own copy of the document.
pub(crate) struct Client {
    pub(crate) socket: Socket,
    pub(crate) doc: Doc,
    text: TextRef,
    /// All that the server has told, and nothing else: this client's own changes in it are
    /// acknowledged.
    mirror: Doc,
    /// The number of changes that were told, of anybody.
    pub(crate) changes: usize,
    /// The cursors that were told last, with their clocks.
    pub(crate) cursors: Vec<(ClientID, u32, String)>,
}

/// Opens a socket and says nothing.
pub(crate) async fn open(server: &Server, name: &str) -> Socket {
    let stream = TcpStream::connect(server.http).await.expect("it is served");
    let url = format!("ws://{}/editor/{name}", server.http);
    tokio_tungstenite::client_async(url, stream).await.expect("it is a socket").0
}

impl Client {
    /// Joins with an empty copy, and has the document.
    pub(crate) async fn join(server: &Server, name: &str) -> Self {
        let doc =
            Doc::with_options(Options { offset_kind: OffsetKind::Utf16, ..Options::default() });
        Self::join_with(server, name, doc).await
    }

    /// Joins again with the copy from before.
    pub(crate) async fn join_with(server: &Server, name: &str, doc: Doc) -> Self {
        let socket = open(server, name).await;
        let text = doc.get_or_insert_text("text");
        let (mirror, cursors) = (Doc::new(), Vec::new());
        let mut client = Self { socket, doc, text, mirror, changes: 0, cursors };
        // All of it, for the mirror.
        let nothing = StateVector::default();
        client.send(Message::Sync(SyncMessage::SyncStep1(nothing))).await;
        while !matches!(client.take().await, Message::Sync(SyncMessage::SyncStep2(_))) {}
        client
    }

    pub(crate) fn id(&self) -> ClientID {
        self.doc.client_id()
    }

    pub(crate) fn text(&self) -> String {
        self.text.get_string(&self.doc.transact())
    }

    pub(crate) fn len(&self) -> u32 {
        self.text.len(&self.doc.transact())
    }

    pub(crate) fn state(&self) -> StateVector {
        self.doc.transact().state_vector()
    }

    /// The changes that the server has told.
    pub(crate) fn told(&self) -> StateVector {
        self.mirror.transact().state_vector()
    }

    /// The number of this client's own letters that the server has told.
    pub(crate) fn acknowledged(&self) -> u32 {
        self.told().get(&self.id())
    }

    pub(crate) async fn send(&mut self, message: Message) {
        self.socket.send(Frame::binary(message.encode_v1())).await.expect("it is sent");
    }

    /// Writes, here and at the server.
    pub(crate) async fn insert(&mut self, at: u32, words: &str) {
        let change = self.insert_here(at, words);
        self.send(change).await;
    }

    /// Writes here alone: the message that tells it.
    pub(crate) fn insert_here(&self, at: u32, words: &str) -> Message {
        let mut txn = self.doc.transact_mut();
        self.text.insert(&mut txn, at, words);
        Message::Sync(SyncMessage::Update(txn.encode_update_v1()))
    }

    pub(crate) async fn remove(&mut self, at: u32, length: u32) {
        let mut txn = self.doc.transact_mut();
        self.text.remove_range(&mut txn, at, length);
        let change = Message::Sync(SyncMessage::Update(txn.encode_update_v1()));
        drop(txn);
        self.send(change).await;
    }

    /// Says where the cursor is.
    pub(crate) async fn point(&mut self, clock: u32, state: &str) {
        let entry = AwarenessUpdateEntry { clock, json: state.into() };
        let clients = [(self.id(), entry)].into();
        self.send(Message::Awareness(AwarenessUpdate { clients })).await;
    }

    /// The next message, after doing what it says.
    pub(crate) async fn take(&mut self) -> Message {
        let frame = self.socket.next().await.expect("the socket is open").expect("a frame");
        let Frame::Binary(bytes) = frame else {
            if matches!(frame, Frame::Ping(_) | Frame::Pong(_)) {
                return Box::pin(self.take()).await;
            }
            panic!("only data is sent: {frame:?}")
        };
        let message = Message::decode_v1(&bytes).expect("a message");
        match &message {
            Message::Sync(SyncMessage::SyncStep1(known)) => {
                let lacking = self.doc.transact().encode_state_as_update_v1(known);
                self.send(Message::Sync(SyncMessage::SyncStep2(lacking))).await;
            }
            Message::Sync(SyncMessage::SyncStep2(change) | SyncMessage::Update(change)) => {
                let update = Update::decode_v1(change).expect("a change");
                self.doc.transact_mut().apply_update(update).expect("it applies");
                let update = Update::decode_v1(change).expect("a change");
                self.mirror.transact_mut().apply_update(update).expect("it applies");
                self.changes +=
                    usize::from(matches!(&message, Message::Sync(SyncMessage::Update(_))));
            }
            Message::Awareness(update) => {
                let entry = |(id, entry): (&ClientID, &AwarenessUpdateEntry)| {
                    (*id, entry.clock, entry.json.to_string())
                };
                self.cursors = update.clients.iter().map(entry).collect();
            }
            other => panic!("the server doesn't say {other:?}"),
        }
        message
    }

    /// Takes messages until it is so.
    pub(crate) async fn until(&mut self, is_so: impl Fn(&Self) -> bool) {
        while !is_so(self) {
            self.take().await;
        }
    }
}

/// Reads up to the close frame: its code and reason.
pub(crate) async fn closed(socket: &mut Socket) -> (u16, String) {
    loop {
        match socket.next().await {
            Some(Ok(Frame::Close(Some(frame)))) => {
                return (frame.code.into(), frame.reason.to_string());
            }
            Some(Ok(_)) => {}
            other => panic!("a close frame was to come, and not {other:?}"),
        }
    }
}

/// Numbers that look random and are the same each time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % u64::from(limit.max(1))) as u32
    }
}
