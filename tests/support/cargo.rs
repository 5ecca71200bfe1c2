//! Cargo within a test: the ordinary commands, with a release profile that builds quickly.
//!
//! All these builds share one folder beside that of the current build, so that each dependency is
//! built once.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Overrides of the profile `release` that save build time, at the cost of slower programs.
const QUICK: [(&str, &str); 6] = [
    ("CARGO_PROFILE_RELEASE_BUILD_OVERRIDE_OPT_LEVEL", "0"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "256"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "none"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
    ("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false"),
];

/// The folder of these builds.
pub(crate) fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("quick")
}

/// Makes each release build that `command` or its children run a quick one.
pub(crate) fn quick(command: &mut Command) -> &mut Command {
    command.env("CARGO_TARGET_DIR", target()).envs(QUICK).stdin(Stdio::null())
}

/// Runs the command, and panics with its output if it fails.
pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("the command is there");
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed\n{stdout}\n{stderr}");
    output
}
