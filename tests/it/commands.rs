//! Rules that every command of `capstead` keeps, also those that are added later: they are found by
//! its help.

use crate::support::{capstead, commands};

fn program() -> std::process::Command {
    capstead([] as [&str; 0])
}

// `capstead bench --help >/dev/full` used to succeed.
#[test]
fn help_that_cannot_be_written_is_an_error_of_every_command() {
    commands::assert_that_lost_help_is_an_error(&program);
}

// The operator's verbs used to ignore it.
#[test]
fn a_filter_of_log_lines_that_cannot_be_read_is_an_error_of_every_command() {
    commands::assert_that_a_bad_filter_is_an_error(&program);
}
