//! Another process changes files of the data while they are served: the server ends before it
//! acknowledges more, and names the file.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use crate::support::{Served, capstead, eventually, http, now, scratch, serve_with};

/// One second, plus the time that a busy machine needs to end a server.
const NOTICED: Duration = Duration::from_secs(10);

/// With one host, every object lives where the files are changed.
const ONE_HOST: &[&str] = &["--hosts", "1"];

fn increment(served: &Served) -> bool {
    let mut web = http::Http::connect(&served.announced.http);
    web.send(b"POST /counter/x/increment HTTP/1.1\r\nHost: localhost\r\n\r\n");
    !web.is_closed() && web.answer("POST").status == 200
}

fn replace(path: &Path) {
    let other = path.with_extension("other");
    fs::copy(path, &other).unwrap();
    fs::rename(other, path).unwrap();
}

fn cut(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

fn move_away(path: &Path) {
    fs::rename(path, path.with_extension("moved")).unwrap();
}

type Change = (&'static str, fn(&Path), &'static str);

/// Paths below the data directory, each with the words of its message.
const CHANGES: [Change; 7] = [
    ("host-0/data.mdb", |path| fs::remove_file(path).unwrap(), "is gone"),
    ("host-0/data.mdb", replace, "was replaced"),
    ("host-0/data.mdb", cut, "was cut short"),
    ("host-0/lock.mdb", |path| fs::remove_file(path).unwrap(), "is gone"),
    ("host-0/CAPSTEAD", replace, "was replaced"),
    ("host-0", move_away, "is gone"),
    ("", move_away, "is gone"),
];

/// The same for the log, which begins with the first write.
const OF_THE_LOG: [Change; 3] = [
    ("host-0/segment-1", |path| fs::remove_file(path).unwrap(), "is gone"),
    ("host-0/segment-1", replace, "was replaced"),
    ("host-0/segment-1", cut, "was cut short"),
];

fn ends(served: Served, name: &str, what: &str) {
    let began = now();
    let (code, _, stderr) = served.wait();
    assert_eq!(code, Some(3), "{name} {what}: {stderr}");
    assert!(began.elapsed() < NOTICED, "{name} {what}: {:?}", began.elapsed());
    let last = stderr.lines().last().unwrap();
    assert!(last.starts_with("capstead: the storage failed"), "{name} {what}: {stderr}");
    assert!(last.contains(name) && last.contains(what), "{name} {what}: {stderr}");
}

// Calls used to succeed without end, and their effects were gone after a restart.
#[test]
fn nothing_is_acknowledged_after_a_file_was_changed() {
    for (name, change, what) in CHANGES.into_iter().chain(OF_THE_LOG) {
        let (_folder, data) = scratch();
        let served = serve_with(&data, ONE_HOST);
        assert!(increment(&served));
        change(&data.join(name));
        assert!(!increment(&served), "{name} {what}: a call after that was acknowledged");
        ends(served, name, what);
    }
}

#[test]
fn a_server_that_commits_nothing_notices_the_change_too() {
    let root: [Change; 6] = [
        ("supervisor/data.mdb", |path| fs::remove_file(path).unwrap(), "is gone"),
        ("supervisor/CAPSTEAD", replace, "was replaced"),
        ("keys/cluster", |path| fs::remove_file(path).unwrap(), "is gone"),
        ("keys/signing-1", cut, "was cut short"),
        ("lock", |path| fs::remove_file(path).unwrap(), "is gone"),
        ("format", replace, "was replaced"),
    ];
    for (name, change, what) in CHANGES.into_iter().chain(root).chain(OF_THE_LOG) {
        let (_folder, data) = scratch();
        let served = serve_with(&data, ONE_HOST);
        if name.contains("segment") {
            assert!(increment(&served));
        }
        change(&data.join(name));
        ends(served, name, what);
    }
}

// Nobody could revoke a key then.
#[test]
fn the_operator_reaches_a_server_whose_socket_was_removed() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, ONE_HOST);
    fs::remove_file(data.join("admin.sock")).unwrap();
    eventually("the socket", || data.join("admin.sock").symlink_metadata().ok());
    let listed = capstead(["key", "list", "--data"]).arg(&data).output().unwrap();
    assert!(listed.status.success(), "{listed:?}");
    let (code, _, stderr) = served.stop();
    assert!(code == Some(0) && stderr.contains("admin.sock was removed"), "{stderr}");
    assert!(data.join("admin.sock").symlink_metadata().is_err(), "it goes with the server");
}

// Keys that are made and removed in order are no change from outside.
#[test]
fn keys_come_and_go_by_the_operator() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, ONE_HOST);
    let key = |args: &[&str]| {
        let done = capstead(["key"]).args(args).arg("--data").arg(&data).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).unwrap()
    };
    key(&["rotate"]);
    let list = key(&["list"]);
    let oldest = list.lines().nth(1).unwrap().split_whitespace().next().unwrap();
    key(&["revoke", oldest]);
    // Longer than the files go without a look.
    let until = now() + Duration::from_millis(2500);
    while now() < until {
        assert!(increment(&served));
    }
    fs::remove_file(data.join("keys/signing-2")).unwrap();
    ends(served, "keys/signing-2", "is gone");
}

// The signal used to end the process without a message.
#[test]
fn a_page_that_can_not_be_read_ends_the_server_with_a_sentence() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, ONE_HOST);
    assert!(increment(&served));
    served.stop();
    // Nothing is awake, so a read needs the page.
    let served = serve_with(&data, ONE_HOST);
    File::options().write(true).open(data.join("host-0/data.mdb")).unwrap().set_len(0).unwrap();
    let mut web = http::Http::connect(&served.announced.http);
    web.send(b"GET /counter/x HTTP/1.1\r\nHost: localhost\r\n\r\n");
    ends(served, "host-0/data.mdb", "was cut short");
    // The data are undamaged; the disk is at fault.
    let (_folder, data) = scratch();
    let served = serve_with(&data, ONE_HOST);
    served.signal("BUS");
    ends(served, "a page of a file", "can't be read");
}
