//! A server as a process, and the people who talk on it, each from an address of their own.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use capnp::capability::FromClientHook;
use capstead_client::namespace;
use chat::chat_capnp::chat_room;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_mins(2);

pub fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::LocalRuntime::new().expect("a runtime");
    runtime
        .block_on(async { tokio::time::timeout(DEADLINE, work).await })
        .expect("it ends in time");
}

/// A server that is ready; killed when it is dropped.
pub struct Server {
    child: Child,
    http: SocketAddr,
    metrics: Option<SocketAddr>,
    /// The reference of all rooms.
    rooms: String,
    log: PathBuf,
}

impl Server {
    pub fn start(data: &Path, args: &[&str]) -> Self {
        let log = data.with_extension("log");
        let stderr = std::fs::File::create(&log).expect("a file for the log");
        let any = "127.0.0.1:0";
        let mut command = Command::new(env!("CARGO_BIN_EXE_chat"));
        command.args(["--json", "--listen", any, "--http", any, "--data"]).arg(data).args(args);
        command.env("RUST_LOG", "trace").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().expect("the server starts");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("it is ours");
        BufReader::new(stdout).read_line(&mut line).expect("it says when it is ready");
        let said: Value = serde_json::from_str(&line).expect("it is JSON");
        let http = said["http"].as_str().and_then(|url| url.strip_prefix("http://"));
        let http = http.and_then(|address| address.parse().ok()).expect("an address");
        let metrics = said["metrics"].as_str().and_then(|url| url.strip_prefix("http://"));
        let metrics = metrics.and_then(|page| page.trim_end_matches("/metrics").parse().ok());
        let rooms = said["namespaces"]["ChatRoom"].as_str().expect("a reference").to_owned();
        Self { child, http, metrics, rooms, log }
    }

    /// `kill -9`, and waits until nothing of the process is left.
    pub fn kill(&mut self) {
        self.child.kill().expect("the child is ours");
        self.child.wait().expect("the child is ours");
    }

    /// Ends it in order; its log.
    pub fn stop(&mut self, limit: Duration) -> String {
        let pid = self.child.id().to_string();
        let kill = Command::new("sh").args(["-c", r#"kill -s TERM "$0""#, &pid]).status();
        assert!(kill.expect("there is a shell").success());
        let looks = limit.as_millis() / 10;
        for _ in 0..looks {
            if self.child.try_wait().expect("the child is ours").is_some() {
                let mut log = String::new();
                let file = std::fs::File::open(&self.log);
                file.and_then(|mut file| file.read_to_string(&mut log)).expect("the log is text");
                return log;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it doesn't end within {limit:?}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection from one of the addresses of this machine.
async fn connect(server: &Server, address: u8) -> TcpStream {
    connect_to(server.http, address).await
}

async fn connect_to(server: SocketAddr, address: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    let from = Ipv4Addr::new(127, 0, 1, address.wrapping_add(1));
    socket.bind(SocketAddr::from((from, 0))).expect("the address is this machine's");
    socket.connect(server).await.expect("the server is reached")
}

/// Returns when no room is awake; the server has its metrics served.
pub async fn until_all_sleep(server: &Server) {
    let page = server.metrics.expect("the metrics are served");
    loop {
        let mut stream = connect_to(page, 0).await;
        let request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.expect("it is heard");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it is answered");
        if answer.contains("\ncapstead_objects_awake 0\n") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A call by Cap'n Proto that writes, and so is answered when all that the room wrote before is
/// durable.
pub async fn make(server: &Server, room: &str) {
    let rooms: namespace::Client =
        capstead_client::restore(&server.rooms).await.expect("it is good");
    let mut by_name = rooms.by_name_request();
    by_name.get().set_key(room);
    let room: chat_room::Client = by_name.send().pipeline.get_object().as_cap().cast_to();
    room.make_request().send().promise.await.expect("it is made");
}

/// The status and the body of an answer.
pub async fn ask(server: &Server, method: &str, path: &str, address: u8) -> (u16, String) {
    let (head, body) = exchange(server, method, path, address).await;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status"), body)
}

/// The head of the answer to a GET.
pub async fn head(server: &Server, path: &str, address: u8) -> String {
    exchange(server, "GET", path, address).await.0
}

async fn exchange(server: &Server, method: &str, path: &str, address: u8) -> (String, String) {
    let mut stream = connect(server, address).await;
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", server.http);
    stream.write_all(request.as_bytes()).await.expect("it is heard");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it is answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("the head is whole");
    (head.to_lowercase(), body.to_owned())
}

/// The words of the operator's tool that takes all objects of a class out of the data.
pub fn export(data: &Path, class: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chat"));
    command.args(["export", "--class", class, "--data"]).arg(data).arg(data.with_extension(class));
    let output = command.output().expect("it runs");
    String::from_utf8([output.stdout, output.stderr].concat()).expect("it is text")
}

/// All files under a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    let paths = entries.map(|entry| entry.expect("it is read").path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Somebody in a room.
pub struct Person {
    pub name: String,
    socket: WebSocketStream<TcpStream>,
}

impl Person {
    /// A socket of a room; else the status of the refusal.
    pub async fn connect(server: &Server, room: &str, address: u8) -> Result<Self, u16> {
        let stream = connect(server, address).await;
        let url = format!("ws://{}/api/room/{room}/websocket", server.http);
        match tokio_tungstenite::client_async(url, stream).await {
            Ok((socket, _)) => Ok(Self { name: String::new(), socket }),
            Err(Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    /// The same, for a client that has this address by the word of a proxy.
    pub async fn connect_from(server: &Server, room: &str, address: &str) -> Result<Self, u16> {
        let stream = connect(server, 0).await;
        let url = format!("ws://{}/api/room/{room}/websocket", server.http);
        let mut request = url.into_client_request().expect("it is a request");
        let address = address.parse().expect("it is a value");
        request.headers_mut().insert("x-forwarded-for", address);
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(Self { name: String::new(), socket }),
            Err(Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    /// Says a name, and reads until all of the past has come.
    pub async fn enter(server: &Server, room: &str, name: &str, address: u8) -> Self {
        let mut person = Self::connect(server, room, address).await.expect("the room is open");
        name.clone_into(&mut person.name);
        person.send(&json!({ "name": name })).await;
        while person.next().await != json!({ "ready": true }) {}
        person
    }

    pub async fn send(&mut self, value: &Value) {
        self.send_text(&value.to_string()).await;
    }

    pub async fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.expect("it is sent");
    }

    pub async fn say(&mut self, message: &str) {
        self.send(&json!({ "message": message })).await;
    }

    /// Says something; false if the answer is that it was too fast.
    pub async fn is_told(&mut self, message: &str) -> bool {
        self.say(message).await;
        loop {
            let said = self.next().await;
            if let Some(error) = said["error"].as_str() {
                assert!(error.contains("rate-limited"), "{error}");
                return false;
            }
            if said["message"] == message {
                return true;
            }
        }
    }

    pub async fn next(&mut self) -> Value {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(&text).expect("it is JSON");
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("{}: a message was to come, and not {other:?}", self.name),
            }
        }
    }

    /// So many messages of people.
    pub async fn hear(&mut self, count: usize) -> Vec<Value> {
        let mut heard = Vec::new();
        while heard.len() < count {
            let said = self.next().await;
            if said["timestamp"].is_u64() {
                heard.push(said);
            } else {
                assert!(said["error"].is_null(), "{}: {said}", self.name);
            }
        }
        heard
    }

    /// Reads up to a message of their own.
    pub async fn hear_own(&mut self, message: &str) -> Value {
        loop {
            let said = self.hear(1).await.remove(0);
            if said["message"] == message && said["name"] == *self.name {
                return said;
            }
        }
    }

    /// The code with which the server closes.
    pub async fn closed(&mut self) -> u16 {
        match self.socket.next().await {
            Some(Ok(Message::Close(Some(frame)))) => frame.code.into(),
            other => panic!("a close frame was to come, and not {other:?}"),
        }
    }
}
