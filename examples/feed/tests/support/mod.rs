//! A server for each test: the real binary on free ports, killed when it is dropped.
//!
//! Every wait has a deadline, and none has a fixed length.
#![allow(dead_code, reason = "each file of tests uses some of it")]

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use capnp::capability::FromClientHook;
use capstead_client::namespace;
use tempfile::TempDir;

/// Longer than anything here takes, even on a busy machine.
const DEADLINE: Duration = Duration::from_mins(1);

/// The time between two checks of a condition that has no event.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A data directory, which one server after the other uses.
pub(crate) struct Data(TempDir);

/// A server that is ready.
pub(crate) struct Server {
    child: Child,
    /// The root reference of each class.
    pub(crate) namespaces: BTreeMap<String, String>,
    /// The address of the gateway.
    http: String,
    /// The address of the metrics.
    metrics: String,
}

impl Data {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("feed.data")
    }

    pub(crate) fn serve(&self, args: &[&str]) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_feed"));
        let any = "127.0.0.1:0";
        command.args(["--json", "--listen", any, "--http", any, "--metrics", any, "--data"]);
        command.arg(self.path()).args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the server starts");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("it is ours");
        BufReader::new(stdout).read_line(&mut line).expect("it says when it is ready");
        let said: serde_json::Value = serde_json::from_str(&line).expect("it is JSON");
        let namespaces = serde_json::from_value(said["namespaces"].clone());
        let [http, metrics] =
            ["http", "metrics"].map(|of| said[of].as_str().expect("an address").to_owned());
        Server { child, namespaces: namespaces.expect("a text for each class"), http, metrics }
    }
}

impl Server {
    /// The reference that an earlier server gave out, with the address of this one.
    pub(crate) fn at_its_address(&self, text: &str) -> String {
        let (_, secret) = text.split_once('#').expect("it is a reference");
        let (address, _) = self.namespaces["Feed"].split_once('#').expect("it is a reference");
        format!("{address}#{secret}")
    }

    /// Waits until this number of objects is in memory.
    pub(crate) async fn awake(&self, objects: u64) {
        let line = format!("capstead_objects_awake {objects}");
        while !self.numbers().lines().any(|found| found == line) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Calls a method in JSON: the status, and what comes back.
    pub(crate) fn json(&self, path: &str, params: &serde_json::Value) -> (u16, serde_json::Value) {
        let address = self.http.trim_start_matches("http://").trim_end_matches('/');
        let mut stream = TcpStream::connect(address).expect("the gateway is reached");
        let (params, host) = (params.to_string(), address);
        let head = format!("POST /json/{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        let request = format!("{head}Content-Length: {}\r\n\r\n{params}", params.len());
        stream.write_all(request.as_bytes()).expect("it is asked");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it is text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("the head is whole");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("a status"), serde_json::from_str(body).unwrap_or_default())
    }

    /// The page of metrics.
    fn numbers(&self) -> String {
        let address = self.metrics.trim_start_matches("http://").trim_end_matches("/metrics");
        let mut stream = TcpStream::connect(address).expect("the page is served");
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("it is asked for");
        let mut page = String::new();
        stream.read_to_string(&mut page).expect("it is text");
        page
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Ends the server in order; returns its exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        let asked = Command::new("sh").args(["-c", r#"kill -s TERM "$0""#, &pid]).status();
        assert!(asked.expect("there is a shell").success());
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `work` where capabilities can live, and fails it at the deadline.
pub(crate) fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::LocalRuntime::new().expect("a runtime");
    runtime.block_on(deadline(work))
}

/// Fails if `work` takes longer than the deadline.
pub(crate) async fn deadline<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.expect("it ends before the deadline")
}

/// The object of that name.
pub(crate) async fn by_name<C: FromClientHook>(namespace: &str, name: &str) -> C {
    let objects: namespace::Client = capstead_client::restore(namespace).await.expect("restored");
    let mut request = objects.by_name_request();
    request.get().set_key(name);
    request.send().pipeline.get_object().as_cap().cast_to()
}
