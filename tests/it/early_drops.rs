//! A million calls that their callers drop early: neither side keeps anything of them.

use std::path::Path;

use crate::support::calls::{by_name, connect, increment, read};
use crate::support::{own, scratch};

/// Calls made before the first measurement of memory.
const WARM_UP: u64 = 100_000;
const CALLS: u64 = 1_000_000;
/// Calls between two awaited ones.
const BATCH: u64 = 1_000;
/// A hundredth of the memory that would leak if each call left its parameters and an answer.
const GROWTH_KIB: u64 = 4 << 10;

/// Some calls are dropped before any byte of them was sent, others while they are under way. The
/// caller is a separate process, in which no other test uses memory.
#[test]
fn a_million_calls_that_are_dropped_early_leave_nothing_on_either_side() {
    const THIS: &str =
        "early_drops::a_million_calls_that_are_dropped_early_leave_nothing_on_either_side";
    if let Some(data) = own::data() {
        return drop_early(Path::new(&data));
    }
    let (_folder, data) = scratch();
    let output = own::program(THIS, &data).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn drop_early(data: &Path) {
    let served = crate::support::serve(data);
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    runtime.block_on(async {
        let (_connection, counters) = connect(&served).await;
        let counter = by_name(&counters, "dropped");
        let make = async |count: u64| {
            for _ in 0..count / BATCH {
                for n in 0..BATCH {
                    let call = read(&counter);
                    if n % 10 == 0 {
                        tokio::task::yield_now().await;
                    }
                    drop(call);
                }
                read(&counter).await.unwrap();
            }
        };
        make(WARM_UP).await;
        let (ours, theirs) = (resident_kib("self"), resident_kib(&served.pid().to_string()));
        make(CALLS).await;
        let ours = resident_kib("self").saturating_sub(ours);
        let theirs = resident_kib(&served.pid().to_string()).saturating_sub(theirs);
        assert!(
            ours < GROWTH_KIB && theirs < GROWTH_KIB * crate::support::copies(),
            "grew by {ours} and {theirs} KiB"
        );
        assert_eq!(increment(&counter).await.unwrap(), 1, "and all goes on");
    });
}

fn resident_kib(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
