//! The smallest server, as its user runs it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use capnp::capability::FromClientHook;
use capstead_client::{Result, namespace};
use hello_capnp::tally;

capnp::generated_code!(mod hello_capnp);

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

    /// Adds one, and returns the total.
    fn add(&self) -> i64 {
        add(&self.tallies).expect("it is added")
    }
}

impl Drop for Server {
    /// `kill -9`, and waits until the process is gone.
    fn drop(&mut self) {
        self.child.kill().expect("the child is ours");
        self.child.wait().expect("the child is ours");
    }
}

/// Adds one to the tally `visits`, as the client does.
fn add(tallies: &str) -> Result<i64> {
    let added = async {
        let tallies: namespace::Client = capstead_client::restore(tallies).await?;
        let mut by_name = tallies.by_name_request();
        by_name.get().set_key("visits");
        let visits: tally::Client = by_name.send().pipeline.get_object().as_cap().cast_to();
        Ok(visits.add_request().send().promise.await?.get()?.get_total())
    };
    tokio::runtime::LocalRuntime::new()?.block_on(added)
}

// The first promise of the front page.
#[test]
fn a_tally_goes_on_where_the_last_answer_left_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("hello.data");
    let server = Server::start(&data);
    assert_eq!(server.add(), 1);
    assert_eq!(server.add(), 2);
    drop(server);
    assert_eq!(Server::start(&data).add(), 3);
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
    // This calls `byName`.
    let refused = add(text.trim()).expect_err("that isn't allowed");
    assert_eq!(refused.kind, capnp::ErrorKind::Unimplemented, "{refused}");
    drop(server);
    grant();
}
