//! The stages of a data directory, and the steps by which it is made.
//!
//! **Invariant:** a crash at any point leaves a directory that says why it isn't whole, or a whole
//! one.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::importing::{IMPORTING, IMPORTING_NEW};
use super::{
    ADMIN_SOCKET, BEING_MADE, BEING_RESTORED, FORMAT, FORMAT_FILE, FORMAT_NEW, HOST_PREFIX, KEYS,
    LOCK_FILE, MAKING, SUPERVISOR, data, failed, foreign, lock_text, names, parts, say, sync,
    write_private,
};
use crate::server::error::ServerError;
use crate::storage::{self, StorageError};

/// The stage that a directory has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DirStage {
    /// There is nothing yet.
    Nothing,
    /// Only the remains of an earlier making that was cut short.
    Unmade,
    /// Only the remains of a restore that was cut short.
    Unrestored,
    /// The making was finished once.
    Whole,
}

pub(super) fn found(root: &Path) -> Result<DirStage, ServerError> {
    let mut names = names(root)?;
    if names.iter().any(|name| name == FORMAT_FILE) {
        return Ok(DirStage::Whole);
    }
    names.retain(|name| name != LOCK_FILE);
    let says = lock_text(root)?;
    let is_begun = |text: &str| text.as_bytes().starts_with(&says);
    if names.is_empty() && (is_begun(BEING_MADE) || is_begun(BEING_RESTORED)) {
        let is_restored = says == BEING_RESTORED.as_bytes();
        return Ok(if is_restored { DirStage::Unrestored } else { DirStage::Nothing });
    }
    if !names.iter().all(|name| is_part(name)) {
        return Err(foreign(root));
    }
    if says == BEING_MADE.as_bytes() {
        return Ok(DirStage::Unmade);
    }
    if says == BEING_RESTORED.as_bytes() {
        return Ok(DirStage::Unrestored);
    }
    // These may be years of data of which one file was lost: nothing says that they were never
    // finished.
    Err(if says.is_empty() {
        data(&root.join(FORMAT_FILE), "is missing; restore the directory from a backup")
    } else {
        foreign(root)
    })
}

pub(super) fn unrestored(root: &Path) -> ServerError {
    data(
        root,
        "has only part of a backup, because its restore was cut short; restore into it again, which \
         removes what is there first",
    )
}

fn is_part(name: &str) -> bool {
    let is_host = |name: &str| name.parse::<u16>().is_ok();
    [KEYS, SUPERVISOR, FORMAT_NEW, IMPORTING, IMPORTING_NEW, ADMIN_SOCKET].contains(&name)
        || name.strip_prefix(HOST_PREFIX).is_some_and(is_host)
}

/// Makes everything but the format, in an order in which a crash at any point leaves a directory
/// that says why it isn't whole.
pub(super) fn begin(
    root: &Path,
    says: &str,
    hosts: u16,
    put_keys: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), ServerError> {
    // Writing the same text again would leave the lock empty for a moment, and a crash then would
    // look like lost data; a different text is written only once nothing else is left.
    let said = if lock_text(root)? == says.as_bytes() {
        Ok(())
    } else {
        remove_unfinished(root).and_then(|()| sync(root)).and_then(|()| say(root, says))
    };
    let made = said
        .and_then(|()| sync(root))
        .and_then(|()| remove_unfinished(root))
        .and_then(|()| put_keys(&root.join(KEYS)));
    made.map_err(failed(root, MAKING))?;
    for (part, kind) in parts(root, hosts) {
        DirBuilder::new().mode(0o700).create(&part).map_err(failed(&part, MAKING))?;
        let failed = |error: StorageError| data(&part, format!("can't {MAKING}: {error}"));
        storage::make(&part, kind).map_err(failed)?;
    }
    Ok(())
}

/// Gives the format its name, which makes the directory whole.
pub(super) fn finish(root: &Path) -> Result<(), ServerError> {
    let finish = || {
        write_private(&root.join(FORMAT_NEW), FORMAT.as_bytes())?;
        sync(root)?;
        fs::rename(root.join(FORMAT_NEW), root.join(FORMAT_FILE))?;
        sync(root)?;
        sync_parent(root)?;
        say(root, "")
    };
    finish().map_err(failed(root, MAKING))
}

pub(super) fn remove_unfinished(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if !entry.file_name().to_str().is_some_and(is_part) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A user who can't read the parent was given the directory and did not make it, so there is
/// nothing to sync.
fn sync_parent(root: &Path) -> io::Result<()> {
    let root = root.canonicalize()?;
    match root.parent().map_or(Ok(()), sync) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}
