//! The rules about the words of comments: their openings, the persons in them, and their width.
//!
//! A sentence that opens with a question word, and asks nothing, hides its subject: a stranger has
//! to read the code to know it. A noun or a verb says it at once. So it is with "whoever", in place
//! of the caller, the holder or the client. A heading of a page is such an opening too.
//!
//! Schemas and pages are held to the same rules as code: strangers read them first.

use crate::Violation;
use crate::code::Source;

/// A schema or a page: its path below the root of the workspace, and its text.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Words with which no sentence opens that doesn't ask.
const OPENINGS: [&str; 8] =
    ["What", "Whatever", "How", "Who", "Whose", "Which", "Where", "Whether"];
/// Words with which no heading opens, beside those.
const HEADING_OPENINGS: [&str; 2] = ["When", "Why"];
/// Pronouns in place of a noun that says which party is meant.
const NOBODIES: [&str; 4] = ["whoever", "whomever", "whosoever", "whom"];
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

/// Comments of a schema that go on beyond the width of the code.
pub(crate) fn check_schema_width(schema: &Text) -> Vec<Violation> {
    let is_wide = |line: &str| {
        let width = line.chars().count();
        let rule = || format!("a comment has {width} columns; {WIDTH_MAX} is the most");
        (schema_comment(line).is_some() && width > WIDTH_MAX).then(rule)
    };
    check_lines(schema, is_wide, "break the line")
}

/// Comments with a sentence that opens with a question word, or has a party without a name.
pub(crate) fn check_openings(source: &Source) -> Vec<Violation> {
    let hides = |comment: &str| {
        wrong_word(comment.trim_start_matches('/'))
            .map(|word| format!("a sentence of a comment opens with, or has, {word:?}"))
    };
    check(source, hides, MEND_OPENING)
}

/// Comments of a schema with such a sentence.
pub(crate) fn check_schema_openings(schema: &Text) -> Vec<Violation> {
    let hides = |line: &str| {
        let word = schema_comment(line).and_then(wrong_word);
        word.map(|word| format!("a sentence of a schema opens with, or has, {word:?}"))
    };
    check_lines(schema, hides, MEND_OPENING)
}

/// Lines of a page with such a sentence.
pub(crate) fn check_page_openings(page: &Text) -> Vec<Violation> {
    let hides = |line: &str| {
        wrong_word(line).map(|word| format!("a sentence of a page opens with, or has, {word:?}"))
    };
    check_lines(page, hides, MEND_OPENING)
}

/// Comments that refer to an unknown person as a man.
pub(crate) fn check_persons(source: &Source) -> Vec<Violation> {
    let names_a_man = |comment: &str| man(comment).map(|word| format!("a comment says {word:?}"));
    check(source, names_a_man, MEND_PERSON)
}

/// Comments of a schema that refer to an unknown person as a man.
pub(crate) fn check_schema_persons(schema: &Text) -> Vec<Violation> {
    let names_a_man = |line: &str| {
        let word = schema_comment(line).and_then(man);
        word.map(|word| format!("a comment of a schema says {word:?}"))
    };
    check_lines(schema, names_a_man, MEND_PERSON)
}

/// Lines of a page that refer to an unknown person as a man.
pub(crate) fn check_page_persons(page: &Text) -> Vec<Violation> {
    check_lines(page, |line| man(line).map(|word| format!("a page says {word:?}")), MEND_PERSON)
}

/// Headings of a page that are questions, or clauses instead of names.
pub(crate) fn check_headings(page: &Text) -> Vec<Violation> {
    let mut in_code = false;
    let asks = |line: &str| {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        let heading = (!in_code && line.starts_with('#')).then_some(line)?;
        let word = first_word(heading)?;
        (OPENINGS.contains(&word) || HEADING_OPENINGS.contains(&word) || heading.ends_with('?'))
            .then(|| format!("a heading opens with {word:?}, or asks"))
    };
    check_lines(page, asks, "name the thing that the part is about, by a noun")
}

const MEND_OPENING: &str = "open with the noun that it is, or with the verb that it does";
const MEND_PERSON: &str = "say \"they\", \"it\" or the noun";

/// The comment that ends, or is, a line of a schema.
fn schema_comment(line: &str) -> Option<&str> {
    let mut in_text = false;
    let hash = line.char_indices().find(|(_, letter)| {
        in_text ^= *letter == '"';
        !in_text && *letter == '#'
    });
    hash.map(|(at, _)| &line[at..])
}

/// The question word with which a sentence opens that doesn't ask, or the pronoun without a name.
/// Words in quotes are only spoken of.
fn wrong_word(says: &str) -> Option<&str> {
    let opens = || sentences(says).filter(|sentence| !asks(sentence)).find_map(wrong_opening);
    let unquoted = || says.split(['"', '`']).step_by(2).flat_map(all_words);
    opens().or_else(|| {
        unquoted().find(|word| NOBODIES.iter().any(|nobody| nobody.eq_ignore_ascii_case(word)))
    })
}

/// The question word with which a sentence opens.
fn wrong_opening(sentence: &str) -> Option<&str> {
    first_word(sentence).filter(|word| OPENINGS.contains(word))
}

/// A line from the beginning of each of its sentences on. A cell of a table, and the text behind a
/// colon, count as sentences.
fn sentences(says: &str) -> impl Iterator<Item = &str> {
    let ends = |pair: &[u8]| b".:!?|".contains(&pair[0]) && pair[1] == b' ';
    std::iter::successors(Some(says), move |says| {
        let end = says.as_bytes().windows(2).position(ends)?;
        Some(&says[end + 1..])
    })
}

/// Tells whether the sentence with which a text begins is a question.
fn asks(says: &str) -> bool {
    let says = says.trim_start_matches(|letter: char| !letter.is_alphanumeric());
    says.find(['.', '!', '?', '|']).is_some_and(|end| says[end..].starts_with('?'))
}

/// The word that makes an unknown person a man.
fn man(says: &str) -> Option<&str> {
    all_words(says).find(|word| PERSONS.iter().any(|person| person.eq_ignore_ascii_case(word)))
}

/// The violation on each line that breaks `rule`.
fn check_lines(
    text: &Text,
    mut rule: impl FnMut(&str) -> Option<String>,
    mend: &str,
) -> Vec<Violation> {
    let broken = (1..).zip(text.text.lines()).filter_map(|(line, says)| {
        let (path, mend) = (text.path.clone(), mend.to_owned());
        rule(says).map(|rule| Violation { path, line, rule, mend })
    });
    broken.collect()
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
    all_words(says).next()
}

fn all_words(says: &str) -> impl Iterator<Item = &str> {
    says.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rule: fn(&Source) -> Vec<Violation>, text: &str) -> usize {
        rule(&Source::new("src/a.rs", text)).len()
    }

    #[test]
    fn sentences_open_with_nouns_and_verbs() {
        for good in [
            "/// The number of words.",
            "/// Tells whether it is so.",
            "/// However long it takes.",
            "/// The word \"What\" within a line, and `whoever`.",
            "// Is it so? What else could it be?",
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
            "/// Whoever it is.",
            "// What is only for those who read the code.",
            "/// It ends. What comes then is lost.",
            "// Invariant: Which of them it is doesn't matter.",
            "/// It waits for whoever writes.",
            "/// The one of whom it is told.",
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
    fn count_lines(rule: fn(&Text) -> Vec<Violation>, text: &str) -> usize {
        rule(&Text { path: "a".to_owned(), text: text.to_owned() }).len()
    }

    #[test]
    fn schemas_are_held_to_the_rules_of_code() {
        for good in [
            "# The number of words.",
            "  a @0 :Text = \"# What\";",
            "What @0 :Text;",
            "# However long it takes, and what it costs.",
        ] {
            assert_eq!(count_lines(check_schema_openings, good), 0, "{good}");
        }
        for bad in ["# What it is.", "  # Whoever it is.", "a @0 :Text;  # How many."] {
            assert_eq!(count_lines(check_schema_openings, bad), 1, "{bad}");
        }
        assert_eq!(count_lines(check_schema_persons, "# They say so."), 0);
        assert_eq!(count_lines(check_schema_persons, "he @0 :Text;"), 0);
        assert_eq!(count_lines(check_schema_persons, "he @0 :Text;  # he says so"), 1);
        let line = |width: usize| format!("# {}", "a".repeat(width - 2));
        assert_eq!(count_lines(check_schema_width, &line(WIDTH_MAX)), 0);
        assert_eq!(count_lines(check_schema_width, &line(WIDTH_MAX + 1)), 1);
        assert_eq!(count_lines(check_schema_width, &line(WIDTH_MAX + 1).replace('#', "a")), 0);
    }

    #[test]
    fn pages_take_nobody_for_a_man_and_their_headings_are_names() {
        assert_eq!(count_lines(check_page_persons, "The operator and their socket."), 0);
        assert_eq!(count_lines(check_page_persons, "The operator and his socket."), 1);
        for good in
            ["Is it so? What else?", "What is it: this?", "| What is it? | a |", "However it is."]
        {
            assert_eq!(count_lines(check_page_openings, good), 0, "{good}");
        }
        for bad in ["- What it is.", "It is so. Who it is.", "A holder whom it names."] {
            assert_eq!(count_lines(check_page_openings, bad), 1, "{bad}");
        }
        for good in ["# Retries", "No heading.", "```sh\n# What a comment says.\n```"] {
            assert_eq!(count_lines(check_headings, good), 0, "{good}");
        }
        for bad in ["## What a retry gets", "### Whose data they are", "# Is it so?", "# Why `a`"] {
            assert_eq!(count_lines(check_headings, bad), 1, "{bad}");
        }
    }
}
