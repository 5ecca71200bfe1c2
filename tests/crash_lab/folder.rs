//! The files of an environment, read and written as a whole.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::images::Files;
use crate::trace::UNRECORDED;

/// The file of LMDB.
pub(crate) const DATA: &str = "data.mdb";

const PAGE_BYTES: usize = 4_096;
const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// The files in `folder`, without LMDB's table of readers.
pub(crate) fn read(folder: &Path) -> Files {
    let names = fs::read_dir(folder).expect("the folder is there").map(|entry| {
        let name = entry.expect("the folder can be listed").file_name();
        name.into_string().expect("names are text")
    });
    let recorded = names.filter(|name| name != UNRECORDED);
    let content = |name: String| (name.clone(), fs::read(folder.join(name)).expect("it is there"));
    recorded.map(content).collect()
}

/// Makes these the files in `folder`.
pub(crate) fn write(folder: &Path, files: &Files) {
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let entry = entry.expect("the folder can be listed");
        if entry.file_name() != UNRECORDED {
            fs::remove_file(entry.path()).expect("it is ours");
        }
    }
    for (name, bytes) in files {
        let file = File::create(folder.join(name)).expect("the file is made");
        file.set_len(bytes.len() as u64).expect("there is room");
        // Segments consist mostly of zeros, for which a hole is enough.
        for (page, at) in bytes.chunks(PAGE_BYTES).zip((0..).step_by(PAGE_BYTES)) {
            if *page != ZEROS[..page.len()] {
                file.write_all_at(page, at).expect("there is room");
            }
        }
    }
}
