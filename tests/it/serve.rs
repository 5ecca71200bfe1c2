//! `capstead serve` from an operator's view: its output, its refusals, and its end.
//!
//! Its data directory is tested in `data_dir.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::calls::{by_name, connect, increment, read, run};
use crate::support::{
    Process, Served, capstead, cargo, http, refused_start, root, scratch, serve, serve_command,
    serve_with,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use capstead_client::Connection;
use capstead_client::restorer_capnp::restorer;
use capstead_client::sturdyref::{Caveats, TextReference};
use futures::future::join_all;

// The printed lines are meant to be pasted into a shell at the root of the repository: each line
// counts, each time from another language. Python's is skipped where pycapnp isn't installed.
#[test]
fn the_printed_lines_count_when_they_are_pasted_into_a_shell() {
    let (_folder, data) = scratch();
    let mut server = Process::start(serve_command(&data, &[]));
    let printed = server.wait_for_stdout(|text| {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        (text.ends_with('\n') && text.contains("python3")).then_some(lines)
    });
    let line = |start: &str| {
        let found = printed.iter().filter(|line| line.trim_start().starts_with(start));
        let found: Vec<&String> = found.collect();
        assert_eq!(found.len(), 1, "{start}: {printed:?}");
        found[0]
    };
    assert_eq!(paste(line("curl "), "").trim(), "1");
    assert_eq!(paste(line("cargo "), "").trim(), "x is now 2");
    let Some(python) = std::env::var_os("CAPSTEAD_PYTHON") else {
        eprintln!("skipped the line for Python: CAPSTEAD_PYTHON isn't set");
        return;
    };
    let folder = Path::new(&python).parent().expect("CAPSTEAD_PYTHON is a path");
    assert_eq!(paste(line("python3 "), &format!("{}:", folder.display())).trim(), "x is now 3");
}

/// Runs the line unchanged, with `first` in front of PATH; returns its output.
fn paste(line: &str, first: &str) -> String {
    let path = std::env::var("PATH").expect("there is a PATH");
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).current_dir(root()).env("PATH", format!("{first}{path}"));
    String::from_utf8(cargo::succeed(cargo::quick(&mut shell)).stdout).expect("it prints text")
}

// Scripts rely on the format: one line, these names, `metrics` only where it is served, and no
// more.
#[test]
fn the_json_line_has_exactly_the_documented_shape() {
    let (_folder, data) = scratch();
    let (_other, more_data) = scratch();
    let with = serve(&data);
    let quiet = Served::ready(Process::start(serve_command(&more_data, &["--json"])));
    let with_address = with.announced.metrics.clone().expect("it was asked for");
    let (_, without, _) = quiet.stop();
    let (_, with, _) = with.stop();
    for (stdout, metrics) in [(with, Some(with_address)), (without, None)] {
        assert_eq!(stdout.lines().count(), 1, "{stdout}");
        let line: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        let names: Vec<&String> = line.as_object().unwrap().keys().collect();
        let documented = ["capnp", "http", "metrics", "namespaces"].into_iter();
        let documented = documented.filter(|name| *name != "metrics" || metrics.is_some());
        assert_eq!(names, documented.collect::<Vec<_>>());
        let capnp = line["capnp"].as_str().unwrap();
        let http = line["http"].as_str().unwrap().strip_prefix("http://").unwrap();
        for address in [capnp, http] {
            let address: std::net::SocketAddr = address.parse().unwrap();
            assert!(address.ip().is_loopback() && address.port() != 0);
        }
        let page = metrics.map(|address| format!("http://{address}/metrics"));
        assert_eq!(line["metrics"].as_str(), page.as_deref());
        let namespaces = line["namespaces"].as_object().unwrap();
        let classes: Vec<&String> = namespaces.keys().collect();
        assert_eq!(classes, ["ChatLimiter", "ChatRoom", "Counter", "Editor", "Index", "Poll"]);
        for reference in namespaces.values() {
            let reference = TextReference::parse(reference.as_str().unwrap()).unwrap();
            assert_eq!(reference.address(), capnp);
        }
    }
}

// An operator can stop the server at any moment: calls that have started are answered, then it
// ends.
#[test]
fn calls_under_way_are_answered_when_the_server_is_asked_to_end() {
    for signal in ["TERM", "INT"] {
        let (_folder, data) = scratch();
        let served = serve_with(&data, &["--commit-delay", "200"]);
        let (before, address) = (served.metric("calls_total"), served.announced.http.clone());
        run(async {
            let (_connection, counters) = connect(&served).await;
            let counter = by_name(&counters, "x");
            let calls: Vec<_> = (0..20).map(|_| increment(&counter)).collect();
            let mut web = http::Http::connect(&address);
            web.send(b"POST /counter/x/increment HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let answers = tokio::task::spawn_local(join_all(calls));
            while served.metric("calls_total") < before + 21 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            served.signal(signal);
            let answers = answers.await.unwrap();
            let mut values: Vec<i64> = answers.into_iter().map(Result::unwrap).collect();
            values.push(web.answer("POST").body.parse().unwrap());
            values.sort_unstable();
            assert_eq!(values, (1..=21).collect::<Vec<_>>());
        });
        let (code, _, stderr) = served.wait();
        assert_eq!(code, Some(0), "{signal}: {stderr}");
        assert_eq!(http::get(&serve(&data).announced.http, "/counter/x").body, "21", "{signal}");
    }
}

// Under load the end comes in the middle of everything: acknowledged calls are there afterwards,
// and refused ones did not happen.
#[test]
fn nothing_acknowledged_is_lost_when_the_server_is_asked_to_end_under_load() {
    for signal in ["TERM", "INT"] {
        let (_folder, data) = scratch();
        let served = serve(&data);
        let (acknowledged, unknown) = run(load_until_asked_to_end(&served, signal));
        let (code, _, stderr) = served.wait();
        assert_eq!(code, Some(0), "{signal}: {stderr}");
        let value: u64 =
            http::get(&serve(&data).announced.http, "/counter/x").body.parse().unwrap();
        assert!(value >= acknowledged, "{signal}: {value} of {acknowledged}");
        assert!(value <= acknowledged + unknown, "{signal}: {value}, {acknowledged}, {unknown}");
    }
}

/// Loads the server and ends it with a signal. Returns the numbers of acknowledged and of unknown
/// calls.
async fn load_until_asked_to_end(served: &Served, signal: &str) -> (u64, u64) {
    let client = async || {
        let (_connection, counters) = connect(served).await;
        let counter = by_name(&counters, "x");
        let (mut acknowledged, mut unknown) = (0, 0);
        let mut goes_on = true;
        while goes_on {
            let calls: Vec<_> = (0..32).map(|_| increment(&counter)).collect();
            for answer in join_all(calls).await {
                match answer {
                    Ok(_) => acknowledged += 1,
                    Err(error) => {
                        assert_eq!(error.kind, capnp::ErrorKind::Disconnected, "{error}");
                        unknown += u64::from(!error.extra.contains("not-begun:"));
                        goes_on = false;
                    }
                }
            }
        }
        (acknowledged, unknown)
    };
    let end = async {
        while served.metric("calls_total") < 1_000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        served.signal(signal);
    };
    let (clients, ()) = futures::join!(join_all((0..4).map(|_| client())), end);
    clients.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

// Two threads, each with its own objects and storage, look like one server from outside.
#[test]
fn two_hosts_in_one_process_answer_as_one() {
    let (_folder, data) = scratch();
    let names: Vec<String> = (0..40).map(|at| format!("spread-over-both-{at:02}")).collect();
    for round in 1..=2 {
        let served = serve_with(&data, &["--hosts", "2"]);
        run(async {
            let (_connection, counters) = connect(&served).await;
            let counters: Vec<_> = names.iter().map(|name| by_name(&counters, name)).collect();
            let values = join_all(counters.iter().map(increment)).await;
            assert!(values.into_iter().all(|value| value.unwrap() == 2 * round - 1));
        });
        for name in &names {
            let path = format!("/counter/{name}/increment");
            let value = http::post(&served.announced.http, &path).body;
            assert_eq!(value, (2 * round).to_string());
        }
        run(each_host_restores(&served));
        served.stop();
    }
    let has = |host: &str, name: &String| {
        let bytes = fs::read(data.join(host).join("data.mdb")).unwrap();
        bytes.windows(name.len()).any(|window| window == name.as_bytes())
    };
    let first: Vec<_> = names.iter().filter(|name| has("host-0", name)).collect();
    let second: Vec<_> = names.iter().filter(|name| has("host-1", name)).collect();
    assert!(!first.is_empty() && !second.is_empty(), "names land on both");
    assert_eq!(first.len() + second.len(), names.len(), "each has one owner");
}

/// Both the owner of a class's namespace and the announced listener restore it.
async fn each_host_restores(served: &Served) {
    for reference in served.announced.namespaces.values() {
        let listener = Connection::dial(&served.announced.capnp).await.expect("a host answers");
        let owner = listener.locate(reference).await.expect("a host answers");
        for address in [&owner, &served.announced.capnp] {
            let connection = Connection::dial(address).await.expect("a host answers");
            let mut request = connection.bootstrap::<restorer::Client>().restore_request();
            request.get().set_sturdy_ref(&**reference);
            request.send().promise.await.expect("a host answers");
        }
    }
}

// References and keys are secrets: the most verbose log contains neither, whatever happens to them.
#[test]
fn references_and_keys_never_appear_in_logs() {
    for format in ["text", "json"] {
        let (_folder, data) = scratch();
        let args = ["--json", "--metrics", "127.0.0.1:0", "--log", format];
        let mut command = serve_command(&data, &args);
        command.env("RUST_LOG", "trace");
        let served = Served::ready(Process::start(command));
        use_and_misuse(&served);
        let secrets = secrets(&served, &data);
        let (code, stdout, stderr) = served.stop();
        assert_eq!(code, Some(0), "{stderr}");
        assert_eq!(stdout.lines().count(), 1, "nothing follows the announcement");
        assert!(stderr.contains("DEBUG") && stderr.contains("refused"), "all was logged");
        assert_eq!(stderr.lines().all(|line| line.starts_with('{')), format == "json");
        for secret in secrets {
            assert!(!stderr.contains(&secret), "{format}: {secret} was logged");
        }
    }
}

/// Uses references correctly, narrows them, breaks them, and sends them in the wrong way.
fn use_and_misuse(served: &Served) {
    let text = served.counters();
    run(async {
        let (connection, counters) = connect(served).await;
        increment(&by_name(&counters, "x")).await.expect("it works");
        let parsed = TextReference::parse(text).expect("it works");
        let expired = parsed.reference().narrow(&Caveats::not_after(1)).expect("it works");
        let expired = expired.expose_text(parsed.address()).expect("it works");
        for wrong in [&expired, &text[..text.len() - 4], &text.replace('#', "")] {
            let mut request = connection.bootstrap::<restorer::Client>().restore_request();
            request.get().set_sturdy_ref(wrong);
            assert!(request.send().promise.await.is_err());
            assert!(connection.locate(wrong).await.is_err());
        }
    });
    // A user pastes a reference where a name belongs: it must not be logged.
    let fragment = text.split_once('#').expect("it has a fragment").1;
    http::get(&served.announced.http, "/counter/x");
    http::get(&served.announced.http, "/nothing");
    http::get(served.announced.metrics.as_deref().expect("there are numbers"), fragment);
}

/// A client that asks again and again and reads nothing would keep its place for ever.
#[test]
fn the_page_of_metrics_gives_one_answer_for_each_connection() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &[]);
    let page = served.announced.metrics.clone().expect("it was asked for");
    let mut stream = std::net::TcpStream::connect(page).expect("it is reached");
    let asked = "GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(100);
    stream.write_all(asked.as_bytes()).expect("it is sent");
    let mut answers = Vec::new();
    // The rest of the requests is not read: the end may be a broken connection.
    let _ = stream.read_to_end(&mut answers);
    let answers = String::from_utf8(answers).expect("it says text");
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 1, "{answers}");
    served.stop();
}

/// The secret ends of the references in every form that a log may use, and the keys.
fn secrets(served: &Served, data: &Path) -> BTreeSet<String> {
    let mut secrets = BTreeSet::new();
    for reference in served.announced.namespaces.values() {
        let fragment = reference.split_once('#').expect("it has a fragment").1;
        let bytes = URL_SAFE_NO_PAD.decode(fragment).expect("it is base64");
        // The last 32 bytes are the secret; the signature stands before them.
        let secret = &bytes[bytes.len() - 32..];
        secrets.insert(fragment[fragment.len() - 30..].to_owned());
        secrets.insert(fragment[fragment.len() - 100..fragment.len() - 70].to_owned());
        secrets.extend(spellings(secret));
    }
    for key in ["keys/cluster", "keys/signing-1"] {
        let hex = fs::read_to_string(data.join(key)).expect("the key is there");
        let bytes: Vec<u8> = (0..32)
            .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("it is hex"))
            .collect();
        secrets.insert(URL_SAFE_NO_PAD.encode(&bytes));
        secrets.extend(spellings(&bytes));
    }
    secrets
}

fn spellings(secret: &[u8]) -> [String; 3] {
    let hex: Vec<String> = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let list: Vec<String> = secret[..8].iter().map(u8::to_string).collect();
    [hex.concat().to_uppercase(), hex.concat(), list.join(", ")]
}

// If another process has the port, the address is named, so that it can be found or changed.
#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--listen", "--http", "--metrics"] {
        let (_folder, data) = scratch();
        let flags = ["--listen", "--http", "--metrics"];
        let addresses = flags.map(|other| if other == flag { &*address } else { "127.0.0.1:0" });
        let mut command = capstead(["serve"]);
        command.args(flags.iter().zip(addresses).flat_map(|(flag, address)| [*flag, address]));
        command.arg("--data").arg(&data);
        let (code, stderr) = refused_start(command);
        assert_eq!(code, Some(1), "{flag}: {stderr}");
        assert!(stderr.contains(&address) && stderr.contains("in use"), "{flag}: {stderr}");
    }
}

#[test]
fn a_flag_that_is_not_there_is_refused() {
    let mut wrong = Process::start(capstead(["serve", "--nonsense"]));
    assert_eq!(wrong.wait().code(), Some(2));
    assert!(wrong.stderr().contains("--nonsense"));
}

// After a restart everything is where it was, by the earlier references, at a new address.
#[test]
fn references_and_values_survive_a_restart() {
    let (_folder, data) = scratch();
    let first = serve(&data);
    let old = first.counters().to_owned();
    assert_eq!(http::post(&first.announced.http, "/counter/x/increment?by=7").body, "7");
    first.stop();
    let second = serve(&data);
    run(async {
        let connection = Connection::dial(&second.announced.capnp).await.unwrap();
        let counters = connection.restore(&old).unwrap();
        assert_eq!(read(&by_name(&counters, "x")).await.unwrap(), 7);
    });
    assert_eq!(second.metric("wakes_total"), 1, "one object was woken");
}

/// The flags in a line, without their values.
fn flags(line: &str) -> impl Iterator<Item = &str> {
    let ends = |letter: char| letter != '-' && !letter.is_alphanumeric();
    line.split("--").skip(1).filter_map(move |rest| rest.split(ends).next())
}

// There is one page of flags, so a flag that isn't on it doesn't exist for an operator. The program
// and its verb `serve` have the same ones.
#[test]
fn the_help_and_the_page_of_operations_have_the_same_flags() {
    let page = fs::read_to_string(root().join("docs/operations.md")).expect("the page is read");
    let section = page.split("\n## Starting\n").nth(1).and_then(|rest| rest.split("\n## ").next());
    let rows =
        section.expect("it has that section").lines().filter(|line| line.starts_with("| `--"));
    let on_the_page: BTreeSet<&str> =
        rows.filter_map(|row| row.split(" | ").next()).flat_map(flags).collect();
    for args in [&["--help"][..], &["serve", "--help"]] {
        let help = cargo::succeed(&mut capstead(args)).stdout;
        let help = String::from_utf8(help).expect("it is text");
        let lines = help.lines().map(str::trim_start);
        let lines = lines.filter(|line| line.starts_with('-'));
        let mut known: BTreeSet<&str> = lines.flat_map(flags).collect();
        assert!(known.remove("help"), "{help}");
        // Of the program, and not of a verb.
        known.remove("version");
        assert_eq!(on_the_page, known, "{args:?}");
    }
}
