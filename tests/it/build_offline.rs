//! Building needs only Cargo: no `capnp` tool, no network, and no generated files.
//!
//! The files that the tool would make are committed. If the tool is installed, they are compared
//! with its current output.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{cargo, root};
use capstead_build::{Freshness, Schemas};

/// A copy of the directories in PATH without `capnp`.
fn commands_without_capnp(folder: &Path) -> PathBuf {
    let path = std::env::var_os("PATH").expect("there is a PATH");
    let here = std::env::split_paths(&path);
    let entries = here.filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    for entry in entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with("capnp")) {
        let is_command = entry
            .path()
            .metadata()
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
        let link = folder.join(entry.file_name());
        // The first command of a name wins, as in PATH.
        if is_command && !link.exists() {
            symlink(entry.path(), link).expect("a link can be made");
        }
    }
    folder.to_owned()
}

// Everything that a build script generates is generated anew here, from committed files.
#[test]
fn the_workspace_builds_offline_and_without_the_capnp_tool() {
    let folder = tempfile::tempdir().unwrap();
    let path = commands_without_capnp(folder.path());
    let tool = Command::new("sh").args(["-c", "command -v capnp"]).env("PATH", &path).output();
    assert!(!tool.unwrap().status.success(), "the tool is out of reach");
    let run = |args: &[&str]| {
        let mut cargo = Command::new(path.join("cargo"));
        cargo.args(args).args(["--release", "--offline", "--locked"]).current_dir(root());
        cargo::succeed(cargo::quick(&mut cargo).env("PATH", &path))
    };
    let examples = ["counter", "editor", "feed", "hello", "hello-client"];
    for package in ["capstead", "capstead-client"].into_iter().chain(examples) {
        run(&["clean", "--package", package]);
    }
    run(&["build", "--workspace"]);
    let examples = ["counter", "client", "editor", "feed", "feed_client", "hello", "hello-client"];
    for binary in ["capstead"].into_iter().chain(examples) {
        assert!(cargo::target().join("release").join(binary).is_file(), "{binary} was built");
    }
}

fn schemas(files: &[&str]) -> Schemas {
    let files: Vec<String> =
        files.iter().map(|file| root().join(file).display().to_string()).collect();
    Schemas::new(&files.iter().map(String::as_str).collect::<Vec<_>>())
}

// If a schema was changed and its request was not, a user without the tool would build something
// else.
#[test]
fn every_committed_request_is_current() {
    let public = [
        "schema/facet.capnp",
        "schema/http.capnp",
        "schema/restorer.capnp",
        "schema/sturdyref.capnp",
    ];
    let all = [
        ("schema/public.request", schemas(&public).request(root().join("schema/public.request"))),
        ("schema/cluster.request", schemas(&["schema/cluster.capnp", "schema/admin.capnp"])),
        ("schema/surviving.request", schemas(&["schema/surviving.capnp"])),
        (
            "examples/counter/schema/counter.request",
            schemas(&["examples/counter/schema/counter.capnp"]),
        ),
        (
            "examples/editor/schema/editor.request",
            schemas(&["examples/editor/schema/editor.capnp"]),
        ),
        ("examples/feed/schema/feed.request", schemas(&["examples/feed/schema/feed.capnp"])),
        ("examples/hello/schema/hello.request", schemas(&["examples/hello/schema/hello.capnp"])),
        ("examples/chat/schema/chat.request", schemas(&["examples/chat/schema/chat.capnp"])),
        ("src/classes/index.request", schemas(&["src/classes/index.capnp"])),
        ("src/classes/poll.request", schemas(&["src/classes/poll.capnp"])),
        ("bench/schema/probe.request", schemas(&["bench/schema/probe.capnp"])),
        ("src/dynamic/every.request", schemas(&["src/dynamic/every.capnp"])),
        ("src/host/tests/trial.request", schemas(&["src/host/tests/trial.capnp"])),
        (
            "src/host/tests/programs/actor.request",
            schemas(&["src/host/tests/programs/actor.capnp"]),
        ),
        ("tests/passing/passing.request", schemas(&["tests/passing/passing.capnp"])),
        (
            "tests/passing/forwarder.request",
            schemas(&["tests/passing/forwarder.capnp", "tests/passing/slot.capnp"]),
        ),
    ];
    for (request, schemas) in &all {
        let found = schemas.check().unwrap();
        if found == Freshness::Unconfirmed {
            eprintln!("{request}: belongs to its schemas; there is no capnp tool to say more");
        }
        assert_ne!(
            found,
            Freshness::Stale,
            "{request}: build with the tool, and commit what it makes"
        );
    }
    let named = all.map(|(request, _)| root().join(request));
    for request in committed_requests(root()) {
        assert!(named.contains(&request), "{} is checked nowhere", request.display());
    }
}

fn committed_requests(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of the workspace is read").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        // Cargo leaves a folder without its tag file that was there before.
        let is_cargos = name == "target" || path.join("CACHEDIR.TAG").exists();
        let is_ours = !is_cargos && !name.to_string_lossy().starts_with('.');
        if path.is_dir() && is_ours {
            found.extend(committed_requests(&path));
        } else if path.extension().is_some_and(|extension| extension == "request") {
            found.push(path);
        }
    }
    found
}
