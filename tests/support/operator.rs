//! The operator's commands, run on the data of a server.

use std::path::Path;
use std::process::{Command, Output};

use super::http::post;
use super::{capstead, serve_with};

/// A command on `data`.
pub(crate) fn command(data: &Path, args: &[&str]) -> Command {
    let mut command = capstead(args);
    command.arg("--data").arg(data);
    command
}

/// All that the command said, on either stream.
pub(crate) fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(text).expect("it says text").trim_end().to_owned()
}

/// Runs a command.
pub(crate) fn output(data: &Path, args: &[&str]) -> Output {
    command(data, args).output().expect("it runs")
}

/// Runs a command that must succeed; returns what it said.
pub(crate) fn done(data: &Path, args: &[&str]) -> String {
    let output = output(data, args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    said(&output)
}

/// Runs a command that must fail with this code; returns what it said.
pub(crate) fn refused(data: &Path, args: &[&str], code: i32) -> String {
    let output = output(data, args);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}", said(&output));
    said(&output)
}

/// A stopped server's data, with the counter `x`, which is 1.
pub(crate) fn data_with_a_counter(data: &Path) {
    let served = serve_with(data, &["--hosts", "2"]);
    assert_eq!(post(&served.announced.http, "/counter/x/increment").status, 200);
    served.stop();
}
