//! One source file with its comments and literals blanked out, and the paths that its code names.
//!
//! The tokens are those of the compiler's own lexer, so that a brace in a string or an import in a
//! comment is never taken for code. Paths are read without a parser.

use std::ops::Range;

use ra_ap_rustc_lexer::{FrontmatterAllowed, LiteralKind, TokenKind, tokenize};

/// A Rust file: its path below the root of the workspace, its text, and its code alone.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
    /// The text with every comment, string and character blanked; it has the same length.
    pub(crate) code: String,
}

/// A path that the code names, such as `crate::host::Slot`; imports are spelled out one by one.
#[derive(Debug, PartialEq)]
pub(crate) struct Named {
    pub(crate) at: usize,
    pub(crate) segments: Vec<String>,
    pub(crate) in_use: bool,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self { path: path.replace('\\', "/"), text: text.to_owned(), code: blank(text) }
    }

    /// The number of the line that holds byte `at`, counted from 1.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.code[..at].matches('\n').count() + 1
    }

    /// Every path in the code, in order. Single identifiers count only in a `use`.
    pub(crate) fn paths(&self) -> Vec<Named> {
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(word) = next_word(&self.code, at) {
            let (start, text) = word;
            at = start + text.len();
            if text == "use" {
                at = use_tree(&self.code, at, &[], &mut found);
                continue;
            }
            let (segments, end) = inline_path(&self.code, start);
            at = end;
            if segments.len() > 1 {
                found.push(Named { at: start, segments, in_use: false });
            }
        }
        found
    }

    /// Each place of `word` as a whole identifier.
    pub(crate) fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        words(&self.code).filter(move |(_, text)| *text == word).map(|(at, _)| at)
    }
}

/// All identifiers and keywords of `code` with their places.
pub(crate) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (start, text) = next_word(code, at)?;
        at = start + text.len();
        Some((start, text))
    })
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

fn next_word(code: &str, from: usize) -> Option<(usize, &str)> {
    let bytes = code.as_bytes();
    let start = (from..bytes.len()).find(|&at| is_word(bytes[at]))?;
    let end = (start..bytes.len()).find(|&at| !is_word(bytes[at])).unwrap_or(bytes.len());
    Some((start, &code[start..end]))
}

fn skip_space(code: &str, at: usize) -> usize {
    at + (code[at..].len() - code[at..].trim_start().len())
}

/// The segments of the path that starts at `at`, and its end; generics end a path.
fn inline_path(code: &str, at: usize) -> (Vec<String>, usize) {
    let mut segments = Vec::new();
    let mut end = at;
    while let Some((start, text)) = next_word(code, end) {
        if skip_space(code, end) != start {
            break;
        }
        segments.push(text.to_owned());
        end = start + text.len();
        let colons = skip_space(code, end);
        let after = colons + 2;
        let goes_on = code[colons..].starts_with("::")
            && next_word(code, after).is_some_and(|(next, _)| skip_space(code, after) == next);
        if !goes_on {
            break;
        }
        end = after;
    }
    (segments, end)
}

/// Spells out the import tree that starts at `at`, below `prefix`. Returns the end of the tree.
fn use_tree(code: &str, at: usize, prefix: &[String], found: &mut Vec<Named>) -> usize {
    let mut path = prefix.to_vec();
    let mut at = skip_space(code, at);
    let mut named_at = at;
    while let Some(next) = code[at..].bytes().next() {
        match next {
            b':' => at += 1,
            b'{' => return use_group(code, at + 1, &path, found),
            b'*' => {
                path.push("*".to_owned());
                at += 1;
            }
            byte if is_word(byte) => {
                let (start, text) = next_word(code, at).unwrap_or((at, ""));
                at = start + text.len();
                if text == "as" {
                    // A new name doesn't change the imported path.
                    at = next_word(code, at).map_or(at, |(start, name)| start + name.len());
                } else {
                    named_at = if path.len() == prefix.len() { start } else { named_at };
                    path.push(text.to_owned());
                }
            }
            _ => break,
        }
        at = skip_space(code, at);
    }
    if path.len() > prefix.len() {
        found.push(Named { at: named_at, segments: path, in_use: true });
    }
    at
}

fn use_group(code: &str, at: usize, prefix: &[String], found: &mut Vec<Named>) -> usize {
    let mut at = at;
    loop {
        at = skip_space(code, use_tree(code, at, prefix, found));
        match code[at..].bytes().next() {
            Some(b',') => at += 1,
            Some(b'}') => return at + 1,
            _ => return at,
        }
    }
}

/// The texts of all string literals, as they are written, with their places.
pub(crate) fn strings(text: &str) -> Vec<(usize, &str)> {
    let is_string = |kind| {
        !matches!(
            kind,
            LiteralKind::Int { .. }
                | LiteralKind::Float { .. }
                | LiteralKind::Char { .. }
                | LiteralKind::Byte { .. }
        )
    };
    let strings = tokens(text).filter_map(|(range, kind)| match kind {
        TokenKind::Literal { kind, .. } if is_string(kind) => Some(range),
        _ => None,
    });
    let within = |range: Range<usize>| {
        let quoted = text[range.clone()].trim_start_matches(['b', 'c', 'r', '#']);
        (range.start, quoted.trim_matches(['"', '#']))
    };
    strings.map(within).collect()
}

/// Replaces comments, strings and characters by spaces, and keeps length and lines.
pub(crate) fn blank(text: &str) -> String {
    let mut code = text.as_bytes().to_vec();
    for (range, kind) in tokens(text) {
        let is_number = |kind| matches!(kind, LiteralKind::Int { .. } | LiteralKind::Float { .. });
        let is_blanked = match kind {
            TokenKind::LineComment { .. } | TokenKind::BlockComment { .. } => true,
            TokenKind::Literal { kind, .. } => !is_number(kind),
            _ => false,
        };
        if is_blanked {
            code[range].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        }
    }
    String::from_utf8(code).expect("whole characters are blanked")
}

fn tokens(text: &str) -> impl Iterator<Item = (Range<usize>, TokenKind)> {
    let mut end = 0;
    tokenize(text, FrontmatterAllowed::No).map(move |token| {
        let start = end;
        end += token.len as usize;
        (start..end, token.kind)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_code_is_not() {
        let cases = [
            ("a // { \"\nb", "a\nb"),
            ("a /* { /* } */ \" */ b", "a b"),
            ("a(\"{ \\\" } //\") b", "a( ) b"),
            ("a(r#\"{ \" \\\"#) b", "a( ) b"),
            ("a(br\"\\\") b", "a( ) b"),
            ("f('{', '\\'', b'\"', '\\u{7d}', 'ß') b", "f( , , , , ) b"),
            ("fn f<'a, 'b>(x: &'a str) {}", "fn f<'a, 'b>(x: &'a str) {}"),
            ("'outer: loop { break 'outer }", "'outer: loop { break 'outer }"),
        ];
        for (text, expected) in cases {
            let code = blank(text);
            assert_eq!(code.len(), text.len());
            let squeezed =
                |text: &str| text.replace('\n', " ").split_whitespace().collect::<String>();
            assert_eq!(squeezed(&code), squeezed(expected), "of {text}");
        }
    }

    #[test]
    fn strings_are_found_and_comments_are_not() {
        let text = "f(\"a\", '\"', r#\"b \"c\" d\"#) // \"e\"\n\"f\\\"\"";
        let found: Vec<_> = strings(text).into_iter().map(|(_, text)| text).collect();
        assert_eq!(found, ["a", "b \"c\" d", "f\\"]);
    }

    #[test]
    fn import_trees_are_spelled_out() {
        let source = Source::new(
            "x.rs",
            "pub use crate::{a::{self, B as C}, d::*};\nfn f() { super::e::<crate::g::H>::i() } // j::k",
        );
        let paths: Vec<String> =
            source.paths().into_iter().map(|named| named.segments.join("::")).collect();
        let expected = ["crate::a::self", "crate::a::B", "crate::d::*", "super::e", "crate::g::H"];
        assert_eq!(paths, expected);
    }
}
