//! The rule about the code map of `ARCHITECTURE.md`: it names each file of the server and of the
//! client library.
//!
//! A newcomer looks for a file's purpose there. A file that was added without a word on the page
//! would make the map wrong in silence.

use crate::Violation;

/// The folders that the map is about.
const FOLDERS: [&str; 2] = ["src/", "client/src/"];
/// The part of the page that is the map.
const BEGIN: &str = "\n## Code map\n";
const END: &str = "\n## Import table\n";

/// Files that the page doesn't name, by their own names or by those of their folders.
pub(crate) fn check(paths: &[String], page: &str) -> Vec<Violation> {
    let map = page.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
    let map = map.map_or("", |(map, _)| map);
    // Every second part stands between backticks.
    let named: Vec<&str> = map.split('`').skip(1).step_by(2).map(name).collect();
    let missing = paths.iter().filter(|path| !is_for_tests(path)).filter(|path| {
        FOLDERS.iter().any(|folder| path.starts_with(folder)) && !named.contains(&name(path))
    });
    let violation = |path: &String| Violation {
        path: path.clone(),
        line: 1,
        rule: "the code map of ARCHITECTURE.md doesn't name the file".to_owned(),
        mend: format!("say there in half a sentence what `{}` holds", name(path)),
    };
    missing.map(violation).collect()
}

/// The last part of a path or a name, without its ending; of `mod.rs` it is the folder's.
fn name(path: &str) -> &str {
    let path = path.strip_suffix("/mod.rs").unwrap_or(path);
    let last = path.rsplit('/').next().unwrap_or(path);
    last.strip_suffix(".rs").unwrap_or(last)
}

fn is_for_tests(path: &str) -> bool {
    let is_test = |part: &str| part == "tests" || part == "testing" || part.ends_with("tests.rs");
    path.split('/').any(is_test)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_is_named_on_the_map() {
        let page = "x `d`\n## Code map\n**`a`** has `a/b` and `src/c.rs`.\n\n## Import table\n`d`";
        let count = |path: &str| check(&[path.to_owned()], page).len();
        for good in ["src/a/mod.rs", "src/a.rs", "src/a/b.rs", "client/src/c.rs", "tests/d.rs"] {
            assert_eq!(count(good), 0, "{good}");
        }
        for tests in ["src/a/tests.rs", "src/tests/d.rs", "client/src/a/d_tests.rs"] {
            assert_eq!(count(tests), 0, "{tests}");
        }
        for bad in ["src/d.rs", "src/a/d.rs", "src/has.rs", "src/d/mod.rs"] {
            assert_eq!(count(bad), 1, "{bad}");
        }
    }
}
