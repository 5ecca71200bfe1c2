//! The rule that the methods of a type stand in its own file, or in the folder of that file's name.
//!
//! A type whose methods are spread over other files has invariants that can't be seen in one place.
//! The third table of `ARCHITECTURE.md` lists the exceptions, each with its reason.

use std::collections::{BTreeMap, BTreeSet};

use crate::Violation;
use crate::code::{Source, words};

/// The first line of the table: type, files with methods outside its own, and the reason.
pub(crate) const HEADER: &str = "| type | methods also in | because |";

/// A type with a file that has methods of it without declaring it.
type Spread = BTreeSet<(String, String)>;

/// Methods outside the file and folder of their type that the page doesn't name, and entries of the
/// page that match nothing any more.
pub(crate) fn check(sources: &[Source], page: &str) -> Vec<Violation> {
    let declared = declarations(sources);
    let allowed = table(page);
    let (mut violations, mut found) = (Vec::new(), Spread::new());
    for source in sources {
        for (at, name) in inherent_impls(source) {
            if is_at_home(source, name, &declared) {
                continue;
            }
            let spread = (name.to_owned(), short(&source.path));
            if !allowed.contains(&spread) {
                violations.push(Violation {
                    path: source.path.clone(),
                    line: source.line(at),
                    rule: format!("`{name}` is declared in another file"),
                    mend: "make the methods functions of this file, or move them to the type"
                        .to_owned(),
                });
            }
            found.insert(spread);
        }
    }
    let stale = allowed.difference(&found).map(|(name, file)| Violation {
        path: "ARCHITECTURE.md".to_owned(),
        line: 1,
        rule: format!("`{name}` has no methods in `{file}`"),
        mend: "take the file out of the table of spread methods".to_owned(),
    });
    violations.extend(stale);
    violations
}

/// The files that declare a type, by crate and name.
type Declared<'a> = BTreeMap<(&'a str, &'a str), Vec<&'a str>>;

fn declarations(sources: &[Source]) -> Declared<'_> {
    let mut declared = Declared::new();
    for source in sources {
        let all: Vec<_> = words(&source.code).map(|(_, word)| word).collect();
        for pair in all.windows(2).filter(|pair| ["struct", "enum"].contains(&pair[0])) {
            declared.entry((krate(&source.path), pair[1])).or_default().push(&source.path);
        }
    }
    declared
}

/// Tells whether this file declares a type of that name, or lies in the folder of a file that does.
/// Names that no file declares are made by macros.
fn is_at_home(source: &Source, name: &str, declared: &Declared<'_>) -> bool {
    let Some(files) = declared.get(&(krate(&source.path), name)) else { return true };
    files.iter().any(|file| {
        let folder = file.trim_end_matches("mod.rs").trim_end_matches(".rs");
        let folder = format!("{}/", folder.trim_end_matches('/'));
        *file == source.path || source.path.starts_with(&folder)
    })
}

/// Each `impl` of a type alone, with the type's name.
fn inherent_impls(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    source.words("impl").filter_map(|at| {
        let code = &source.code;
        let before = code[..at].trim_end().trim_end_matches("unsafe").trim_end();
        // Elsewhere it is the type of an argument or a result.
        if !(before.is_empty() || before.ends_with(['}', ';', '{', ']'])) {
            return None;
        }
        let header = code[at + "impl".len()..].split('{').next()?;
        let header = without_generics(header);
        let mut names = header.split_whitespace();
        let path = names.next()?;
        let is_inherent = names.next().is_none_or(|next| next == "where");
        let name = path.rsplit("::").next()?;
        let start = at + code[at..].find(name)?;
        is_inherent.then_some((at, &code[start..start + name.len()]))
    })
}

/// The text without the content of angle brackets; an arrow closes none.
fn without_generics(text: &str) -> String {
    let (mut depth, mut before) = (0_usize, ' ');
    let mut outside = String::new();
    for character in text.chars() {
        match character {
            '<' => depth += 1,
            '>' if before != '-' => depth = depth.saturating_sub(1),
            _ if depth == 0 => outside.push(character),
            _ => {}
        }
        before = character;
    }
    outside
}

fn table(page: &str) -> Spread {
    let lines = page.lines().skip_while(|line| line.trim() != HEADER);
    let lines = lines.skip(2).take_while(|line| line.starts_with('|'));
    let mut spread = Spread::new();
    for line in lines {
        let quoted = |cell: &str| -> Vec<String> {
            cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        let mut cells = line.trim_matches('|').split('|').map(quoted);
        let (types, files) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
        for name in types {
            spread.extend(files.iter().map(|file| (name.clone(), file.clone())));
        }
    }
    spread
}

/// The crate of a file, as the beginning of its path.
fn krate(path: &str) -> &str {
    path.split_once("src/").map_or(path, |(before, _)| before)
}

/// A file as the table names it: `host/engine/rest`, and `client/dial` in another crate.
pub(crate) fn short(path: &str) -> String {
    path.replacen("src/", "", 1).trim_end_matches(".rs").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(page: &str, files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<_> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
        check(&sources, page).into_iter().map(|found| found.rule).collect()
    }

    const VAT: (&str, &str) =
        ("src/host/vat.rs", "pub struct Vat<T>(T); impl<T: Fn(u8) -> u8> Vat<T> {}");

    #[test]
    fn methods_stand_with_their_type() {
        for (path, text) in [
            ("src/host/vat/queue.rs", "impl Vat<u8> {}"),
            ("src/host/rest.rs", "impl Drop for Vat<u8> {}"),
            ("src/host/rest.rs", "fn f(vat: impl Vat) -> impl Vat { }"),
            ("src/host/rest.rs", "struct Vat; impl Vat {}"),
            ("src/host/rest.rs", "impl Other {}"),
            ("client/src/rest.rs", "impl Vat {}"),
        ] {
            assert!(found("", &[VAT, (path, text)]).is_empty(), "{path}: {text}");
        }
        for text in ["impl Vat<u8> {}", "use a; impl<T> super::vat::Vat<T> where T: Copy {}"] {
            assert_eq!(found("", &[VAT, ("src/host/rest.rs", text)]).len(), 1, "{text}");
        }
    }

    #[test]
    fn the_table_names_those_that_are_spread_and_no_others() {
        let page = format!("{HEADER}\n|---|---|---|\n| `Vat` | `host/rest` | of old |\n");
        let rest = ("src/host/rest.rs", "impl Vat<u8> {}");
        assert!(found(&page, &[VAT, rest]).is_empty());
        assert_eq!(found(&page, &[VAT]), ["`Vat` has no methods in `host/rest`"]);
    }
}
