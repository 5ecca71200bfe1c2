//! The `capstead` command.

/// Every call makes a handful of small allocations on one thread, at which this allocator is good.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    capstead::main()
}
