//! The end of a server with several hosts: in order, and by the failure of one host.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::calls::{by_name, connect, increment, run};
use crate::support::{Process, Served, http, scratch, serve_command, serve_with};
use futures::future::join_all;

// The counters are spread over two hosts; all calls arrive at the first one's listener.
#[test]
fn calls_under_way_on_another_host_are_answered_when_the_server_is_asked_to_end() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "2", "--commit-delay", "300"]);
    let before = served.metric("calls_total");
    run(async {
        let (_connection, counters) = connect(&served).await;
        let objects: Vec<_> = (0..20).map(|n| by_name(&counters, &n.to_string())).collect();
        let answers = tokio::task::spawn_local(join_all(objects.iter().map(increment)));
        while served.metric("calls_total") < before + 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        served.signal("TERM");
        for answer in answers.await.unwrap() {
            assert_eq!(answer.unwrap(), 1);
        }
    });
    let (code, _, stderr) = served.wait();
    assert_eq!(code, Some(0), "{stderr}");
}

// Clients used to get "disconnected: the server is shutting down", and could not know that they may
// try again.
#[test]
fn calls_that_come_after_the_end_say_that_they_never_began() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "2"]);
    run(async {
        let (connection, counters) = connect(&served).await;
        let held: Vec<_> = (0..8).map(|n| by_name(&counters, &n.to_string())).collect();
        for counter in &held {
            increment(counter).await.unwrap();
        }
        served.signal("TERM");
        connection.closed().await;
        for counter in held.iter().chain([&by_name(&counters, "new")]) {
            let error = increment(counter).await.unwrap_err();
            assert_eq!(error.kind, capnp::ErrorKind::Disconnected, "{error}");
            assert!(error.extra.starts_with("not-begun: the server is shutting down"), "{error}");
        }
    });
    let (code, _, stderr) = served.wait();
    assert_eq!(code, Some(0), "{stderr}");
}

/// The command, with a limit of this number of bytes for each of its files.
fn with_short_files(command: &Command, bytes: u64) -> Command {
    let mut limited = Command::new("sh");
    limited.args(["-c", r#"ulimit -f "$0"; exec "$@""#]);
    // The limit counts in blocks of 512 bytes.
    limited.arg((bytes / 512).to_string()).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

fn data_file(data: &Path, host: u16) -> std::path::PathBuf {
    data.join(format!("host-{host}/data.mdb"))
}

/// Long names of objects that live on the host, found by a server with other data.
fn names_on(host: u16, hosts: &str) -> Vec<String> {
    const NAMES: usize = 300;
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", hosts]);
    let mut names: Vec<String> = (0..NAMES).map(|n| format!("{n:0>1000}")).collect();
    for name in &names {
        assert_eq!(http::post(&served.announced.http, &increment_path(name)).status, 200);
    }
    served.stop();
    let bytes = fs::read(data_file(&data, host)).unwrap();
    let at = |name: &str| bytes.windows(name.len()).any(|window| window == name.as_bytes());
    names.retain(|name| at(name));
    names
}

fn increment_path(name: &str) -> String {
    format!("/counter/{name}/increment")
}

// The exit code used to be 101 without a message, unless it was the first host's storage.
#[test]
fn a_storage_that_fails_ends_the_server_with_code_3_whichever_host_has_it() {
    const ROOM: u64 = 24 << 10;
    for (host, hosts) in [(0, "2"), (1, "2"), (3, "4")] {
        let names = names_on(host, hosts);
        let (_folder, data) = scratch();
        serve_with(&data, &["--hosts", hosts]).stop();
        let size = |host| fs::metadata(data_file(&data, host)).unwrap().len();
        let most = (0..hosts.parse().unwrap()).map(size).max().unwrap() + ROOM;
        let command = serve_command(&data, &["--json", "--hosts", hosts]);
        let served = Served::ready(Process::start(with_short_files(&command, most)));
        let written = |name: &&String| {
            // The log is applied between calls, and that may fail.
            let Some(mut web) = http::Http::try_connect(&served.announced.http) else {
                return false;
            };
            web.send(
                format!("POST {} HTTP/1.1\r\nHost: localhost\r\n\r\n", increment_path(name))
                    .as_bytes(),
            );
            !web.is_closed() && web.answer("POST").status == 200
        };
        let written: Vec<&String> = names.iter().take_while(written).collect();
        let (code, _, stderr) = served.wait();
        assert_eq!(code, Some(3), "{stderr}");
        assert!(written.len() < names.len(), "there was room for all");
        let last = stderr.lines().last().unwrap();
        assert!(last.starts_with("capstead: the storage failed"), "{stderr}");
        assert!(last.contains(&format!("host {host}: ")), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");

        let served = serve_with(&data, &["--hosts", hosts]);
        for name in written {
            assert_eq!(http::get(&served.announced.http, &format!("/counter/{name}")).body, "1");
        }
        served.stop();
    }
}

#[test]
fn a_terminal_that_goes_away_ends_no_server() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &[]);
    served.signal("HUP");
    crate::support::eventually("a line about it", || {
        served.stderr().contains("SIGHUP").then_some(())
    });
    assert_eq!(http::post(&served.announced.http, &increment_path("x")).status, 200);
    let (code, _, stderr) = served.stop();
    assert_eq!(code, Some(0), "{stderr}");
}
