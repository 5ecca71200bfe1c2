//! The commands of a program, found by its own help, and rules that each of them keeps.

use std::fs::File;
use std::process::{Command, Output, Stdio};

use super::scratch;

/// Starts the program, without arguments.
type Program<'a> = &'a dyn Fn() -> Command;

/// The words of each command. The first has none, and serves.
fn all(program: Program<'_>) -> Vec<Vec<String>> {
    let mut found = vec![Vec::new()];
    let mut at = 0;
    while at < found.len() {
        found.extend(below(program, &found[at]));
        at += 1;
    }
    let words = found.iter().map(|words| words.join(" ")).collect::<Vec<_>>();
    for known in ["serve", "grants", "key", "key list"] {
        assert!(words.iter().any(|words| words == known), "{known} is not among {words:?}");
    }
    found
}

/// The commands that stand in the help of the one with these words.
fn below(program: Program<'_>, words: &[String]) -> Vec<Vec<String>> {
    let output = program().arg("help").args(words).output().expect("it runs");
    assert!(output.status.success(), "help {words:?}: {}", said(&output));
    let help = said(&output);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| !line.is_empty());
    // Lines that go on stand further to the right.
    let names = listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let names = names.filter(|name| !["", "help"].contains(name));
    names.map(|name| [words, &[name.to_owned()]].concat()).collect()
}

fn said(output: &Output) -> String {
    [&*output.stdout, &output.stderr].concat().try_into().expect("it says text")
}

/// Help and version that can't be written are an error, whichever command is asked.
pub(crate) fn assert_that_lost_help_is_an_error(program: Program<'_>) {
    let word = |word: &str| vec![word.to_owned()];
    let mut asked = vec![word("--version"), word("-V")];
    // The bench is another program with a test of its own, which would be built here first.
    for words in all(program).into_iter().filter(|words| words != &word("bench")) {
        asked.push([word("help"), words.clone()].concat());
        asked.extend(["--help", "-h"].map(|flag| [words.clone(), word(flag)].concat()));
    }
    for args in asked {
        let full = File::options().write(true).open("/dev/full").expect("every Linux has it");
        let output = program().args(&args).stdout(full).stderr(Stdio::piped()).output();
        let output = output.expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", said(&output));
        let is_said = said(&output).contains("can't write to standard output: ");
        assert!(is_said, "{args:?}: {}", said(&output));
    }
}

/// A variable `RUST_LOG` that can't be read is an error, whichever command is run.
pub(crate) fn assert_that_a_bad_filter_is_an_error(program: Program<'_>) {
    let (folder, _) = scratch();
    let commands = all(program);
    for words in &commands {
        let is_leaf =
            !commands.iter().any(|other| other.len() > words.len() && other.starts_with(words));
        let args: &[&str] = match &*words.join(" ") {
            "" | "serve" | "compact" | "key list" | "key rotate" => &[],
            "bench" => &["no-such-row"],
            "export" => &["file", "--all"],
            "import" | "backup" => &["file"],
            "restore" => &["file", "folder"],
            "grants" | "grant" | "alarms" | "requests" => &["Counter/x"],
            "revoke" => &["Counter", "00112233445566778899aabbccddeeff"],
            "key revoke" => &["0011223344556677"],
            _ if !is_leaf => continue,
            other => panic!("it is not known with which arguments {other} runs"),
        };
        let mut command = program();
        command.args(words).args(args).current_dir(folder.path());
        let output = command.env("RUST_LOG", "capstead=loud=very").output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", said(&output));
        let is_said =
            said(&output).starts_with("capstead: the variable RUST_LOG says capstead=loud");
        assert!(is_said, "{words:?}: {}", said(&output));
        let left = std::fs::read_dir(folder.path()).expect("it can be read").count();
        assert_eq!(left, 0, "{words:?} did something");
    }
}
