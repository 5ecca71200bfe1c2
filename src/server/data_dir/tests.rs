//! Data directories whose making can't be undone.

use super::*;

// It was marked as the remains of a first start, in whose place the next server makes a cluster.
#[test]
fn a_restore_that_cannot_be_undone_stays_marked_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let group = Group::Stranger;
    let first = DataDir::open(&folder.path().join("first"), 1, group).unwrap();
    let root = folder.path().join("restored");
    let restored = DataDir::begin_restore(&root, 1, &first.secrets().unwrap()).unwrap();
    restored.finish_restore().unwrap();
    // No file, so it can't be removed as one.
    fs::remove_file(root.join(FORMAT_FILE)).unwrap();
    fs::create_dir(root.join(FORMAT_FILE)).unwrap();
    restored.unmake();
    drop(restored);
    assert_eq!(lock_text(&root).unwrap(), BEING_RESTORED.as_bytes());
}
