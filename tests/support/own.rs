//! A test program as a server of its own classes, in another process: it runs the same program
//! again, with only the test that serves.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use capstead::{Running, Server};
use tokio::signal::unix::{SignalKind, signal};

/// The variable that holds the data directory in the process that serves.
const SERVE: &str = "CAPSTEAD_TEST_SERVE";

/// This program, running only the test of that name, which serves `data`.
pub(crate) fn program(test: &str, data: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(SERVE, data);
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// The data directory to serve; `None` in a process that doesn't serve.
pub(crate) fn data() -> Option<OsString> {
    std::env::var_os(SERVE)
}

/// Serves on free ports until SIGTERM, and announces itself like `capstead serve --json`.
pub(crate) fn serve(server: Server) {
    let runtime = tokio::runtime::LocalRuntime::new().expect("a runtime");
    runtime.block_on(async {
        let any = "127.0.0.1:0".parse().expect("an address");
        let server = server.listen(any).http(any).metrics(any);
        let running = server.start().await.expect("it starts");
        let mut term = signal(SignalKind::terminate()).expect("signals are told");
        announce(&running);
        let end = async { assert!(term.recv().await.is_some(), "signals are told") };
        running.until(end).await.expect("it ends in order");
    });
}

fn announce(running: &Running) {
    let metrics = running.metrics().expect("the numbers are served");
    let announced = serde_json::json!({
        "capnp": running.capnp().to_string(),
        "http": format!("http://{}", running.http().expect("HTTP is served")),
        "metrics": format!("http://{metrics}/metrics"),
        "namespaces": running.namespaces(),
    });
    writeln!(std::io::stdout(), "\n{announced}").expect("somebody reads it");
}
