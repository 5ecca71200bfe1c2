//! The things that the operator's verbs share: where the data are, how it goes on, how it ends.
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
use crate::limits::RESERVE_BYTES_LEAST;
use crate::server::{Group, Operated, ServerError};
use crate::storage::archive::{ArchiveError, Totals};
use crate::storage::{Access, LogOptions};

/// Stands for standard input or output in the place of a file.
const STREAM: &str = "-";

/// Which data are meant.
#[derive(Args, Clone, Debug)]
pub(super) struct Data {
    /// The data directory, of any server of Capstead, whether that serves now or not
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

/// Whose the keys may be.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Trust {
    /// Let the group of the data directory have the keys in it, as on a Kubernetes volume with fsGroup
    #[arg(long, env = "CAPSTEAD_TRUST_GROUP", value_parser = BoolishValueParser::new(), action = ArgAction::SetTrue)]
    trust_group: bool,
}

impl Trust {
    pub(super) fn group(self) -> Group {
        if self.trust_group { Group::Trusted } else { Group::Stranger }
    }
}

/// The room that data may take. Where a server serves them, its own flags count.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Space {
    /// Keep so much of the disk free, as the server does: 32MiB at least [default: 5 % of it, 128MiB to 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = reserve, env = "CAPSTEAD_RESERVE")]
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
    /// The access of the directory's group.
    pub(super) fn group(&self) -> Group {
        self.trust.group()
    }

    /// Opens them, or reaches their server.
    pub(super) async fn open(&self, access: Access) -> Result<Operated, Failure> {
        self.open_knowing(access, &[]).await
    }

    /// The same, where it matters what the classes of this program are.
    pub(super) async fn open_knowing(
        &self,
        access: Access,
        classes: &[Class],
    ) -> Result<Operated, Failure> {
        let log = self.space.options(access);
        Ok(Operated::open(&self.path, log, self.group(), classes).await?)
    }
}

/// Why a verb ended early. What is true of the data is said in the text.
#[derive(Debug)]
pub(super) enum Failure {
    /// Something has to be done differently.
    Cannot(String),
    /// The storage of the data failed.
    Storage(String),
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        match error {
            // Said once, and no server was stopped.
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
        // What crossed a connection says so in front.
        let text = error.extra.rsplit("remote exception: ").next().unwrap_or_default();
        Self::Cannot(text.to_owned())
    }
}

/// An archive that can't be read or written, with its name.
pub(super) fn archive(path: &Path) -> impl Fn(ArchiveError) -> Failure {
    move |error| Failure::Cannot(format!("{}: {error}", path.display()))
}

/// Something that the operating system refused to do with a path.
pub(super) fn refused(doing: &str, path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::Cannot(format!("can't {doing} {}: {error}", path.display()))
}

/// Runs a verb to its end, and says how it ended: on standard output, unless that has the archive.
pub(super) fn end(result: Result<String, Failure>, archive: Option<&Path>) -> u8 {
    let (text, code) = match result {
        Ok(text) if archive.is_some_and(is_stream) => (text, 0),
        Ok(text) => {
            return match show(&text) {
                // Whoever closed it has read enough.
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

/// Writes an answer; none is written of no text.
pub(super) fn show(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    if !text.is_empty() {
        writeln!(stdout, "{text}")?;
    }
    stdout.flush()
}

/// Says that an answer could not be written; the exit code.
pub(super) fn unwritten(error: &io::Error) -> u8 {
    let said = "what was asked for is done, and its answer can't be written to standard output";
    let _ = writeln!(io::stderr().lock(), "capstead: {said}: {error}");
    CANNOT_START
}

/// A number of bytes on the command line.
pub(super) fn size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|_| "give it like 512MiB, 10GB, or 1048576 for bytes".to_owned())
}

/// A number of bytes that keeps a full disk from ending what writes.
pub(super) fn reserve(text: &str) -> Result<ByteSize, String> {
    let bytes = size(text)?;
    if bytes.as_u64() >= RESERVE_BYTES_LEAST {
        return Ok(bytes);
    }
    let least = ByteSize(RESERVE_BYTES_LEAST);
    Err(format!("with less than {least} one write could fill the disk: give {least} or more"))
}

/// Runs `work` where capabilities can live.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::LocalRuntime::new();
    runtime.map_err(|error| Failure::Cannot(error.to_string()))?.block_on(work)
}

/// The amount of that, for people.
pub(super) fn amount(totals: Totals) -> String {
    let Totals { objects, keys, bytes } = totals;
    let (object, key) = (plural(objects, "object"), plural(keys, "key"));
    format!("{object} with {key} and {}", ByteSize(bytes))
}

fn plural(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A line on the terminal that goes on; nothing where standard error is no terminal.
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
    // A template that can't be read leaves the usual look.
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

/// A file that can be read more than once; standard input is kept in a temporary one.
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

    // `compact` on a read-only mount said twice that the storage failed.
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
