//! A file that gets its name only when it is whole, or standard output.
//!
//! A killed process leaves nothing behind, because until then the file has no name at all. Some
//! file systems don't support that: there the file has a hidden name, which the next attempt at the
//! same file takes over.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};

use super::operator::{Failure, is_stream, refused};

/// The destination of an archive.
pub(super) enum Output {
    Stream(io::Stdout),
    File { file: File, unfinished: Unfinished, path: PathBuf },
}

/// The name of the file until it is whole.
pub(super) enum Unfinished {
    /// None, so no other process can reach it.
    Nameless,
    /// This hidden name, which is removed when this is dropped.
    Hidden(PathBuf),
}

impl Output {
    /// Begins the file, readable only by its owner.
    pub(super) fn begin(path: &Path) -> Result<Self, Failure> {
        if is_stream(path) {
            check_stdout("the archive")?;
            return Ok(Self::Stream(io::stdout()));
        }
        if path.symlink_metadata().is_ok() {
            return Err(is_there(path));
        }
        let begun =
            nameless(path).map_or_else(|| hidden(path), |file| Ok((file, Unfinished::Nameless)));
        let (file, unfinished) = begun.map_err(refused("make a file beside", path))?;
        Ok(Self::File { file, unfinished, path: path.to_owned() })
    }

    /// Makes it durable and gives it its name.
    pub(super) fn keep(self) -> Result<(), Failure> {
        let Self::File { file, unfinished, path } = self else { return Ok(()) };
        file.sync_all().map_err(refused("sync", &path))?;
        let named = match &unfinished {
            Unfinished::Nameless => name(&file, &path),
            Unfinished::Hidden(hidden) => rename(hidden, &path),
        };
        match named {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(is_there(&path));
            }
            named => named.map_err(refused("name the file", &path))?,
        }
        sync(folder(&path))
    }
}

/// Checks that standard output leads somewhere, before printing a secret that can't be shown again.
///
/// If standard output was closed when the process started, the standard library opens `/dev/null`
/// in its place, so that no write fails. It opens it for reading and writing, which a shell never
/// does for a user who discards the output on purpose; that tells the two apart.
pub(super) fn check_stdout(what: &str) -> Result<(), Failure> {
    let stdout = io::stdout();
    let is_null = || {
        let (out, null) = (rustix::fs::fstat(&stdout).ok()?, rustix::fs::stat("/dev/null").ok()?);
        let is_device = FileType::from_raw_mode(out.st_mode) == FileType::CharacterDevice;
        Some(is_device && out.st_rdev == null.st_rdev)
    };
    let mode = || rustix::fs::fcntl_getfl(&stdout).ok();
    let reads_too = || mode().is_some_and(|flags| flags & OFlags::ACCMODE == OFlags::RDWR);
    if is_null() == Some(true) && reads_too() {
        let why = "standard output is closed, or leads nowhere: nothing was done";
        return Err(Failure::Cannot(format!("{what} would be lost, since {why}")));
    }
    Ok(())
}

fn is_there(path: &Path) -> Failure {
    Failure::Cannot(format!("{} is there already; choose another name", path.display()))
}

/// The open files of this process by name: the only way to name such a file without privileges.
const OPEN_FILES: &str = "/proc/self/fd";

/// None if the file system has no such files, or they can't be named.
fn nameless(path: &Path) -> Option<File> {
    if !Path::new(OPEN_FILES).is_dir() {
        return None;
    }
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(folder(path), flags, Mode::RUSR | Mode::WUSR).ok()?;
    Some(File::from(file))
}

/// Gives the file its first name, unless that is taken.
fn name(file: &File, path: &Path) -> io::Result<()> {
    let itself = format!("{OPEN_FILES}/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, itself, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// Opens a file whose hidden name is the same each time, so that the remains of a killed process
/// are found. The file is made anew, because another user may have made one that they can read.
fn hidden(path: &Path) -> io::Result<(File, Unfinished)> {
    let name = path.file_name().ok_or_else(|| io::Error::other("it is no name of a file"))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".unfinished");
    let hidden = folder(path).join(hidden);
    let no_follow = OFlags::NOFOLLOW.bits().cast_signed();
    match File::options().read(true).custom_flags(no_follow).open(&hidden) {
        Ok(left) => {
            lock(&left)?;
            fs::remove_file(&hidden)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let file = File::options().write(true).create_new(true).mode(0o600).open(&hidden)?;
    lock(&file)?;
    Ok((file, Unfinished::Hidden(hidden)))
}

fn lock(file: &File) -> io::Result<()> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => {
            io::Error::other("another process is making it; wait for that one")
        }
        TryLockError::Error(error) => error,
    })
}

/// Renames without ever replacing an existing file.
fn rename(hidden: &Path, path: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, hidden, CWD, path, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => fs::hard_link(hidden, path),
        renamed => Ok(renamed?),
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Self::Hidden(path) = self {
            // It may have got its final name.
            let _ = fs::remove_file(path);
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stream(stream) => stream.write(bytes),
            Self::File { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.flush(),
            Self::File { file, .. } => file.flush(),
        }
    }
}

/// The folder of the path's last part.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the names in a folder durable.
fn sync(folder: &Path) -> Result<(), Failure> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(refused("sync", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap();
        names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn said(failure: Result<(), Failure>) -> String {
        let Err(Failure::Cannot(said)) = failure else { panic!("{failure:?}") };
        said
    }

    #[test]
    fn a_file_has_no_name_before_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut output = Output::begin(&path).unwrap();
        output.write_all(b"everything").unwrap();
        assert!(names(folder.path()).is_empty(), "a killed process would leave its secrets");
        output.keep().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"everything");
        assert!(said(Output::begin(&path).map(drop)).contains("is there already"));
    }

    #[test]
    fn what_came_in_between_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let (file, unfinished) = hidden(&path).unwrap();
        let outputs =
            [Output::begin(&path).unwrap(), Output::File { file, unfinished, path: path.clone() }];
        fs::write(&path, "mine").unwrap();
        for output in outputs {
            assert!(said(output.keep()).contains("is there already"));
        }
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn without_nameless_files_the_next_attempt_takes_over_what_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let left = folder.path().join(".file.unfinished");
        fs::write(&left, "keys of a killed process").unwrap();
        let (mut file, unfinished) = hidden(&path).unwrap();
        let busy = hidden(&path).map(drop).unwrap_err();
        assert!(busy.to_string().contains("another process"), "{busy}");
        file.write_all(b"whole").unwrap();
        Output::File { file, unfinished, path: path.clone() }.keep().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(names(folder.path()), ["file"]);
        drop(hidden(&folder.path().join("other")).unwrap());
        assert_eq!(names(folder.path()), ["file"], "one that is given up is removed");
    }
}
