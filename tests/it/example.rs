//! The examples as a reader gets them: alone, outside this workspace.
//!
//! The README shows the first one, so its text must match the files.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{Process, Served, cargo, root, scratch, tree};

/// Makes the paths of dependencies absolute, and changes nothing else.
fn with_absolute_paths(manifest: &str) -> String {
    let mut lines = Vec::new();
    for line in manifest.lines() {
        let Some((before, rest)) = line.split_once("path = \"") else {
            lines.push(line.to_owned());
            continue;
        };
        let (path, after) = rest.split_once('"').expect("a path ends");
        let path = root().join("examples/counter").join(path).canonicalize();
        let path = path.expect("the dependency is there");
        lines.push(format!("{before}path = \"{}\"{after}", path.display()));
    }
    lines.join("\n")
}

/// Builds a copy of the example as a package of its own.
fn build(package: &Path) {
    let name = package.file_name().expect("a package has a name");
    tree::copy(&root().join("examples").join(name), package);
    let manifest = package.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).expect("the manifest is there");
    fs::write(&manifest, with_absolute_paths(&text)).expect("the manifest is written");
    // All other dependencies have the versions of the workspace.
    fs::copy(root().join("Cargo.lock"), package.join("Cargo.lock")).expect("the lock is copied");
    let mut build = Command::new("cargo");
    build.args(["build", "--release", "--offline", "--bins"]).current_dir(package);
    cargo::succeed(cargo::quick(&mut build));
}

/// Copies an example with its client's package, if that has one of its own, builds them, starts the
/// server on free ports, and runs `tried` with its client.
fn try_example(name: &str, client: &str, tried: impl Fn(&Served, &Path)) {
    let (folder, data) = scratch();
    let package = folder.path().join(name);
    build(&package);
    if root().join("examples").join(client).is_dir() {
        build(&folder.path().join(client));
    }
    // Builds of other tests have binaries of the same name.
    let binary = |name: &str| {
        let copy = folder.path().join(format!("{name}.copy"));
        fs::copy(cargo::target().join("release").join(name), &copy).expect("it was built");
        copy
    };
    let (server, client) = (binary(name), binary(client));
    let mut command = Command::new(server);
    command.args(["--json", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"]);
    command.arg(&data).current_dir(&package);
    let served = Served::ready(Process::start(command));
    tried(&served, &client);
    assert_eq!(served.stop().0, Some(0));
}

// The first steps of a reader: copy an example, change its paths, start it, count.
#[test]
fn the_examples_build_and_count_outside_of_the_workspace() {
    try_example("hello", "hello-client", |served, client| {
        assert_eq!(served.announced.namespaces.keys().collect::<Vec<_>>(), ["Tally"]);
        for total in 1..=2 {
            let tallies = &served.announced.namespaces["Tally"];
            let output = cargo::succeed(Command::new(client).arg(tallies));
            assert_eq!(String::from_utf8_lossy(&output.stdout), format!("visits: {total}\n"));
        }
    });
    try_example("counter", "client", |served, client| {
        assert_eq!(served.announced.namespaces.keys().collect::<Vec<_>>(), ["Counter"]);
        for value in 1..=2 {
            let output = cargo::succeed(Command::new(client).args([served.counters(), "mine"]));
            assert_eq!(String::from_utf8_lossy(&output.stdout), format!("mine is now {value}\n"));
        }
        let usage = Command::new(client).output().unwrap();
        assert!(!usage.status.success());
        assert!(String::from_utf8_lossy(&usage.stderr).contains("usage: client REFERENCE NAME"));
    });
}

// The code on the front page is the code that was compiled and run.
#[test]
fn the_readme_shows_the_example_word_for_word() {
    let files = ["hello/schema/hello.capnp", "hello/src/main.rs", "hello-client/src/main.rs"];
    let texts = files.map(|file| {
        let text = fs::read_to_string(root().join("examples").join(file));
        (file, text.expect("a file of the example is there"))
    });
    let readme = fs::read_to_string(root().join("README.md")).expect("there is a README.md");
    let blocks = code_blocks(&readme);
    for (file, text) in &texts {
        let shown = blocks.iter().any(|block| block.trim() == text.trim());
        assert!(shown, "README.md has no code block that is {file}, word for word");
    }
    // A reader sees the front page first, without any background: it stays short.
    let [schema, class, client] = texts.map(|(_, text)| text.lines().count());
    assert!(schema + class <= 50 && client <= 20, "{schema} + {class} and {client} lines");
    assert!(readme.lines().count() <= 180, "README.md has {} lines", readme.lines().count());
}

// A newcomer who only calls objects compiles no server.
#[test]
fn the_client_of_the_readme_builds_no_server() {
    let mut tree = Command::new("cargo");
    tree.args(["tree", "--package", "hello-client", "--prefix", "none", "--format", "{p}"]);
    tree.args(["--offline", "--locked"]).current_dir(root());
    let output = cargo::succeed(cargo::quick(&mut tree));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let packages: Vec<_> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(packages.contains(&"capstead-client"), "{text}");
    let of_servers = ["capstead", "lmdb-rkv", "lmdb-rkv-sys", "hyper", "clap", "tokio-tungstenite"];
    for package in of_servers {
        assert!(!packages.contains(&package), "{package} is below hello-client:\n{text}");
    }
}

/// The text between fences.
fn code_blocks(markdown: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<Vec<&str>> = None;
    for line in markdown.lines() {
        match (&mut open, line.starts_with("```")) {
            (None, true) => open = Some(Vec::new()),
            (None, false) => {}
            (Some(lines), true) => {
                blocks.push(lines.join("\n"));
                open = None;
            }
            (Some(lines), false) => lines.push(line),
        }
    }
    blocks
}
