//! Opens files below a data directory: only those of its owner, and never through a link. Takes
//! their locks, with a little patience.
//!
//! Root reads the data of other users. Any of these could replace a file by a link to another
//! user's data, or by a pipe, at which the opening would wait without end.
//!
//! **Invariant:** the checks look at the open file itself, no matter where its name leads in the
//! meantime.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;

/// The user that all files of a data directory belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner(pub(crate) u32);

impl Owner {
    /// The user that runs this process.
    pub(crate) fn ours() -> Self {
        Self(rustix::process::geteuid().as_raw())
    }

    /// The owner of a file.
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self(metadata.uid())
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// As [`Owner::open_with`].
    pub(crate) fn open(self, path: &Path) -> io::Result<File> {
        self.open_with(OpenOptions::new().read(true), path)
    }

    /// Opens a file with these options, which may create it.
    ///
    /// # Errors
    /// It can't be opened, is no regular file, or belongs to another user: nothing was read from
    /// it.
    pub(crate) fn open_with(self, options: &mut OpenOptions, path: &Path) -> io::Result<File> {
        let file = open_regular(options, path)?;
        self.check(&file.metadata()?)?;
        Ok(file)
    }

    /// Checks a folder in which files are opened.
    ///
    /// # Errors
    /// It can't be inspected, is no folder or a link to one, or belongs to another user.
    pub(crate) fn check_folder(self, path: &Path) -> io::Result<()> {
        let found = fs::symlink_metadata(path)?;
        if found.is_symlink() {
            return Err(link());
        }
        if !found.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        self.check(&found)
    }

    /// Checks the owner of a file.
    ///
    /// # Errors
    /// It belongs to another user.
    pub(crate) fn check(self, found: &Metadata) -> io::Result<()> {
        let (owner, found) = (self.0, found.uid());
        if found == owner {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "it belongs to the user {found}, and the data to {owner}: give it to {owner} too"
        )))
    }
}

/// Opens a regular file of any owner, and waits for nothing.
///
/// # Errors
/// It can't be opened, or is something else: nothing was read from it.
pub(crate) fn open_regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match options.custom_flags(flags.bits().cast_signed()).open(path) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(link());
        }
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file: restore the data from a backup"));
    }
    Ok(file)
}

/// The error for a link, which isn't followed.
pub(crate) fn link() -> io::Error {
    io::Error::other("it is a symbolic link: put what it leads to in its place")
}

/// Tries to take a lock for a moment. When this process has just given it up, a child that it is
/// starting may hold it a little longer, from `fork` to `exec`.
pub(crate) fn patiently<T>(take: impl Fn() -> Option<T>) -> Option<T> {
    const TRIES: usize = 20;
    const PAUSE: Duration = Duration::from_millis(5);
    let again = || {
        std::thread::sleep(PAUSE);
        take()
    };
    take().or_else(|| (1..TRIES).find_map(|_| again()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_was_given_up_just_now_is_waited_for() {
        let tries = std::cell::Cell::new(0);
        let take = |free_at| {
            tries.set(tries.get() + 1);
            (tries.get() >= free_at).then_some(tries.get())
        };
        assert_eq!(patiently(|| take(1)), Some(1));
        assert_eq!(patiently(|| take(5)), Some(5));
        tries.set(0);
        assert_eq!(patiently(|| take(usize::MAX)), None);
        assert_eq!(tries.get(), 20);
    }

    #[test]
    fn a_link_a_pipe_a_folder_and_what_is_somebody_elses_are_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "text").unwrap();
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        std::os::unix::fs::symlink(folder.path(), path("way")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let ours = Owner::ours();
        ours.open(&path("file")).unwrap();
        ours.check_folder(folder.path()).unwrap();
        let said = |opened: io::Result<File>| opened.unwrap_err().to_string();
        assert!(said(ours.open(&path("link"))).contains("a symbolic link"));
        assert!(said(ours.open(&path("pipe"))).contains("no regular file"));
        assert!(said(ours.open(folder.path())).contains("no regular file"));
        let other = Owner(ours.0 + 1);
        assert!(said(other.open(&path("file"))).contains("belongs to the user"));
        for (owner, path) in [(ours, path("way")), (ours, path("file")), (other, path("."))] {
            owner.check_folder(&path).unwrap_err();
        }
    }
}
