//! The rules about the words of comments: their openings, the persons in them, and their width.
//!
//! A comment that opens with a question word is half a sentence: a stranger has to read the code to
//! know its subject. A noun or a verb says it at once.

use crate::Violation;
use crate::code::Source;

/// Words with which no line of a doc comment opens.
const OPENINGS: [&str; 5] = ["What", "How", "Who", "Where", "Whether"];
/// Pronouns that make an unknown person a man.
const PERSONS: [&str; 4] = ["he", "him", "his", "himself"];

/// The last column of comments, as of code.
const WIDTH_MAX: usize = 100;

/// Comments that go on beyond the width of the code.
pub(crate) fn check_width(source: &Source) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (at, line) in source.text.lines().enumerate() {
        let width = line.chars().count();
        if line.trim_start().starts_with("//") && width > WIDTH_MAX && !line.contains("| ") {
            let rule = format!("a comment has {width} columns; {WIDTH_MAX} is the most");
            let mend = "break the line".to_owned();
            violations.push(Violation { path: source.path.clone(), line: at + 1, rule, mend });
        }
    }
    violations
}

/// Lines of doc comments that open with a question word.
pub(crate) fn check_openings(source: &Source) -> Vec<Violation> {
    let opens_wrongly = |comment: &str| {
        let says = comment.strip_prefix("///").or_else(|| comment.strip_prefix("//!"));
        says.and_then(first_word)
            .filter(|word| OPENINGS.contains(word))
            .map(|word| format!("a doc comment opens with {word:?}"))
    };
    check(source, opens_wrongly, "open with the noun that it is, or with the verb that it does")
}

/// Comments that refer to an unknown person as a man.
pub(crate) fn check_persons(source: &Source) -> Vec<Violation> {
    let names_a_man = |comment: &str| {
        let found = comment
            .split(|letter: char| !letter.is_alphanumeric())
            .find(|word| PERSONS.iter().any(|person| person.eq_ignore_ascii_case(word)));
        found.map(|word| format!("a comment says {word:?}"))
    };
    check(source, names_a_man, "say \"they\", \"it\" or the noun")
}

/// The violation on each line whose comment breaks `rule`.
fn check(source: &Source, rule: impl Fn(&str) -> Option<String>, mend: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (at, (line, code)) in source.text.lines().zip(source.code.lines()).enumerate() {
        let comment = line.trim_start();
        // A line within a multi-line string is blank too, and looks like a comment.
        if comment.starts_with("//")
            && code.trim().is_empty()
            && let Some(rule) = rule(comment)
        {
            let mend = mend.to_owned();
            violations.push(Violation { path: source.path.clone(), line: at + 1, rule, mend });
        }
    }
    violations
}

fn first_word(says: &str) -> Option<&str> {
    says.split(|letter: char| !letter.is_alphanumeric()).find(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rule: fn(&Source) -> Vec<Violation>, text: &str) -> usize {
        rule(&Source::new("src/a.rs", text)).len()
    }

    #[test]
    fn doc_comments_open_with_nouns_and_verbs() {
        for good in [
            "/// The number of words.",
            "/// Tells whether it is so.",
            "/// However long it takes.",
            "// What is only for those who read the code.",
            "/// The word \"What\" within a line.",
            "let text = \"/// What stands in a text.\";",
        ] {
            assert_eq!(count(check_openings, good), 0, "{good}");
        }
        for bad in [
            "//! What it is.",
            "    /// How many words there are.",
            "/// Who it is.\nstruct A;",
            "/// The first line.\n/// Where the second one is.",
            "/// **Whether** it is so.",
        ] {
            assert_eq!(count(check_openings, bad), 1, "{bad}");
        }
    }

    #[test]
    fn comments_end_at_a_column() {
        let line = |width: usize| format!("    /// {}\n", "a".repeat(width - 8));
        let found = |width| check_width(&Source::new("src/a.rs", &line(width))).len();
        assert_eq!(found(WIDTH_MAX), 0);
        assert_eq!(found(WIDTH_MAX + 1), 1);
        let code = format!("let a = \"{}\";", "a".repeat(WIDTH_MAX));
        assert!(check_width(&Source::new("src/host/a.rs", &code)).is_empty());
    }

    #[test]
    fn nobody_is_taken_for_a_man() {
        for good in ["/// They say so.", "// The history of this.", "let he = 1;"] {
            assert_eq!(count(check_persons, good), 0, "{good}");
        }
        for bad in ["/// He says so.", "fn f() {} \n// for himself", "//! What is his."] {
            assert_eq!(count(check_persons, bad), 1, "{bad}");
        }
    }
}
