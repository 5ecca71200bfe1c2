//! A process that opens the remains of a crash, and counts the turns of the script in them.
//!
//! It is a separate process because a damaged environment can end the process that opens it. One
//! process checks many environments; if it dies, the next check starts another.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};

use super::writer::storage;
use crate::support::DEADLINE;

/// Checks environments that one script wrote to.
#[derive(Debug)]
pub(crate) struct Checker {
    script: Vec<String>,
    process: Option<Looking>,
}

#[derive(Debug)]
struct Looking {
    child: Child,
    paths: ChildStdin,
    answers: Receiver<String>,
}

impl Checker {
    /// The arguments determine the script: see `writer`.
    pub(crate) fn new(script: Vec<String>) -> Self {
        Self { script, process: None }
    }

    /// The number of turns in the environment, if it contains nothing else; otherwise the error.
    pub(crate) fn look(&mut self, environment: &Path) -> Result<u64, String> {
        let looking = self.process.get_or_insert_with(|| Looking::start(&self.script));
        let Some(answer) = looking.ask(environment) else {
            let mut dead = self.process.take().expect("it was asked");
            // It may be stuck as well as dead.
            let _ = dead.child.kill();
            let status = dead.child.wait().expect("the child is ours");
            return Err(format!("whoever opens it dies with {status}"));
        };
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("an answer is JSON");
        let wrong = || answer["wrong"].as_str().unwrap_or("it gave no answer").to_owned();
        answer["applied"].as_u64().ok_or_else(wrong)
    }
}

impl Looking {
    fn start(script: &[String]) -> Self {
        let mut command = storage("check");
        let child = command.args(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("the command runs");
        let paths = child.stdin.take().expect("it is piped");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let (answer, answers) = sync_channel(1);
        // The thread runs until the process ends.
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| answer.send(line))
        });
        Self { child, paths, answers }
    }

    fn ask(&mut self, environment: &Path) -> Option<String> {
        writeln!(self.paths, "{}", environment.display()).ok()?;
        self.answers.recv_timeout(DEADLINE).ok()
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        if let Some(Looking { mut child, .. }) = self.process.take() {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
