//! `capstead bench`: starts the program that measures, which lies beside this one.
//!
//! It is a separate program, because serving objects doesn't need it. It has a copy of the server,
//! so it is told of which sources this one is, and refuses to measure others.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use clap::Args;

use super::operator::{self, Failure};
use super::{fail, log};
use crate::lab;

const PROGRAM: &str = "capstead-bench";

/// The arguments that are passed on to that program.
#[derive(Args, Clone, Debug)]
pub(super) struct Options {
    /// The rows to measure and how to show them: see `capstead bench --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Replaces this process by that program. Returns only if that fails.
pub(super) fn run(options: &Options) -> ExitCode {
    if let Err(error) = log::selected() {
        return ExitCode::from(fail(&error));
    }
    let error = match program() {
        Ok(mut program) => {
            program.env(lab::SOURCES_VARIABLE, lab::SOURCES).args(&options.args);
            program.exec().to_string()
        }
        Err(error) => error,
    };
    ExitCode::from(operator::end(Err(Failure::Cannot(format!("can't measure: {error}"))), None))
}

/// Finds the program beside this one. Under `cargo run`, which builds only this one, Cargo builds
/// it first.
fn program() -> Result<Command, String> {
    let is_run_by_cargo = std::env::var_os("CARGO_PKG_NAME").is_some_and(|name| name == "capstead");
    if let (true, Some(cargo), Some(package)) =
        (is_run_by_cargo, std::env::var_os("CARGO"), std::env::var_os("CARGO_MANIFEST_DIR"))
    {
        let mut command = Command::new(cargo);
        command.args(["run", "--release", "--quiet", "--package", PROGRAM, "--manifest-path"]);
        command.arg(Path::new(&package).join("Cargo.toml")).arg("--");
        return Ok(command);
    }
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let beside = this.with_file_name(PROGRAM);
    if beside.is_file() {
        return Ok(Command::new(beside));
    }
    Err(format!(
        "{} isn't there; `cargo build --release` in Capstead's sources makes it beside `capstead`",
        beside.display()
    ))
}
