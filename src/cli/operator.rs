//! Shared parts of the operator's verbs: the location of the data, the progress, and the result.
//!
//! Nothing here knows what an archive holds.

use std::fs::File;
use std::io::{self, IsTerminal, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args};
use indicatif::{ProgressBar, ProgressStyle};

use super::{CANNOT_START, STORAGE_FAILED};
use crate::error::Reason;
use crate::host::Class;
use crate::server::{Group, OpenedData, ServerError};
use crate::storage::archive::{ArchiveError, Totals};
use crate::storage::{Access, LogOptions};

/// Stands for standard input or output in place of a file.
const STREAM: &str = "-";

/// Selects the data.
#[derive(Args, Clone, Debug)]
pub(super) struct Data {
    /// The data directory of any server of Capstead, running or not
    #[arg(
        long = "data",
        value_name = "DIR",
        env = "CAPSTEAD_DATA",
        default_value = "capstead.data"
    )]
    pub(super) path: PathBuf,
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    pub(super) space: Space,
}

/// The group that may have the keys.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Trust {
    /// Let the group of the data directory have its keys, as on a Kubernetes volume with fsGroup
    #[arg(long, env = "CAPSTEAD_TRUST_GROUP", value_parser = BoolishValueParser::new(), action = ArgAction::SetTrue)]
    trust_group: bool,
}

impl Trust {
    pub(super) fn group(self) -> Group {
        if self.trust_group { Group::Trusted } else { Group::Stranger }
    }
}

/// The room that data may take. If a server serves them, its own flags apply.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Space {
    /// Keep this much of the disk free, as the server does [default: 5 % of it, 128MiB to 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = size, env = "CAPSTEAD_RESERVE")]
    reserve: Option<ByteSize>,
    /// Address space for the data of each host, as the server has it [default: 1TiB]
    #[arg(long, value_name = "SIZE", value_parser = size, env = "CAPSTEAD_MAP_SIZE")]
    map_size: Option<ByteSize>,
}

impl Space {
    /// The options with which the data are opened.
    pub(super) fn options(self, access: Access) -> LogOptions {
        let mut options = LogOptions { access, ..LogOptions::default() };
        options.reserve_bytes = self.reserve.map(|bytes| bytes.as_u64());
        if let Some(bytes) = self.map_size {
            options.map_bytes = usize::try_from(bytes.as_u64()).unwrap_or(usize::MAX);
        }
        options
    }
}

impl Data {
    /// The access of the directory's group to the keys.
    pub(super) fn group(&self) -> Group {
        self.trust.group()
    }

    /// Opens the data, or reaches their server.
    pub(super) async fn open(&self, access: Access) -> Result<OpenedData, Failure> {
        self.open_knowing(access, &[]).await
    }

    /// As [`Self::open`], where the classes of this program matter.
    pub(super) async fn open_knowing(
        &self,
        access: Access,
        classes: &[Class],
    ) -> Result<OpenedData, Failure> {
        let log = self.space.options(access);
        Ok(OpenedData::open(&self.path, log, self.group(), classes).await?)
    }
}

/// The reason why a verb ended early. Its text says what is true of the data.
#[derive(Debug)]
pub(super) enum Failure {
    /// The operator has to do something differently.
    Cannot(String),
    /// The storage of the data failed.
    Storage(String),
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        match error {
            // One report is enough, and no server was stopped.
            ServerError::Storage(reason) => Self::Storage(reason),
            ServerError::Assembly(error) => error.into(),
            error => Self::Cannot(error.to_string()),
        }
    }
}

impl From<capnp::Error> for Failure {
    fn from(error: capnp::Error) -> Self {
        if error.kind == capnp::ErrorKind::Disconnected {
            let text = format!(
                "the server ended meanwhile: start it again, and try again ({})",
                error.extra
            );
            return Self::Cannot(text);
        }
        if let Some((Reason::StorageFailed, text)) = Reason::parse(&error.extra) {
            return Self::Storage(text.trim().to_owned());
        }
        // Errors that crossed a connection have this prefix.
        let text = error.extra.rsplit("remote exception: ").next().unwrap_or_default();
        Self::Cannot(text.to_owned())
    }
}

/// An error of an archive, with the archive's name.
pub(super) fn archive(path: &Path) -> impl Fn(ArchiveError) -> Failure {
    move |error| Failure::Cannot(format!("{}: {error}", path.display()))
}

/// An operation on a path that the operating system refused.
pub(super) fn refused(doing: &str, path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::Cannot(format!("can't {doing} {}: {error}", path.display()))
}

/// Prints the result of a verb on standard output, or on standard error if the archive goes there,
/// and returns the exit code.
pub(super) fn end(result: Result<String, Failure>, archive: Option<&Path>) -> u8 {
    let (text, code) = match result {
        Ok(text) if archive.is_some_and(is_stream) => (text, 0),
        Ok(text) => {
            return match show(&text) {
                // The reader who closed it has read enough.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => unwritten(&error),
                _ => 0,
            };
        }
        Err(Failure::Cannot(text)) => (format!("capstead: {text}"), CANNOT_START),
        Err(Failure::Storage(text)) => {
            (format!("capstead: the storage failed: {text}"), STORAGE_FAILED)
        }
    };
    let _ = writeln!(io::stderr().lock(), "{text}");
    code
}

/// Prints an answer; an empty text prints nothing.
pub(super) fn show(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    if !text.is_empty() {
        writeln!(stdout, "{text}")?;
    }
    stdout.flush()
}

/// Reports that an answer could not be written; returns the exit code.
pub(super) fn unwritten(error: &io::Error) -> u8 {
    let said = "what was asked for is done, and its answer can't be written to standard output";
    let _ = writeln!(io::stderr().lock(), "capstead: {said}: {error}");
    CANNOT_START
}

/// A number of bytes on the command line.
pub(super) fn size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|_| "give it like 512MiB, 10GB, or 1048576 for bytes".to_owned())
}

/// Runs `work` where capabilities can live.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::LocalRuntime::new();
    runtime.map_err(|error| Failure::Cannot(error.to_string()))?.block_on(work)
}

/// The amounts, in words for people.
pub(super) fn amount(totals: Totals) -> String {
    let Totals { objects, keys, bytes } = totals;
    let (object, key) = (plural(objects, "object"), plural(keys, "key"));
    format!("{object} with {key} and {}", ByteSize(bytes))
}

fn plural(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A progress line on the terminal; nothing if standard error is no terminal.
pub(super) fn bar(doing: &'static str, length: Option<u64>) -> ProgressBar {
    const TICK: Duration = Duration::from_millis(100);
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match length {
        Some(length) => (ProgressBar::new(length), "{msg} {wide_bar} {percent} % {eta}"),
        None => {
            (ProgressBar::new_spinner(), "{spinner} {msg} {binary_bytes} {binary_bytes_per_sec}")
        }
    };
    // An invalid template leaves the usual look.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(TICK);
    bar.with_message(doing)
}

/// Tells whether the path stands for standard input or output.
pub(super) fn is_stream(path: &Path) -> bool {
    path.as_os_str() == STREAM
}

/// Opens a file that can be read more than once; standard input is copied into a temporary one.
pub(super) fn open(path: &Path) -> Result<File, Failure> {
    if !is_stream(path) {
        return File::open(path).map_err(refused("open", path));
    }
    let keep = || {
        let mut file = tempfile::tempfile()?;
        io::copy(&mut io::stdin().lock(), &mut file)?;
        file.rewind()?;
        Ok(file)
    };
    keep().map_err(refused("keep standard input in", &std::env::temp_dir()))
}

#[cfg(test)]
mod tests {
    use super::*;

    // `compact` on a read-only mount used to report twice that the storage failed.
    #[test]
    fn a_storage_that_failed_is_said_once() {
        let failure = Failure::from(ServerError::Storage("it is read-only".to_owned()));
        let Failure::Storage(said) = failure else { panic!("{failure:?}") };
        assert_eq!(said, "it is read-only");
    }

    #[test]
    fn a_storage_that_failed_is_known_by_the_word_of_the_error() {
        let error = Reason::StorageFailed.error("it is full");
        let remote = capnp::Error::failed(format!("remote exception: {}", error.extra));
        for error in [error, remote] {
            let failure = Failure::from(error);
            assert!(
                matches!(&failure, Failure::Storage(text) if text == "it is full"),
                "{failure:?}"
            );
        }
        let failure = Failure::from(Reason::NoSuchGrant.error("there is none"));
        assert!(matches!(failure, Failure::Cannot(text) if text == "no-such-grant: there is none"));
    }

    #[test]
    fn a_size_that_is_none_has_examples() {
        assert_eq!(size("1KiB"), Ok(ByteSize::kib(1)));
        assert!(size("much").is_err_and(|said| said.contains("512MiB")));
    }
}
