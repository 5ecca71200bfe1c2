//! Holds the sources to the rules of `ARCHITECTURE.md`: the import tables, the circles, the code
//! map, the places of methods, the sizes, the fences, the words of comments, of schemas, of
//! headings and of errors, and the numbers of the front page.
//!
//! Each rule is a function of the path and the text of one file, so that every rule has a test with
//! a snippet that breaks it. The import table is read from `ARCHITECTURE.md`: the page is
//! authoritative, and this test never repeats a line of it.

#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/code.rs"]
mod code;
#[path = "tidy/fences.rs"]
mod fences;
#[path = "tidy/floors.rs"]
mod floors;
#[path = "tidy/imports.rs"]
mod imports;
#[path = "tidy/map.rs"]
mod map;
#[path = "tidy/methods.rs"]
mod methods;
#[path = "tidy/names.rs"]
mod names;
#[path = "tidy/numbers.rs"]
mod numbers;
#[path = "tidy/pointers.rs"]
mod pointers;
#[path = "tidy/reasons.rs"]
mod reasons;
#[path = "tidy/shape.rs"]
mod shape;
#[path = "tidy/table.rs"]
mod table;
#[path = "tidy/words.rs"]
mod words;

use std::fmt;
use std::fs;
use std::path::Path;

use code::Source;
use table::Table;
use words::Text;

/// One broken rule at one place, and the way to mend it.
#[derive(Debug)]
struct Violation {
    path: String,
    line: usize,
    rule: String,
    mend: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, rule, mend } = self;
        write!(f, "{path}:{line}: {rule}\n    mend: {mend}")
    }
}

#[test]
fn imports_run_down_the_table() {
    let table = architecture();
    check(|source| imports::check(source, &table));
}

#[test]
fn the_table_names_the_modules_of_the_tree() {
    let paths: Vec<String> = sources().into_iter().map(|source| source.path).collect();
    report(imports::check_tree(&paths, &architecture()));
}

#[test]
fn floors_import_downward() {
    let floors = floors();
    report(floors::check_order(&floors));
    check(|source| floors::check(source, &floors));
    let paths: Vec<String> = sources().into_iter().map(|source| source.path).collect();
    report(floors::check_tree(&paths, &floors));
}

#[test]
fn files_of_a_folder_make_no_circle() {
    report(circles::check(&sources()));
}

#[test]
fn the_code_map_names_every_file() {
    let paths: Vec<String> = sources().into_iter().map(|source| source.path).collect();
    report(map::check(&paths, &page()));
}

#[test]
fn methods_stand_with_their_types() {
    report(methods::check(&sources(), &page()));
}

#[test]
fn the_page_names_functions_where_they_are() {
    report(pointers::check(&sources(), &page()));
}

#[test]
fn every_file_opens_with_what_it_is() {
    check(shape::check_head);
}

#[test]
fn files_are_short() {
    check(shape::check_file_length);
}

#[test]
fn functions_are_short() {
    check(shape::check_function_lengths);
}

#[test]
fn sentences_open_with_their_subject_or_verb() {
    check(words::check_openings);
    check_texts("capnp", words::check_schema_openings);
    check_texts("md", words::check_page_openings);
}

#[test]
fn comments_take_nobody_for_a_man() {
    check(words::check_persons);
    check_texts("capnp", words::check_schema_persons);
    check_texts("md", words::check_page_persons);
}

#[test]
fn comments_are_as_wide_as_code() {
    check(words::check_width);
    check_texts("capnp", words::check_schema_width);
}

#[test]
fn headings_are_names() {
    check_texts("md", words::check_headings);
}

#[test]
fn types_are_not_named_by_vague_words() {
    check(names::check_types);
}

#[test]
fn no_call_says_true_or_false_of_nobody_knows_what() {
    check(names::check_bools);
}

#[test]
fn types_of_one_part_have_names_of_their_own() {
    report(names::check_unique_types(&sources()));
}

#[test]
fn tests_have_names_of_their_own() {
    report(names::check_unique_tests(&sources()));
}

#[test]
fn methods_go_by_one_value() {
    check(names::check_methods);
}

#[test]
fn words_of_errors_stand_in_one_table() {
    check(reasons::check_literals);
}

#[test]
fn the_page_of_errors_says_what_the_code_says() {
    let page = fs::read_to_string(root().join("docs/errors.md")).expect("docs/errors.md is read");
    report(reasons::check_page(&page));
}

#[test]
fn the_client_in_cpp_knows_the_words_of_the_code() {
    let path = "tests/cpp/reasons.h";
    let text = fs::read_to_string(root().join(path)).expect("the header is read");
    report(reasons::check_cpp(path, &text));
}

#[test]
fn the_front_page_has_the_numbers_of_their_page() {
    let read = |path: &str| fs::read_to_string(root().join(path)).expect("a page is read");
    report(numbers::check(&read("README.md"), &read("docs/numbers.md")));
}

#[test]
fn one_file_names_lmdb() {
    check(fences::check_lmdb);
}

#[test]
fn one_file_ends_turns() {
    check(fences::check_turns);
}

#[test]
fn the_frame_guard_is_the_only_vat_network() {
    check(fences::check_vat_network);
}

/// Fails with everything that `rule` finds in the tree.
fn check(rule: impl Fn(&Source) -> Vec<Violation>) {
    report(sources().iter().flat_map(rule).collect());
}

/// Fails with everything that `rule` finds in the files of the tree with this ending.
fn check_texts(ending: &str, rule: impl Fn(&Text) -> Vec<Violation>) {
    report(texts(ending).iter().flat_map(rule).collect());
}

fn report(violations: Vec<Violation>) {
    let lines: Vec<String> = violations.iter().map(Violation::to_string).collect();
    assert!(lines.is_empty(), "{} broken rule(s)\n\n{}\n", lines.len(), lines.join("\n"));
}

fn architecture() -> Table {
    Table::parse(&page()).unwrap_or_else(|problem| panic!("ARCHITECTURE.md: {problem}"))
}

fn floors() -> Table {
    let table = Table::parse_under(&page(), floors::HEADER);
    table.unwrap_or_else(|problem| panic!("ARCHITECTURE.md: {problem}"))
}

fn page() -> String {
    fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is read")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file of the workspace. Generated code isn't included: it is in Cargo's folder.
fn sources() -> Vec<Source> {
    texts("rs").into_iter().map(|Text { path, text }| Source::new(&path, &text)).collect()
}

/// Every file of the workspace with this ending, once: links aren't followed.
fn texts(ending: &str) -> Vec<Text> {
    let mut texts = Vec::new();
    collect(root(), ending, &mut texts);
    texts.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(texts.len() > 5, "the files *.{ending} were not found");
    texts
}

fn collect(folder: &Path, ending: &str, texts: &mut Vec<Text>) {
    for entry in fs::read_dir(folder).expect("a folder of the workspace is read") {
        let path = entry.expect("a folder of the workspace is read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            // Cargo marks its folder with a tag file, whatever the folder's name, but not one that
            // was there before: `.ci/run` makes `target` for its Python.
            let is_cargos = name == "target" || path.join("CACHEDIR.TAG").exists();
            // `pip` copies the package there.
            let is_pips = name == "build" && path.with_file_name("pyproject.toml").exists();
            let is_made = is_cargos || is_pips || name == "node_modules";
            if !is_made && !name.starts_with('.') {
                collect(&path, ending, texts);
            }
        } else if path.extension().is_some_and(|extension| extension == ending) {
            let text = fs::read_to_string(&path).expect("a source file is read");
            let below = path.strip_prefix(root()).expect("the file is below the root");
            texts.push(Text { path: below.to_string_lossy().into_owned(), text });
        }
    }
}
