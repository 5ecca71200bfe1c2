//! Commands under strace: their writes are recorded, or fail where the lab wants it.
//!
//! strace runs beside the command (`-D`), so that the child of this process is the command itself:
//! its exit code and the signals to it are not strace's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support;

/// Every call that can change a file's bytes, length, name or durability, and those that open it.
const WRITES: &str = "trace=openat,open,creat,lseek,write,pwrite64,writev,pwritev,pwritev2,fsync,\
                      fdatasync,sync_file_range,msync,ftruncate,fallocate,copy_file_range,sendfile,\
                      rename,renameat,renameat2,unlink,unlinkat,link,linkat,symlink,symlinkat";
/// The calls of the storage that may fail.
const FAILING: &str = "trace=openat,pwrite64,pwritev,writev,write,fsync,fdatasync,rename,unlink";

/// The task of strace for a command.
#[derive(Clone, Debug)]
pub(crate) enum How<'a> {
    /// Records all calls, with all bytes.
    Record,
    /// Makes one call on these files fail, or kill the process; records the calls on them.
    Inject {
        /// The fault, such as `fdatasync:error=EIO:when=3`.
        what: String,
        /// The only files whose calls count, each thread's on its own.
        files: &'a [PathBuf],
    },
}

/// The same command under strace, which writes to `trace`.
pub(crate) fn under(how: &How<'_>, trace: &Path, command: &Command) -> Command {
    let mut traced = Command::new("strace");
    traced.args(["-D", "-f", "-q", "-o"]).arg(trace);
    match how {
        How::Record => {
            // Strings in full: no value of the lab is longer than this.
            traced.args(["--seccomp-bpf", "-y", "-xx", "-s", "10000000", "-e", WRITES]);
        }
        How::Inject { what, files } => {
            // Without `--seccomp-bpf`, which delivers no signals.
            traced.args(["-s", "0", "-e", FAILING, "-e", &format!("inject={what}")]);
            for file in *files {
                traced.arg("-P").arg(file);
            }
        }
    }
    traced.arg("--").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    traced.stdin(std::process::Stdio::null());
    traced
}

/// The output of strace, once the command and all its threads have ended.
pub(crate) fn finished(trace: &Path) -> String {
    support::eventually("the end of the trace", || {
        let text = fs::read_to_string(trace).ok()?;
        let first = text.split(' ').next()?.to_owned();
        let last = text.trim_end().lines().last()?;
        let ended = last.contains("+++ exited with") || last.contains("+++ killed by");
        (ended && last.split(' ').next() == Some(&first)).then_some(text)
    })
}
