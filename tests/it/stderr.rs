//! A blocked standard error and an unread standard output delay nothing.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{
    DEADLINE, capstead, eventually, free_address, full_pipe, http, now, refused_start, scratch,
};

/// Longer than the end of a server takes, with the moment that it waits for its last lines.
const SOON: Duration = Duration::from_secs(20);

/// A server on ports that the test chose, since its output can't be read. Killed when it is
/// dropped.
struct Deaf {
    child: Child,
    capnp: String,
    http: String,
    metrics: String,
}

impl Drop for Deaf {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(data: &Path, level: &str, set: impl FnOnce(Command) -> Command) -> Deaf {
    let (capnp, http, metrics) = (free_address(), free_address(), free_address());
    let mut command = capstead(["serve", "--listen", &capnp, "--http", &http]);
    command.args(["--metrics", &metrics, "--data"]).arg(data).env("RUST_LOG", level);
    let child = set(command).spawn().unwrap();
    let deaf = Deaf { child, capnp, http, metrics };
    eventually("the server", || TcpStream::connect(&deaf.metrics).ok());
    deaf
}

impl Deaf {
    fn dropped(&self) -> u64 {
        let page = http::get(&self.metrics, "/metrics").body;
        let name = "capstead_log_lines_dropped_total ";
        page.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
    }

    fn increment(&self) {
        assert_eq!(http::post(&self.http, "/counter/x/increment").status, 200);
    }

    /// Makes the server log a line, by a connection that it ends with an error.
    fn have_a_line_logged(&self) {
        let mut stream = TcpStream::connect(&self.capnp).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(&[0xff; 16]).unwrap();
        // The connection ends; the way doesn't matter.
        let _ = stream.read_to_end(&mut Vec::new());
    }

    /// Makes the server log until lines were dropped.
    fn drop_lines(&self) {
        eventually("lines to be dropped", || {
            (0..100).for_each(|_| self.have_a_line_logged());
            (self.dropped() > 0).then_some(())
        });
        self.increment();
    }

    fn end(&mut self) {
        let began = now();
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        let status = eventually("the end", || self.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0));
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    }
}

// A write to the full pipe used to stop the event loop of a host.
#[test]
fn a_log_that_nobody_reads_is_dropped_and_counted_and_told_when_it_is_read_again() {
    let (_folder, data) = scratch();
    let (mut reader, writer) = io::pipe().unwrap();
    let mut server = start(&data, "capstead=debug", |mut command| {
        command.stdout(Stdio::null()).stderr(writer);
        command
    });
    server.drop_lines();
    let read = std::thread::spawn(move || {
        let mut log = Vec::new();
        let mut part = [0; 1 << 12];
        while let Ok(length @ 1..) = reader.read(&mut part) {
            log.extend_from_slice(&part[..length]);
        }
        String::from_utf8(log).unwrap()
    });
    server.increment();
    server.end();
    let log = read.join().unwrap();
    assert!(log.contains("log lines were dropped"), "nothing is told of them");
    assert!(log.contains("shutting down"), "the last lines are missing");
}

#[test]
fn a_server_whose_log_is_stuck_ends_when_it_is_told_to() {
    let (_folder, data) = scratch();
    let (_reader, writer) = io::pipe().unwrap();
    let mut server = start(&data, "capstead=debug", |mut command| {
        command.stdout(Stdio::null()).stderr(writer);
        command
    });
    server.drop_lines();
    server.end();
}

#[test]
fn a_log_on_a_full_disk_or_without_a_reader_is_dropped_and_counted() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (_, unread) = io::pipe().unwrap();
    for stderr in [Stdio::from(full), unread.into()] {
        let (_folder, data) = scratch();
        let mut server = start(&data, "capstead=debug", |mut command| {
            command.stdout(Stdio::null()).stderr(stderr);
            command
        });
        server.drop_lines();
        server.end();
    }
}

#[test]
fn a_server_needs_no_standard_error() {
    let (_folder, data) = scratch();
    let mut server = start(&data, "capstead=debug", |command| closed(&command));
    server.increment();
    server.end();
    // A refused start reports it only by its exit code.
    std::fs::write(data.join("format"), "something else").unwrap();
    let refused = refused_start(closed(capstead(["serve", "--data"]).arg(&data)));
    assert_eq!(refused, (Some(1), String::new()));
}

/// The command without standard output and standard error.
fn closed(command: &Command) -> Command {
    let mut closed = Command::new("sh");
    closed.args(["-c", r#"exec "$0" "$@" >&- 2>&-"#]);
    closed.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => closed.env(name, value),
            None => closed.env_remove(name),
        };
    }
    closed
}

// The thread that serves used to write the line itself.
#[test]
fn a_server_whose_ready_line_nobody_reads_serves_and_ends() {
    let (_folder, data) = scratch();
    let (_reader, writer) = full_pipe();
    let mut server = start(&data, "info", |mut command| {
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        command
    });
    server.increment();
    server.end();
}
