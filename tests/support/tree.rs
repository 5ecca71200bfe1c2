//! The content of a folder, down to the last byte and mode, so that two snapshots can be compared.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Everything below a folder, by path: the mode, and for a file the hash of its content.
pub(crate) type Tree = BTreeMap<PathBuf, (u32, Option<[u8; 32]>)>;

/// Takes a snapshot of everything below `folder`.
pub(crate) fn look(folder: &Path) -> Tree {
    let mut tree = Tree::new();
    add(folder, folder, &mut tree);
    tree
}

fn add(root: &Path, path: &Path, tree: &mut Tree) {
    let metadata = fs::metadata(path).expect("it is there");
    let mode = metadata.permissions().mode() & 0o7777;
    let contents = metadata.is_file().then(|| {
        let bytes = fs::read(path).expect("a file of ours can be read");
        Sha256::digest(bytes).into()
    });
    let below = path.strip_prefix(root).expect("it is below").to_owned();
    tree.insert(below, (mode, contents));
    if metadata.is_dir() {
        for entry in fs::read_dir(path).expect("a folder of ours can be read") {
            add(root, &entry.expect("it is there").path(), tree);
        }
    }
}

/// Copies a folder with everything in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the folder is made");
    for entry in fs::read_dir(from).expect("the folder can be read") {
        let entry = entry.expect("it is there");
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).expect("the file is copied");
        }
    }
}
