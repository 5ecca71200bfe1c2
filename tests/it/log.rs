//! The log in front of the database: what only it has, a server that is killed, and damage.

use std::fs;
use std::path::Path;

use capstead::counter_capnp::counter;

use crate::support::calls::{by_name, connect, read, revoke, run, save};
use crate::support::http::{get, post};
use crate::support::operator::{done, output, said};
use crate::support::{Served, capstead, refused_start, scratch, serve_command, serve_with};

/// Nothing is applied before the end, however much waits.
const NEVER_APPLIED: &[&str] = &["--hosts", "1", "--log-age", "1h", "--log-backlog", "1GiB"];
const COUNTERS: u64 = 20;
const ROUNDS: u64 = 30;

fn increment_all(served: &Served) {
    for counter in 0..COUNTERS {
        let path = format!("/counter/{counter}/increment");
        assert_eq!(post(&served.announced.http, &path).status, 200);
    }
}

fn assert_all_are(served: &Served, value: u64) {
    for counter in 0..COUNTERS {
        let found = get(&served.announced.http, &format!("/counter/{counter}")).body;
        assert_eq!(found, value.to_string(), "counter {counter}");
    }
}

/// A directory whose server was killed with everything in its log, and the value of all counters.
fn killed() -> (tempfile::TempDir, std::path::PathBuf) {
    let (folder, data) = scratch();
    let mut served = serve_with(&data, NEVER_APPLIED);
    (0..ROUNDS).for_each(|_| increment_all(&served));
    assert_all_are(&served, ROUNDS);
    served.kill();
    (folder, data)
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.expect("cp runs").success());
}

#[test]
fn what_only_the_log_has_is_there_after_a_kill_also_for_tools() {
    let (folder, data) = killed();
    let copies = ["export", "compact"].map(|name| folder.path().join(name));
    for path in &copies {
        copy(&data, path);
    }
    let served = serve_with(&data, &["--hosts", "1"]);
    assert_all_are(&served, ROUNDS);
    served.stop();
    let run = |args: &[&str], data: &Path| {
        let output = capstead(args).arg("--data").arg(data).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    };
    let (archive, restored) = (folder.path().join("archive"), folder.path().join("restored"));
    run(&["backup", archive.to_str().unwrap()], &copies[0]);
    run(&["compact"], &copies[1]);
    let output = capstead(["restore"]).arg(&archive).arg(&restored).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    for data in [&copies[1], &restored] {
        let served = serve_with(data, &["--hosts", "1"]);
        assert_all_are(&served, ROUNDS);
        served.stop();
    }
}

#[test]
fn a_backup_of_a_running_server_has_what_waits_in_its_log() {
    let (folder, data) = scratch();
    let served = serve_with(&data, NEVER_APPLIED);
    increment_all(&served);
    let (archive, restored) = (folder.path().join("archive"), folder.path().join("restored"));
    let output = capstead(["backup"]).arg(&archive).arg("--data").arg(&data).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    increment_all(&served);
    served.stop();
    let output = capstead(["restore"]).arg(&archive).arg(&restored).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    for (data, value) in [(&restored, 1), (&data, 2)] {
        let served = serve_with(data, &["--hosts", "1"]);
        assert_all_are(&served, value);
        served.stop();
    }
}

/// So little may wait that nearly every commit is applied before the next call starts.
#[test]
fn a_small_backlog_slows_calls_and_fails_none() {
    let (_folder, data) = scratch();
    let mut served =
        serve_with(&data, &["--hosts", "1", "--log-age", "1h", "--log-backlog", "8KiB"]);
    (0..ROUNDS).for_each(|_| increment_all(&served));
    assert_all_are(&served, ROUNDS);
    assert!(served.metric("log_backlog_bytes") <= 16 << 10);
    assert!(served.metric("applies_total") > COUNTERS);
    served.kill();
    let served = serve_with(&data, &["--hosts", "1"]);
    assert_all_are(&served, ROUNDS);
    served.stop();
}

// A part that was skipped in silence would be lost calls.
#[test]
fn a_damaged_log_is_refused_with_the_entry_and_changed_by_nothing() {
    let (folder, data) = killed();
    let segment = data.join("host-0/segment-1");
    let whole = fs::read(&segment).unwrap();
    let entry = |at: usize| whole[at..].starts_with(b"CAPSTLOG");
    let heads: Vec<usize> = (0..whole.len()).step_by(4_096).filter(|at| entry(at + 16)).collect();
    assert!(heads.len() > 20, "{}", heads.len());
    let refused = |data: &Path| {
        let (code, said) = refused_start(serve_command(data, &["--hosts", "1"]));
        assert!(matches!(code, Some(1 | 3)), "{said}");
        said
    };
    for (number, at) in [(1, heads[0] + 120), (10, heads[9] + 20), (15, heads[14] + 100)] {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        fs::write(&segment, &damaged).unwrap();
        let said = refused(&data);
        assert!(said.contains("host-0/segment-1"), "{number}: {said}");
        assert!(said.contains(&format!("entry {number} of the log")), "{number}: {said}");
        assert_eq!(fs::read(&segment).unwrap(), damaged);
    }
    fs::remove_file(&segment).unwrap();
    let said = refused(&data);
    assert!(said.contains("host-0/segment-1"), "{said}");
    fs::write(&segment, &whole).unwrap();
    let served = serve_with(&data, &["--hosts", "1"]);
    assert_all_are(&served, ROUNDS);
    served.stop();
    drop(folder);
}

/// Nothing of what these commands look at, or write, is anywhere but in the log.
#[test]
fn the_operators_commands_are_right_while_nothing_is_applied() {
    let (folder, data) = scratch();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (archive, backup, restored) = (file("archive"), file("backup"), file("restored"));
    let mut served = serve_with(&data, NEVER_APPLIED);
    increment_all(&served);
    done(&data, &["export", &archive, "--all"]);
    increment_all(&served);
    let refused = output(&data, &["import", &archive]);
    assert!(!refused.status.success() && said(&refused).contains("exist"), "{}", said(&refused));
    let brought = done(&data, &["import", &archive, "--replace"]);
    assert!(brought.contains(&format!("{COUNTERS} of them existed")), "{brought}");
    assert_all_are(&served, 1);
    increment_all(&served);
    let [kept, gone] = run(async {
        let (_connection, counters) = connect(&served).await;
        let counter = by_name(&counters, "1");
        let saved = [save(&counter, "kept").await, save(&counter, "taken back").await];
        revoke(&counter, "taken back").await;
        saved
    });
    done(&data, &["backup", &backup]);
    increment_all(&served);
    let listed = |data: &Path| {
        let tree = done(data, &["grants", "Counter/1"]);
        assert!(tree.contains("kept") && !tree.contains("taken back"), "{tree}");
    };
    listed(&data);
    served.kill();
    let restore = capstead(["restore", &backup, &restored]).output().unwrap();
    assert!(restore.status.success(), "{}", said(&restore));
    for (data, value) in [(data.as_path(), 3), (Path::new(&restored), 2)] {
        let served = serve_with(data, NEVER_APPLIED);
        assert_all_are(&served, value);
        listed(data);
        run(async {
            let (connection, _counters) = connect(&served).await;
            let restored = |text: &str| connection.restore::<counter::Client>(text).unwrap();
            assert_eq!(read(&restored(&kept)).await.unwrap().cast_unsigned(), value);
            read(&restored(&gone)).await.expect_err("what was taken back stays so");
        });
        served.stop();
    }
}

/// The disk fails at each of the syncs in turn. The name always stands for one whole environment.
#[test]
fn a_compaction_whose_sync_fails_says_so_and_loses_nothing() {
    if capstead_under_strace("fsync", 1, &["--version"]).is_none() {
        return eprintln!("skipped what needs strace");
    }
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "1"]);
    (0..ROUNDS).for_each(|_| increment_all(&served));
    served.stop();
    let mut failed = 0;
    for call in ["fsync", "fdatasync"] {
        for nth in 1.. {
            assert!(nth < 50, "it syncs without end");
            let path = data.to_str().unwrap();
            let output = capstead_under_strace(call, nth, &["compact", "--data", path]).unwrap();
            let is_whole = output.status.success();
            let text = said(&output);
            assert!(is_whole || output.status.code().is_some_and(|code| code > 0), "{text}");
            assert!(is_whole || text.contains("Input/output error"), "{text}");
            let served = serve_with(&data, &["--hosts", "1"]);
            assert_all_are(&served, ROUNDS);
            served.stop();
            if is_whole {
                break;
            }
            failed += 1;
        }
    }
    assert!(failed >= 3, "only {failed} syncs failed");
}

/// Runs the command, of whose system calls with this name the nth fails; `None` without strace.
fn capstead_under_strace(call: &str, nth: u32, args: &[&str]) -> Option<std::process::Output> {
    let command = capstead(args.iter().copied());
    let inject = format!("inject={call}:error=EIO:when={nth}");
    let mut strace = std::process::Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", &inject]);
    strace.arg(command.get_program()).args(command.get_args());
    strace.output().ok()
}
