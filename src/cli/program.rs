//! The command line of an embedder's program: its parsing, its `--help`, and its name.
//!
//! An embedder's server has the verbs of the `capstead` command under its own name and version, and
//! works on its own data directory where the command line names no other.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;

use clap::{Command, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::{CANNOT_START, Operate, fail, prepare_process, serve};
use crate::error::Result;
use crate::server::Server;

/// An embedder's own command: its classes, our flags and verbs.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Embedded {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    serve: serve::Options,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, for a moment")]
enum Verb {
    /// Serve the classes of this program (the default).
    Serve(serve::Options),
    #[command(flatten)]
    Operate(Operate),
}

/// Parses this process's arguments. The error is an exit code; the message has been printed
/// already.
pub(super) fn parse<T: FromArgMatches>(mut command: Command) -> std::result::Result<T, u8> {
    let matches = command.try_get_matches_from_mut(std::env::args_os());
    let parsed = matches.and_then(|matches| T::from_arg_matches(&matches));
    let error = match parsed {
        Ok(parsed) => return Ok(parsed),
        Err(error) => error.format(&mut command),
    };
    let code = u8::try_from(error.exit_code()).unwrap_or(CANNOT_START);
    match error.print().and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ =
                writeln!(io::stderr().lock(), "capstead: can't write to standard output: {error}");
            Err(CANNOT_START)
        }
        _ => Err(code),
    }
}

impl Server {
    /// Serves until SIGINT or SIGTERM, with the flags of `capstead serve` from this process's
    /// command line (try `--help`): the whole `main` of a server with its own classes. A flag
    /// overrides the value that was set here. The operator's verbs, such as `backup` and `grants`,
    /// work as those of the `capstead` command do, on this server's data.
    ///
    /// When the server can't start or its storage fails, this prints the reason and exits the
    /// process with the codes of the `capstead` command; it also exits after a verb. Call it before
    /// the program starts threads: otherwise a page of a file that can't be read ends the process
    /// by SIGBUS, without a reason. To get the
    /// error instead, use [`Server::start`].
    ///
    /// # Errors
    /// None today; the signature leaves room for a `main` that does more.
    pub async fn run(self) -> Result<()> {
        prepare_process();
        let Embedded { verb, serve: options } =
            parse(command(&self)).unwrap_or_else(|code| std::process::exit(code.into()));
        let options = match verb {
            None => options,
            Some(Verb::Serve(options)) => options,
            Some(Verb::Operate(operate)) => {
                // A verb has its own runtime, and a thread can have only one.
                let classes = self.known_classes();
                let ended = std::thread::spawn(move || operate.run(&classes)).join();
                std::process::exit(ended.unwrap_or(CANNOT_START).into());
            }
        };
        if let Err(error) = serve::serve(self, options, |_| Vec::new()).await {
            std::process::exit(fail(&error).into());
        }
        Ok(())
    }
}

/// The command of an embedder's program, with its name, version and data directory.
fn command(server: &Server) -> Command {
    let program = std::env::args_os().next();
    let name = program.as_deref().map(Path::new).and_then(Path::file_name).and_then(OsStr::to_str);
    let name: &'static str = leak(name.unwrap_or("server").to_owned());
    let version = server.program_version().map_or_else(
        || concat!("(of Capstead ", env!("CARGO_PKG_VERSION"), ")"),
        |version| leak(version.to_owned()),
    );
    let data = server.data_dir().as_os_str().to_owned();
    let data: &'static OsStr = Box::leak(data.into_boxed_os_str());
    let about = "A server of durable objects, and the tools for its data";
    let command = Embedded::command().name(name).bin_name(name).version(version).about(about);
    owned(command, name, data)
}

/// The texts of a command live as long as the process, like literals.
fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

fn owned(mut command: Command, name: &'static str, data: &'static OsStr) -> Command {
    if let Some(help) = command.get_after_help() {
        let help = help.to_string().replace("capstead ", &format!("{name} "));
        command = command.after_help(help);
    }
    // The data directory of the verbs that work on one.
    if command.get_arguments().any(|argument| argument.get_id() == "path") {
        command = command.mut_arg("path", |argument| argument.default_value(data));
    }
    let below: Vec<String> =
        command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    for verb in below {
        command = command.mut_subcommand(verb, |command| owned(command, name, data));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_own_server_has_its_name_its_version_and_all_verbs() {
        let server = Server::new("mine.data").version("7.8");
        let mut command = command(&server);
        assert_eq!(command.get_version(), Some("7.8"));
        assert_ne!(command.get_name(), "capstead");
        let name = command.get_name().to_owned();
        let help = command.render_long_help().to_string();
        assert!(!help.contains("object capabilities") && help.contains(&name), "{help}");
        let capstead = super::super::Cli::command();
        for verb in
            capstead.get_subcommands().filter(|verb| Operate::has_subcommand(verb.get_name()))
        {
            let verb = command.find_subcommand_mut(verb.get_name()).expect("it is there");
            let help = verb.render_long_help().to_string();
            assert!(!help.contains("  capstead "), "{help}");
        }
        let backup = command.find_subcommand("backup").expect("it is there");
        let data = backup.get_arguments().find(|argument| argument.get_id() == "path");
        assert_eq!(data.expect("it has --data").get_default_values(), ["mine.data"]);
    }
}
