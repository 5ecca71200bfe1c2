//! The `capstead` command: a server of the bundled classes. No other part of the server names
//! these.

use capstead::Running;
use capstead::classes::bundled;

/// Every call makes a handful of small allocations on one thread, at which this allocator is good.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    capstead::main(bundled("capstead.data"), hints)
}

/// The ways to call a counter from a clone of the repository.
fn hints(running: &Running) -> Vec<String> {
    let Some(counters) = running.namespaces().get("Counter") else { return Vec::new() };
    let curl = |url| format!("  curl -X POST {url}/counter/x/increment");
    let mut lines = vec!["\nIncrement a counter:".to_owned()];
    lines.extend(running.http_url().map(curl));
    lines.push(format!("  cargo run --release -qp counter --bin client -- '{counters}' x"));
    lines.push(format!("  python3 examples/counter/client.py '{counters}' x"));
    lines
}
