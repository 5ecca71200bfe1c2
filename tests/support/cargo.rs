//! Cargo within a test: the ordinary commands, with a release profile that builds quickly.
//!
//! All of these builds share one folder beside those of this one, so that each dependency is built once.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The profile `release` as far as it costs time: what is built runs slowly, but soon.
const QUICK: [(&str, &str); 6] = [
    ("CARGO_PROFILE_RELEASE_BUILD_OVERRIDE_OPT_LEVEL", "0"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "256"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "none"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
    ("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false"),
];

/// The folder to which these builds go.
pub(crate) fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("quick")
}

/// Makes every release build of `command`, and of what it starts, a quick one.
pub(crate) fn quick(command: &mut Command) -> &mut Command {
    command.env("CARGO_TARGET_DIR", target()).envs(QUICK).stdin(Stdio::null())
}

/// Runs it, and fails with its output unless it succeeds.
pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("the command is there");
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed\n{stdout}\n{stderr}");
    output
}
