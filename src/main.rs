//! The `capstead` command.

/// Every call is a handful of small allocations on one thread, which is what this one is good at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    capstead::main()
}
