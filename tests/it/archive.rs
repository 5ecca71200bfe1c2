//! Data move from one server to another: whole, even while it serves, or not at all.

mod backups;
mod compacting;
mod cut_short;
mod file;

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::rc::Rc;
use std::time::Duration;

use self::file::{Record, counter, named, records};
use crate::support::calls::{by_name, connect, increment, read, run};
use crate::support::http::{get, post};
use crate::support::random::Random;
use crate::support::tree::look;
use crate::support::{Served, capstead, scratch, serve, serve_with};
use capstead_client::namespace;
use futures::StreamExt;
use futures::stream::FuturesOrdered;

/// Runs a verb on `data`.
fn verb(data: &Path, args: &[&str]) -> Output {
    let (verb, rest) = args.split_first().expect("a verb");
    let mut command = capstead([*verb, "--data"]);
    command.arg(data).args(rest).output().expect("the command runs")
}

/// Runs a verb that must succeed; returns its output.
fn done(data: &Path, args: &[&str]) -> String {
    let output = verb(data, args);
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{args:?}: {stdout}{stderr}");
    stdout
}

/// Runs a verb that must fail with this code; returns its message.
fn refused(data: &Path, args: &[&str], code: i32) -> String {
    let output = verb(data, args);
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stdout}{stderr}");
    stderr
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

/// All records of a data directory, by an export of it.
fn contents(data: &Path) -> Vec<Record> {
    let exported = verb(data, &["export", "-", "--all"]);
    assert!(exported.status.success(), "{:?}", texts(&exported));
    records(&exported.stdout)
}

/// A server with these counters.
fn counters(data: &Path, args: &[&str], values: &[(&str, i64)]) -> Served {
    let served = serve_with(data, args);
    for (name, value) in values {
        let path = format!("/counter/{name}/increment?by={value}");
        assert_eq!(post(&served.announced.http, &path).status, 200);
    }
    served
}

fn value(served: &Served, name: &str) -> String {
    let answer = get(&served.announced.http, &format!("/counter/{name}"));
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body
}

#[test]
fn one_object_a_class_and_everything_come_back_elsewhere() {
    let (folder, data) = scratch();
    let served = counters(&data, &["--hosts", "3"], &[("a", 1), ("b", 2), ("c", 3), ("d", -4)]);
    let file = |name: &str| folder.path().join(name);
    let said = done(&data, &["export", text(&file("one")), "--class", "Counter", "--name", "c"]);
    assert!(said.starts_with("exported 1 object with 1 key and 13 B"), "{said}");
    let id = format!("{:032x}", u128::from_be_bytes(named("Counter", "c")));
    done(&data, &["export", text(&file("same")), "--id", &id]);
    let bytes = |name: &str| fs::read(file(name)).expect("the file is there");
    assert_eq!(records(&bytes("one")), records(&bytes("same")));
    done(&data, &["export", text(&file("class")), "--class", "Counter"]);
    done(&data, &["export", text(&file("all")), "--all"]);
    let all = records(&bytes("all"));
    // The export has the grants of the namespaces only with --all.
    assert_eq!(records(&bytes("class")).len(), 8);
    assert_eq!(
        all.iter().filter(|record| record.1 == 2).count(),
        served.announced.namespaces.len()
    );

    let other = file("other.data");
    let there = counters(&other, &["--hosts", "2"], &[("e", 9)]);
    done(&other, &["import", text(&file("one"))]);
    assert_eq!((value(&there, "c"), value(&there, "e")), ("3".into(), "9".into()));
    there.stop();
    // The same code runs offline.
    done(&other, &["import", text(&file("all")), "--replace", "--grants", "replace"]);
    let is_e = |record: &Record| record.0 == named("Counter", "e");
    let found: Vec<Record> = contents(&other).into_iter().filter(|record| !is_e(record)).collect();
    assert_eq!(sorted(found), sorted(all));
    let there = serve_with(&other, &["--hosts", "2"]);
    let values = ["a", "b", "c", "d", "e"].map(|name| value(&there, name));
    assert_eq!(values, ["1", "2", "3", "-4", "9"]);
}

/// Sorts by object, because hosts store their objects in different orders.
fn sorted(mut records: Vec<Record>) -> Vec<Record> {
    records.sort();
    records
}

/// Increments until `stop` is set, with several calls under way; counts the calls sent and
/// acknowledged.
async fn load(
    counters: namespace::Client,
    sent: Rc<Cell<i64>>,
    acknowledged: Rc<Cell<i64>>,
    stop: Rc<Cell<bool>>,
) {
    let counter = by_name(&counters, "x");
    let mut on_the_way = FuturesOrdered::new();
    while !stop.get() || !on_the_way.is_empty() {
        while on_the_way.len() < 16 && !stop.get() {
            sent.set(sent.get() + 1);
            on_the_way.push_back(increment(&counter));
        }
        if let Some(value) = on_the_way.next().await {
            acknowledged.set(acknowledged.get().max(value.expect("it counts")));
        }
    }
}

// An export contains every call that was answered before it began, and none that was made after it
// ended.
#[test]
fn an_export_under_load_is_a_state_between_its_beginning_and_its_end() {
    let (folder, data) = scratch();
    let served = serve(&data);
    let (sent, acknowledged, stop) = (Rc::default(), Rc::default(), Rc::<Cell<bool>>::default());
    let (sent, acknowledged): (Rc<Cell<i64>>, Rc<Cell<i64>>) = (sent, acknowledged);
    run(async {
        let connected = connect(&served).await;
        let work = load(connected.1.clone(), sent.clone(), acknowledged.clone(), stop.clone());
        let exports = async {
            for round in 0..5 {
                let at_least = acknowledged.get() + 100;
                while acknowledged.get() < at_least {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let file = folder.path().join(format!("{round}"));
                let before = acknowledged.get();
                let mut command = capstead(["export", "--data", text(&data), text(&file), "--all"]);
                let mut child = command.stdout(Stdio::null()).spawn().expect("it starts");
                while child.try_wait().expect("it is ours").is_none() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let after = sent.get();
                let found = records(&fs::read(&file).expect("it was made"));
                let found = found.iter().find(|record| record.2 == b"value").expect("a value");
                let found = i64::from_be_bytes(found.3.as_slice().try_into().expect("a number"));
                assert!((before..=after).contains(&found), "{before} {found} {after}");
            }
            stop.set(true);
        };
        futures::join!(work, exports);
    });
}

#[test]
fn what_exists_is_refused_by_name_and_nothing_changes_unless_it_is_to_be_replaced() {
    let (folder, data) = scratch();
    let served = counters(&data, &[], &[("x", 5), ("y", 6)]);
    let file = folder.path().join("file");
    done(&data, &["export", text(&file), "--class", "Counter"]);
    let (later, connection) = run(async {
        let (connection, counters) = connect(&served).await;
        let counter = by_name(&counters, "x");
        let later = increment(&counter).await.expect("it counts");
        // `z` is new, and must not be imported with the refused ones.
        drop(counter);
        (later, connection.is_closed())
    });
    assert_eq!((later, connection), (6, false));
    let before = contents(&data);
    let said = refused(&data, &["import", text(&file)], 1);
    assert!(said.contains("2 of the objects exist already"), "{said}");
    assert!(said.contains(r#"Counter "x""#) && said.contains("--replace"), "{said}");
    assert_eq!(contents(&data), before);
    assert_eq!(value(&served, "x"), "6");

    let said = done(&data, &["import", text(&file), "--replace"]);
    assert!(said.contains("2 of them existed"), "{said}");
    assert_eq!((value(&served, "x"), value(&served, "y")), ("5".into(), "6".into()));
}

#[test]
fn one_that_exists_keeps_all_others_out() {
    let (folder, data) = scratch();
    let served = counters(&data, &[], &[("x", 5), ("y", 6)]);
    let file = folder.path().join("file");
    done(&data, &["export", text(&file), "--class", "Counter"]);
    let other = folder.path().join("other.data");
    let there = counters(&other, &[], &[("y", 1)]);
    let said = refused(&other, &["import", text(&file)], 1);
    assert!(said.contains("1 of the objects") && said.contains(r#"Counter "y""#), "{said}");
    assert!(contents(&other).iter().all(|record| record.0 != named("Counter", "x")));
    drop((served, there));
}

// A client that holds the object sees it end, restores the reference, and finds the new state.
#[test]
fn a_replaced_object_breaks_for_those_who_hold_it() {
    let (folder, data) = scratch();
    let served = counters(&data, &[], &[("x", 5)]);
    let file = folder.path().join("file");
    done(&data, &["export", text(&file), "--class", "Counter"]);
    run(async {
        let (_connection, counters) = connect(&served).await;
        let counter = by_name(&counters, "x");
        assert_eq!(increment(&counter).await.expect("it counts"), 6);
        done(&data, &["import", text(&file), "--replace"]);
        let broken = read(&counter).await.expect_err("it was replaced");
        assert_eq!(broken.kind, capnp::ErrorKind::Disconnected, "{broken}");
        let anew = by_name(&counters, "x");
        assert_eq!(read(&anew).await.expect("it is there"), 5);
        assert_eq!(increment(&anew).await.expect("it counts"), 6);
    });
}

#[test]
fn damaged_cut_newer_and_foreign_files_change_nothing() {
    let (folder, data) = scratch();
    let served = counters(&data, &[], &[("x", 5), ("y", 6)]);
    let good = folder.path().join("good");
    done(&data, &["backup", text(&good)]);
    let good = fs::read(&good).expect("it was made");
    let before = contents(&data);
    let bad = folder.path().join("bad");
    let there = folder.path().join("new.data");
    let check = |bytes: Vec<u8>, says: &str| {
        fs::write(&bad, bytes).expect("it is written");
        for args in [["import", text(&bad), "--replace"].as_slice(), &["import", text(&bad)]] {
            let said = refused(&data, args, 1);
            assert!(said.contains(says), "{said}");
        }
        let restored = capstead(["restore", text(&bad), text(&there)]).output().expect("it runs");
        assert_eq!(restored.status.code(), Some(1));
        assert!(texts(&restored).1.contains(says), "{restored:?}");
    };
    let mut random = Random::from_printed_seed();
    for _ in 0..5 {
        let mut damaged = good.clone();
        let at = 17 + random.below(good.len() as u64 - 17) as usize;
        damaged[at] ^= 1 << random.below(8);
        check(damaged, "");
        check(good[..20 + random.below(good.len() as u64 - 20) as usize].to_vec(), "cut short");
    }
    let mut newer = good.clone();
    newer[16] = 2;
    check(newer, "archive of version 2");
    check(b"#!/bin/sh\necho it is something else entirely\n".to_vec(), "not an archive");
    assert_eq!(contents(&data), before);
    assert!(!there.exists(), "nothing is left of a restore that was refused");
    drop(served);
}

/// Values that fill more than one batch, and more than three.
fn large() -> Vec<(Vec<u8>, Vec<u8>)> {
    (0..24_u8).map(|n| (vec![b'k', n], vec![n; 1 << 20])).collect()
}

#[test]
fn keys_of_any_length_come_back() {
    let (folder, data) = scratch();
    let more: Vec<_> = [1, 479, 480, 481, 940, 941, 2_048]
        .into_iter()
        .flat_map(|length| [vec![b'a'; length], vec![b'z'; length], vec![0; length]])
        .map(|key| (key.clone(), key))
        .collect();
    let archive = counter("long", 1, &more);
    let file = folder.path().join("file");
    fs::write(&file, &archive).expect("it is written");
    let served = serve(&data);
    done(&data, &["import", text(&file)]);
    assert_eq!(value(&served, "long"), "1");
    let found: Vec<Record> =
        contents(&data).into_iter().filter(|record| record.0 == named("Counter", "long")).collect();
    assert_eq!(found, records(&archive));
    // If fewer values replace them, none of the old ones stays.
    fs::write(&file, counter("long", 2, &more[..3])).expect("it is written");
    done(&data, &["import", text(&file), "--replace"]);
    let count =
        contents(&data).iter().filter(|record| record.0 == named("Counter", "long")).count();
    assert_eq!((count, value(&served, "long")), (5, "2".into()));
}

// Commands that only read work on a full or read-only disk, because they change no file.
#[test]
fn what_reads_a_stopped_servers_data_changes_no_file_of_them() {
    let (folder, data) = scratch();
    counters(&data, &["--hosts", "2"], &[("x", 5)]).stop();
    let before = look(&data);
    done(&data, &["backup", text(&folder.path().join("backup"))]);
    done(&data, &["export", text(&folder.path().join("export")), "--all"]);
    assert!(done(&data, &["grants", "Counter"]).contains("root"));
    let listed = capstead(["key", "list", "--data"]).arg(&data).output().expect("it runs");
    assert!(listed.status.success(), "{:?}", texts(&listed));
    assert_eq!(look(&data), before);
}

// The tools keep the same room free as the server.
#[test]
fn the_tools_take_the_servers_reserve_and_map_size() {
    let (folder, data) = scratch();
    counters(&data, &[], &[("x", 5)]).stop();
    let file = folder.path().join("file");
    done(&data, &["export", text(&file), "--all"]);
    let import = ["import", text(&file), "--replace"];
    let with = |more: &[&'static str]| [&import[..], more].concat();
    let said = refused(&data, &with(&["--reserve", "1EiB"]), 1);
    assert!(said.contains("low-space"), "{said}");
    let said = refused(&data, &with(&["--map-size", "16KiB"]), 1);
    assert!(said.contains("low-space: 0 bytes"), "{said}");
    done(&data, &with(&["--map-size", "64MiB", "--reserve", "1MiB"]));
}

#[test]
fn wrong_questions_have_answers() {
    let (folder, data) = scratch();
    let file = folder.path().join("file");
    assert!(refused(&data, &["export", text(&file), "--all"], 1).contains("no data directory"));
    assert!(!data.exists() && !file.exists());
    drop(counters(&data, &[], &[("x", 5)]));
    let said = refused(&data, &["export", text(&file), "--class", "Nope"], 1);
    assert!(said.contains("no such objects") && !file.exists(), "{said}");
    for args in [
        &["export", text(&file)][..],
        &["export", text(&file), "--name", "x"],
        &["export", text(&file), "--all", "--class", "Counter"],
        &["export", text(&file), "--id", "123"],
        &["import"],
    ] {
        refused(&data, args, 2);
    }
    refused(&data, &["import", text(&file)], 1);
}

#[test]
fn standard_input_and_output_are_files_too() {
    let (folder, data) = scratch();
    let served = counters(&data, &[], &[("x", 5)]);
    let exported = verb(&data, &["export", "-", "--class", "Counter", "--name", "x"]);
    assert!(texts(&exported).1.contains("exported 1 object"), "{:?}", texts(&exported));
    let other = folder.path().join("other.data");
    let there = serve(&other);
    let file = folder.path().join("file");
    fs::write(&file, &exported.stdout).expect("it is written");
    let input = fs::File::open(&file).expect("it is there");
    let mut import = capstead(["import", "--data", text(&other), "-"]);
    assert!(import.stdin(input).status().expect("it runs").success());
    assert_eq!(value(&there, "x"), "5");
    drop(served);
}

// The address of a socket has room for about a hundred bytes.
#[test]
fn a_data_directory_with_a_long_path_is_reached_while_it_is_served() {
    let (folder, _) = scratch();
    let long: PathBuf = folder.path().join("d".repeat(90)).join("e".repeat(90));
    fs::create_dir_all(&long).expect("it is made");
    let data = long.join("capstead.data");
    let served = counters(&data, &[], &[("x", 5)]);
    assert!(data.join("admin.sock").symlink_metadata().is_ok());
    assert_eq!(contents(&data).iter().filter(|record| record.1 == 0).count(), 1);
    let mode =
        data.join("admin.sock").symlink_metadata().expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    served.stop();
    assert!(data.join("admin.sock").symlink_metadata().is_err(), "it goes with the server");
}

#[test]
fn the_socket_of_a_killed_server_is_in_nobodys_way() {
    let (_folder, data) = scratch();
    let mut served = counters(&data, &[], &[("x", 5)]);
    served.kill();
    assert_eq!(contents(&data).iter().filter(|record| record.1 == 0).count(), 1);
    let served = serve(&data);
    assert_eq!(value(&served, "x"), "5");
    assert_eq!(contents(&data).iter().filter(|record| record.1 == 0).count(), 1);
}
