//! An operator's mistakes and environment: other owners of the data, refusals and their words, and
//! pipes that close.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use capnp::traits::HasTypeId;
use capstead::Server;

use crate::class::{Passer, Plain};
use crate::support::calls::{by_name, increment, read, run};
use crate::support::http::{get, post};
use crate::support::operator::{command, data_with_a_counter, done, output, said};
use crate::support::{
    Process, Served, capstead, refused_start, scratch, serve, serve_command, serve_with,
};

/// A user of the system without any files.
const NOBODY: u32 = 65534;
/// Methods of the namespace, of all objects, and of counters.
const GRANTS: &str = "0x8046be1c2e6b08dc:3";
const READ: &str = "0xdc0f9593bdd2956b:2";

fn refused(data: &Path, args: &[&str]) -> String {
    let output = output(data, args);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}: {}", said(&output));
    said(&output)
}

fn is_root() -> bool {
    let is_root = fs::metadata("/proc/self").expect("this process is there").uid() == 0;
    if !is_root {
        eprintln!("skipped what only root can try");
    }
    is_root
}

/// The path and everything below it, in order.
fn all_below(path: &Path) -> Vec<PathBuf> {
    let mut all = vec![path.to_owned()];
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("it can be read") {
            all.extend(all_below(&entry.expect("it can be read").path()));
        }
    }
    all.sort();
    all
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
}

// The error used to call the directory "no data directory of Capstead".
#[test]
fn a_directory_of_somebody_else_is_told_apart_from_none() {
    if !is_root() {
        return;
    }
    let (folder, data) = scratch();
    data_with_a_counter(&data);
    set_mode(folder.path(), 0o755);
    let program = folder.path().join("capstead");
    // Copied by another process, because a file that this process has open for writing can't be
    // run.
    let copied = Command::new("cp").arg(capstead(["serve"]).get_program()).arg(&program).status();
    assert!(copied.expect("cp runs").success());
    for verb in ["grants", "compact"] {
        let mut command = Command::new(&program);
        command.arg(verb).args((verb != "compact").then_some("Counter")).arg("--data").arg(&data);
        let output = command.uid(NOBODY).gid(NOBODY).output().expect("it runs");
        assert!(said(&output).contains("permission denied"), "{verb}: {}", said(&output));
    }
    let nothing = refused(folder.path(), &["grants", "Counter"]);
    assert!(nothing.contains("is no data directory of Capstead"), "{nothing}");
}

// The server refuses to start on such keys, but used not to notice them once it served.
#[test]
fn commands_beside_a_server_look_at_the_keys_as_its_start_does() {
    let (_folder, data) = scratch();
    let served = serve(&data);
    let cluster = data.join("keys/cluster");
    for (path, spoilt, good, says) in
        [(&cluster, 0o640, 0o600, "chmod 600"), (&data, 0o777, 0o700, "chmod go-w")]
    {
        set_mode(path, spoilt);
        let refused = refused(&data, &["key", "list"]);
        assert!(refused.contains(says), "{refused}");
        set_mode(path, good);
        done(&data, &["key", "list"]);
    }
    served.stop();
}

/// Root backs up the data of a service's user, and leaves no file of its own there; commands that
/// change the data are left to that user.
#[test]
fn root_reads_the_data_of_another_user_and_writes_nothing() {
    if !is_root() {
        return;
    }
    let (folder, data) = scratch();
    data_with_a_counter(&data);
    let before = all_below(&data);
    for path in &before {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
    }
    let (file, export) = (folder.path().join("backup"), folder.path().join("export"));
    let (file, export) = (file.to_str().expect("text"), export.to_str().expect("text"));
    done(&data, &["backup", file]);
    done(&data, &["export", export, "--all"]);
    done(&data, &["grants", "Counter"]);
    done(&data, &["key", "list"]);
    for args in [&["grant", "Counter/x"][..], &["key", "rotate"], &["compact"], &["import", export]]
    {
        let refused = refused(&data, args);
        assert!(refused.contains("sudo -u '#65534'"), "{args:?}: {refused}");
    }
    let (code, refused) = refused_start(serve_command(&data, &[]));
    assert!(code == Some(1) && refused.contains("sudo -u '#65534'"), "{refused}");
    assert_eq!(all_below(&data), before, "nothing comes or goes");
    for path in &before {
        assert_eq!(fs::metadata(path).expect("it is there").uid(), NOBODY, "{}", path.display());
    }
    // Keys of a third user don't belong to the owner of the directory.
    chown(data.join("keys/cluster"), Some(1), None).expect("root may");
    let mixed = self::refused(&data, &["key", "list"]);
    assert!(mixed.contains("belongs to the user 1") && mixed.contains("65534"), "{mixed}");

    let restored = folder.path().join("restored.data");
    let output = capstead(["restore", file]).arg(&restored).output().expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(
        get(&serve_with(&restored, &["--hosts", "2"]).announced.http, "/counter/x").body,
        "1"
    );
}

/// A volume of Kubernetes with fsGroup, whose group can write to everything on it.
#[test]
fn a_group_is_let_in_where_the_operator_says_so_and_nowhere_else() {
    let (_folder, data) = scratch();
    data_with_a_counter(&data);
    let open_to = |file, folder| {
        for path in all_below(&data) {
            set_mode(&path, if path.is_dir() { folder } else { file });
        }
    };
    open_to(0o660, 0o2770);
    let (code, refused) = refused_start(serve_command(&data, &["--hosts", "2"]));
    assert!(code == Some(1) && refused.contains("--trust-group"), "{refused}");
    assert!(self::refused(&data, &["key", "list"]).contains("--trust-group"));
    done(&data, &["key", "list", "--trust-group"]);
    let variable = |value| {
        let mut command = command(&data, &["grants", "Counter"]);
        command.env("CAPSTEAD_TRUST_GROUP", value).output().expect("it runs").status.code()
    };
    assert_eq!(["yes", "1", "true", "no", "perhaps"].map(variable), [0, 0, 0, 1, 2].map(Some));
    let served = serve_with(&data, &["--hosts", "2", "--trust-group"]);
    assert_eq!(get(&served.announced.http, "/counter/x").body, "1");
    done(&data, &["key", "rotate"]);
    served.stop();
    // The group, and no other user.
    open_to(0o664, 0o2775);
    let (code, refused) = refused_start(serve_command(&data, &["--hosts", "2", "--trust-group"]));
    assert!(code == Some(1) && refused.contains("chmod 600"), "{refused}");
}

/// A grant of something that doesn't exist gives nothing, whether a server runs or not.
#[test]
fn grants_name_methods_that_are_there() {
    let (_folder, data) = scratch();
    data_with_a_counter(&data);
    let no_methods = |data: &Path| {
        for (args, says) in [
            (
                &["grant", "Counter/x", "--method", "0xdc0f9593bdd2956b:9"][..],
                "it has Counter.increment, ",
            ),
            (&["grant", "Counter/x", "--method", "0xdc0f9593bdd2956c:0"], "Facet.grants"),
            (&["grant", "Counter/x", "--object-method", READ], "--method"),
            (&["grant", "Counter", "--method", READ], "--object-method"),
            (&["grant", "Counter", "--method", GRANTS], "nobody could reach an object"),
            (&["grant", "Counter", "--object-method", "0xdc0f9593bdd2956b:9"], "Counter.read"),
            (
                &["grant", "Counter/x", "--method", "Read"],
                "Counter has no method Read; it has Counter.",
            ),
            (&["grant", "Counter/x", "--method", "Poll.vote"], "Counter.read"),
            (
                &["grant", "Counter", "--method", "byname"],
                "the namespace has no method byname; it has Namespace.byName",
            ),
            (&["grant", "Counter", "--object-method", "vote"], "Counter has no method vote"),
        ] {
            let refused = refused(data, args);
            assert!(refused.contains(says), "{args:?}: {refused}");
        }
        done(data, &["grant", "Counter/x", "--method", READ, "--method", GRANTS]);
        done(data, &["grant", "Counter/x", "--method", "Counter.read", "--method", "grants"]);
        // The object answers HTTP, because its interface inherits it.
        done(data, &["grant", "Counter/x", "--method", "HttpService.request"]);
    };
    no_methods(&data);
    let served = serve_with(&data, &["--hosts", "2"]);
    no_methods(&data);
    assert!(!done(&data, &["grants", "Counter/x"]).contains(":9"), "nothing was made");
    let args = ["grant", "Counter", "--method", "byName", "--object-method", "Counter.read"];
    let text = done(&data, &args);
    run(async {
        let connection = capstead_client::Connection::dial(&served.announced.capnp).await.unwrap();
        let reads: capstead_client::namespace::Client = connection.restore(text.trim()).unwrap();
        assert_eq!(read(&by_name(&reads, "x")).await.unwrap(), 1);
        let refused = increment(&by_name(&reads, "x")).await.unwrap_err();
        assert_eq!(refused.kind, capnp::ErrorKind::Unimplemented, "{refused}");
    });
    let help = capstead(["grant", "--help"]).output().expect("it runs");
    for word in ["--object-method", "byName", "Counter.read"] {
        assert!(said(&help).contains(word), "{word}");
    }
    served.stop();
}

/// The names of a class are those of its server. A program that lacks the class shows numbers,
/// which can be given back to it.
#[test]
fn grants_show_methods_by_name_where_the_class_is_known() {
    let (_folder, data) = scratch();
    data_with_a_counter(&data);
    done(&data, &["grant", "Counter/x", "--method", "read", "--method", "grants"]);
    let args = ["grant", "Counter", "--method", "tryGet", "--object-method", "HttpService.request"];
    done(&data, &args);
    let counters = |data: &Path| {
        let shown = done(data, &["grants", "Counter/x"]);
        assert!(shown.contains(", only Facet.grants Counter.read"), "{shown}");
        let shown = done(data, &["grants", "Counter"]);
        let says = ", only Namespace.tryGet, of its objects only HttpService.request";
        assert!(shown.contains(says), "{shown}");
    };
    counters(&data);
    let served = serve_with(&data, &["--hosts", "2"]);
    counters(&data);
    served.stop();

    let (_folder, data) = scratch();
    let any = "127.0.0.1:0".parse().expect("an address");
    let plain = Server::new(&data).class::<Passer<Plain>>().listen(any).without_http();
    let path = data.clone();
    run(async {
        let running = plain.start().await.expect("it starts");
        let asked = tokio::task::spawn_blocking(move || {
            done(&path, &["grant", "Plain", "--object-method", "Passer.note"]);
            done(&path, &["grants", "Plain"])
        });
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let served = tokio::task::spawn_local(running.until(async { drop(stopped.await) }));
        let shown = asked.await.expect("it is shown");
        assert!(shown.contains(", of its objects only Passer.note"), "{shown}");
        drop(stop);
        served.await.expect("it ends").expect("in order");
    });
    let number = format!("{:#x}:0", crate::passing_capnp::passer::Client::TYPE_ID);
    let shown = done(&data, &["grants", "Plain"]);
    assert!(shown.contains(&format!(", of its objects only {number}")), "{shown}");
    done(&data, &["grant", "Plain", "--object-method", &number]);
}

/// The operator may know a better address than the server gives.
#[test]
fn the_address_that_is_given_stands_in_the_reference_whether_a_server_serves_or_not() {
    let (_folder, data) = scratch();
    data_with_a_counter(&data);
    let check = || {
        let plain = done(&data, &["grant", "Counter", "--address", "127.0.0.1:9"]);
        assert!(plain.starts_with("capstead://127.0.0.1:9/"), "{plain}");
        let tls = done(&data, &["grant", "Counter", "--address", "objects.example:4000", "--tls"]);
        assert!(tls.starts_with("capstead+tls://objects.example:4000/"), "{tls}");
        assert!(refused(&data, &["grant", "Counter", "--tls"]).contains("--address"));
    };
    check();
    assert!(done(&data, &["grant", "Counter"]).starts_with("capstead://127.0.0.1:4000/"));
    let served = serve_with(&data, &["--hosts", "2"]);
    check();
    let own = format!("capstead://{}/", served.announced.capnp);
    assert!(done(&data, &["grant", "Counter"]).starts_with(&own));
    served.stop();
}

#[test]
fn mistakes_are_named_in_plain_words() {
    let (folder, data) = scratch();
    data_with_a_counter(&data);
    let no_point = format!("02{}", "0".repeat(62));
    for (args, says) in [
        (&["revoke", "Counter", "00"][..], "a grant's id has 32 hexadecimal digits"),
        (&["grants", "Counter", "--below", "00"], "a grant's id has 32 hexadecimal digits"),
        (&["grant", "Counter", "--holder", &no_point], "no public key of Ed25519"),
        (&["grants", "Counter", "--reserve", "much"], "512MiB"),
        (&["grants", "Counter", "--map-size", "1 elephant"], "512MiB"),
    ] {
        let refused = refused(&data, args);
        assert!(refused.contains(says), "{args:?}: {refused}");
    }
    for flag in ["--reserve", "--http-rate", "--http-body-bytes", "--awake-bytes"] {
        let (code, refused) = refused_start(serve_command(&data, &[flag, "much"]));
        assert!(code == Some(2) && refused.contains("512MiB"), "{flag}: {refused}");
    }
    let (code, refused) = refused_start(serve_command(&data, &["--log-backlog", "0"]));
    assert!(code == Some(2) && refused.contains("--log-backlog 0"), "{refused}");
    let (_, refused) = refused_start(serve_command(&data, &["--object-quota", "Counter=much"]));
    assert!(refused.contains("512MiB"), "{refused}");
    // Both commands check for the same target, with the same words.
    for object in ["Nope/x", "Counter/nope", "Nope"] {
        let said = ["grants", "grant"].map(|verb| self::refused(&data, &[verb, object]));
        assert_eq!(said[0], said[1]);
        assert!(said[0].contains(object), "{}", said[0]);
    }
    let file = folder.path().join("backup");
    done(&data, &["backup", file.to_str().expect("text")]);
    let output = capstead(["restore"]).arg(&file).arg("-").output().expect("it runs");
    assert!(said(&output).contains("restored into a directory"), "{}", said(&output));
}

#[test]
fn whether_a_restart_is_needed_after_a_key_was_revoked_is_said() {
    let (_folder, data) = scratch();
    let served = serve(&data);
    let signer = || {
        let list = done(&data, &["key", "list"]);
        list.lines().last().unwrap().split(' ').next().unwrap().to_owned()
    };
    let revoked = done(&data, &["key", "revoke", &signer()]);
    assert!(revoked.contains("restart the server"), "{revoked}");
    served.stop();
    let revoked = done(&data, &["key", "revoke", &signer()]);
    assert!(revoked.contains("the next start") && !revoked.contains("restart"), "{revoked}");
}

#[test]
fn a_variable_that_switches_takes_words_and_numbers() {
    let (_folder, data) = scratch();
    let help = capstead(["serve", "--help"]).output().expect("it runs");
    assert!(said(&help).contains("true, yes, on or 1"));
    for (value, scheme) in [("0", "capstead://"), ("off", "capstead://"), ("1", "capstead+tls://")]
    {
        let mut command = serve_command(&data, &["--json"]);
        command.env("CAPSTEAD_TLS", value);
        let served = Served::ready(Process::start(command));
        assert!(served.counters().starts_with(scheme), "{value}");
        served.stop();
    }
    let mut command = serve_command(&data, &[]);
    command.env("CAPSTEAD_TLS", "perhaps");
    assert_eq!(refused_start(command).0, Some(2));
}

/// `capstead grants … | head -1`, with more than a pipe holds: it ends without a message.
#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let (folder, data) = scratch();
    data_with_a_counter(&data);
    let label = "l".repeat(250);
    let served = serve_with(&data, &["--hosts", "2"]);
    run(async {
        let (_connection, counters) = crate::support::calls::connect(&served).await;
        for _ in 0..400 {
            crate::support::calls::save(&counters, &label).await;
        }
    });
    let (code, errors) = (folder.path().join("code"), folder.path().join("errors"));
    let script = r#"{ "$0" grants Counter --data "$1" 2>"$2"; echo $? >"$3"; } | head -1"#;
    let program = capstead(["serve"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(program.get_program());
    shell.args([&data, &errors, &code]);
    let output = shell.output().expect("it runs");
    assert!(said(&output).starts_with("Counter: 401 grants"), "{}", said(&output));
    assert_eq!(said(&output).lines().count(), 1);
    assert_eq!(fs::read_to_string(errors).unwrap(), "");
    assert_eq!(fs::read_to_string(code).unwrap().trim(), "0");
    served.stop();
}

/// The process that started it may end.
#[test]
fn a_server_lives_on_when_nobody_can_read_what_it_prints() {
    let (_folder, data) = scratch();
    let address = crate::support::free_address();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = capstead(["serve", "--listen", "127.0.0.1:0", "--http"]);
    command.arg(&address).arg("--data").arg(&data).stdout(writer);
    let mut server = command.stderr(Stdio::null()).spawn().expect("it starts");
    crate::support::eventually("the server", || std::net::TcpStream::connect(&address).ok());
    for _ in 0..3 {
        assert_eq!(post(&address, "/counter/x/increment").status, 200);
    }
    assert!(server.try_wait().expect("it is ours").is_none());
    server.kill().expect("it is ours");
    server.wait().expect("it is ours");
}

/// The kind of an error tells that an object may not store that much, over HTTP too.
#[test]
fn an_object_that_may_store_no_more_has_a_status_of_its_own() {
    let (_folder, data) = scratch();
    for (flag, size, status, says) in [
        ("--object-quota", "Counter=1B", 500, "over-quota:"),
        ("--class-quota", "Counter=1B", 500, "over-quota:"),
        ("--reserve", "1EiB", 503, "low-space:"),
    ] {
        serve_with(&data, &["--hosts", "2"]).stop();
        let served = serve_with(&data, &["--hosts", "2", flag, size]);
        let answer = post(&served.announced.http, "/counter/x/increment");
        assert_eq!(answer.status, status, "{flag}: {}", answer.body);
        assert!(answer.body.starts_with(says), "{flag}: {}", answer.body);
        served.stop();
    }
}

// The grant used to stay although its reference was lost, and an archive was reported as written.
#[test]
fn what_can_be_had_once_is_not_thrown_at_a_closed_standard_output() {
    let (_folder, data) = scratch();
    data_with_a_counter(&data);
    let run = |to: &str, args: &[&str]| {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!(r#"exec "$@" {to}"#), "sh"]);
        shell.arg(capstead(["grant"]).get_program()).args(args).arg("--data").arg(&data);
        shell.output().expect("it runs")
    };
    let before = done(&data, &["grants", "Counter/x"]);
    for args in [&["grant", "Counter/x"][..], &["export", "-", "--all"]] {
        let output = run(">&-", args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", said(&output));
        assert!(said(&output).contains("nothing was done"), "{args:?}: {}", said(&output));
    }
    assert_eq!(done(&data, &["grants", "Counter/x"]), before, "there is no other grant");
    // A user who discards the output knows that.
    for args in [&["grant", "Counter/x"][..], &["export", "-", "--all"]] {
        assert!(run(">/dev/null", args).status.success(), "{args:?}");
    }
}
