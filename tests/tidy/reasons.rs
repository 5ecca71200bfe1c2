//! The rules about the words with which errors begin: they stand in one table in the code and in
//! one on the page, and nowhere else.
//!
//! Tests may spell a word, because they pin down the text that users read.

use std::collections::BTreeMap;

use capstead::Reason;

use crate::Violation;
use crate::code::{Source, strings};

/// The file with the table.
const TABLE: &str = "client/src/reason.rs";

/// Words that begin texts which aren't errors of the server or the client library.
const OTHERS: [&str; 4] = [
    // The program's name, before messages for a person.
    "capstead",
    // A line of the tool that imports.
    "grants",
    // A header of HTTP.
    "content-length",
    // An error of the class `Poll`: classes have words of their own.
    "too-many-options",
];

/// Literals that begin with a word and a colon.
pub(crate) fn check_literals(source: &Source) -> Vec<Violation> {
    if !is_product(&source.path) || source.path == TABLE {
        return Vec::new();
    }
    let tests = source.text.find("#[cfg(test)]\nmod tests {").unwrap_or(source.text.len());
    let literals = strings(&source.text).into_iter().filter(|(at, _)| *at < tests);
    let found = literals.filter_map(|(at, text)| {
        let word = word_of(text)?;
        let mend = match Reason::ALL.iter().find(|reason| reason.word() == word) {
            Some(reason) => format!("use `Reason::{reason:?}`"),
            None if OTHERS.contains(&word) => return None,
            None => format!("add it to {TABLE} and docs/errors.md, or to what is no reason"),
        };
        let rule = format!("a text begins with the word of an error, `{word}:`");
        Some(Violation { path: source.path.clone(), line: source.line(at), rule, mend })
    });
    found.collect()
}

/// The code that users run.
fn is_product(path: &str) -> bool {
    let is_test = |part: &str| part == "tests" || part == "tests.rs" || part.ends_with("_tests.rs");
    ["src/", "client/src/"].iter().any(|folder| path.starts_with(folder))
        && !path.split('/').any(is_test)
}

/// The word of lower-case letters and hyphens at the beginning of a text, if a colon follows, and
/// then a space or the end.
fn word_of(text: &str) -> Option<&str> {
    let (word, rest) = text.split_once(':')?;
    let is_word = word.starts_with(|letter: char| letter.is_ascii_lowercase())
        && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    (is_word && (rest.is_empty() || rest.starts_with(' '))).then_some(word)
}

/// The places where the page and the code differ.
pub(crate) fn check_page(page: &str) -> Vec<Violation> {
    let path = "docs/errors.md";
    let violation = |line: usize, rule: String| Violation {
        path: path.to_owned(),
        line,
        rule,
        mend: format!("make the table say what {TABLE} says"),
    };
    let mut violations = Vec::new();
    let mut rows = BTreeMap::new();
    for (line, text) in (1..).zip(page.lines()) {
        let Some((word, kind)) = row(text) else { continue };
        match Reason::ALL.iter().find(|reason| reason.word() == word) {
            None => violations.push(violation(line, format!("no error begins with `{word}:`"))),
            Some(reason) => {
                let known = format!("{:?}", reason.kind()).to_lowercase();
                if kind != known {
                    let rule = format!("errors with `{word}:` are `{known}`, and not `{kind}`");
                    violations.push(violation(line, rule));
                }
                if rows.insert(word, line).is_some() {
                    violations.push(violation(line, format!("`{word}:` stands there twice")));
                }
            }
        }
    }
    let missing = Reason::ALL.iter().filter(|reason| !rows.contains_key(reason.word()));
    violations.extend(missing.map(|reason| violation(1, format!("`{reason}:` is missing"))));
    violations
}

/// The words that the client in C++ knows, where they differ from those of the code.
pub(crate) fn check_cpp(path: &str, text: &str) -> Vec<Violation> {
    let list = text.split_once("REASONS[] = {").and_then(|(_, rest)| rest.split_once("};"));
    let list = list.map_or("", |(list, _)| list);
    let words: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
    let known: Vec<&str> = Reason::ALL.iter().map(|reason| reason.word()).collect();
    if words == known {
        return Vec::new();
    }
    let differs = words.iter().zip(&known).position(|(word, known)| word != known);
    let at = differs.unwrap_or(words.len().min(known.len()));
    let (found, wanted) = (words.get(at), known.get(at));
    let rule = format!("reason {at} is {found:?} in C++ and {wanted:?} in Rust");
    let mend = format!("make the list say what {TABLE} says, in its order");
    vec![Violation { path: path.to_owned(), line: 1, rule, mend }]
}

/// The word and the kind of a row of the table.
fn row(line: &str) -> Option<(&str, &str)> {
    let (word, rest) = line.strip_prefix("| `")?.split_once(":` | `")?;
    Some((word, rest.split_once("` |")?.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check_literals(&Source::new(path, text)).len()
    }

    #[test]
    fn a_word_is_spelled_in_the_table_alone() {
        for bad in [
            "failed(\"over-quota: too much\")",
            "failed(format!(\n    \"deadlock: {n} calls wait\"\n))",
            "const REVOKED: &str = \"revoked:\";",
            "text.contains(\"no-such-word: \")",
            "#[error(\"key-length: {length} bytes\")]",
            "r#\"unknown: it was cut short\"#",
        ] {
            assert_eq!(count("src/host/a.rs", bad), 1, "{bad}");
            assert_eq!(count("client/src/guard/a.rs", bad), 1, "{bad}");
            for elsewhere in [TABLE, "src/host/tests/a.rs", "client/src/a_tests.rs", "tests/a.rs"] {
                assert_eq!(count(elsewhere, bad), 0, "{bad} in {elsewhere}");
            }
            let tested = format!("#[cfg(test)]\nmod tests {{\n{bad}\n}}");
            assert_eq!(count("src/a.rs", &tested), 0, "{tested}");
        }
        for good in [
            "Reason::OverQuota.error(\"too much\")",
            "// \"over-quota: too much\"",
            "text.strip_prefix(\"capstead://\")",
            "format!(\"capstead: {text}\")",
            "format!(\"the object is over-quota: {text}\")",
            "format!(\"{reason}: too much\")",
        ] {
            assert_eq!(count("src/host/a.rs", good), 0, "{good}");
        }
    }

    #[test]
    fn the_page_has_each_word_once_with_its_kind() {
        let row = |reason: &Reason| {
            let kind = format!("{:?}", reason.kind()).to_lowercase();
            format!("| `{reason}:` | `{kind}` | so | so |\n")
        };
        let page: String = Reason::ALL.iter().map(row).collect();
        assert!(check_page(&page).is_empty());
        let first = row(&Reason::ALL[0]);
        for bad in [
            page.replacen(&first, "", 1),
            format!("{page}{first}"),
            format!("{page}| `no-such-word:` | `failed` | so | so |\n"),
            page.replacen("`failed`", "`overloaded`", 1),
        ] {
            assert_eq!(check_page(&bad).len(), 1, "{bad}");
        }
    }
    #[test]
    fn the_list_for_cpp_has_each_word_in_order() {
        let line = |reason: &Reason| format!("    \"{reason}\",\n");
        let list: String = Reason::ALL.iter().map(line).collect();
        let page = |list: &str| format!("const char* REASONS[] = {{\n{list}}};\nauto a = \"b\";");
        assert!(check_cpp("a.h", &page(&list)).is_empty());
        let first = line(&Reason::ALL[0]);
        for bad in [list.replacen(&first, "", 1), format!("{list}{first}"), String::new()] {
            assert_eq!(check_cpp("a.h", &page(&bad)).len(), 1, "{bad}");
        }
        assert_eq!(check_cpp("a.h", "").len(), 1);
    }
}
