//! No ambient authority: a client without a reference or a namespace gets no capability from any
//! public function or method, neither over a connection nor from the libraries.

use std::fs;

use crate::support::calls::run;
use crate::support::{http, root, scratch, serve_with};
use capnp::any_pointer;
use capnp::traits::HasTypeId;
use capstead::counter_capnp::counter;
use capstead::poll_capnp::poll;
use capstead_client::Connection;
use capstead_client::facet_capnp::{facet, persistent};
use capstead_client::http_capnp::http_service;
use capstead_client::namespace;
use capstead_client::restorer_capnp::{restoration, restorer};

/// Interfaces that an attacker may hope a listener answers: public and internal ones.
fn interfaces() -> Vec<u64> {
    let internal = ["cluster.capnp", "admin.capnp"].map(|name| root().join("schema").join(name));
    let mut ids = vec![
        restorer::Client::TYPE_ID,
        restoration::Client::TYPE_ID,
        namespace::Client::TYPE_ID,
        facet::Client::TYPE_ID,
        persistent::Client::TYPE_ID,
        http_service::Client::TYPE_ID,
        counter::Client::TYPE_ID,
        poll::Client::TYPE_ID,
        0,
        u64::MAX,
    ];
    // The compiled requests contain the ids of the internal ones, little-endian: all words that
    // look like an id are tried.
    for path in
        internal.map(|path| path.with_extension("request")).iter().filter(|path| path.exists())
    {
        let bytes = fs::read(path).expect("it can be read");
        let (words, _) = bytes.as_chunks();
        let words = words.iter().map(|word| u64::from_le_bytes(*word));
        ids.extend(words.filter(|word| word >> 63 == 1));
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// A client that connects without a reference gets nothing, whatever it asks the bootstrap
/// capability for.
#[test]
fn a_listener_gives_nothing_without_a_reference() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "2"]);
    let before = ["wakes_total", "calls_total"].map(|name| served.metric(name));
    let interfaces = interfaces();
    assert!(interfaces.len() > 20, "the internal interfaces are among them");
    run(async {
        let connection = Connection::dial(&served.announced.capnp).await.unwrap();
        let bootstrap: restorer::Client = connection.bootstrap();
        for interface in &interfaces {
            for method in 0..8 {
                let call = bootstrap
                    .client
                    .new_call::<any_pointer::Owned, any_pointer::Owned>(*interface, method, None);
                let sent = call.send();
                let pipelined = sent.pipeline.get_pointer_field(0).as_cap();
                let answer = sent.promise.await;
                assert!(answer.is_err(), "{interface:#x} {method} answered");
                let on_it =
                    pipelined.new_call(counter::Client::TYPE_ID, 0, None).send().promise.await;
                assert!(on_it.is_err(), "{interface:#x} {method} gave a capability");
            }
        }
    });
    assert_eq!(["wakes_total", "calls_total"].map(|name| served.metric(name)), before);
}

/// HTTP leads only to the namespaces that the gateway was given.
#[test]
fn the_gateway_leads_to_what_it_was_given() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &[]);
    for path in [
        "/index.html",
        "/chatroom/front/page",
        "/nobody/x",
        "/restorer",
        "/namespace/x",
        "/admin",
        "/counter",
        "//counter/x",
        "/../counter/x",
    ] {
        let status = http::get(&served.announced.http, path).status;
        assert!((400..500).contains(&status), "{path}: {status}");
    }
    assert_eq!(served.metric("wakes_total"), 0);
}

/// The origin of a capability. The tests of each origin show that there is no other way.
enum From {
    /// From a binding that the server was built with.
    Binding,
    /// From a reference.
    Reference,
    /// From a value that the object stored, sealed to it.
    Stored,
    /// From nowhere: it is data, and capabilities in it were refused when it was made.
    Data,
    /// From the caller: it is the caller's own, or one that the caller put in.
    Caller,
    /// It is the capability that a listener offers to every client, which gives nothing: see above.
    Listener,
}

/// Every public function of the libraries that returns a capability, with the origin of that
/// capability. The author of a new function adds it here, and must know the origin.
const FUNCTIONS: &[(&str, &str, From)] = &[
    ("src/host/api/context.rs", "capability", From::Caller),
    ("src/host/api/context.rs", "this", From::Caller),
    ("src/host/api/namespace.rs", "namespace", From::Binding),
    ("src/host/api/namespace.rs", "get", From::Binding),
    ("src/host/api/namespace.rs", "try_get", From::Binding),
    ("src/host/api/namespace.rs", "create", From::Binding),
    ("src/host/api/links.rs", "get_ref", From::Stored),
    ("src/host/api/links.rs", "get_struct_with_refs", From::Stored),
    ("src/host/api/storage.rs", "get_struct", From::Data),
    ("client/src/connection.rs", "bootstrap", From::Listener),
    ("client/src/restore.rs", "restore", From::Reference),
    ("client/src/restore.rs", "restore_with", From::Reference),
    ("client/src/callback.rs", "capability", From::Caller),
    ("client/src/once.rs", "once", From::Caller),
    ("client/src/share.rs", "attenuate", From::Caller),
];

/// The public functions in a file: their names and return types.
fn public_functions(path: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join(path)).expect("the file is there");
    let mut functions = Vec::new();
    for (at, _) in text.match_indices("pub ") {
        let rest = &text[at + 4..];
        let rest = rest.strip_prefix("async ").or(rest.strip_prefix("const ")).unwrap_or(rest);
        let Some(rest) = rest.strip_prefix("fn ") else { continue };
        let name = rest.split(['(', '<']).next().expect("it has a name");
        let signature = &rest[..rest.find(" {").expect("it has a body")];
        let returned = signature.rsplit_once(" -> ").map_or("", |(_, returned)| returned);
        functions.push((name.to_owned(), returned.to_owned()));
    }
    functions
}

/// Tells whether a value of that type may hold a capability.
fn is_capability(returned: &str) -> bool {
    // The types that a future borrows from are not returned.
    let returned = returned.split(" + use<").next().unwrap_or_default();
    let words: Vec<&str> = returned.split(|c: char| !c.is_alphanumeric()).collect();
    ["C", "Client", "Namespace", "Struct"].iter().any(|word| words.contains(word))
}

/// The sources of both libraries, without tests and without the parts that only the command uses.
fn sources() -> Vec<String> {
    let mut folders = vec![root().join("src"), root().join("client/src")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("it can be read") {
            let path = entry.expect("it can be read").path();
            let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
            if path.is_dir() && !["tests", "cli", "classes"].contains(&&*name) {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") && !name.contains("tests") {
                let path = path.strip_prefix(root()).expect("it is in the repository");
                files.push(path.to_string_lossy().into_owned());
            }
        }
    }
    files
}

/// No function of the libraries makes a capability out of nothing.
#[test]
fn every_public_function_is_known_for_where_its_capability_comes_from() {
    let mut found = Vec::new();
    for path in sources() {
        for (name, returned) in public_functions(&path) {
            if is_capability(&returned) {
                found.push((path.clone(), name, returned));
            }
        }
    }
    for (path, name, returned) in &found {
        let is_known = FUNCTIONS.iter().any(|(at, known, _)| at == path && known == name);
        assert!(is_known, "{path}: {name} returns {returned}: where does that come from?");
    }
    for (path, name, _) in FUNCTIONS {
        let is_there = found.iter().any(|(at, found, _)| at == path && found == name);
        assert!(is_there, "{path} has no such {name} any more");
    }
}
