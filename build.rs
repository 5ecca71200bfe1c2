//! Generates the code of the internal schemas, and of those of the bundled classes; makes their
//! pages; and says by which sources the library is built.

#[path = "examples/editor/page/files.rs"]
mod files;

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// The sources of the server, with those of the client library and of all schemas.
const SOURCES: [&str; 3] = ["src", "client/src", "schema"];

fn main() {
    capstead_build::compile(&["schema/cluster.capnp", "schema/admin.capnp"]);
    capstead_build::compile(&["schema/surviving.capnp"]);
    capstead_build::compile(&["examples/counter/schema/counter.capnp"]);
    capstead_build::compile(&["examples/chat/schema/chat.capnp"]);
    capstead_build::compile(&["examples/editor/schema/editor.capnp"]);
    files::write("examples/editor/page");
    capstead_build::compile(&["src/classes/index.capnp"]);
    capstead_build::compile(&["src/classes/poll.capnp"]);
    capstead_build::compile(&["src/dynamic/every.capnp"]);
    capstead_build::compile(&["src/host/tests/trial.capnp"]);
    capstead_build::compile(&["src/host/tests/programs/actor.capnp"]);
    capstead_build::compile(&["tests/passing/passing.capnp"]);
    capstead_build::compile(&["tests/passing/forwarder.capnp", "tests/passing/slot.capnp"]);
    say_sources();
}

/// Gives the library a hash of its sources to compile into itself. `capstead` and
/// `capstead-bench` have a copy of the library each, and tell by it whether both are of the same
/// sources.
fn say_sources() {
    let mut files = Vec::new();
    for folder in SOURCES {
        collect(Path::new(folder), &mut files);
    }
    // Folders list their files in any order.
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in &files {
        println!("cargo::rerun-if-changed={}", file.display());
        (file, fs::read(file).ok()).hash(&mut hasher);
    }
    println!("cargo::rustc-env=CAPSTEAD_SOURCES_HASH={:016x}", hasher.finish());
}

/// All files below a folder but those of tests, whose change would else build the library anew.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let is_test = name == "tests" || name == "testing" || name.ends_with("_tests");
        if is_test {
            continue;
        }
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}
