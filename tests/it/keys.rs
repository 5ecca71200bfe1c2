//! The keys that sign references: replaced and revoked, with and without a running server.
//!
//! A signature is valid until its key is revoked, and is then refused at once, on every host. No
//! output of a server or a command, at any log level, contains a private key or a reference's
//! secret.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::support::calls::{by_name, increment, run};
use crate::support::random::Random;
use crate::support::{
    Process, Served, capstead, cargo, http, now, scratch, serve_command, serve_with,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use capstead_client::sturdyref::{Caveats, TextReference};
use capstead_client::{Connection, namespace, restore};

/// `capstead key …` on the directory.
fn key(data: &Path, args: &[&str]) -> Output {
    let mut command = capstead(["key"]);
    command.args(args).arg("--data").arg(data).output().unwrap()
}

fn done(data: &Path, args: &[&str]) -> String {
    let output = key(data, args);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The ids of all keys; the last one signs.
fn ids(data: &Path) -> Vec<String> {
    let list = done(data, &["list"]);
    let rows = list.lines().skip(1).map(|line| line.split_whitespace().collect());
    let rows: Vec<Vec<&str>> = rows.collect();
    for (at, row) in (1..).zip(&rows) {
        assert_eq!(row.get(2), (at == rows.len()).then_some(&"signs"), "{list}");
        assert!(row[1].starts_with("20") && row[1].ends_with('Z'), "{list}");
    }
    rows.iter().map(|row| row[0].to_owned()).collect()
}

fn bytes(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text.split_once("/#").unwrap().1).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// The id of the key that signed the reference.
fn signer(text: &str) -> String {
    hex(&bytes(text)[33..41])
}

/// Each class's reference, with the address at which the server listens now.
fn moved(texts: &BTreeMap<String, String>, to: &Served) -> Vec<String> {
    // Those of two classes whose namespaces have one owner.
    let texts = ["Counter", "Poll"].map(|class| &texts[class]);
    let fragments = texts.iter().map(|text| text.split_once("/#").unwrap().1);
    fragments.map(|fragment| format!("capstead://{}/#{fragment}", to.announced.capnp)).collect()
}

/// Checks that every reference works, at the listener of its target's owner and at the first one.
async fn good(texts: &[String]) {
    for text in texts {
        restore::<namespace::Client>(text).await.unwrap();
        let first = Connection::dial(TextReference::parse(text).unwrap().address()).await.unwrap();
        try_restore(&first, text).await.unwrap();
    }
}

/// Checks that each reference is refused at each listener, with the same words for all.
async fn all_refused(texts: &[String], listeners: &[String]) {
    for address in listeners {
        let listener = Connection::dial(address).await.unwrap();
        for text in texts {
            let located = listener.locate(text).await.map(drop);
            for refused in [try_restore(&listener, text).await, located] {
                let error = refused.unwrap_err();
                assert_eq!(error.kind, capnp::ErrorKind::Failed);
                let told = error.extra.trim_start_matches("remote exception: ");
                assert_eq!(told, "the reference was refused");
            }
        }
    }
}

async fn try_restore(listener: &Connection, text: &str) -> capnp::Result<()> {
    use capstead_client::restorer_capnp::restorer;
    let mut request = listener.bootstrap::<restorer::Client>().restore_request();
    request.get().set_sturdy_ref(text);
    request.send().promise.await.map(drop)
}

fn assert_private(data: &Path) {
    for entry in fs::read_dir(data.join("keys")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
    }
}

// The first host's thread changes the ring.
#[test]
fn one_host_gets_new_keys_and_loses_old_ones() {
    drill("1");
}

// Of four hosts, the second owns both namespaces, on a thread of its own.
#[test]
fn other_hosts_get_new_keys_and_lose_old_ones() {
    drill("4");
}

fn drill(hosts: &str) {
    let (_folder, data) = scratch();
    let serve = || serve_with(&data, &["--hosts", hosts]);
    let served = serve();
    let first = served.announced.namespaces.clone();
    let [old] = ids(&data).try_into().unwrap();
    assert!(first.values().all(|text| signer(text) == old));
    let said = done(&data, &["rotate"]);
    let [kept, new] = ids(&data).try_into().unwrap();
    assert_eq!(kept, old);
    assert!(said.starts_with(&new), "{said}");
    run(good(&moved(&first, &served)));
    assert_private(&data);
    served.stop();

    let served = serve();
    let (before, after) = (moved(&first, &served), moved(&served.announced.namespaces, &served));
    assert!(after.iter().all(|text| signer(text) == new));
    let listeners = run(async {
        good(&before).await;
        good(&after).await;
        let here = served.announced.capnp.clone();
        let owner = Connection::dial(&here).await.unwrap().locate(&before[0]).await.unwrap();
        assert_eq!(owner == here, hosts == "1");
        let counters: namespace::Client = restore(&before[0]).await.unwrap();
        let live = by_name(&counters, "x");
        assert_eq!(increment(&live).await.unwrap(), 1);
        let said = done(&data, &["revoke", &old]);
        let listeners = [here, owner];
        all_refused(&before, &listeners).await;
        assert!(said.starts_with(&format!("what {old} signed is refused")), "{said}");
        good(&after).await;
        assert_eq!(increment(&live).await.unwrap(), 2, "what lives goes on");
        assert_eq!(increment(&by_name(&counters, "y")).await.unwrap(), 1);
        listeners
    });
    assert_eq!(ids(&data), std::slice::from_ref(&new));

    // Revoking the only key makes a new one first.
    done(&data, &["revoke", &new]);
    let [newest] = ids(&data).try_into().unwrap();
    assert!(newest != new && newest != old);
    run(all_refused(&after, &listeners));
    served.stop();

    let served = serve();
    let listeners = [served.announced.capnp.clone()];
    assert!(served.announced.namespaces.values().all(|text| signer(text) == newest));
    run(async {
        good(&moved(&served.announced.namespaces, &served)).await;
        all_refused(&before, &listeners).await;
        all_refused(&after, &listeners).await;
    });
    assert_eq!(fs::read_dir(data.join("keys")).unwrap().count(), 2);
    assert_private(&data);
}

#[test]
fn a_cluster_at_rest_gets_new_keys_and_loses_old_ones() {
    let (_folder, data) = scratch();
    let first = serve_with(&data, &["--hosts", "2"]);
    let before = first.announced.namespaces.clone();
    first.stop();
    let [old] = ids(&data).try_into().unwrap();
    done(&data, &["rotate"]);
    let second = serve_with(&data, &["--hosts", "2"]);
    run(good(&moved(&before, &second)));
    second.stop();
    done(&data, &["revoke", &old]);
    assert_private(&data);
    let third = serve_with(&data, &["--hosts", "2"]);
    run(async {
        all_refused(&moved(&before, &third), std::slice::from_ref(&third.announced.capnp)).await;
        good(&moved(&third.announced.namespaces, &third)).await;
    });
}

#[test]
fn wrong_ids_change_nothing() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &[]);
    let before = ids(&data);
    let mut wrong = before[0].clone().into_bytes();
    wrong[0] = if wrong[0] == b'0' { b'1' } else { b'0' };
    let wrong = String::from_utf8(wrong).unwrap();
    for (id, code, says) in [
        (&*wrong, 1, "there is no signing key with this id"),
        ("12", 2, "16 hexadecimal digits"),
        ("+123456789abcdef", 2, "16 hexadecimal digits"),
    ] {
        let refused = key(&data, &["revoke", id]);
        assert_eq!(refused.status.code(), Some(code));
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(said.contains(says), "{said}");
    }
    assert_eq!(ids(&data), before);
    run(good(&moved(&served.announced.namespaces, &served)));
}

// A crash during a rotation leaves a temporary file, whole or not.
#[test]
fn what_a_crash_left_is_in_nobodys_way() {
    let (_folder, data) = scratch();
    let first = serve_with(&data, &[]);
    let before = first.announced.namespaces.clone();
    first.stop();
    let old = ids(&data);
    for left in ["", "0123", &format!("{}\n1800000000000\n", "ab".repeat(32))] {
        fs::write(data.join("keys/new"), left).unwrap();
        assert_eq!(ids(&data), old);
    }
    let served = serve_with(&data, &[]);
    run(good(&moved(&before, &served)));
    done(&data, &["rotate"]);
    assert_eq!(ids(&data).len(), 2);
    assert!(!data.join("keys/new").exists());
    assert_private(&data);
}

// Either the command is killed without a running server, or the server under it. Each key is then
// there as a whole or not at all, none is lost, and references of the first one stay valid.
#[test]
fn kills_in_the_middle_of_rotations_lose_no_key() {
    let (_folder, data) = scratch();
    let first = serve_with(&data, &[]);
    let before = first.announced.namespaces.clone();
    first.stop();
    let mut random = Random::from_printed_seed();
    let start = now();
    done(&data, &["rotate"]);
    let whole = start.elapsed().as_micros() as u64;
    let mut known = ids(&data);
    let mut rotated = 0;
    for round in 0..24 {
        let mut served = (round % 3 == 0).then(|| serve_with(&data, &[]));
        let mut command = capstead(["key", "rotate", "--data"]);
        command.arg(&data).stdout(Stdio::null()).stderr(Stdio::null());
        let mut rotating = command.spawn().unwrap();
        // At any moment of the rotation, or after its end.
        std::thread::sleep(Duration::from_micros(random.below(2 * whole)));
        match &mut served {
            Some(served) => served.kill(),
            None => rotating.kill().unwrap(),
        }
        rotating.wait().unwrap();
        let now = ids(&data);
        assert!(now.starts_with(&known) && now.len() <= known.len() + 1, "{known:?} {now:?}");
        rotated += now.len() - known.len();
        known = now;
    }
    assert!(rotated > 0, "some come through");
    assert_private(&data);
    let served = serve_with(&data, &[]);
    assert_eq!(signer(served.counters()), *known.last().unwrap());
    run(good(&moved(&before, &served)));
}

#[test]
fn a_backup_has_all_keys() {
    let (folder, data) = scratch();
    let served = serve_with(&data, &[]);
    let before = served.announced.namespaces.clone();
    let [old] = ids(&data).try_into().unwrap();
    done(&data, &["rotate"]);
    done(&data, &["rotate"]);
    let rotated = ids(&data);
    done(&data, &["revoke", &rotated[1]]);
    let list = done(&data, &["list"]);
    let (file, restored) = (folder.path().join("backup"), folder.path().join("restored.data"));
    cargo::succeed(capstead(["backup"]).arg(&file).arg("--data").arg(&data));
    served.stop();
    cargo::succeed(capstead(["restore"]).arg(&file).arg(&restored));
    assert_eq!(done(&restored, &["list"]), list);
    assert_private(&restored);
    let served = serve_with(&restored, &[]);
    assert_eq!(signer(served.counters()), rotated[2]);
    assert!(before.values().all(|text| signer(text) == old));
    run(good(&moved(&before, &served)));
}

/// A secret in each form in which output may show it: raw, hex, base64 and a list of numbers.
fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
    // Whole groups of three bytes: in both alphabets their letters depend on no neighbouring bytes.
    let whole = &secret[..secret.len() / 3 * 3];
    let list: Vec<String> = secret[..8].iter().map(u8::to_string).collect();
    let list_hex: Vec<String> = secret[..8].iter().map(|byte| format!("{byte:x}")).collect();
    vec![
        secret[..16].to_vec(),
        hex(&secret[..16]).into_bytes(),
        hex(&secret[..16]).to_uppercase().into_bytes(),
        STANDARD.encode(whole).into_bytes(),
        URL_SAFE_NO_PAD.encode(whole).into_bytes(),
        list.join(", ").into_bytes(),
        list_hex.join(", ").into_bytes(),
    ]
}

/// Every private key in the directory: its bytes, and those of its file.
fn private_keys(data: &Path) -> Vec<Vec<u8>> {
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let hex = fs::read_to_string(entry.unwrap().path()).unwrap();
        let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
        [(0..32).map(byte).collect(), hex.into_bytes()]
    };
    fs::read_dir(data.join("keys")).unwrap().flat_map(read).collect()
}

fn holds(output: &[u8], secret: &[u8]) -> bool {
    output.windows(secret.len()).any(|part| part == secret)
}

/// The secrets of a reference, and its text where that contains nothing but secrets.
fn secrets_of(text: &str) -> Vec<Vec<u8>> {
    let (bytes, fragment) = (bytes(text), text.split_once("/#").unwrap().1);
    let mut found = spellings(&bytes[bytes.len() - 32..]);
    found.push(fragment.as_bytes()[fragment.len() - 30..].to_vec());
    found.push(fragment.as_bytes()[fragment.len() - 100..fragment.len() - 70].to_vec());
    found
}

/// Uses references, keys and connections correctly and incorrectly.
fn use_and_misuse(served: &Served, texts: &[String]) {
    let address = &served.announced.capnp;
    run(async {
        let cluster = TextReference::parse(&texts[0]).unwrap().reference().cluster();
        let connection = Connection::dial_tls(address, cluster).await.unwrap();
        for text in texts {
            let _ = restore::<namespace::Client>(text).await;
            let _ = try_restore(&connection, text).await;
            let _ = try_restore(&connection, &text[..text.len() - 4]).await;
            let _ = connection.locate(&text.replace("/#", "/#A")).await;
        }
        let counters: namespace::Client = connection.restore(served.counters()).unwrap();
        assert!(increment(&by_name(&counters, "x")).await.unwrap() > 0);
    });
    // In the clear, on a listener that speaks TLS.
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(texts[0].as_bytes()).unwrap();
    drop(stream);
    let fragment = texts[0].split_once('#').unwrap().1;
    http::get(&served.announced.http, "/counter/x");
    http::get(&served.announced.http, "/nothing");
    http::get(served.announced.metrics.as_deref().unwrap(), &format!("/{fragment}"));
}

// Everything that can be logged is logged. References are announced on standard output, as
// intended.
#[test]
fn nothing_that_is_said_has_a_secret_in_it() {
    let (folder, data) = scratch();
    let mut command = serve_command(
        &data,
        &["--json", "--tls", "--hosts", "2", "--metrics", "127.0.0.1:0", "--turn-warn", "1us"],
    );
    command.env("RUST_LOG", "trace");
    let served = Served::ready(Process::start(command));
    let mut texts: Vec<String> = served.announced.namespaces.values().cloned().collect();
    let parsed = TextReference::parse(&texts[0]).unwrap();
    let narrow = parsed.reference().narrow(&Caveats::not_after(1)).unwrap();
    texts.push(parsed.expose_text_of(&narrow).unwrap());
    let cluster = parsed.reference().cluster();

    let mut said = Vec::new();
    let mut keys = private_keys(&data);
    let grant = |args: &[&str]| {
        let output = capstead(["grant", "Counter"]).args(args).arg("--data").arg(&data).output();
        String::from_utf8(output.unwrap().stdout).unwrap().trim_end().to_owned()
    };
    let holder = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    texts.extend([grant(&["--label", "plain"]), grant(&["--holder", holder])]);
    use_and_misuse(&served, &texts);
    said.extend(capstead(["grants", "Counter", "--data"]).arg(&data).output().unwrap().stdout);
    let [old] = ids(&data).try_into().unwrap();
    said.extend(done(&data, &["rotate"]).into_bytes());
    keys.extend(private_keys(&data));
    said.extend(done(&data, &["list"]).into_bytes());
    said.extend(done(&data, &["revoke", &old]).into_bytes());
    said.extend(key(&data, &["revoke", &old]).stderr);
    run(async {
        let connection = Connection::dial_tls(&served.announced.capnp, cluster).await.unwrap();
        assert!(try_restore(&connection, &texts[0]).await.is_err());
    });
    keys.extend(private_keys(&data));
    let (export, backup) = (folder.path().join("export"), folder.path().join("backup"));
    let verb = |args: &[&str], file: &Path| {
        let output = capstead(args).arg(file).arg("--data").arg(&data).output().unwrap();
        [output.stdout, output.stderr].concat()
    };
    said.extend(verb(&["export", "--all"], &export));
    said.extend(verb(&["backup"], &backup));
    said.extend(fs::read(&export).unwrap());
    for page in ["/metrics", "/ready"] {
        let page = http::get(served.announced.metrics.as_deref().unwrap(), page);
        said.extend(page.body.into_bytes());
    }
    let (code, announced, log) = served.stop();
    assert_eq!(code, Some(0));
    said.extend(log.into_bytes());

    let of_keys: Vec<_> = keys.iter().flat_map(|key| spellings(key)).collect();
    // It announces references, but no other secret.
    for secret in &of_keys {
        assert!(!holds(announced.as_bytes(), secret), "{}", String::from_utf8_lossy(secret));
    }
    let of_references: Vec<_> = texts.iter().flat_map(|text| secrets_of(text)).collect();
    for secret in of_keys.iter().chain(&of_references) {
        assert!(!holds(&said, secret), "{}", String::from_utf8_lossy(secret));
    }
    // Public values were printed at every level, and a backup contains the current keys: so a leak
    // would be found.
    for public in [&*old, "DEBUG", "no TLS with a peer", "its key is unknown", "revoked"] {
        assert!(holds(&said, public.as_bytes()), "{public}");
    }
    let backup = fs::read(&backup).unwrap();
    let now = private_keys(&data);
    assert!(now.iter().all(|key| spellings(key).iter().any(|secret| holds(&backup, secret))));
}
