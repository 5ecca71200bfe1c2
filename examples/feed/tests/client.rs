//! The client as its user runs it: every command, against a real server.

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use support::Data;

fn client(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_feed_client"));
    command.args(args).stdin(Stdio::null());
    command
}

/// The client's standard output and standard error.
fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("it is text");
    (text(&output.stdout), text(&output.stderr))
}

fn succeeds(args: &[&str]) -> (String, String) {
    let output = client(args).output().expect("it runs");
    assert!(output.status.success(), "{args:?}: {output:?}");
    said(&output)
}

#[test]
fn every_command_does_what_it_says() {
    let data = Data::new();
    let server = data.serve(&[]);
    let (feeds, users) = (&*server.namespaces["Feed"], &*server.namespaces["User"]);
    assert_eq!(succeeds(&[feeds, "post", "news", "hello"]).0, "this is post 1\n");
    let (reference, _) = succeeds(&[feeds, "share", "news", "Ada"]);
    succeeds(&[users, "follow", "ada", "the news", reference.trim()]);
    assert_eq!(
        succeeds(&[users, "timeline", "ada"]),
        ("the news 1: hello\n".into(), String::new())
    );

    let mut watching = client(&[users, "watch", "ada"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    // Shown at once if the client watches by now, and otherwise when it begins to.
    succeeds(&[feeds, "post", "news", "again"]);
    assert_eq!(lines.next().unwrap().unwrap(), "the news 2: again");
    succeeds(&[feeds, "post", "news", "more"]);
    assert_eq!(lines.next().unwrap().unwrap(), "the news 3: more");

    succeeds(&[feeds, "revoke", "news", "Ada"]);
    let (_, complaint) = succeeds(&[users, "timeline", "ada"]);
    assert!(complaint.starts_with("the news can't be read: revoked:"), "{complaint}");
    succeeds(&[users, "unfollow", "ada", "the news"]);
    let refused = client(&[feeds, "revoke", "news", "Ada"]).output().unwrap();
    assert!(!refused.status.success() && said(&refused).1.contains("nothing is shared with Ada"));

    assert_eq!(server.stop(), Some(0));
    let ended = watching.wait().expect("it ends with the server");
    assert!(!ended.success(), "it can't watch any more");
    let usage = client(&[]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
    assert!(said(&usage).1.starts_with("usage:\n"));
}
