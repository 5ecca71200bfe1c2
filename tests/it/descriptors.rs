//! The limit of open files: connections leave enough of it for everything else, and a server with
//! too few doesn't start.

use std::io::Write;
use std::process::Command;

use crate::support::calls::{by_name, connect, read, run};
use crate::support::raw;
use crate::support::{
    Process, Served, capstead, eventually, http, refused_start, scratch, serve_command,
};

/// The command with this limit of open files.
fn limited(files: &str, command: &Command) -> Command {
    let mut limited = Command::new("sh");
    limited.args(["-c", r#"ulimit -n "$0" && exec "$@""#, files]);
    limited.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

// Each host takes 13 descriptors, but connections used to leave 512 or half of them, whatever the
// number of hosts.
#[test]
fn connections_to_many_hosts_leave_descriptors_for_the_operator() {
    let (folder, data) = scratch();
    let args = ["--json", "--metrics", "127.0.0.1:0", "--hosts", "32", "--http-head", "1m"];
    let mut command = serve_command(&data, &args);
    command.args(["--limit", "stranger-time=1m"]);
    let served = Served::ready(Process::start(limited("768", &command)));
    let hold_from = |client: u8| {
        let dialled = [(&served.announced.http, 128), (&served.announced.capnp, 384)]
            .map(|(address, count)| (0..count).map(move |_| raw::dial_from(client, address)));
        let mut held: Vec<_> = dialled.into_iter().flatten().collect();
        for stream in &mut held[..128] {
            // A connection without a place is closed at once.
            let _ = stream.write_all(b"GET / HT");
        }
        held
    };
    // One address gets half of the places, where they are few, and leaves the others to others.
    let mut held = hold_from(2);
    eventually("a connection to be refused", || {
        (served.bites("connections-per-peer") > 0
            && served.metric("http_connections_refused_total") > 0)
            .then_some(())
    });
    assert_eq!(served.bites("connections"), 0);
    assert_eq!(http::post(&served.announced.http, "/counter/x/increment").status, 200);
    run(async { assert_eq!(read(&by_name(&connect(&served).await.1, "x")).await.unwrap(), 1) });
    held.extend((3..6).flat_map(hold_from));
    eventually("no place to be left", || (served.bites("connections") > 0).then_some(()));
    let backup = folder.path().join("backup");
    let backup = backup.to_str().unwrap();
    let verbs =
        [&["grants", "Counter"][..], &["key", "list"], &["key", "rotate"], &["backup", backup]];
    for args in verbs {
        let output = capstead(args).arg("--data").arg(&data).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    drop(held);
    let (code, _, log) = served.stop();
    assert_eq!(code, Some(0));
    assert!(log.contains("leaves few connections"), "{log}");
    assert!(!log.contains("Too many open files"), "{log}");
}

// The server used to report that it was ready, and then served neither objects nor metrics.
#[test]
fn a_start_with_too_few_descriptors_names_the_number_that_is_enough() {
    for (files, hosts, enough) in
        [("22", "1", 60), ("59", "1", 60), ("64", "4", 108), ("700", "64", 1068)]
    {
        let (_folder, data) = scratch();
        let command = serve_command(&data, &["--metrics", "127.0.0.1:0", "--hosts", hosts]);
        let (code, said) = refused_start(limited(files, &command));
        assert_eq!(code, Some(2), "{said}");
        let enough =
            format!("needs {enough} open files at least, and the process may have {files}");
        assert!(said.contains(&enough) && said.contains("ulimit -n"), "{said}");
        assert!(!data.exists(), "nothing is made");
    }
    for hosts in ["1", "4"] {
        let (_folder, data) = scratch();
        let command = serve_command(&data, &["--json", "--hosts", hosts]);
        let enough = if hosts == "1" { "60" } else { "108" };
        let served = Served::ready(Process::start(limited(enough, &command)));
        assert_eq!(http::post(&served.announced.http, "/counter/x/increment").status, 200);
        let listed = capstead(["grants", "Counter/x", "--data"]).arg(&data).output().unwrap();
        assert!(listed.status.success(), "{hosts} hosts");
        served.stop();
    }
}
