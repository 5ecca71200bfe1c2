//! A server that hangs: it takes connections, and never answers.

use std::process::Stdio;
use std::time::Duration;

use crate::support::operator::{command, done, said};
use crate::support::{now, scratch, serve_with};

/// No command waits for it without end, or does anything afterwards. Revoking a key is urgent: such
/// a server is stopped, and then it works without the server.
#[test]
fn a_server_that_says_nothing_keeps_no_command_waiting() {
    const GRANT: &str = "00112233445566778899aabbccddeeff";
    let (folder, data) = scratch();
    let served = serve_with(&data, &[]);
    let path = |name| folder.path().join(name).to_str().expect("it is text").to_owned();
    let (archive, export, backup) = (path("archive"), path("export"), path("backup"));
    done(&data, &["export", &archive, "--all"]);
    let [keys, grants] = [["key", "list"], ["grants", "Counter"]].map(|args| done(&data, &args));
    let key = keys.lines().nth(1).and_then(|row| row.split(' ').next()).expect("it has a key");
    served.signal("STOP");
    let began = now();
    let commands: &[&[&str]] = &[
        &["key", "list"],
        &["key", "rotate"],
        &["key", "revoke", key],
        &["grants", "Counter"],
        &["grants", "Counter", "--below", GRANT],
        &["grant", "Counter/x", "--label", "late"],
        &["revoke", "Counter", GRANT],
        &["revoke", "Counter", GRANT, "--below"],
        &["requests", "Counter/x"],
        &["requests", "Counter/x", "--clear"],
        &["export", &export, "--all"],
        &["import", &archive, "--replace"],
        &["backup", &backup],
    ];
    // All at once, since each waits for as long.
    let start = |args: &&[&str]| {
        let mut command = command(&data, args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
    };
    let running: Vec<_> = commands.iter().map(start).collect();
    for (args, running) in commands.iter().zip(running) {
        let output = running.wait_with_output().expect("it ends");
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        let is_said = said.contains("it said nothing in 10s") && said.contains("stop it");
        assert!(is_said, "{args:?}: {said}");
    }
    assert!(began.elapsed() < Duration::from_secs(20));
    served.signal("CONT");
    for file in [export, backup] {
        assert!(!std::fs::exists(&file).expect("it can be asked"), "{file}");
    }
    assert_eq!(done(&data, &["key", "list"]), keys);
    assert_eq!(done(&data, &["grants", "Counter"]), grants);
}
