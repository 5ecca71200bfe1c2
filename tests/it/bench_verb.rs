//! `capstead bench` is a separate program, which lies beside the server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::support::scratch;

/// Runs `capstead bench` in a folder of its own, like an installed one: not started by Cargo.
fn bench(capstead: &std::path::Path, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(capstead);
    command.arg("bench").args(args).env_remove("CARGO").env_remove("CARGO_PKG_NAME");
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn it_is_given_all_arguments_or_said_to_be_missing() {
    let (folder, _) = scratch();
    let capstead = folder.path().join("capstead");
    fs::copy(env!("CARGO_BIN_EXE_capstead"), &capstead).unwrap();
    let (code, said) = bench(&capstead, &["--json"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("capstead-bench isn't there; `cargo build --release`"), "{said}");

    let program = folder.path().join("capstead-bench");
    // It is told of which sources the server is, too.
    let says = "#!/bin/sh\necho \"$CAPSTEAD_SOURCES $@\"\nexit 7\n";
    fs::write(&program, says).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let given = bench(&capstead, &["--json", "rpc-read-1", "--quick", "--help"]);
    let sources = capstead::lab::SOURCES;
    assert_eq!(given, (Some(7), format!("{sources} --json rpc-read-1 --quick --help\n")));
}
