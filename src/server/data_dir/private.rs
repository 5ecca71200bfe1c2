//! The check for other users who could read the keys, or replace them: such keys are refused, as
//! `ssh` does.
//!
//! The holder of a cluster's keys can make references to everything in it. Keys that other users
//! could read must be considered known, so an operator has to hear of it before they are used
//! again.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::{data, failed};
use crate::server::error::ServerError;
use crate::storage::lmdb::owned::{self, open_regular};
use crate::storage::{Access, Owner};

/// Longer than any file with a key, so that its content fits without a copy left behind in memory.
const FILE_BYTES_MAX: u64 = 128;

/// The user whose processes read and write everything.
const ROOT: Owner = Owner(0);

/// The group's access to the keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Group {
    /// No access, as for all other users.
    #[default]
    Stranger,
    /// The operator says that every member of the group may have the keys.
    Trusted,
}

/// The users and the group that may have the keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trust {
    /// The user that runs this process.
    user: Owner,
    /// The user that must own everything.
    pub(super) owner: Owner,
    /// The group of the directory, if it may have the keys.
    group: Option<u32>,
}

impl Trust {
    /// Everything must belong to the user who runs this process. Root may also read another user's
    /// data if all of it belongs to the owner of the directory: reading leaves no file of root's in
    /// it.
    pub(super) fn of(root: &Path, access: Access, group: Group) -> Self {
        let ours = Owner::ours();
        let others = || fs::metadata(root).map_or(ours, |metadata| Owner::of(&metadata));
        let reads = ours == ROOT && access == Access::Read;
        let trusted = || fs::metadata(root).ok().map(|metadata| metadata.gid());
        Self {
            user: ours,
            owner: if reads { others() } else { ours },
            group: if group == Group::Trusted { trusted() } else { None },
        }
    }
}

/// Reads the file of a key, if no other user can.
///
/// # Errors
/// When it can't be read, or other users can reach it.
pub(super) fn read(path: &Path, trust: Trust) -> Result<Zeroizing<Vec<u8>>, ServerError> {
    let failed = failed(path, "read the key");
    let file = open_regular(OpenOptions::new().read(true), path).map_err(&failed)?;
    // Looks at the open file itself, wherever the name leads meanwhile.
    let found = CheckedFile::of(&file.metadata().map_err(&failed)?, path, "600");
    let reason = "others can read or write it, so that it must be taken for known";
    found.check(trust, 0o077, reason)?;
    let mut text = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize + 1));
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(&failed)?;
    Ok(text)
}

/// Checks that no other user can put other files into a folder that leads to the keys. A missing
/// folder passes: later steps report it.
///
/// # Errors
/// When other users can write to it.
pub(super) fn check_folder(path: &Path, trust: Trust) -> Result<(), ServerError> {
    match fs::metadata(path) {
        Ok(metadata) => {
            let reason = "others can write to it, and so put other keys in place of the cluster's";
            CheckedFile::of(&metadata, path, "go-w").check(trust, 0o022, reason)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(path, "look at the folder")(error)),
    }
}

/// Checks that no other user owns a folder in which files are about to be made: its owner could put
/// links there meanwhile.
///
/// # Errors
/// When another user owns it, or it can't be examined.
pub(super) fn check_owner(path: &Path, trust: Trust) -> Result<(), ServerError> {
    let metadata = fs::metadata(path).map_err(failed(path, "look at the folder"))?;
    CheckedFile::of(&metadata, path, "go-w").check(trust, 0, "")
}

/// Checks a folder or file below the data directory as [`check_folder`] does; it must exist and be
/// no link.
///
/// # Errors
/// When it can't be examined, is a link, or other users can write to it.
pub(super) fn check_below(path: &Path, trust: Trust) -> Result<(), ServerError> {
    let failed = failed(path, "use it");
    let metadata = fs::symlink_metadata(path).map_err(&failed)?;
    if metadata.is_symlink() {
        return Err(failed(owned::link()));
    }
    let reason = "others can write to it, and so put other files in place of the cluster's";
    CheckedFile::of(&metadata, path, "go-w").check(trust, 0o022, reason)
}

/// The file under a path.
#[derive(Clone, Copy)]
struct CheckedFile<'a> {
    path: &'a Path,
    owner: Owner,
    group: u32,
    mode: u32,
    /// The mode for `chmod` that would suffice.
    wanted: &'static str,
}

impl<'a> CheckedFile<'a> {
    fn of(metadata: &fs::Metadata, path: &'a Path, wanted: &'static str) -> Self {
        let (owner, group, mode) = (Owner::of(metadata), metadata.gid(), metadata.mode());
        Self { path, owner, group, mode, wanted }
    }

    /// Checks the owner, and that none of these bits of the mode is set.
    fn check(self, trust: Trust, forbidden: u32, reason: &str) -> Result<(), ServerError> {
        const OF_GROUP: u32 = 0o070;
        let Self { path, owner, group, mode, wanted } = self;
        let (name, user) = (path.display(), trust.user);
        if owner != trust.owner {
            let (Owner(owner), Owner(wanted)) = (owner, trust.owner);
            let to_do = if trust.owner != user {
                format!("and the data directory to {wanted}: give it to {wanted} too")
            } else if user == ROOT {
                format!(
                    "and root may only read it, with backup, export, grants and key list: run this as \
                     that user, such as by `sudo -u '#{owner}'`"
                )
            } else {
                format!(
                    "and this process runs as {wanted}: run it as its owner, or give it away with `chown \
                     {wanted} {name}`"
                )
            };
            return Err(data(path, format!("belongs to the user {owner}, {to_do}")));
        }
        let is_trusted = trust.group == Some(group);
        let forbidden = if is_trusted { forbidden & !OF_GROUP } else { forbidden };
        if mode & forbidden == 0 {
            return Ok(());
        }
        let is_of_group = mode & forbidden & !OF_GROUP == 0;
        let or = if let (true, Some(trusted)) = (is_of_group, trust.group) {
            &*format!(
                "; or, since --trust-group trusts the group of the data directory alone, give it to that one \
                 with `chgrp {trusted} {name}`"
            )
        } else if is_of_group {
            "; or, if everybody in its group may have the keys, as on a Kubernetes volume with fsGroup, say \
             --trust-group"
        } else {
            ""
        };
        let mode = mode & 0o7777;
        Err(data(
            path,
            format!("has the mode {mode:03o}: {reason}; run `chmod {wanted} {name}`{or}"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Trust = Trust { user: Owner(7), owner: Owner(7), group: None };

    fn says(trust: Trust, owner: u32, mode: u32, forbidden: u32) -> String {
        let path = Path::new("keys/cluster");
        let (owner, group) = (Owner(owner), 70);
        let found = CheckedFile { path, owner, group, mode, wanted: "600" };
        found
            .check(trust, forbidden, "others can read it")
            .map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn whose_it_is_and_what_to_do_is_said() {
        assert_eq!(says(OURS, 7, 0o100_600, 0o077), "");
        assert_eq!(says(OURS, 7, 0o100_400, 0o077), "");
        assert_eq!(says(OURS, 7, 0o040_755, 0o022), "");
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o601] {
            let says = says(OURS, 7, 0o100_000 | mode, 0o077);
            assert!(says.contains("chmod 600 keys/cluster"), "{says}");
            let is_of_group = mode % 0o10 == 0;
            assert_eq!(says.contains("--trust-group"), is_of_group, "{says}");
        }
        for mode in [0o775, 0o757, 0o1777] {
            assert!(says(OURS, 7, 0o040_000 | mode, 0o022).contains("others can read it"));
        }
        for owner in [0, 8] {
            let says = says(OURS, owner, 0o100_600, 0o077);
            assert!(says.contains(&format!("belongs to the user {owner}")), "{says}");
            assert!(says.contains("chown 7 keys/cluster"), "{says}");
        }
    }

    #[test]
    fn a_trusted_group_is_let_in_and_nobody_else() {
        let trust = Trust { group: Some(70), ..OURS };
        for (mode, forbidden) in [(0o100_660, 0o077), (0o042_775, 0o022), (0o042_770, 0o022)] {
            assert_eq!(says(trust, 7, mode, forbidden), "", "{mode:o}");
        }
        for (mode, forbidden) in [(0o100_664, 0o077), (0o042_777, 0o022)] {
            assert!(says(trust, 7, mode, forbidden).contains("others can read it"), "{mode:o}");
        }
        assert!(says(trust, 8, 0o100_660, 0o077).contains("belongs to the user 8"));
        let other = Trust { group: Some(71), ..OURS };
        assert!(says(other, 7, 0o100_660, 0o077).contains("chgrp 71 keys/cluster"));
        assert_eq!(says(other, 7, 0o100_600, 0o077), "");
    }

    #[test]
    fn root_reads_what_is_all_of_one_owner() {
        let reads = Trust { user: ROOT, owner: Owner(9), group: None };
        assert_eq!(says(reads, 9, 0o100_600, 0o077), "");
        assert!(says(reads, 8, 0o100_600, 0o077).contains("give it to 9 too"));
        assert!(says(reads, 9, 0o100_640, 0o077).contains("chmod"));
        let writes = Trust { owner: ROOT, ..reads };
        assert!(says(writes, 9, 0o100_600, 0o077).contains("sudo -u '#9'"));
    }
}
