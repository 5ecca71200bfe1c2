//! The rule that the floors of a folder import only downward, as the second table of
//! `ARCHITECTURE.md` defines.

use crate::Violation;
use crate::code::Source;
use crate::imports::absolute;
use crate::table::Table;

/// Folders that are compiled only for tests, so the compiler keeps all other code from naming them.
const FOR_TESTS: [&str; 2] = ["tests", "testing"];

/// The first line of the table: folder, floors from the lowest, and the floors that they may
/// import.
pub(crate) const HEADER: &str = "| folder | floors | may import |";

/// Every import of the file that leads to a floor that its own may not import, or that bypasses the
/// floors.
pub(crate) fn check(source: &Source, floors: &Table) -> Vec<Violation> {
    let Some(from) = floor_of(&source.path).filter(|floor| floors.contains(floor)) else {
        return Vec::new();
    };
    let (folder, _) = from.split_once('/').unwrap_or_default();
    let violation = |named: crate::code::Named| {
        let path = absolute(source, &named)?;
        let name = path.get(1).filter(|_| path.first().is_some_and(|first| first == folder))?;
        if FOR_TESTS.contains(&name.as_str()) {
            return None;
        }
        let to = format!("{folder}/{name}");
        let (rule, mend) = if !floors.contains(&to) {
            let rule = format!("`{from}` goes around the floors of `{folder}` to `{name}`");
            (rule, "name the floor that has it")
        } else if !floors.allows(&from, &to) {
            let rule = format!("`{from}` imports `{to}`, but {}", floors.describe(&from));
            (rule, "move what both need to a lower floor, or hand it over as a value")
        } else {
            return None;
        };
        let (path, line) = (source.path.clone(), source.line(named.at));
        Some(Violation { path, line, rule, mend: mend.to_owned() })
    };
    source.paths().into_iter().filter_map(violation).collect()
}

/// Floors that the table allows to import themselves or a floor of a later row: a circle could
/// cross those.
pub(crate) fn check_order(floors: &Table) -> Vec<Violation> {
    let upward = floors.modules().flat_map(|from| {
        let not_below = floors.modules().skip_while(move |floor| *floor != from);
        not_below.skip(1).filter(move |to| floors.allows(from, to)).map(move |to| (from, to))
    });
    upward
        .map(|(from, to)| Violation {
            path: "ARCHITECTURE.md".to_owned(),
            line: 1,
            rule: format!("the floor `{from}` may import `{to}`, which isn't below it"),
            mend: "order the rows of the table from the lowest floor to the highest".to_owned(),
        })
        .collect()
}

/// Floors that the table doesn't name although their folder has others, and names without a folder.
pub(crate) fn check_tree(paths: &[String], floors: &Table) -> Vec<Violation> {
    let found: Vec<String> = paths.iter().filter_map(|path| floor_of(path)).collect();
    let folders: Vec<&str> = floors.modules().filter_map(|floor| floor.split('/').next()).collect();
    let violation = |path: &str, rule: String| {
        let mend =
            "bring the table of floors in ARCHITECTURE.md and the folders together".to_owned();
        Violation { path: path.to_owned(), line: 1, rule, mend }
    };
    let gone = floors.modules().filter(|floor| !found.iter().any(|found| found == floor));
    let mut violations: Vec<_> = gone
        .map(|floor| violation("ARCHITECTURE.md", format!("there is no floor `{floor}`")))
        .collect();
    for path in paths {
        let Some(floor) = floor_of(path) else { continue };
        let (folder, name) = floor.split_once('/').unwrap_or_default();
        let is_for_tests = FOR_TESTS.contains(&name);
        if folders.contains(&folder) && !is_for_tests && !floors.contains(&floor) {
            violations.push(violation(path, format!("no floor of `{folder}` has this file")));
        }
    }
    violations
}

/// The folder of `src` and the folder or file in it, such as `host/engine`; none for the root of
/// either.
fn floor_of(path: &str) -> Option<String> {
    let (folder, rest) = path.strip_prefix("src/")?.split_once('/')?;
    let name = rest.split('/').next()?.trim_end_matches(".rs");
    (name != "mod").then(|| format!("{folder}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
| folder | floors | may import |
|---|---|---|
| host | `host/low` | nothing |
| host | `host/high` | `host/low` |
";

    fn floors() -> Table {
        Table::parse_under(PAGE, HEADER).unwrap()
    }

    fn found(path: &str, text: &str) -> Vec<String> {
        check(&Source::new(path, text), &floors()).into_iter().map(|found| found.rule).collect()
    }

    #[test]
    fn a_floor_imports_downward_and_never_around() {
        let down =
            "use crate::host::low::vat::Vat;\nuse super::other;\nuse crate::error::Result;\n";
        assert!(found("src/host/high/agent.rs", down).is_empty());
        for (text, says) in [
            ("use crate::host::high::agent::Agent;\n", "imports `host/high`"),
            ("use super::super::high::agent::Agent;\n", "imports `host/high`"),
            ("fn f() { crate::host::high::f(); }\n", "imports `host/high`"),
            ("use crate::host::Vat;\n", "goes around"),
        ] {
            let rules = found("src/host/low/vat.rs", text);
            assert!(rules.len() == 1 && rules[0].contains(says), "{text}: {rules:?}");
        }
        assert!(found("src/host/tests/vat.rs", "use crate::host::Vat;\n").is_empty());
    }

    #[test]
    fn tests_may_name_what_is_compiled_for_them_alone() {
        let text = "mod tests { use crate::host::testing::model::MemoryLog; }\n";
        assert!(found("src/host/low/vat.rs", text).is_empty());
    }

    #[test]
    fn a_table_with_a_circle_is_refused() {
        assert!(check_order(&floors()).is_empty());
        let circle = PAGE.replace("| nothing |", "| `host/high` |");
        let circle = Table::parse_under(&circle, HEADER).unwrap();
        assert_eq!(check_order(&circle).len(), 1);
    }

    #[test]
    fn the_table_names_the_floors_of_the_tree() {
        let paths = ["src/host/mod.rs", "src/host/low/vat.rs", "src/host/high/mod.rs"];
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        assert!(check_tree(&paths, &floors()).is_empty());
        assert_eq!(check_tree(&paths[..2], &floors()).len(), 1);
        let more = [&paths[..], &["src/host/stray.rs".to_owned()]].concat();
        assert_eq!(check_tree(&more, &floors()).len(), 1);
    }
}
