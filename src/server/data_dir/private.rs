//! The check for others who could read the keys, or put others in their place: then they are
//! refused, as `ssh` does.
//!
//! Whoever has a cluster's keys makes references to everything in it. Keys that others could read must
//! be taken for known, so that an operator has to hear of it before they are used once more.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::{data, failed};
use crate::server::ServerError;

/// Longer than any file with a key, so that what is read fits without a copy left behind.
const FILE_BYTES_MAX: u64 = 128;

/// Reads the file of a key, if nobody else can.
///
/// # Errors
/// When it can't be read, or others can reach it.
pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, ServerError> {
    let failed = failed(path, "read the key");
    let file = File::open(path).map_err(&failed)?;
    // Of the file that is open, whatever the name leads to meanwhile.
    let found = Found::of(&file.metadata().map_err(&failed)?, path, "600");
    found.check(0o077, "others can read or write it, so that it must be taken for known")?;
    let mut text = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize + 1));
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(&failed)?;
    Ok(text)
}

/// Checks that nobody else can put other files into a folder that leads to the keys. One that isn't
/// there is for others to miss.
///
/// # Errors
/// When others can write to it.
pub(super) fn check_folder(path: &Path) -> Result<(), ServerError> {
    match fs::metadata(path) {
        Ok(metadata) => {
            let reason = "others can write to it, and so put other keys in place of the cluster's";
            Found::of(&metadata, path, "go-w").check(0o022, reason)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(path, "look at the folder")(error)),
    }
}

/// The file under a path.
#[derive(Clone, Copy)]
struct Found<'a> {
    path: &'a Path,
    owner: u32,
    mode: u32,
    /// The user that runs this process.
    user: u32,
    /// The mode for `chmod` that would do.
    wanted: &'static str,
}

impl<'a> Found<'a> {
    fn of(metadata: &fs::Metadata, path: &'a Path, wanted: &'static str) -> Self {
        let user = rustix::process::geteuid().as_raw();
        Self { path, owner: metadata.uid(), mode: metadata.mode(), user, wanted }
    }

    /// Checks the owner, and that none of these bits of the mode is set.
    fn check(self, forbidden: u32, reason: &str) -> Result<(), ServerError> {
        let Self { path, owner, mode, user, wanted } = self;
        let name = path.display();
        if owner != user {
            return Err(data(
                path,
                format!(
                    "belongs to the user {owner}, and this process runs as {user}: run it as its owner, \
                     or give it away with `chown {user} {name}`"
                ),
            ));
        }
        if mode & forbidden != 0 {
            let mode = mode & 0o7777;
            return Err(data(
                path,
                format!("has the mode {mode:03o}: {reason}; run `chmod {wanted} {name}`"),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(owner: u32, mode: u32, forbidden: u32) -> String {
        let path = Path::new("keys/cluster");
        let found = Found { path, owner, mode, user: 7, wanted: "600" };
        found
            .check(forbidden, "others can read it")
            .map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn whose_it_is_and_what_to_do_is_said() {
        assert_eq!(says(7, 0o100_600, 0o077), "");
        assert_eq!(says(7, 0o100_400, 0o077), "");
        assert_eq!(says(7, 0o040_755, 0o022), "");
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o601] {
            let says = says(7, 0o100_000 | mode, 0o077);
            assert!(says.contains("chmod 600 keys/cluster"), "{says}");
        }
        for mode in [0o775, 0o757, 0o1777] {
            assert!(says(7, 0o040_000 | mode, 0o022).contains("others can read it"));
        }
        for owner in [0, 8] {
            let says = says(owner, 0o100_600, 0o077);
            assert!(says.contains(&format!("belongs to the user {owner}")), "{says}");
            assert!(says.contains("chown 7 keys/cluster"), "{says}");
        }
    }
}
