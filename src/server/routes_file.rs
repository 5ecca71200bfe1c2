//! The file of routes: reads it, if nobody else may decide what is in it.
//!
//! The writer of the file decides which objects the world reaches, and a reader of a reference in
//! it may use that. So such files are refused, as keys are that others could have.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::error::ServerError;
use crate::gateway::{Routes, parse_routes};
use crate::storage::Owner;

/// Longer than any table that a person writes.
const FILE_BYTES_MAX: usize = 1 << 20;

/// The user who may put files everywhere anyway.
const ROOT: Owner = Owner(0);

/// Bits of a mode: users other than the owner may write the file, or do anything with it.
const OTHERS_WRITE: u32 = 0o022;
const OTHERS_USE: u32 = 0o077;

/// The routes in a file, for a server with these classes.
///
/// # Errors
/// A sentence that names the file and says what to do.
pub(super) fn read(path: &Path, classes: &[&str]) -> Result<Routes, ServerError> {
    let name = path.display().to_string();
    let text = read_text(path).map_err(|why| {
        ServerError::Setting(format!("the file of routes {name} can't be used: {why}"))
    })?;
    let rows = parse_routes(&name, &text, classes).map_err(ServerError::Setting)?;
    Ok(Routes::alone(rows))
}

fn read_text(path: &Path) -> Result<Zeroizing<String>, String> {
    let said = |error: io::Error| error.to_string();
    // At a pipe it would else wait without end.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(said)?;
    // Looks at the open file itself, wherever the name leads meanwhile.
    let found = file.metadata().map_err(said)?;
    if !found.is_file() {
        return Err("it is no regular file".to_owned());
    }
    let (name, owner) = (path.display(), Owner::of(&found));
    if owner != Owner::ours() && owner != ROOT {
        let (Owner(owner), Owner(ours)) = (owner, Owner::ours());
        return Err(format!(
            "it belongs to the user {owner}, who could change what the server does: give it to its user \
             with `chown {ours} {name}`"
        ));
    }
    let mode = found.mode() & 0o7777;
    if mode & OTHERS_WRITE != 0 {
        return Err(format!(
            "it has the mode {mode:03o}: others can write to it, and so reach every object; run `chmod \
             go-w {name}`"
        ));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX + 1));
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(said)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(format!("it has more than {FILE_BYTES_MAX} bytes: write fewer routes"));
    }
    let text = str::from_utf8(&bytes).map_err(|_| "it is no text in UTF-8".to_owned())?;
    if has_reference(text) && mode & OTHERS_USE != 0 {
        return Err(format!(
            "it has the mode {mode:03o} and a sturdyref in it, which others can read, so that it must be \
             taken for known: revoke that, run `chmod 600 {name}`, and put in a new one"
        ));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

/// Tells whether a reference stands in a text, even in a comment.
fn has_reference(text: &str) -> bool {
    let is_end = |byte: char| byte.is_whitespace() || byte == '"' || byte == '\'';
    text.split(is_end)
        .any(|word| word.contains("capstead") && word.contains("://") && word.contains("/#"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_seen_wherever_it_stands() {
        for text in [
            "sturdyref = \"capstead://127.0.0.1:4000/#AbC\"",
            "# sturdyref = 'capstead+tls://h:1/#AbC'",
        ] {
            assert!(has_reference(text), "{text}");
        }
        assert!(!has_reference("# like capstead://host:port, with a fragment /#"));
    }
}
