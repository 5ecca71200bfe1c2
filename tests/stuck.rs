//! The harm that a class can do to the thread of its host: panics are logged, and a thread that
//! stands still for any reason is reported, and doesn't keep the process from ending. And its
//! command line, which has the rules of `capstead`.
//!
//! The server is this program, started anew, so that it has the command line of a server of one's
//! own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "a test says how it went")]

mod support;

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::rc::Rc;
use std::time::Duration;

use capstead::counter_capnp::counter;
use capstead::http::{self as web, Body, Request, Response, StatusCode, http_service};
use capstead::{Context, Object, Result, Server};
use support::{Process, Served, commands, eventually, full_pipe, http, now, scratch};

/// Set in the process that serves.
const SERVE: &str = "CAPSTEAD_TEST_STUCK";
const REASON: &str = "for no good reason";

struct Hog;

impl Object for Hog {
    const CLASS: &'static str = "Hog";
    type Client = counter::Client;

    async fn wake(_: Context) -> Result<Self> {
        Ok(Self)
    }
}

impl counter::Server for Hog {}

impl http_service::Server for Hog {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        web::serve(params, results, async |request| Ok(misbehave(&request))).await
    }
}

fn stand_still() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn misbehave(request: &Request<Body>) -> Response<Body> {
    match request.uri().path() {
        "/panic" => panic!("{REASON}"),
        "/turn" => stand_still(),
        "/loop" => drop(tokio::task::spawn_local(async { stand_still() })),
        _ => {}
    }
    web::text(StatusCode::OK, "")
}

/// The server's own program.
fn program() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(SERVE, "1").env_remove("RUST_LOG").env_remove("RUST_BACKTRACE");
    command.stdin(Stdio::null());
    command
}

fn start(data: &Path, args: &[&str]) -> Served {
    start_to(data, args, |file| file)
}

/// As [`start`], with standard error where that says.
fn start_to(data: &Path, args: &[&str], stderr: impl FnOnce(File) -> File) -> Served {
    let mut command = program();
    command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    command.args(["--json", "--data"]).arg(data).args(args);
    Served::ready(Process::start_to(command, stderr))
}

fn send(served: &Served, path: &str) -> http::Http {
    let mut connection = http::Http::connect(&served.announced.http);
    connection.send(format!("GET /hog/x{path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    connection
}

fn wait_for_ready(served: &Served, status: u16) {
    let metrics = served.announced.metrics.as_deref().unwrap();
    eventually("/ready", || (http::get(metrics, "/ready").status == status).then_some(()));
}

/// Has the host of the object stand still.
fn hold_up(served: &Served, path: &str) -> http::Http {
    let waiting = send(served, path);
    wait_for_ready(served, 503);
    waiting
}

fn panics_are_logged_once_with_whose_turn_it_was() {
    for format in ["json", "text"] {
        let (_folder, data) = scratch();
        let served = start(&data, &["--log", format]);
        assert_eq!(send(&served, "/panic").answer("GET").status, 502);
        let (code, _, log) = served.stop();
        assert_eq!(code, Some(0), "{log}");
        let told: Vec<_> = log.lines().filter(|line| line.contains(REASON)).collect();
        let [line] = told[..] else { panic!("told {} times: {log}", told.len()) };
        if format == "text" {
            for part in ["ERROR", "panicked at tests/stuck.rs:", "Hog", "object=", "method="] {
                assert!(line.contains(part), "{part} is missing: {line}");
            }
            continue;
        }
        for line in log.lines() {
            assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "no JSON: {line}");
        }
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let fields = &line["fields"];
        assert_eq!(fields["class"], "Hog", "{line}");
        assert_eq!(line["level"], "ERROR", "{line}");
        assert!(fields["method"].as_str().unwrap().starts_with("@0x"), "{line}");
        assert_eq!(fields["object"].as_str().map(str::len), Some(32), "{line}");
    }
}

fn a_server_that_is_told_to_end_ends_though_a_host_stands_still() {
    for (path, abort, hosts) in
        [("/turn", "4s", "1"), ("/loop", "4s", "1"), ("/loop", "4s", "2"), ("/turn", "0s", "1")]
    {
        let (_folder, data) = scratch();
        let served = start(&data, &["--turn-abort", abort, "--hosts", hosts]);
        let _waiting = hold_up(&served, path);
        served.signal("TERM");
        let began = now();
        let (code, _, log) = served.wait();
        assert_eq!(code, Some(4), "{path}: {log}");
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        let last = log.lines().last().unwrap();
        assert!(last.starts_with("capstead: told to end"), "{log}");
    }
}

fn a_host_that_stands_still_outside_of_a_turn_is_reported_and_ends_the_process() {
    let (_folder, data) = scratch();
    let mut served = start(&data, &["--turn-abort", "2s"]);
    wait_for_ready(&served, 200);
    let _waiting = hold_up(&served, "/loop");
    let status = served.end();
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{status}");
    let log = served.stderr();
    assert!(log.contains("stands still outside of a turn"), "{log}");
    assert!(log.contains("stands still: the process ends"), "{log}");
}

/// The process waits a second for the last lines before it ends, and for no others.
fn a_panic_in_a_turn_does_not_wait_for_a_log_that_nobody_reads() {
    const SOON: Duration = Duration::from_millis(700);
    let took = [(); 3].map(|()| {
        let (_folder, data) = scratch();
        let (_reader, full) = full_pipe();
        let served = start_to(&data, &[], |_| full);
        let began = now();
        assert_eq!(send(&served, "/panic").answer("GET").status, 502);
        let took = began.elapsed();
        assert_eq!(served.stop().0, Some(0));
        took
    });
    // A machine that others use may stall for a moment.
    assert!(took.iter().any(|took| *took < SOON), "{took:?}");
}

/// The command line of a server of one's own keeps the rules of `capstead`.
fn help_that_cannot_be_written_is_an_error_of_every_command() {
    commands::assert_that_lost_help_is_an_error(&program);
}

fn a_filter_of_log_lines_that_cannot_be_read_is_an_error_of_every_command() {
    commands::assert_that_a_bad_filter_is_an_error(&program);
}

const TESTS: [(&str, fn()); 6] = [
    (
        "a_panic_in_a_turn_does_not_wait_for_a_log_that_nobody_reads",
        a_panic_in_a_turn_does_not_wait_for_a_log_that_nobody_reads,
    ),
    (
        "help_that_cannot_be_written_is_an_error_of_every_command",
        help_that_cannot_be_written_is_an_error_of_every_command,
    ),
    (
        "a_filter_of_log_lines_that_cannot_be_read_is_an_error_of_every_command",
        a_filter_of_log_lines_that_cannot_be_read_is_an_error_of_every_command,
    ),
    (
        "panics_are_logged_once_with_whose_turn_it_was",
        panics_are_logged_once_with_whose_turn_it_was,
    ),
    (
        "a_server_that_is_told_to_end_ends_though_a_host_stands_still",
        a_server_that_is_told_to_end_ends_though_a_host_stands_still,
    ),
    (
        "a_host_that_stands_still_outside_of_a_turn_is_reported_and_ends_the_process",
        a_host_that_stands_still_outside_of_a_turn_is_reported_and_ends_the_process,
    ),
];

fn main() -> ExitCode {
    if std::env::var_os(SERVE).is_some() {
        let runtime = tokio::runtime::LocalRuntime::new().unwrap();
        let server = Server::new("stuck.data").class::<Hog>();
        return runtime.block_on(server.run()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted.iter().any(|arg| arg == "--list") {
        for (name, _) in TESTS {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let names: Vec<_> = wanted.iter().filter(|arg| !arg.starts_with('-')).collect();
    for (name, test) in TESTS {
        if names.is_empty() || names.iter().any(|wanted| name.contains(*wanted)) {
            println!("test {name} ...");
            test();
        }
    }
    println!("ok");
    ExitCode::SUCCESS
}
