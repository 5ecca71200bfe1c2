//! The rules about the shape of a file: its opening, its length, and the lengths of its functions.

use crate::Violation;
use crate::code::{Source, words};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

/// A file that doesn't open with `//!`.
pub(crate) fn check_head(source: &Source) -> Vec<Violation> {
    let head = source.text.lines().next().unwrap_or_default();
    let says_something = head.strip_prefix("//!").is_some_and(|says| !says.trim().is_empty());
    let violation = violation(
        source,
        1,
        "the file doesn't open with `//!`".to_owned(),
        "begin with one sentence that says what the file is, then why, then what it never does",
    );
    if says_something { Vec::new() } else { vec![violation] }
}

/// A file that is too long.
pub(crate) fn check_file_length(source: &Source) -> Vec<Violation> {
    let lines = source.text.lines().count();
    if lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    let rule = format!("the file has {lines} lines; {FILE_LINES_MAX} is the most");
    vec![violation(source, FILE_LINES_MAX + 1, rule, "split it along its concepts")]
}

/// Functions that are too long, from the line of `fn` to that of the closing brace.
pub(crate) fn check_function_lengths(source: &Source) -> Vec<Violation> {
    let too_long = |function: Function| {
        let (first, last) = (source.line(function.start), source.line(function.end));
        let lines = last - first + 1;
        let name = function.name;
        let rule = format!("`fn {name}` has {lines} lines; {FUNCTION_LINES_MAX} is the most");
        let mend = "let the function branch and its helpers compute";
        (lines > FUNCTION_LINES_MAX).then(|| violation(source, first, rule, mend))
    };
    functions(&source.code).into_iter().filter_map(too_long).collect()
}

fn violation(source: &Source, line: usize, rule: String, mend: &str) -> Violation {
    Violation { path: source.path.clone(), line, rule, mend: mend.to_owned() }
}

struct Function<'a> {
    name: &'a str,
    /// The place of `fn`.
    start: usize,
    /// The place of its body's closing brace.
    end: usize,
}

/// Every function with a body; a nested function counts for its parent too.
fn functions(code: &str) -> Vec<Function<'_>> {
    let mut functions = Vec::new();
    let mut previous = None;
    for (at, word) in words(code) {
        if let Some(start) = previous.take()
            && code[start + 2..at].trim_matches('$').trim().is_empty()
            && let Some(end) = body_end(code, at + word.len())
        {
            functions.push(Function { name: word, start, end });
        }
        previous = (word == "fn").then_some(at);
    }
    functions
}

/// The end of the body whose signature continues at `from`; none if there is only a signature.
fn body_end(code: &str, from: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut in_body = false;
    for (at, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b';' if depth == 0 => return None,
            b'(' | b'[' | b'{' => {
                in_body |= byte == b'{' && depth == 0;
                depth += 1;
            }
            b')' | b']' | b'}' => {
                depth = depth.checked_sub(1)?;
                if in_body && depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source::new(path, text)
    }

    #[test]
    fn a_file_opens_with_what_it_is() {
        assert!(check_head(&source("src/a.rs", "//! What it is.\n")).is_empty());
        for bad in ["", "use std::fmt;\n", "// What it is.\n", "//!\n", "\n//! Late.\n"] {
            assert_eq!(check_head(&source("src/a.rs", bad)).len(), 1, "{bad:?}");
        }
    }

    #[test]
    fn no_file_is_long_and_tests_are_no_exception() {
        let (most, more) = ("\n".repeat(FILE_LINES_MAX), "\n".repeat(FILE_LINES_MAX + 1));
        for path in ["src/a.rs", "tests/a.rs", "src/a/tests.rs", "client/tests/a.rs"] {
            assert!(check_file_length(&source(path, &most)).is_empty(), "{path}");
            assert_eq!(check_file_length(&source(path, &more)).len(), 1, "{path}");
        }
    }

    #[test]
    fn long_functions_are_found_whatever_is_in_them() {
        let lines = |count: usize| {
            let tricks = "let _ = ('}', \"}\", r#\"\"}\"#); // }\n";
            let rest = "let f: fn(u8) = |_| {};\n".repeat(count - 3);
            format!("trait T {{ fn g(&self, x: [u8; 4]); }}\n\nfn f<'a>() {{\n{tricks}{rest}}}\n")
        };
        assert!(check_function_lengths(&source("src/a.rs", &lines(70))).is_empty());
        let found = check_function_lengths(&source("src/a.rs", &lines(71)));
        assert_eq!(found.len(), 1);
        let expected = "src/a.rs:3: `fn f` has 71 lines; 70 is the most";
        assert!(found[0].to_string().starts_with(expected), "{}", found[0]);
    }
}
