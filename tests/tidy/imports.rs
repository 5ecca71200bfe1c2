//! The rule that imports run down the table: never upward, never sideways.

use crate::Violation;
use crate::code::{Named, Source};
use crate::table::Table;

/// The root package as its own binary names it.
const ROOT_CRATE: &str = "capstead";

/// Every import of the file that the table doesn't allow.
pub(crate) fn check(source: &Source, table: &Table) -> Vec<Violation> {
    let Some(from) = module_of(&source.path) else { return Vec::new() };
    if !table.contains(from) {
        // `check_tree` reports it, once.
        return Vec::new();
    }
    let violation = |named: Named| {
        let to = target(source, &named, from, table)?;
        if table.allows(from, &to) {
            return None;
        }
        Some(Violation {
            path: source.path.clone(),
            line: source.line(named.at),
            rule: format!(
                "`{}` imports `{to}`, but {}",
                named.segments.join("::"),
                table.describe(from)
            ),
            mend: "move what both need into a lower layer, or hand it over at construction \
                   (ARCHITECTURE.md, the import table)"
                .to_owned(),
        })
    };
    source.paths().into_iter().filter_map(violation).collect()
}

/// Modules that the table doesn't name, and names of the table that aren't modules.
pub(crate) fn check_tree(paths: &[String], table: &Table) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for path in paths {
        let Some(module) = module_of(path).filter(|module| !seen.contains(module)) else {
            continue;
        };
        seen.push(module);
        if !table.contains(module) {
            violations.push(Violation {
                path: path.clone(),
                line: 1,
                rule: format!("the import table doesn't name `{module}`"),
                mend: "add it to a row of the table in ARCHITECTURE.md".to_owned(),
            });
        }
    }
    for module in table.modules().filter(|module| !seen.contains(module)) {
        violations.push(Violation {
            path: "ARCHITECTURE.md".to_owned(),
            line: 1,
            rule: format!("the import table names `{module}`, which doesn't exist"),
            mend: "write the module, or take the name out of the table".to_owned(),
        });
    }
    violations
}

/// The module of the table to which a file belongs; none for tests, examples and build scripts.
fn module_of(path: &str) -> Option<&str> {
    if path.starts_with("client/src/") {
        return Some("capstead_client");
    }
    if path.starts_with("build/src/") {
        return Some("capstead_build");
    }
    let below = path.strip_prefix("src/")?;
    Some(below.split('/').next()?.trim_end_matches(".rs"))
}

/// The module of the table that a path names, if it names one.
fn target(source: &Source, named: &Named, from: &str, table: &Table) -> Option<String> {
    let first = named.segments.first()?.as_str();
    if first == ROOT_CRATE {
        return Some(module_or_lib(named.segments.get(1), table));
    }
    if table.contains(first) && first.starts_with(ROOT_CRATE) {
        return Some(first.to_owned());
    }
    if !source.path.starts_with("src/") {
        // Within the other crates any order is allowed.
        return None;
    }
    match first {
        "crate" => Some(module_or_lib(named.segments.get(1), table)),
        "super" => {
            let climbed = named.segments.iter().take_while(|name| *name == "super").count();
            let depth = module_path(&source.path, &source.code, named.at).len();
            let in_root = matches!(from, "lib" | "main");
            (climbed >= depth && !in_root)
                .then(|| module_or_lib(named.segments.get(climbed), table))
        }
        _ => None,
    }
}

/// The modules and names of a path, starting at the root of the crate; none if it leads to another
/// crate or to the file itself.
pub(crate) fn absolute(source: &Source, named: &Named) -> Option<Vec<String>> {
    match named.segments.first()?.as_str() {
        "crate" => Some(named.segments[1..].to_vec()),
        "super" => {
            let climbed = named.segments.iter().take_while(|name| *name == "super").count();
            let mut modules = module_path(&source.path, &source.code, named.at);
            modules.truncate(modules.len().checked_sub(climbed)?);
            modules.extend_from_slice(&named.segments[climbed..]);
            Some(modules)
        }
        _ => None,
    }
}

/// The module that `crate::NAME` names, or `lib` if it is a name that `lib.rs` exports.
fn module_or_lib(name: Option<&String>, table: &Table) -> String {
    name.filter(|name| table.contains(name)).map_or_else(|| "lib".to_owned(), Clone::clone)
}

/// The module path of byte `at`, such as `[host, slot, tests]`; inline modules count.
fn module_path(path: &str, code: &str, at: usize) -> Vec<String> {
    let below = path.trim_start_matches("src/").trim_end_matches(".rs");
    let files = below.split('/').filter(|name| !matches!(*name, "mod" | "lib" | "main"));
    let mut modules: Vec<String> = files.map(str::to_owned).collect();
    // One entry for each open brace: whether it opened a module.
    let mut open: Vec<bool> = Vec::new();
    let mut statement = 0;
    for (index, byte) in code.bytes().enumerate().take(at) {
        match byte {
            b'{' => {
                let name = inline_module(&code[statement..index]);
                open.push(name.is_some());
                modules.extend(name);
            }
            b'}' => {
                if open.pop() == Some(true) {
                    modules.pop();
                }
            }
            b';' => {}
            _ => continue,
        }
        statement = index + 1;
    }
    modules
}

/// `NAME` if `statement` ends in `mod NAME`.
fn inline_module(statement: &str) -> Option<String> {
    let mut words = statement.split_whitespace().rev();
    let name = words.next()?;
    (words.next()? == "mod").then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::PAGE;

    fn found(path: &str, text: &str) -> Vec<String> {
        let table = Table::parse(PAGE).unwrap();
        check(&Source::new(path, text), &table).iter().map(Violation::to_string).collect()
    }

    #[test]
    fn imports_that_run_upward_or_sideways_are_found() {
        let bad = [
            ("src/storage/mod.rs", "use crate::host::Slot;"),
            ("src/storage/lmdb.rs", "use crate::{id::ObjectId, host::Slot};"),
            ("src/storage/lmdb.rs", "fn f() { crate::gateway::go::<u8>() }"),
            ("src/storage/lmdb.rs", "use super::super::host::Slot;"),
            ("src/storage/mod.rs", "mod a { mod b { use super::super::super::host::Slot; } }"),
            ("src/host/state/slot.rs", "pub(crate) use crate::gateway;"),
            ("src/gateway.rs", "use super::host;"),
            ("src/schema.rs", "use crate::id::Shard;"),
            ("src/storage/mod.rs", "use capstead_client::Connection;"),
            ("src/host/mod.rs", "use crate::*;"),
            ("src/host/mod.rs", "use crate::Server;"),
            ("src/host/mod.rs", "use crate as root;"),
            ("src/classes/mod.rs", "use crate::host::Context;"),
            ("client/src/lib.rs", "use capstead::Server;"),
            ("src/host/mod.rs", "macro_rules! m { () => { $crate::gateway::f() } }"),
        ];
        for (path, text) in bad {
            assert_eq!(found(path, text).len(), 1, "{path}: {text}");
        }
    }

    #[test]
    fn imports_that_run_down_pass() {
        let good = [
            (
                "src/host/state/slot.rs",
                "use crate::storage::Batch; use super::Vat; use crate::host::Vat;",
            ),
            ("src/host/mod.rs", "use capstead_client::Connection; use crate::id::Shard;"),
            (
                "src/host/state/slot.rs",
                "// use crate::gateway;\nconst A: &str = \"crate::gateway::x\";",
            ),
            ("src/storage/mod.rs", "mod tests { use super::*; use super::lmdb::Env; }"),
            ("src/storage/lmdb.rs", "mod tests { use super::super::Batch; }"),
            ("src/storage/lmdb.rs", "fn f() {} mod tests { fn g() { super::super::f() } }"),
            ("src/limits.rs", "pub(crate) const A: usize = std::mem::size_of::<u8>();"),
            ("src/classes/mod.rs", "use crate::{Context, Object};"),
            ("src/cli/serve.rs", "use crate::{Server, host, gateway};"),
            ("client/src/guard.rs", "use crate::host::Anything;"),
            ("tests/counter.rs", "use capstead::Server;"),
        ];
        for (path, text) in good {
            assert_eq!(found(path, text), Vec::<String>::new(), "{path}: {text}");
        }
    }

    #[test]
    fn a_message_says_where_which_rule_and_how_to_mend() {
        let messages =
            found("src/host/state/slot.rs", "//! Slots.\n\nuse crate::gateway::Route;\n");
        let expected = "src/host/state/slot.rs:3: `crate::gateway::Route` imports `gateway`, but `host` \
                        (L4) may import client, L1, L2\n    mend: move";
        assert!(messages[0].starts_with(expected), "{}", messages[0]);
    }

    #[test]
    fn the_table_and_the_tree_name_the_same_modules() {
        let table = Table::parse(PAGE).unwrap();
        let mut paths: Vec<String> = table
            .modules()
            .map(|module| match module {
                "capstead_client" => "client/src/lib.rs".to_owned(),
                module => format!("src/{module}/mod.rs"),
            })
            .collect();
        assert!(check_tree(&paths, &table).is_empty());
        paths[1] = "src/news.rs".to_owned();
        let messages: Vec<String> =
            check_tree(&paths, &table).iter().map(Violation::to_string).collect();
        assert_eq!(messages.len(), 2);
        assert!(messages[0].starts_with("src/news.rs:1: the import table doesn't name `news`"));
        assert!(messages[1].contains("names `schema`, which doesn't exist"));
    }
}
