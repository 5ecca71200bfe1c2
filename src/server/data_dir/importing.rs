//! The marks of imports that were cut short: the final hashes of their archives, one after the
//! other.
//!
//! An import of an archive with a mark keeps the objects that are whole by then. Each archive has
//! its own mark, so that an import of another archive removes none of them.
//!
//! **Invariant:** the file is replaced as a whole, and never changed in place.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

use super::{data, failed, sync, write_private};
use crate::server::error::ServerError;
use crate::storage::lmdb::owned::open_regular;

pub(super) const IMPORTING: &str = "importing";
/// The temporary name of a new file of marks.
pub(super) const IMPORTING_NEW: &str = "importing.new";
/// The length of the hash that ends an archive.
const HASH_BYTES: usize = 32;
/// The largest number of marks: an operator with more unfinished imports than this doesn't look at
/// how they end.
const MARKS_MAX: usize = 256;

/// The state of an import that is to be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum ImportMark {
    UnderWay,
    Ended,
}

/// Tells whether the archive has a mark.
pub(super) fn is_marked(root: &Path, archive: &[u8]) -> Result<bool, ServerError> {
    Ok(marks(root)?.contains(&hash(root, archive)?))
}

/// Adds or removes the mark of the archive. The change is durable on return.
pub(super) fn mark(root: &Path, archive: &[u8], state: ImportMark) -> Result<(), ServerError> {
    let (archive, mut marks) = (hash(root, archive)?, marks(root)?);
    let is_under_way = state == ImportMark::UnderWay;
    if marks.contains(&archive) == is_under_way {
        return Ok(());
    }
    marks.retain(|mark| *mark != archive);
    if is_under_way && marks.len() >= MARKS_MAX {
        let reason = format!(
            "has {MARKS_MAX} imports that were cut short: end one by importing its file again, or import \
             with --replace"
        );
        return Err(data(&root.join(IMPORTING), reason));
    }
    marks.extend(is_under_way.then_some(archive));
    write(root, &marks.concat())
}

fn hash(root: &Path, archive: &[u8]) -> Result<[u8; HASH_BYTES], ServerError> {
    archive.try_into().map_err(|_| data(root, "can't remember an archive without its hash"))
}

fn marks(root: &Path) -> Result<Vec<[u8; HASH_BYTES]>, ServerError> {
    let path = root.join(IMPORTING);
    let (mut bytes, max) = (Vec::new(), (HASH_BYTES * MARKS_MAX) as u64);
    match open_regular(OpenOptions::new().read(true), &path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file.and_then(|file| file.take(max).read_to_end(&mut bytes)),
    }
    .map_err(failed(&path, "read which imports are under way"))?;
    Ok(bytes.as_chunks().0.to_vec())
}

fn write(root: &Path, marks: &[u8]) -> Result<(), ServerError> {
    let (path, new) = (root.join(IMPORTING), root.join(IMPORTING_NEW));
    let absent = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    };
    let written = || {
        // Left by a process that was killed.
        fs::remove_file(&new).or_else(absent)?;
        if marks.is_empty() {
            fs::remove_file(&path).or_else(absent)?;
        } else {
            write_private(&new, marks)?;
            fs::rename(&new, &path)?;
        }
        sync(root)
    };
    written().map_err(failed(&path, "remember which imports are under way"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_archive_has_its_own_mark() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let (one, other) = ([1; HASH_BYTES], [2; HASH_BYTES]);
        assert!(!is_marked(root, &one).unwrap());
        mark(root, &one, ImportMark::UnderWay).unwrap();
        mark(root, &other, ImportMark::UnderWay).unwrap();
        mark(root, &other, ImportMark::UnderWay).unwrap();
        assert!(is_marked(root, &one).unwrap() && is_marked(root, &other).unwrap());
        mark(root, &other, ImportMark::Ended).unwrap();
        assert!(is_marked(root, &one).unwrap() && !is_marked(root, &other).unwrap());
        mark(root, &one, ImportMark::Ended).unwrap();
        assert!(!root.join(IMPORTING).exists());
        assert!(mark(root, b"short", ImportMark::UnderWay).is_err());
    }

    #[test]
    fn marks_have_an_end_that_says_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let archive =
            |n: usize| std::array::from_fn::<u8, HASH_BYTES, _>(|at| (n >> (8 * (at % 2))) as u8);
        for n in 0..MARKS_MAX {
            mark(root.path(), &archive(n), ImportMark::UnderWay).unwrap();
        }
        let refused =
            mark(root.path(), &archive(MARKS_MAX), ImportMark::UnderWay).unwrap_err().to_string();
        assert!(refused.contains("importing its file again"), "{refused}");
        assert!(is_marked(root.path(), &archive(0)).unwrap());
        mark(root.path(), &archive(0), ImportMark::Ended).unwrap();
        mark(root.path(), &archive(MARKS_MAX), ImportMark::UnderWay).unwrap();
    }
}
