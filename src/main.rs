//! The `capstead` command.

fn main() -> std::process::ExitCode {
    capstead::main()
}
