//! The rules about names that only one file may use: LMDB, the ends of turns, and the network under
//! the RPC system.

use crate::Violation;
use crate::code::Source;

/// The only file of the system that may name the crate `lmdb`.
const LMDB_FILE: &str = "src/storage/lmdb/engine.rs";
/// The baseline that measures LMDB bare.
const LMDB_BASELINE: &str = "bench/src/baseline_lmdb.rs";
/// The only file of the host that hands turns to the commit thread.
const TURNS_FILE: &str = "src/host/base/turns.rs";
/// The only file that may implement `VatNetwork`.
const GUARD_FILE: &str = "client/src/guard/network.rs";
/// The places that may use the stock network: under the guard, in baselines that measure it bare,
/// and in a test's client that is none of ours.
const STOCK_NETWORK_PLACES: [&str; 3] =
    ["client/src/", "bench/src/", "tests/it/sockets/foreign.rs"];

/// Each place outside these files that names the crate `lmdb`.
pub(crate) fn check_lmdb(source: &Source) -> Vec<Violation> {
    if [LMDB_FILE, LMDB_BASELINE].contains(&source.path.as_str()) {
        return Vec::new();
    }
    let paths = source.paths();
    let is_crate = |name: &str| matches!(name, "lmdb" | "lmdb_sys");
    let first_is_crate = |segments: &[String]| segments.first().is_some_and(|name| is_crate(name));
    // A module of ours has the same name; a file that imports or declares it may write `lmdb::`.
    let ours = source.code.contains("mod lmdb;")
        || paths.iter().any(|named| {
            let last = named.segments.last().map(String::as_str);
            named.in_use && last == Some("lmdb") && named.segments.len() > 1
        });
    let named = paths.iter().filter(|named| first_is_crate(&named.segments));
    let named = named.filter(|named| named.in_use || !ours).map(|named| named.at);
    let declared = source.words("extern").filter(|&at| {
        let mut words = source.code[at..].split([' ', ';']).skip(1);
        words.next() == Some("crate") && words.next().is_some_and(is_crate)
    });
    let mend = format!("ask {LMDB_FILE}, which gives out bytes and never cursors or transactions");
    named
        .chain(declared)
        .map(|at| violation(source, at, "LMDB is named outside its file", &mend))
        .collect()
}

/// Each place in the host that ends or commits turns itself, outside its tests.
pub(crate) fn check_turns(source: &Source) -> Vec<Violation> {
    let is_host = source.path.starts_with("src/host/") && !source.path.contains("/tests/");
    if !is_host || source.path == TURNS_FILE {
        return Vec::new();
    }
    let mend = format!("end turns by the methods of `Turns` in {TURNS_FILE}");
    // A dot makes it a method of the storage.
    let called = |at: &usize| source.code[..*at].trim_end().ends_with(['.', ':']);
    let ends = source.words("submit_turn").filter(called);
    ends.map(|at| violation(source, at, "a turn is submitted outside its file", &mend)).collect()
}

/// Implementations of `VatNetwork` outside the guard, and uses of the stock network that bypass it.
pub(crate) fn check_vat_network(source: &Source) -> Vec<Violation> {
    let mend = format!("go through the connections of the client, which {GUARD_FILE} watches");
    let mut violations = Vec::new();
    if source.path != GUARD_FILE {
        let implemented = source.words("impl").filter(|&at| {
            let header = source.code[at..].split(['{', ';']).next().unwrap_or_default();
            let before_for = header.split_once(" for ").map_or("", |(before, _)| before);
            before_for.split(|c: char| !c.is_alphanumeric()).any(|word| word == "VatNetwork")
        });
        let rule = "`VatNetwork` is implemented beside the frame guard";
        violations.extend(implemented.map(|at| violation(source, at, rule, &mend)));
    }
    if !STOCK_NETWORK_PLACES.iter().any(|place| source.path.starts_with(place)) {
        let rule = "the stock `VatNetwork` is used around the frame guard";
        let is_stock = |pair: &[String]| {
            pair[0] == "twoparty" && matches!(pair[1].as_str(), "VatNetwork" | "*")
        };
        let named = source.paths().into_iter();
        let named = named.filter(|named| named.segments.windows(2).any(is_stock));
        violations.extend(named.map(|named| violation(source, named.at, rule, &mend)));
    }
    violations
}

fn violation(source: &Source, at: usize, rule: &str, mend: &str) -> Violation {
    let (rule, mend) = (rule.to_owned(), mend.to_owned());
    Violation { path: source.path.clone(), line: source.line(at), rule, mend }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lmdb_is_named_in_its_file_alone() {
        let bad = [
            ("src/storage/log.rs", "use lmdb::Environment;"),
            ("src/storage/log.rs", "use ::lmdb::{Environment, Cursor as C};"),
            ("src/storage/log.rs", "use lmdb as engine;"),
            ("src/storage/mod.rs", "mod lmdb; use lmdb::Environment;"),
            ("src/host/state/vat.rs", "fn f(x: &lmdb::Environment) {}"),
            ("src/lib.rs", "extern crate lmdb;"),
            ("tests/crash.rs", "fn f() { lmdb::Environment::new(); }"),
            ("bench/src/storage.rs", "use lmdb::Environment;"),
        ];
        for (path, text) in bad {
            let found = check_lmdb(&Source::new(path, text));
            assert!(!found.is_empty(), "{path}: {text}");
        }
        let good = [
            (LMDB_FILE, "use lmdb::Environment;"),
            (LMDB_BASELINE, "use lmdb::Environment;"),
            (
                "src/storage/mod.rs",
                "mod lmdb; pub(crate) use self::lmdb::Env; fn f(e: lmdb::Env) {}",
            ),
            ("src/storage/log.rs", "use super::{batch, lmdb}; fn f(e: &lmdb::Env) {}"),
            ("src/storage/log.rs", "use super::lmdb::Env; // lmdb::Environment"),
            ("src/host/state/vat.rs", "fn f(e: &crate::storage::lmdb::engine::Env) {}"),
        ];
        for (path, text) in good {
            assert!(check_lmdb(&Source::new(path, text)).is_empty(), "{path}: {text}");
        }
    }

    #[test]
    fn turns_end_in_their_file_alone() {
        let text = "fn f(store: &mut Store) { store.submit_turn(); }";
        assert_eq!(check_turns(&Source::new("src/host/engine/rest.rs", text)).len(), 1);
        for path in [TURNS_FILE, "src/host/tests/shares.rs", "src/lab/mod.rs"] {
            assert!(check_turns(&Source::new(path, text)).is_empty(), "{path}");
        }
    }

    #[test]
    fn the_guard_alone_is_a_vat_network() {
        let bad = [
            ("src/gate.rs", "impl<T> capnp_rpc::VatNetwork<Side> for Mine<T> {}"),
            ("client/src/connection.rs", "impl VatNetwork<Side> for Mine {}"),
            ("src/server.rs", "use capnp_rpc::{RpcSystem, twoparty::VatNetwork};"),
            ("src/server.rs", "use capnp_rpc::twoparty::*;"),
            ("src/cli/call.rs", "fn f() { twoparty::VatNetwork::new(); }"),
        ];
        for (path, text) in bad {
            let found = check_vat_network(&Source::new(path, text));
            assert_eq!(found.len(), 1, "{path}: {text}");
        }
        let good = [
            (GUARD_FILE, "impl VatNetwork<Side> for Guard {} use capnp_rpc::twoparty::VatNetwork;"),
            ("bench/src/bare.rs", "fn f() { twoparty::VatNetwork::new(); }"),
            ("src/server.rs", "impl Drop for Server { fn f(n: impl VatNetwork<u8>) {} }"),
            ("src/server.rs", "use capnp_rpc::rpc_twoparty_capnp::Side;"),
        ];
        for (path, text) in good {
            assert!(check_vat_network(&Source::new(path, text)).is_empty(), "{path}: {text}");
        }
    }
}
