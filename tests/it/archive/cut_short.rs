//! Imports that are cut short: the object says so, and repeating the command completes them.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::file::{Record, counter, named, records};
use super::{contents, counters, done, large, refused, text, texts, value, verb};
use crate::full_disk::SmallDisk;
use crate::support::http::{get, post};
use crate::support::{Process, Served, capstead, eventually, scratch, serve, serve_with};

// The server is killed while a large object is being imported. Afterwards the object says so, an
// export leaves it out, and importing it again makes it whole.
#[test]
fn a_half_imported_object_says_so_until_it_is_imported_again() {
    let (folder, data) = scratch();
    let file = folder.path().join("file");
    fs::write(&file, counter("big", 7, &large())).expect("it is written");
    let mut served = serve_with(&data, &["--commit-delay", "300"]);
    let import = capstead(["import", "--data", text(&data), text(&file)]);
    let mut import = Process::start(import);
    let ask = |served: &Served| get(&served.announced.http, "/counter/big");
    eventually("the first batch", || ask(&served).body.contains("import-unfinished").then_some(()));
    // The mark is visible before it is durable: the next commit makes it so.
    let commits = served.metric("turns_committed_total");
    eventually("a commit", || (served.metric("turns_committed_total") > commits).then_some(()));
    served.kill();
    assert_eq!(import.wait().code(), Some(1), "{}", import.stderr());
    assert!(import.stderr().contains("start it again"), "{}", import.stderr());

    let served = serve(&data);
    let answer = ask(&served);
    assert_eq!(answer.status, 500);
    assert!(answer.body.contains("import it again"), "{}", answer.body);
    assert!(contents(&data).iter().all(|record| record.0 != named("Counter", "big")));
    done(&data, &["import", text(&file)]);
    assert_eq!(value(&served, "big"), "7");
    let stored: Vec<Record> =
        contents(&data).into_iter().filter(|record| record.0 == named("Counter", "big")).collect();
    assert_eq!(stored, records(&fs::read(&file).expect("it is there")));
    served.stop();
    let served = serve(&data);
    assert_eq!(value(&served, "big"), "7");
}

// An import of everything is cut short between two objects. Repeating the command completes it, and
// objects that were called meanwhile keep their new state. An import of another archive is refused
// as usual, and doesn't affect this one.
#[test]
fn an_import_that_was_cut_short_is_ended_by_the_same_command() {
    let (folder, data) = scratch();
    let (all, other) = (folder.path().join("all"), folder.path().join("other"));
    let from = folder.path().join("from.data");
    let names: Vec<String> = (0..60).map(|n| format!("c{n}")).collect();
    drop(counters(&from, &[], &names.iter().map(|name| (&**name, 5)).collect::<Vec<_>>()));
    let big = folder.path().join("big");
    for n in 0..6 {
        fs::write(&big, counter(&format!("big{n}"), 5, &large())).expect("it is written");
        done(&from, &["import", text(&big)]);
    }
    done(&from, &["export", text(&all), "--all"]);
    done(&from, &["export", text(&other), "--class", "Counter"]);
    let served = serve_with(&data, &["--commit-delay", "100"]);
    let is_there = |name: &&String| {
        let answer = get(&served.announced.http, &format!("/counter/{name}"));
        answer.status == 200 && answer.body == "5"
    };
    let mut import = capstead(["import", "--data", text(&data), text(&all)]);
    let mut import = import.stdout(Stdio::null()).spawn().expect("it starts");
    let first = eventually("an object is there", || names.iter().find(is_there));
    import.kill().expect("it is ours");
    import.wait().expect("it is ours");
    assert_eq!(post(&served.announced.http, &format!("/counter/{first}/increment")).status, 200);
    let before = contents(&data);
    let said = eventually("the cut import has ended", || {
        let output = verb(&data, &["import", text(&other)]);
        let said = texts(&output).1;
        (!said.contains("under way")).then_some(said)
    });
    assert!(said.contains("exist already"), "{said}");
    assert_eq!(contents(&data), before);
    // A third archive, none of whose objects exists, is imported, and the first one's mark stays.
    let third = folder.path().join("third");
    fs::write(&third, counter("third", 9, &[])).expect("it is written");
    done(&data, &["import", text(&third)]);
    assert_eq!(value(&served, "third"), "9");
    let said = done(&data, &["import", text(&all)]);
    assert!(said.contains("came with the import that was cut short"), "{said}");
    for name in &names {
        assert_eq!(value(&served, name), if name == first { "6" } else { "5" });
    }
    assert_eq!(value(&served, "big5"), "5");
    // The import has ended now, so another one is not a continuation.
    assert!(refused(&data, &["import", text(&all)], 1).contains("exist already"));
}

// The disk gets full while a backup is restored, or a file as long as the system allows. Nothing is
// left that somebody could serve, and the same command works once there is room.
#[test]
fn a_restore_that_finds_no_space_leaves_nothing_behind() {
    let Some(disk) = SmallDisk::make(160) else { return };
    let (folder, data) = scratch();
    drop(counters(&data, &["--hosts", "2"], &[("x", 5)]));
    let (big, backup) = (folder.path().join("big"), folder.path().join("backup"));
    for n in 0..2 {
        fs::write(&big, counter(&format!("big{n}"), n, &large())).expect("it is written");
        done(&data, &["import", text(&big)]);
    }
    done(&data, &["backup", text(&backup)]);
    let before = contents(&data);
    let restored = disk.path().join("restored.data");
    let restore = |to: &Path, limits: &str| -> Output {
        let restore = capstead(["restore", text(&backup), text(to), "--reserve", "0B"]);
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!(r#"{limits} exec "$0" "$@""#)]);
        limited.arg(restore.get_program()).args(restore.get_args()).output().expect("it runs")
    };
    let is_refused = |to: &Path, limits: &str, words: &[&str]| {
        let output = restore(to, limits);
        let said = texts(&output).1;
        assert!(matches!(output.status.code(), Some(1 | 3)), "{said}");
        assert!(words.iter().any(|words| said.contains(words)), "{said}");
        assert!(!to.join("format").exists(), "it can be served: {said}");
    };
    // At the start, soon after it, and in the middle: 32 MiB are always kept free.
    for kib in [0, 36 << 10, 64 << 10] {
        disk.fill(kib);
        is_refused(&restored, "", &["No space left", "no space is left", "low-space: "]);
        assert!(!restored.exists(), "{kib} KiB");
    }
    fs::remove_file(disk.filler()).expect("it is there");
    // A directory that was there, like a mount point, is there still.
    fs::create_dir(&restored).expect("it is made");
    is_refused(&restored, "ulimit -f 16384;", &["the storage failed"]);
    let left = fs::read_dir(&restored).expect("it is there").count();
    assert_eq!(left, 0, "it is as empty as before");
    let output = restore(&restored, "");
    assert!(output.status.success(), "{:?}", texts(&output));
    assert_eq!(contents(&restored), before);
}
