//! The rule that the README shows the rows of `docs/numbers.md` as they are there.
//!
//! Both pages are written by hand after a measurement, and a row that is mended on one alone would
//! say on the other that a target is met.

use crate::Violation;

/// The first line of the README's table.
const HEADER: &str = "| row | measured | baseline | ratio | target |";

/// Rows of the README that the page of numbers doesn't have so.
pub(crate) fn check(readme: &str, page: &str) -> Vec<Violation> {
    let rows = readme.lines().enumerate().skip_while(|(_, line)| *line != HEADER).skip(2);
    let rows = rows.take_while(|(_, line)| line.starts_with('|'));
    let is_there = |row: &str| {
        // The page names each row before its words.
        page.lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('|'))
            .any(|(_, rest)| rest.trim() == row.trim_start_matches('|').trim())
    };
    let changed = rows.filter(|(_, row)| !is_there(row)).map(|(at, _)| Violation {
        path: "README.md".to_owned(),
        line: at + 1,
        rule: "the row of numbers isn't one of docs/numbers.md".to_owned(),
        mend: "copy it from there".to_owned(),
    });
    changed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_that_of_the_page() {
        let page = "| name | row |\n|---|---|\n| `get` | GET | 2/s | | | ≥ 1 |\n";
        let count = |row: &str| check(&format!("a\n{HEADER}\n|---|\n{row}\n\n| x |"), page).len();
        assert_eq!(count("| GET | 2/s | | | ≥ 1 |"), 0);
        for other in ["| GET | 3/s | | | ≥ 1 |", "| GET | 2/s | | |", "| POST | 2/s | | | ≥ 1 |"]
        {
            assert_eq!(count(other), 1, "{other}");
        }
    }
}
