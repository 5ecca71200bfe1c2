//! Backups: a restored backup is the same cluster, and a backup that was cut short is refused.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use capstead_client::{Connection, namespace};

use super::file::{counter, counter_with_grants, grants};
use super::{contents, counters, done, large, refused, text, texts, value};
use crate::support::calls::{by_name, increment, run};
use crate::support::{capstead, eventually, refused_start, scratch, serve_command, serve_with};

#[test]
fn a_restored_backup_is_the_same_cluster() {
    let (folder, data) = scratch();
    let served = counters(&data, &["--hosts", "2"], &[("x", 5), ("y", 6)]);
    let (file, restored) = (folder.path().join("backup"), folder.path().join("restored.data"));
    let said = done(&data, &["backup", text(&file)]);
    assert!(said.contains("and the keys of the cluster"), "{said}");
    let mode = fs::metadata(&file).expect("it was made").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let reference = served.counters().to_owned();
    let before = contents(&data);
    served.stop();

    let restore =
        |to: &Path| capstead(["restore", text(&file), text(to)]).output().expect("it runs");
    let output = restore(&restored);
    assert!(output.status.success(), "{:?}", texts(&output));
    assert_eq!(contents(&restored), before);
    let again = restore(&restored);
    assert_eq!(again.status.code(), Some(1));
    assert!(texts(&again).1.contains("is not empty"), "{:?}", texts(&again));

    let served = serve_with(&restored, &["--hosts", "2"]);
    run(async {
        let connection = Connection::dial(&served.announced.capnp).await.expect("it is reached");
        let counters: namespace::Client = connection.restore(&reference).expect("it can be asked");
        assert_eq!(increment(&by_name(&counters, "x")).await.expect("the reference is good"), 6);
    });
    assert_eq!(served.counters().split('#').nth(1), reference.split('#').nth(1));
}

// More grants than one batch of writes takes, 16 MiB, go the whole way: in, into a backup, out of
// it, and into another server.
#[test]
fn a_namespace_with_very_many_grants_is_backed_up_restored_and_imported() {
    const COUNT: u32 = 90_000;
    let (folder, data) = scratch();
    counters(&data, &[], &[("x", 5)]).stop();
    let path = |name| folder.path().join(name);
    let (file, backup, export) = (path("grants"), path("backup"), path("export"));
    let (restored, other) = (path("restored.data"), path("other.data"));
    fs::write(&file, grants("Counter", COUNT)).expect("it is written");
    let import = ["import", text(&file), "--replace", "--grants", "replace"];
    let said = done(&data, &import);
    assert!(said.contains(&format!("{COUNT} brought")), "{said}");
    let grants_of = |data: &Path| {
        let all = contents(data);
        all.into_iter().filter(|record| record.1 == 2 && record.3.len() > 200).collect::<Vec<_>>()
    };
    let before = grants_of(&data);
    assert_eq!(before.len(), COUNT as usize);
    done(&data, &["backup", text(&backup)]);
    assert!(fs::metadata(&backup).expect("it is there").len() > 20 << 20);
    let output = capstead(["restore", text(&backup), text(&restored)]).output().expect("it runs");
    assert!(output.status.success(), "{:?}", texts(&output));
    assert!(grants_of(&restored) == before, "the restored ones are others");
    done(&restored, &["export", text(&export), "--all"]);
    counters(&other, &[], &[]).stop();
    done(&other, &["import", text(&export), "--replace", "--grants", "replace"]);
    assert!(grants_of(&other) == before, "the imported ones are others");
}

// An object with more than a million grants could be imported, and never be replaced.
#[test]
fn an_object_with_more_than_a_million_grants_is_backed_up_restored_and_replaced() {
    const COUNT: u32 = 1_000_001;
    let (folder, data) = scratch();
    counters(&data, &[], &[("x", 5)]).stop();
    let path = |name| folder.path().join(name);
    let (many, few, backup) = (path("many"), path("few"), path("backup"));
    let restored = path("restored.data");
    fs::write(&many, counter_with_grants("x", 6, &[], COUNT)).expect("it is written");
    fs::write(&few, counter_with_grants("x", 7, &[], 1)).expect("it is written");
    let import = |data: &Path, file: &Path| {
        done(data, &["import", text(file), "--replace", "--grants", "replace"])
    };
    let said = import(&data, &many);
    assert!(said.contains(&format!("grants: 0 kept, {COUNT} brought")), "{said}");
    done(&data, &["backup", text(&backup)]);
    let output = capstead(["restore", text(&backup), text(&restored)]).output().expect("it runs");
    assert!(output.status.success(), "{:?}", texts(&output));
    let roots = 6;
    let brought = format!("{} brought", COUNT + roots);
    assert!(texts(&output).0.contains(&brought), "{:?}", texts(&output));
    let served = serve_with(&restored, &[]);
    assert_eq!(value(&served, "x"), "6");
    let said = import(&restored, &few);
    assert!(said.contains(&format!("1 kept, 0 brought, {} revoked", COUNT - 1)), "{said}");
    assert_eq!(value(&served, "x"), "7");
}

// A restore is killed midway, into a directory that existed, like a mount point. Nothing opens the
// remains, and the next attempt restores everything.
#[test]
fn what_a_killed_restore_left_is_not_served_and_not_in_the_way() {
    let (folder, data) = scratch();
    let (file, restored) = (folder.path().join("backup"), folder.path().join("restored.data"));
    drop(counters(&data, &[], &[("x", 5)]));
    let big = folder.path().join("big");
    for n in 0..8 {
        fs::write(&big, counter(&format!("big{n}"), n, &large())).expect("it is written");
        done(&data, &["import", text(&big)]);
    }
    done(&data, &["backup", text(&file)]);
    let before = contents(&data);
    fs::create_dir(&restored).expect("it is made");
    let restore = || capstead(["restore", text(&file), text(&restored)]);
    let stored = restored.join("host-0/data.mdb");
    let is_begun = || fs::metadata(&stored).is_ok_and(|stored| stored.len() > 16 << 20);
    for _ in 0..2 {
        let mut cut = restore().stdout(Stdio::null()).spawn().expect("it starts");
        eventually("some of it is there", || is_begun().then_some(()));
        cut.kill().expect("it is ours");
        cut.wait().expect("it is ours");
        assert!(!restored.join("format").exists(), "killed too late to show anything");
        let (code, said) = refused_start(serve_command(&restored, &[]));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("restore into it again"), "{said}");
        let said = refused(&restored, &["export", "-", "--all"], 1);
        assert!(said.contains("restore into it again"), "{said}");
    }
    let output = restore().output().expect("it runs");
    assert!(output.status.success(), "{:?}", texts(&output));
    assert_eq!(contents(&restored), before);
    assert!(texts(&restore().output().expect("it runs")).1.contains("is not empty"));
}

// A backup has the keys of the cluster in it. One that is killed, at whatever moment, leaves no
// file of that behind.
#[test]
fn a_killed_backup_leaves_no_file() {
    const KILLED: u32 = 12;
    let (folder, data) = scratch();
    drop(counters(&data, &[], &[("x", 5)]));
    let big = folder.path().join("big");
    for n in 0..4 {
        fs::write(&big, counter(&format!("big{n}"), n, &large())).expect("it is written");
        done(&data, &["import", text(&big)]);
    }
    let place = folder.path().join("place");
    fs::create_dir(&place).expect("it is made");
    let names = || {
        let names = fs::read_dir(&place).expect("it is there");
        names.map(|name| name.expect("it is there").file_name()).collect::<Vec<_>>()
    };
    let (file, before) = (place.join("backup"), crate::support::now());
    done(&data, &["backup", text(&file)]);
    let (whole, length) = (before.elapsed(), fs::metadata(&file).expect("it is there").len());
    fs::remove_file(&file).expect("it is there");
    let mut cut_short = 0;
    for number in 0..KILLED {
        let mut backup = capstead(["backup", text(&file), "--data", text(&data)]);
        let mut backup = backup.stdout(Stdio::null()).spawn().expect("it starts");
        // Moments from the first to the last, which is behind the end.
        std::thread::sleep(whole * number / (KILLED - 2));
        backup.kill().expect("it is ours");
        let ended = backup.wait().expect("it is ours").success();
        match fs::metadata(&file) {
            // It has its name once it is whole.
            Ok(there) => {
                assert_eq!(there.len(), length, "kill {number}");
                fs::remove_file(&file).expect("it is there");
            }
            Err(_) => assert!(!ended, "kill {number}"),
        }
        cut_short += u32::from(!ended);
        assert_eq!(names(), [] as [&str; 0], "kill {number}");
    }
    assert!(cut_short > KILLED / 3, "{cut_short} were cut short");
    done(&data, &["backup", text(&file)]);
}

#[test]
fn an_export_is_no_backup_and_a_backup_goes_to_a_file() {
    let (folder, data) = scratch();
    drop(counters(&data, &[], &[("x", 5)]));
    let (file, there) = (folder.path().join("file"), folder.path().join("there"));
    done(&data, &["export", text(&file), "--all"]);
    let output = capstead(["restore", text(&file), text(&there)]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(texts(&output).1.contains("lacks the keys") && !there.exists());
    assert!(refused(&data, &["backup", "-"], 1).contains("file of its own"));
    // No existing file is overwritten.
    assert!(refused(&data, &["backup", text(&file)], 1).contains("is there already"));
    assert!(refused(&data, &["export", text(&file), "--all"], 1).contains("is there already"));
}
