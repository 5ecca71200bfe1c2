//! The rules about names and types that a reader can't understand where they stand: types that are
//! named by a word with many meanings or as another one is, tests of one name, bools at a call, and
//! methods as two numbers.

use std::collections::BTreeMap;

use crate::Violation;
use crate::code::{Source, words};

/// The folders whose types all keep to these rules.
const FOLDERS: [&str; 2] = ["src/host/", "src/membrane/"];
/// The folders whose types do so if other files may name them.
const FOLDERS_OF_SHARED_TYPES: [&str; 5] =
    ["client/src/", "src/gateway/", "src/http/", "src/outbound/", "src/server/"];
/// Types with such a name all the same: users know them by it, or it is their file's.
const NAMED_SO: [(&str, &str); 3] = [
    ("client/src/sturdyref.rs", "Target"),
    ("src/http/socket/table.rs", "Entry"),
    ("src/server/start.rs", "Running"),
];
/// The folders whose functions take no bool among other parameters.
const FOLDERS_WITHOUT_BOOLS: [&str; 2] = ["client/src/", "src/"];
/// Methods of other crates' traits, whose parameters are theirs.
const OF_OTHER_CRATES: [&str; 2] = ["set_pointer_builder", "visit_bool"];
/// Words before the name of a type.
const DECLARING: [&str; 4] = ["struct", "enum", "trait", "type"];
/// Types of one name in several files of one part: each verb has its options, each kind of file
/// its head, and each kind of error its results.
const SAME_IN_EACH: [(&str, &str); 3] =
    [("src/cli", "Options"), ("src/storage", "Head"), ("src/storage", "Result")];
/// Folders and files that are compiled for tests alone.
const FOR_TESTS: [&str; 4] = ["/tests/", "/testing/", "/guard/raw.rs", "_tests.rs"];

/// Words that are no name of a type, because several things were called so at once, or because they
/// are participles and say nothing of the thing.
const VAGUE: [&str; 16] = [
    "State", "Entry", "Claim", "Link", "Known", "Kept", "Found", "Seen", "Ended", "Ending",
    "Running", "Of", "Start", "Way", "Target", "Cause",
];

/// Types with a name that is vague.
pub(crate) fn check_types(source: &Source) -> Vec<Violation> {
    let (all_types, shared) = (is_in(source, &FOLDERS), is_in(source, &FOLDERS_OF_SHARED_TYPES));
    if !all_types && !shared {
        return Vec::new();
    }
    let all: Vec<_> = words(&source.code).collect();
    let declares = |word: &str| DECLARING.contains(&word);
    let is_shared = |at: usize| {
        let line = source.code[..at].rsplit('\n').next().unwrap_or_default();
        line.trim_start().starts_with("pub")
    };
    let named = all.windows(2).filter(|pair| {
        declares(pair[0].1)
            && VAGUE.contains(&pair[1].1)
            && (all_types || is_shared(pair[0].0))
            && !NAMED_SO.contains(&(&*source.path, pair[1].1))
    });
    named
        .map(|pair| {
            let rule = format!("a type is called `{}`, as many things are", pair[1].1);
            violation(source, pair[1].0, rule, "say what it is the state, end or place of")
        })
        .collect()
}

/// Functions that take a bool beside something else, so that their calls say `true` of who knows
/// what.
pub(crate) fn check_bools(source: &Source) -> Vec<Violation> {
    if !is_in(source, &FOLDERS_WITHOUT_BOOLS) {
        return Vec::new();
    }
    let end = source.code.find("mod tests {").unwrap_or(source.code.len());
    let takes = source.words("fn").take_while(|at| *at < end).filter(|&at| {
        let name = words(&source.code[at..]).nth(1).map_or("", |(_, name)| name);
        if OF_OTHER_CRATES.contains(&name) {
            return false;
        }
        let parameters = parameters(&source.code[at..]);
        let bools = parameters.iter().filter(|parameter| parameter.ends_with(": bool")).count();
        bools > 0 && parameters.iter().filter(|parameter| !parameter.is_empty()).count() > 1
    });
    let mend = "take an enum with two variants that say what is meant";
    takes
        .map(|at| violation(source, at, "a function takes a bool among others".to_owned(), mend))
        .collect()
}

/// Methods of interfaces that go by two numbers; capnp's own traits do so at the membrane.
pub(crate) fn check_methods(source: &Source) -> Vec<Violation> {
    if !is_in(source, &FOLDERS[..1]) {
        return Vec::new();
    }
    let ids = source.words("interface").filter(|&at| {
        let rest = &source.code[at + "interface".len()..];
        rest.strip_prefix(": u64").is_some_and(|rest| rest.starts_with([',', ')']))
    });
    let rule = "a method goes by two numbers";
    ids.map(|at| violation(source, at, rule.to_owned(), "take a `Method`")).collect()
}

/// Types of one part of the code map that other files may name, and that have the name of another
/// such type.
pub(crate) fn check_unique_types(sources: &[Source]) -> Vec<Violation> {
    let mut first: BTreeMap<(&str, &str), &Source> = BTreeMap::new();
    let mut violations = Vec::new();
    for source in sources.iter().filter(|source| is_in(source, &FOLDERS_WITHOUT_BOOLS)) {
        let code = source.code.split("mod tests {").next().unwrap_or_default();
        let all: Vec<_> = words(code).collect();
        let declared = all.windows(2).filter(|pair| {
            let line = code[..pair[0].0].rsplit('\n').next().unwrap_or_default();
            DECLARING.contains(&pair[0].1) && line.starts_with("pub")
        });
        for (at, name) in declared.map(|pair| pair[1]) {
            let part = part(&source.path);
            let other = *first.entry((part, name)).or_insert(source);
            if other.path != source.path && !SAME_IN_EACH.contains(&(part, name)) {
                let rule = format!("`{}` has a type `{name}` too", other.path);
                violations.push(violation(source, at, rule, "say what sets it apart"));
            }
        }
    }
    violations
}

/// Tests that have the name of another test, of this program or of another.
pub(crate) fn check_unique_tests(sources: &[Source]) -> Vec<Violation> {
    let mut first: BTreeMap<&str, &Source> = BTreeMap::new();
    let mut violations = Vec::new();
    // A macro makes those of `testing`, in a module for each thing that is tested.
    for source in sources.iter().filter(|source| !source.path.contains("/testing/")) {
        for (at, name) in tests_in(source) {
            if let Some(other) = first.insert(name, source) {
                let rule = format!("`{}` has a test `{name}` too", other.path);
                violations.push(violation(source, at, rule, "say what sets it apart"));
            }
        }
    }
    violations
}

/// The names of the functions that are marked as tests.
fn tests_in(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    let marks = ["#[test]", "#[tokio::test"];
    let marked = marks.into_iter().flat_map(|mark| source.code.match_indices(mark));
    marked.filter_map(|(at, _)| {
        let rest = &source.code[at..];
        let mut after = words(rest).skip_while(|(_, word)| *word != "fn").skip(1);
        after.next().map(|(below, name)| (at + below, name))
    })
}

/// The part of the code map to which a file belongs.
fn part(path: &str) -> &str {
    let folder = if path.starts_with("client/src/") { "client/src/" } else { "src/" };
    let below = &path[folder.len()..];
    let end = below.find(['/', '.']).unwrap_or(below.len());
    &path[..folder.len() + end]
}

fn is_in(source: &Source, folders: &[&str]) -> bool {
    let is_for_tests = FOR_TESTS.iter().any(|folder| source.path.contains(folder))
        || source.path.ends_with("/tests.rs");
    !is_for_tests && folders.iter().any(|folder| source.path.starts_with(folder))
}

/// The parameters of the function that `code` begins with. Those of closures within their types
/// belong to them.
fn parameters(code: &str) -> Vec<&str> {
    let Some(open) = code.find('(') else { return Vec::new() };
    // A `(` in the generics belongs to a bound, such as `F: Fn(u8)`.
    let open = match code[..open].rfind('<') {
        Some(_) => code.find(">(").map_or(open, |at| at + 1),
        None => open,
    };
    let (mut depth, mut start) = (0_usize, open + 1);
    let mut parameters = Vec::new();
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'(' | b'[' | b'<' => depth += 1,
            b'>' if code.as_bytes()[at - 1] == b'-' => {}
            b')' | b']' | b'>' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    parameters.push(code[start..at].trim());
                    break;
                }
            }
            b',' if depth == 1 => {
                parameters.push(code[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parameters
}

fn violation(source: &Source, at: usize, rule: String, mend: &str) -> Violation {
    let (path, line) = (source.path.clone(), source.line(at));
    Violation { path, line, rule, mend: mend.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rule: fn(&Source) -> Vec<Violation>, path: &str, text: &str) -> usize {
        rule(&Source::new(path, text)).len()
    }

    #[test]
    fn types_say_what_they_are() {
        for good in ["struct SlotState;", "let State = 1;", "// struct State;"] {
            assert_eq!(count(check_types, "src/host/a.rs", good), 0, "{good}");
        }
        for bad in ["struct State;", "pub(super) enum Known<T> {}", "type Of = u8;"] {
            assert_eq!(count(check_types, "src/membrane/a.rs", bad), 1, "{bad}");
            assert_eq!(count(check_types, "src/host/tests/a.rs", bad), 0, "{bad}");
            assert_eq!(count(check_types, "src/storage/a.rs", bad), 0, "{bad}");
            let is_shared = usize::from(bad.starts_with("pub"));
            assert_eq!(count(check_types, "src/gateway/a.rs", bad), is_shared, "{bad}");
        }
        let running = "pub struct Running;";
        assert_eq!(count(check_types, "src/server/start.rs", running), 0);
        assert_eq!(count(check_types, "src/server/a.rs", running), 1);
    }

    #[test]
    fn a_bool_stands_alone_or_has_a_name_at_the_call() {
        for good in [
            "fn f(is_it: bool) {}",
            "fn f(&self) -> bool { let g = |a: u8, b: bool| b; true }",
            "fn f(look: impl Fn(u8) -> bool, more: u8) {}",
            "fn f<T: Fn(bool, u8)>(look: T) {}",
            "fn visit_bool(self, value: bool) {}",
            "mod tests {\nfn f(a: u8, b: bool) {}",
            "struct A { a: bool, b: bool }",
        ] {
            assert_eq!(count(check_bools, "src/storage/a.rs", good), 0, "{good}");
        }
        for bad in ["fn f(&self, is_it: bool) {}", "fn f<T: A>(\n    a: T,\n    b: bool,\n) {}"] {
            assert_eq!(count(check_bools, "src/storage/a.rs", bad), 1, "{bad}");
            assert_eq!(count(check_bools, "client/src/a.rs", bad), 1, "{bad}");
            assert_eq!(count(check_bools, "src/storage/testing/a.rs", bad), 0, "{bad}");
            assert_eq!(count(check_bools, "bench/src/a.rs", bad), 0, "{bad}");
        }
    }

    #[test]
    fn a_method_is_one_value() {
        let bad = "fn f(interface: u64, method: u16) {}";
        assert_eq!(count(check_methods, "src/host/a.rs", bad), 1);
        assert_eq!(count(check_methods, "src/membrane/a.rs", bad), 0, "hooks are capnp's");
        assert_eq!(count(check_methods, "src/host/a.rs", "fn f(method: Method) {}"), 0);
    }

    fn rules(check: fn(&[Source]) -> Vec<Violation>, files: &[(&str, &str)]) -> usize {
        let sources: Vec<_> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
        check(&sources).len()
    }

    #[test]
    fn a_name_is_that_of_one_type_in_its_part() {
        let types = |path, text| {
            rules(check_unique_types, &[("src/host/a.rs", "pub(crate) struct Row;"), (path, text)])
        };
        assert_eq!(types("src/host/b/c.rs", "pub enum Row {}"), 1);
        for (path, text) in [
            ("src/host/b.rs", "struct Row;"),
            ("src/host/b.rs", "pub struct Rows;"),
            ("src/host/b.rs", "mod tests {\npub struct Row;"),
            ("src/host/tests/b.rs", "pub struct Row;"),
            ("src/storage/b.rs", "pub struct Row;"),
            ("client/src/host.rs", "pub struct Row;"),
        ] {
            assert_eq!(types(path, text), 0, "{path}: {text}");
        }
        let options =
            [("src/cli/a.rs", "pub struct Options;"), ("src/cli/b.rs", "pub struct Options;")];
        assert_eq!(rules(check_unique_types, &options), 0);
    }

    #[test]
    fn a_name_is_that_of_one_test() {
        let tests =
            |text| rules(check_unique_tests, &[("a.rs", "#[test]\nfn it() {}"), ("b.rs", text)]);
        assert_eq!(tests("#[test]\n#[cfg(unix)]\nfn it() {}"), 1);
        assert_eq!(tests("#[tokio::test(flavor = \"local\")]\nasync fn it() {}"), 1);
        for good in ["fn it() {}", "#[test]\nfn that() {}", "// #[test]\nfn it() {}"] {
            assert_eq!(tests(good), 0, "{good}");
        }
    }
}
