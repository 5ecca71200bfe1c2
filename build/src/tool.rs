//! Runs the `capnp` tool, and turns its requests into Rust code.
//!
//! The tool reads schemas and writes a request; generating from a request needs no tool.

use crate::{Error, interfaces, public};
use capnpc::codegen::CodeGenerationCommand;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TOOL: &str = "capnp";

pub(crate) fn is_installed() -> bool {
    let mut version = command();
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

fn command() -> Command {
    let mut command = Command::new(TOOL);
    // The tool warns when this variable and the real folder differ, as they may in a build.
    command.env_remove("PWD");
    command
}

/// Compiles `files` to a request; `scratch` is a folder for the schemas that they may import.
pub(crate) fn compile(files: &[PathBuf], scratch: &Path) -> Result<Vec<u8>, Error> {
    let import = public::write_below(scratch)?;
    let output = command()
        .args(["compile", "-o-"])
        .arg(format!("--import-path={}", import.display()))
        .arg(format!("--src-prefix={}", folder(files)?.display()))
        .args(files)
        .output()
        .map_err(|cause| Error::at("run", Path::new(TOOL), cause))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(Error::new(format!("capnp refuses the schema: {}", one_line(&complaint))));
    }
    Ok(output.stdout)
}

/// Generates into `out`, and returns the code without the lines that name versions of tools.
pub(crate) fn generate(
    message: &[u8],
    out: &Path,
    files: &[PathBuf],
) -> Result<Vec<String>, Error> {
    CodeGenerationCommand::new()
        .output_directory(out)
        .crates_provide_map(public::ids().map(|id| (id, "capstead_client".into())).collect())
        .run(message)
        .map_err(|cause| Error::new(format!("can't generate code from the request: {cause}")))?;
    interfaces::add(message, out, files, generated_name)?;
    files.iter().map(|file| read_code(&out.join(generated_name(file)))).collect()
}

/// The folder that the tool leaves out of the names of its files.
fn folder(files: &[PathBuf]) -> Result<&Path, Error> {
    let folder = files[0].parent();
    if let Some(other) = files.iter().find(|file| file.parent() != folder) {
        let (one, other) = (files[0].display(), other.display());
        return Err(Error::new(format!("{one} and {other} must lie in the same folder")));
    }
    match folder {
        Some(folder) if folder != Path::new("") => Ok(folder),
        _ => Ok(Path::new(".")),
    }
}

fn generated_name(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    format!("{}_capnp.rs", stem.replace('-', "_"))
}

fn read_code(path: &Path) -> Result<String, Error> {
    let code = std::fs::read_to_string(path).map_err(|cause| Error::at("read", path, cause))?;
    let lasting = code.lines().filter(|line| !line.starts_with("// cap"));
    Ok(lasting.flat_map(|line| [line, "\n"]).collect())
}

/// Cargo shows only one line of an error.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
