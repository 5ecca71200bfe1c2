//! The smallest server and its client, as their user runs them.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// A running server; killed when it is dropped.
struct Server {
    child: Child,
    /// The reference of all tallies.
    tallies: String,
}

impl Server {
    fn start(data: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hello"));
        let any = "127.0.0.1:0";
        command.args(["--json", "--listen", any, "--http", "off", "--data"]).arg(data);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let child = command.spawn().expect("the server starts");
        let mut server = Self { child, tallies: String::new() };
        let mut line = String::new();
        let stdout = server.child.stdout.as_mut().expect("it is ours");
        BufReader::new(stdout).read_line(&mut line).expect("it says when it is ready");
        let said: serde_json::Value = serde_json::from_str(&line).expect("it is JSON");
        server.tallies = said["namespaces"]["Tally"].as_str().expect("a reference").to_owned();
        server
    }

    /// The output of a client that adds one.
    fn add(&self) -> String {
        let output = client(&[&self.tallies]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("it is text")
    }
}

impl Drop for Server {
    /// `kill -9`, and waits until the process is gone.
    fn drop(&mut self) {
        self.child.kill().expect("the child is ours");
        self.child.wait().expect("the child is ours");
    }
}

fn client(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hello_client"));
    command.args(args).stdin(Stdio::null()).output().expect("it runs")
}

// The first promise of the front page.
#[test]
fn a_tally_goes_on_where_the_last_answer_left_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("hello.data");
    let server = Server::start(&data);
    assert_eq!(server.add(), "visits: 1\n");
    assert_eq!(server.add(), "visits: 2\n");
    drop(server);
    assert_eq!(Server::start(&data).add(), "visits: 3\n");
}

/// The program's own command line knows the methods of its class, whether it has the data itself or
/// a running server does.
#[test]
fn the_operator_names_the_methods_of_the_class() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("hello.data");
    let verb = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hello"));
        command.args(args).arg("--data").arg(&data).stdin(Stdio::null());
        let output = command.output().expect("it runs");
        let said = [&output.stdout[..], &output.stderr].concat();
        (output.status.success(), String::from_utf8(said).expect("it is text"))
    };
    let grant = || {
        for method in ["Tally.add", "add"] {
            let (done, said) = verb(&["grant", "Tally/visits", "--method", method]);
            assert!(done, "{said}");
        }
        let (done, said) = verb(&["grant", "Tally/visits", "--method", "Tally.reset"]);
        let has = "Tally has no method Tally.reset; it has Tally.add, Facet.once";
        assert!(!done && said.contains(has), "{said}");
    };
    let server = Server::start(&data);
    server.add();
    grant();
    let tries = ["grant", "Tally", "--method", "tryGet", "--object-method", "add"];
    let (done, text) = verb(&tries);
    assert!(done, "{text}");
    // The client calls `byName`.
    let output = client(&[text.trim()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("Unimplemented"), "{said}");
    drop(server);
    grant();
}

#[test]
fn a_client_without_a_reference_is_told_what_it_needs() {
    let output = client(&[]);
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).expect("it is text");
    assert!(said.contains("usage: hello_client REFERENCE"), "{said}");
}
