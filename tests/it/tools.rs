//! The operator's tools report the result: no answer is lost, no mistake passes, and no secret
//! stays that was never shown.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use crate::support::calls::{by_name, increment, run};
use crate::support::operator::{command, data_with_a_counter, done, refused, said};
use crate::support::{capstead, refused_start, scratch, serve_with};
use capnp::capability::FromClientHook;
use capstead_client::{Connection, namespace};

// A full disk must not look like an answer: a script would continue with an empty file.
#[test]
fn an_answer_that_cannot_be_written_is_an_error() {
    let (folder, data) = scratch();
    data_with_a_counter(&data);
    let full = || File::options().write(true).open("/dev/full").expect("every Linux has it");
    let into_full = |mut command: std::process::Command| {
        let output = command.stdout(full()).stderr(Stdio::piped()).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{command:?}: {}", said(&output));
        assert!(said(&output).contains("can't be") || said(&output).contains("can't write"));
        said(&output)
    };
    let (backup, file) = (folder.path().join("backup"), folder.path().join("file"));
    let (backup, file) = (backup.to_str().expect("text"), file.to_str().expect("text"));
    let verbs: [&[&str]; 8] = [
        &["backup", backup],
        &["export", file, "--all"],
        &["export", "-", "--all"],
        &["import", file, "--replace"],
        &["grants", "Counter"],
        &["key", "list"],
        &["key", "rotate"],
        &["compact"],
    ];
    for args in verbs {
        into_full(command(&data, args));
    }
    into_full(capstead(["restore", backup, folder.path().join("new").to_str().expect("text")]));
    // These do no work, so the message must not say that any was done.
    assert!(!into_full(capstead(["--help"])).contains("is done"));
    let mut serve = capstead(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    serve.args(["--hosts", "2", "--data"]).arg(&data);
    into_full(serve);
    // A secret that was never shown opens nothing.
    let before = done(&data, &["grants", "Counter/x"]);
    let said = into_full(command(&data, &["grant", "Counter/x", "--label", "lost"]));
    assert!(said.contains("revoked again"), "{said}");
    assert_eq!(done(&data, &["grants", "Counter/x"]), before);
    refused(&data, &["grant", "Counter/x", "--address", "nowhere"], 1);
    assert_eq!(done(&data, &["grants", "Counter/x"]), before);
    // The reader who closes the pipe has read enough.
    let mut piped = command(&data, &["grants", "Counter"]).stdout(Stdio::piped()).spawn();
    let piped = piped.as_mut().expect("it starts");
    drop(piped.stdout.take());
    assert!(piped.wait().expect("it ends").success());
}

#[test]
fn what_is_not_there_is_said_not_to_be() {
    let (_folder, data) = scratch();
    data_with_a_counter(&data);
    let grant = "00112233445566778899aabbccddeeff";
    for object in ["Nope/x", "counter/x", "Counter/X", "Nope", "counter"] {
        for args in [
            &["grants", object][..],
            &["grants", object, "--below", grant],
            &["revoke", object, grant],
            &["grant", object],
        ] {
            let said = refused(&data, args, 1);
            assert!(said.contains("there is no"), "{args:?}: {said}");
        }
    }
    assert!(done(&data, &["grants", "Counter/x"]).contains("0 grants"));
    assert!(refused(&data, &["revoke", "Counter", grant], 1).contains("no-such-grant"));
    for until in ["0s", "2001-01-01T00:00:00Z"] {
        let said = refused(&data, &["grant", "Counter/x", "--until", until], 2);
        assert!(said.contains("that time is over"), "{said}");
    }
}

#[test]
fn a_server_that_does_not_start_names_the_flag_and_leaves_nothing() {
    let (_folder, data) = scratch();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("it has an address").to_string();
    let any = "127.0.0.1:0";
    let start = |args: &[&str]| {
        let refused = refused_start(command(&data, &[&["serve"], args].concat()));
        assert!(!data.exists(), "{args:?}");
        refused
    };
    for args in [
        ["--listen", &taken, "--http", any, "--metrics", any],
        ["--http", &taken, "--listen", any, "--metrics", any],
        ["--metrics", &taken, "--listen", any, "--http", any],
    ] {
        let (code, said) = start(&args);
        assert!(code == Some(1) && said.contains(args[0]), "{said}");
    }
    let others = ["--listen", any, "--http", any];
    let (code, said) = start(&[&others[..], &["--map-size", "4KiB"]].concat());
    assert_eq!(code, Some(1), "{said}");
    // More than a process can address.
    let large = ["--hosts", "64", "--map-size", "4TiB"];
    let (code, said) = start(&[&others[..], &large].concat());
    assert!(code == Some(1) && said.contains("--map-size"), "{said}");
    assert!(!said.contains("storage failed"), "{said}");
    for hosts in ["0", "65"] {
        let (code, said) = start(&[&others[..], &["--hosts", hosts]].concat());
        assert!(code == Some(2) && said.contains("--hosts"), "{said}");
    }
    // With these values no client could do anything.
    for args in [
        &["--awake-objects", "0"][..],
        &["--awake-objects", "3", "--hosts", "4"],
        &["--awake-bytes", "1KiB"],
        &["--limit", "connections=0"],
        &["--limit", "nesting=0"],
        &["--limit", "message-bytes=1"],
        &["--limit", "queued-bytes=0B"],
        &["--limit", "total-bytes=0B"],
        &["--http-origin", "app.example"],
        &["--object-quota", "Nope=1MiB"],
    ] {
        let (code, said) = start(&[&others[..], args].concat());
        assert!(code == Some(2), "{args:?}: {said}");
    }
    // Flags that contradict each other are named.
    let file = data.with_extension("routes").to_str().expect("it is UTF-8").to_owned();
    for args in [
        &["--turn-warn", "10s", "--turn-abort", "1s"][..],
        &["--http", "off", "--routes", &file],
        &["--http", "off", "--json-calls", "on"],
        &["--http", "off", "--capnp-over-http", "on"],
        &["--http", "off", "--http-origin", "https://app.example"],
    ] {
        let (code, said) = start(&[&["--listen", any], args].concat());
        assert!(code == Some(2) && said.contains(args[args.len() - 2]), "{args:?}: {said}");
    }
    // An existing empty directory stays as it was.
    fs::create_dir(&data).expect("it is made");
    let small = [&["serve"], &others[..], &["--map-size", "4KiB"]].concat();
    let (code, said) = refused_start(command(&data, &small));
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(fs::read_dir(&data).expect("it is there").count(), 0);
}

// References with that port used to be given out, and nobody could restore them.
#[test]
fn the_port_zero_is_advertised_by_no_server() {
    let (_folder, data) = scratch();
    let others = ["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let zero = ["--advertise", "localhost:0"];
    let (code, said) = refused_start(command(&data, &[&others[..], &zero].concat()));
    assert!(code != Some(0) && said.contains("--advertise") && !data.exists(), "{said}");
}

async fn save_independently(of: &impl FromClientHook) {
    let terms = capstead_client::Terms::default().independent();
    capstead_client::share(of, terms).await.expect("it can be saved");
}

/// A reference to all counters from which others can be made that survive it, and its grant's id.
fn for_mallory(data: &Path) -> (String, String) {
    let make = ["grant", "Counter", "--label", "Mallory", "--allow-independent"];
    let reference = done(data, &make);
    let listed = done(data, &["grants", "Counter"]);
    let line = listed.lines().find(|line| line.contains("Mallory")).expect("it is listed");
    (reference, line.split_whitespace().next().expect("an id").to_owned())
}

/// Its holder goes on meanwhile.
#[test]
fn nothing_that_is_made_during_the_revocation_is_left() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "3"]);
    let (reference, grant) = for_mallory(&data);
    let made = run(async {
        let connection = Connection::dial(&served.announced.capnp).await.expect("it is reached");
        let counters: namespace::Client = connection.restore(&reference).expect("it can be asked");
        let counter = by_name(&counters, "x");
        increment(&counter).await.expect("it counts");
        save_independently(&counter).await;
        let revoke = {
            let (data, grant) = (data.clone(), grant.clone());
            std::thread::spawn(move || done(&data, &["revoke", "Counter", &grant, "--below"]))
        };
        let mut made = 1;
        let terms = || capstead_client::Terms::default().independent();
        while capstead_client::share(&counter, terms()).await.is_ok() {
            made += 1;
        }
        revoke.join().expect("it is revoked");
        made
    });
    let said = done(&data, &["grants", "Counter", "--below", &grant]);
    assert!(said.starts_with("0 grants"), "of {made}: {said}");
    served.stop();
}

// A reference fell into the wrong hands, and its holder made others that survive it, on each host.
#[test]
fn all_that_was_made_from_a_grant_is_listed_and_revoked() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "3"]);
    let (reference, grant) = for_mallory(&data);
    run(async {
        let connection = Connection::dial(&served.announced.capnp).await.expect("it is reached");
        let counters: namespace::Client = connection.restore(&reference).expect("it can be asked");
        for n in 0..8 {
            let counter = by_name(&counters, &format!("x{n}"));
            increment(&counter).await.expect("it counts");
            save_independently(&counter).await;
        }
        save_independently(&counters).await;
    });
    let below = ["grants", "Counter", "--below", &grant];
    let said = done(&data, &below);
    assert!(said.starts_with("9 grants made from"), "{said}");
    assert!(said.contains("Counter \"x7\"") && said.contains("the namespace"), "{said}");
    // The same code runs offline.
    served.stop();
    assert_eq!(done(&data, &below), said);
    let served = serve_with(&data, &["--hosts", "3"]);
    done(&data, &["revoke", "Counter", &grant]);
    assert!(done(&data, &below).starts_with("9 grants"), "they survive it");
    let said = done(&data, &["revoke", "Counter", &grant, "--below"]);
    assert!(said.contains("and 9 grants made from it"), "{said}");
    assert!(done(&data, &below).starts_with("0 grants"));
    served.stop();
}
