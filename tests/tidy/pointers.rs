//! The rule that the page leads nowhere where there is nothing: each function of its table of
//! decisions stands in the file that the row names.

use crate::Violation;
use crate::code::{Source, words};
use crate::methods::short;

/// The first line of the table: a question, the functions that answer it, and their file.
const HEADER: &str = "| question | function | in |";

pub(crate) fn check(sources: &[Source], page: &str) -> Vec<Violation> {
    let broken = |line: usize, rule: String| Violation {
        path: "ARCHITECTURE.md".to_owned(),
        line,
        rule,
        mend: "bring the table of decisions and the sources together".to_owned(),
    };
    let mut violations = Vec::new();
    let lines = (1..).zip(page.lines()).skip_while(|(_, line)| line.trim() != HEADER).skip(2);
    let mut rows = lines.take_while(|(_, line)| line.starts_with('|')).peekable();
    if rows.peek().is_none() {
        violations.push(broken(1, format!("there is no table under the line `{HEADER}`")));
    }
    for (at, row) in rows {
        let mut cells = row.trim_matches('|').split('|').skip(1).map(quoted);
        let (functions, files) = (cells.next().unwrap_or_default(), cells.next());
        let &[file] = files.unwrap_or_default().as_slice() else {
            violations.push(broken(at, "a row names one file".to_owned()));
            continue;
        };
        let source = sources.iter().find(|source| short(&source.path) == file);
        let is_there = |name: &str| source.is_some_and(|source| has_function(source, name));
        if functions.is_empty() {
            violations.push(broken(at, "the row names no function".to_owned()));
        }
        let missing = functions.into_iter().filter(|name| !is_there(name));
        violations.extend(missing.map(|name| broken(at, format!("`{file}` has no `fn {name}`"))));
    }
    violations
}

fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn has_function(source: &Source, name: &str) -> bool {
    let all: Vec<_> = words(&source.code).map(|(_, word)| word).collect();
    all.windows(2).any(|pair| pair == ["fn", name])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_functions_where_they_are() {
        let sources = [
            Source::new("src/gate.rs", "//! The gate.\nfn pump() {}\n// fn gone() {}\n"),
            Source::new("client/src/guard/budget.rs", "//! The budget.\nfn hold() {}\n"),
        ];
        let page = |rows: &str| format!("text\n\n{HEADER}\n|---|---|---|\n{rows}\n\nmore\n");
        let check = |rows: &str| -> Vec<_> {
            check(&sources, &page(rows)).into_iter().map(|found| (found.line, found.rule)).collect()
        };
        let good = "| May it leave? | `pump` | `gate` |\n| | `hold` | `client/guard/budget` |";
        assert_eq!(check(good), []);
        let gone = |line, what: &str| vec![(line, what.to_owned())];
        assert_eq!(check("| Why? | `gone` | `gate` |"), gone(5, "`gate` has no `fn gone`"));
        let moved = "| Why? | `pump`, `hold` | `gate` |";
        assert_eq!(check(moved), gone(5, "`gate` has no `fn hold`"));
        assert_eq!(check("| Why? | `pump` | `door` |"), gone(5, "`door` has no `fn pump`"));
        assert_eq!(check("| Why? | | `gate` |"), gone(5, "the row names no function"));
        assert_eq!(check("| Why? | `pump` | somewhere |"), gone(5, "a row names one file"));
        assert_eq!(super::check(&sources, "no table").len(), 1);
    }
}
