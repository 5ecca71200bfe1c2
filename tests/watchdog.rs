//! A turn that doesn't end: it is reported with its name, the host counts as not ready, and at last the
//! process aborts and loses nothing that was acknowledged.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "how long something takes is what is tested")]
#![allow(clippy::print_stdout, reason = "a server announces itself")]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use capnp::capability::FromClientHook;
use capstead::counter_capnp::counter;
use capstead::http::http_service;
use capstead::{Context, Object, Result, Server, Stored, TurnLimits};
use capstead_client::{Connection, namespace};

/// Names the data directory in the process that serves.
const SERVE: &str = "CAPSTEAD_TEST_HOG";

/// How many milliseconds the turn takes is what a caller adds.
struct Hog(Stored<i64>);

impl Object for Hog {
    const CLASS: &'static str = "Hog";
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self(ctx.stored("times")?))
    }
}

impl http_service::Server for Hog {}

impl counter::Server for Hog {
    async fn increment(
        self: Rc<Self>,
        params: counter::IncrementParams,
        mut results: counter::IncrementResults,
    ) -> Result<()> {
        let by = params.get()?.get_by();
        std::thread::sleep(Duration::from_millis(by.unsigned_abs()));
        self.0.set(self.0.get() + 1)?;
        results.get().set_value(self.0.get());
        Ok(())
    }

    async fn read(
        self: Rc<Self>,
        _: counter::ReadParams,
        mut results: counter::ReadResults,
    ) -> Result<()> {
        results.get().set_value(self.0.get());
        Ok(())
    }
}

/// What the other process runs; without the variable there is nothing to do.
#[test]
fn serve_the_hog() {
    let Ok(data) = std::env::var(SERVE) else { return };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    runtime.block_on(async {
        let any = "127.0.0.1:0".parse().unwrap();
        let limits = TurnLimits { abort: Duration::from_secs(1), ..TurnLimits::default() };
        let server = Server::new(data).class::<Hog>().listen(any).http(any).metrics(any);
        let running = server.turn_limits(limits).start().await.unwrap();
        println!("\n{}\n{}", running.metrics().unwrap(), running.namespaces()["Hog"]);
        running.until(std::future::pending()).await.unwrap();
    });
}

struct Serving {
    child: Child,
    stderr: ChildStderr,
    metrics: String,
    hogs: String,
}

fn start(data: &std::path::Path) -> Serving {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "serve_the_hog", "--nocapture"])
        .env(SERVE, data)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let hogs_follow = |line: &String| line.starts_with("127.0.0.1:");
    let metrics = lines.find(hogs_follow).unwrap();
    let hogs = lines.next().unwrap();
    Serving { stderr: child.stderr.take().unwrap(), child, metrics, hogs }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

async fn hog(serving: &Serving) -> (Connection, counter::Client) {
    let address = serving.hogs.trim_start_matches("capstead://").split('/').next().unwrap();
    let connection = Connection::dial(address).await.unwrap();
    let hogs: namespace::Client = connection.restore(&serving.hogs).unwrap();
    let mut request = hogs.by_name_request();
    request.get().set_key("one");
    let hog = request.send().pipeline.get_object().as_cap().cast_to();
    (connection, hog)
}

fn increment(hog: &counter::Client, ms: i64) -> impl Future<Output = Result<i64>> + use<> {
    let mut request = hog.increment_request();
    request.get().set_by(ms);
    let sent = request.send().promise;
    async move { Ok(sent.await?.get()?.get_value()) }
}

#[test]
fn a_turn_that_does_not_end_is_reported_and_ends_the_process_at_last() {
    let data = tempfile::tempdir().unwrap();
    let mut serving = start(data.path());
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    runtime.block_on(async {
        let (_connection, hog) = hog(&serving).await;
        assert_eq!(increment(&hog, 1).await.unwrap(), 1);
        assert!(get(&serving.metrics, "/ready").contains("200 OK"));
        assert_eq!(increment(&hog, 220).await.unwrap(), 2);
        let page = get(&serving.metrics, "/metrics");
        assert!(page.contains("capstead_turns_slow_total 1\n"), "{page}");
        assert!(page.contains("capstead_hosts_unready 0\n"), "{page}");

        let slow = increment(&hog, 600);
        let (slow, unready_after) = futures::join!(slow, until(&serving.metrics, "503 "));
        assert_eq!(slow.unwrap(), 3);
        assert!(unready_after < Duration::from_millis(450), "{unready_after:?}");
        until(&serving.metrics, "200 ").await;

        let error = increment(&hog, 60_000).await.unwrap_err();
        assert_eq!(error.kind, capnp::ErrorKind::Disconnected, "{error}");
    });
    let status = serving.child.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{status}");
    let mut log = String::new();
    serving.stderr.read_to_string(&mut log).unwrap();
    for part in ["holds up its host", "Hog", "isn't ready", "is ready again", "the process aborts"]
    {
        assert!(log.contains(part), "{part:?} is missing in\n{log}");
    }
    let method = format!("@{:#x}.@0", <counter::Client as capnp::traits::HasTypeId>::TYPE_ID);
    assert!(log.contains(&method), "{method} is missing in\n{log}");

    let mut again = start(data.path());
    runtime.block_on(async {
        let (_connection, hog) = hog(&again).await;
        let read = hog.read_request().send().promise.await.unwrap();
        assert_eq!(read.get().unwrap().get_value(), 3);
    });
    again.child.kill().unwrap();
    again.child.wait().unwrap();
}

/// Asks on a thread of its own, since the test's own must serve the call.
async fn until(metrics: &str, status: &'static str) -> Duration {
    let (metrics, began) = (metrics.to_owned(), Instant::now());
    let asked = tokio::task::spawn_blocking(move || {
        while !get(&metrics, "/ready").contains(status) {
            assert!(began.elapsed() < Duration::from_secs(5), "/ready never answers {status}");
        }
        began.elapsed()
    });
    asked.await.unwrap()
}
