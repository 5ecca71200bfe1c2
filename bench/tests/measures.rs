//! The rows that are asked for are measured against real servers, and printed as they are
//! documented.

use std::process::{Command, Output, Stdio};

fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_capstead-bench"));
    command.args(args).stdin(Stdio::null()).output().expect("the program runs")
}

#[test]
fn the_rows_that_are_asked_for_are_printed_as_json() {
    let names = ["rpc-read-1", "durable-put-1"];
    let measured = bench(&[&["--quick", "--json"], &names[..]].concat());
    assert_eq!(measured.status.code(), Some(0), "{}", String::from_utf8_lossy(&measured.stderr));
    let rows: serde_json::Value = serde_json::from_slice(&measured.stdout).expect("it is JSON");
    let rows = rows.as_array().expect("a list of rows");
    let found: Vec<_> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(found, names);
    for row in rows {
        for number in ["value", "baseline", "ratio"] {
            assert!(row[number].as_f64().is_some_and(|number| number > 0.0), "{number}: {row}");
        }
    }
}

#[test]
fn a_row_that_is_not_there_is_a_usage_error_that_lists_those_that_are() {
    let refused = bench(&["rpc-read-1", "rpc-raed-1"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("named rpc-raed-1") && said.contains("\n  rpc-read-64\n"), "{said}");
    assert!(refused.stdout.is_empty());
}

// Only the table of rows used to be looked after.
#[test]
fn help_that_cannot_be_written_is_an_error() {
    for flag in ["--help", "-h", "--version"] {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let mut command = Command::new(env!("CARGO_BIN_EXE_capstead-bench"));
        command.arg(flag).stdout(full.expect("every Linux has it")).stderr(Stdio::piped());
        let output = command.output().expect("the program runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{flag}: {said}");
        assert!(said.contains("can't write to standard output"), "{flag}: {said}");
        assert!(String::from_utf8_lossy(&bench(&[flag]).stdout).contains("bench"), "{flag}");
    }
}

// Rebuilding only the server leaves an old copy of it in the bench.
#[test]
fn a_server_of_other_sources_is_not_measured() {
    let started_by = |sources: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_capstead-bench"));
        command.arg("no-such-row").env("CAPSTEAD_SOURCES", sources).stdin(Stdio::null());
        let output = command.output().expect("the program runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = started_by("0123456789abcdef");
    let expected = "capstead-bench was built from other sources than the capstead beside it; \
                    `cargo build --release`";
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(expected), "{said}");
    let (code, said) = started_by(capstead::lab::SOURCES);
    assert_eq!(code, Some(2), "{said}");
}
