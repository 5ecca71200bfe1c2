//! The lab `kill`, second part: a server whose log holds far more than it usually may starts again
//! soon, and says how far it is.
//!
//! Times depend on the machine, so this is for the Deep tier alone.

use std::path::Path;
use std::time::Duration;

use crate::folder;
use crate::lab::{Found, ensure};
use crate::support::{now, scratch, serve_with};
use crate::writer::{End, Log, Script};

const MIB: u64 = 1 << 20;
/// The bytes in the log, the turns that write at least as many, and the time until they are served.
const LOGS: [(u64, u64, Duration); 2] = [
    (256 * MIB, 110_000, Duration::from_secs(3)),
    // 100 MB/s.
    (1_024 * MIB, 440_000, Duration::from_millis(10_700)),
];

pub(crate) fn run(seed: u64) -> Found {
    let script = Script { seed, keys: 2_000 };
    let mut longest = Duration::ZERO;
    for (bytes, turns, limit) in LOGS {
        let (_folder, data) = scratch();
        drop(serve_with(&data, &["--hosts", "1"]).stop());
        let environment = data.join("host-0");
        script.make(&environment, turns, Log::Large, End::Behind);
        let there = log_bytes(&environment);
        ensure(there >= bytes, || format!("the log has only {there} bytes"))?;
        let start = now();
        let served = serve_with(&data, &[]);
        let took = start.elapsed();
        let stderr = served.stderr();
        let says = stderr.matches("applying what the log has").count() as u64;
        ensure(says > bytes / (32 * MIB), || format!("it did not say how far it is: {stderr}"))?;
        ensure(took < limit, || {
            format!("it took {took:?} to serve with {there} bytes in the log")
        })?;
        longest = longest.max(took);
    }
    let longest = u64::try_from(longest.as_millis()).expect("it was short");
    Ok([("restart_with_1_gib_ms", longest)].into())
}

fn log_bytes(environment: &Path) -> u64 {
    let files = folder::read(environment).into_iter();
    let segments = files.filter(|(name, _)| name.starts_with("segment-"));
    segments.map(|(_, bytes)| bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64).sum()
}
