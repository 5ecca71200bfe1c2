//! The client's command line. Its calls of a server are tested outside of the workspace, as its
//! user builds both.

use std::process::{Command, Stdio};

#[test]
fn a_client_without_a_reference_is_told_what_it_needs() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hello-client"));
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).expect("it is text");
    assert!(said.contains("usage: hello-client REFERENCE"), "{said}");
}
