//! The rule that the files of a folder import each other in no circle.
//!
//! Files in a circle can only be read together: none of them is the place to begin. A file and the
//! folder of its name count as one, and those in the folder may use what the file declares.

use std::collections::{BTreeMap, BTreeSet};

use crate::Violation;
use crate::code::{Named, Source};
use crate::imports::absolute;

/// A circle that is allowed: the folder, its entries that import each other, and the reason, of
/// which docs/decisions.md says more.
type Exception = (&'static str, &'static [&'static str], &'static str);

const EXCEPTIONS: [Exception; 2] = [
    (
        "src/host/state",
        &[
            "awake",
            "class",
            "cluster",
            "exclusive",
            "facet",
            "instance",
            "keeping",
            "objects",
            "parked",
            "queued_call",
            "scheduler",
            "slot",
            "socket_way",
            "vat",
        ],
        "a vat has slots with instances and calls, and each of these the vat in which it acts",
    ),
    (
        "src/membrane",
        &["answer", "call", "call_end", "forward", "hook", "pipeline", "relay"],
        "a call holds its reply, a reply its pipeline, a pipeline further calls",
    ),
];

/// More re-exports in a row than there are.
const EXPORTS_MAX: usize = 8;

/// The name of a crate's folder, and the modules down to one.
type Module = Vec<String>;

/// Names that a module imports, each with the path that it stands for.
type Exports = BTreeMap<(Module, String), Module>;

/// Imports between the entries of one folder, each with a place where it stands.
type Arrows<'a> = BTreeMap<(String, String), (&'a Source, usize)>;

/// Every import that is part of a circle in its folder, and exceptions that are none.
pub(crate) fn check(sources: &[Source]) -> Vec<Violation> {
    check_but(&EXCEPTIONS, sources)
}

fn check_but(exceptions: &[Exception], sources: &[Source]) -> Vec<Violation> {
    let folders = folders(sources);
    let mut violations = Vec::new();
    let mut in_circles = BTreeSet::new();
    for (folder, arrows) in &folders {
        let allowed = exceptions.iter().find(|(of, ..)| of == folder);
        let allowed = allowed.map_or(&[][..], |(_, entries, _)| entries);
        let round = arrows.iter().filter(|((from, to), _)| leads(arrows, to, from));
        for ((from, to), (source, at)) in round {
            in_circles.insert((folder.as_str(), from.as_str()));
            if ![from, to].into_iter().all(|entry| allowed.contains(&entry.as_str())) {
                let rule =
                    format!("in `{folder}`, `{from}` imports `{to}`, which leads back to it");
                let mend = "move what both need into a file of its own".to_owned();
                let (path, line) = (source.path.clone(), source.line(*at));
                violations.push(Violation { path, line, rule, mend });
            }
        }
    }
    let named = exceptions
        .iter()
        .flat_map(|(folder, entries, _)| entries.iter().map(move |entry| (*folder, *entry)));
    let stale = named.filter(|(folder, entry)| {
        folders.contains_key(*folder) && !in_circles.contains(&(*folder, *entry))
    });
    violations.extend(stale.map(|(folder, entry)| Violation {
        path: "tests/tidy/circles.rs".to_owned(),
        line: 1,
        rule: format!("`{folder}/{entry}` is an exception, and is in no circle"),
        mend: "take it off the list".to_owned(),
    }));
    violations
}

/// The imports within each folder, between its files and folders.
fn folders(sources: &[Source]) -> BTreeMap<String, Arrows<'_>> {
    let sources: Vec<(Module, &Source)> =
        sources.iter().filter_map(|source| Some((module(&source.path)?, source))).collect();
    let for_tests: BTreeSet<Module> = sources.iter().flat_map(for_tests).collect();
    let sources: Vec<_> = sources
        .into_iter()
        .filter(|(module, _)| (1..=module.len()).all(|end| !for_tests.contains(&module[..end])))
        .collect();
    let modules: BTreeSet<&Module> = sources.iter().map(|(module, _)| module).collect();
    let exports: Exports = sources
        .iter()
        .flat_map(|(from, source)| {
            let in_use = source.paths().into_iter().filter(|named| named.in_use);
            in_use.filter_map(|named| {
                let path = path(source, from, &named, &modules)?;
                Some(((from.clone(), path.last()?.clone()), path))
            })
        })
        .collect();
    let mut folders: BTreeMap<String, Arrows> = BTreeMap::new();
    for (from, source) in &sources {
        let end = source.code.find("mod tests {").unwrap_or(source.code.len());
        for named in source.paths().into_iter().filter(|named| named.at < end) {
            let path = path(source, from, &named, &modules);
            let Some(to) = path.and_then(|path| resolve(path, &modules, &exports)) else {
                continue;
            };
            let shared = from.iter().zip(&to).take_while(|(from, to)| from == to).count();
            if let (Some(entry), Some(to)) = (from.get(shared), to.get(shared)) {
                let arrows = folders.entry(from[..shared].join("/")).or_default();
                arrows.entry((entry.clone(), to.clone())).or_insert((source, named.at));
            }
        }
    }
    folders
}

/// The modules of a file that are compiled for tests alone.
fn for_tests((module, source): &(Module, &Source)) -> Vec<Module> {
    let marked = source.code.split("#[cfg(test)]").skip(1);
    let names = marked.filter_map(|rest| rest.trim_start().strip_prefix("mod ")?.split(';').next());
    names.map(|name| [module.clone(), vec![name.to_owned()]].concat()).collect()
}

/// The module that a path leads to, through the names that modules on the way import.
fn resolve(mut path: Module, modules: &BTreeSet<&Module>, exports: &Exports) -> Option<Module> {
    for _ in 0..EXPORTS_MAX {
        let depth =
            (1..=path.len()).rev().find(|&depth| modules.contains(&path[..depth].to_vec()))?;
        let module = path[..depth].to_vec();
        let Some(name) = path.get(depth) else { return Some(module) };
        let Some(export) = exports.get(&(module.clone(), name.clone())) else {
            return Some(module);
        };
        path = [export, &path[depth + 1..]].concat();
    }
    None
}

/// The path that a file names, from its crate down; none if it leads to another crate.
fn path(
    source: &Source,
    from: &Module,
    named: &Named,
    modules: &BTreeSet<&Module>,
) -> Option<Module> {
    let krate = &from[..1];
    if let Some(path) = absolute(source, named) {
        let path = path.strip_prefix(&["client".to_owned(), "src".to_owned()][..]).unwrap_or(&path);
        return Some([krate, path].concat());
    }
    let below = named.segments.strip_prefix(&["self".to_owned()][..]).unwrap_or(&named.segments);
    let child = [from, &below[..1]].concat();
    modules.contains(&child).then(|| [from, below].concat())
}

/// Tells whether the arrows lead from one entry to another.
fn leads(arrows: &Arrows, from: &str, to: &str) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(entry) = next.pop() {
        if entry == to {
            return true;
        }
        if seen.insert(entry) {
            next.extend(arrows.keys().filter(|(from, _)| from == entry).map(|(_, to)| to.as_str()));
        }
    }
    false
}

/// The module of a file of the server or of the client library.
fn module(path: &str) -> Option<Module> {
    let (krate, below) = match path.strip_prefix("client/src/") {
        Some(below) => ("client", below),
        None => ("src", path.strip_prefix("src/")?),
    };
    let names = below.trim_end_matches(".rs").split('/');
    let names = names.filter(|name| !matches!(*name, "mod" | "lib" | "main"));
    Some(std::iter::once(krate).chain(names).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<_> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
        check(&sources).into_iter().map(|violation| violation.rule).collect()
    }

    #[test]
    fn circles_are_found_through_exports_and_folders() {
        let (a, b) = ("src/gateway/a.rs", "src/gateway/b.rs");
        let root = ("src/gateway/mod.rs", "mod a; mod b; mod c; pub(crate) use c::{C, d::D};");
        let back = [
            (b, "use super::a::A;"),
            (b, "fn f() { crate::gateway::a::f() }"),
            ("src/gateway/b/inner.rs", "use crate::gateway::a::A;"),
        ];
        for back in back {
            let files = [root, (a, "use super::b::B;"), (b, ""), back];
            assert_eq!(found(&files).len(), 2, "{back:?}");
        }
        let by_export = [
            root,
            (a, "use super::D;"),
            ("src/gateway/c.rs", "use super::a::A;"),
            ("src/gateway/c/d.rs", "struct D;"),
        ];
        assert_eq!(found(&by_export).len(), 2);
        let client =
            [("client/src/a.rs", "use super::b::B;"), ("client/src/b.rs", "use crate::a::A;")];
        assert_eq!(found(&client).len(), 2);
    }

    #[test]
    fn an_exception_names_all_of_its_circle_and_nothing_else() {
        let files = [
            ("src/gateway/mod.rs", "mod a; mod b; mod c;"),
            ("src/gateway/a.rs", "use super::b::B;"),
            ("src/gateway/b.rs", "use super::a::A;"),
            ("src/gateway/c.rs", "use super::a::A;"),
        ];
        let sources: Vec<_> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
        let count = |entries| check_but(&[("src/gateway", entries, "of old")], &sources).len();
        assert_eq!(count(&["a", "b"]), 0);
        assert_eq!(count(&["a"]), 2, "both ways are found");
        assert_eq!(count(&["a", "b", "c"]), 1, "it is in no circle");
    }

    #[test]
    fn files_below_one_may_use_it_and_tests_may_use_all() {
        let root = ("src/gateway/mod.rs", "mod a; mod b; struct Own; #[cfg(test)]\nmod tests;");
        for good in [
            ("src/gateway/b.rs", "use super::A; use super::Own;"),
            ("src/gateway/a/c.rs", "use super::A; use crate::gateway::Own;"),
            ("src/gateway/b.rs", "fn f() {}\n#[cfg(test)]\nmod tests { use super::super::c::C; }"),
            ("src/gateway/tests.rs", "use super::a::A;"),
        ] {
            let files = [
                root,
                ("src/gateway/a.rs", "mod c; use c::C;"),
                ("src/gateway/c.rs", "use super::b::B;"),
                good,
            ];
            assert_eq!(found(&files), Vec::<String>::new(), "{good:?}");
        }
    }
}
