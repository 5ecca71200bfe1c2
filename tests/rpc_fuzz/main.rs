//! A fuzzer that keeps to the protocol just enough to get deep into it: whole servers receive a
//! million messages, most of them plausible and some broken, and must serve other clients as if
//! nothing happened.
//!
//! `CAPSTEAD_TEST_SEED` repeats a run, as far as the order of the server's messages allows, and
//! `CAPSTEAD_FUZZ_MESSAGES` sets the number of messages. Known causes of failures of the RPC system
//! have tests of their own in `regressions`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broken;
mod messages;
mod peer;
mod regressions;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod traffic;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::random::Random;
use support::{Served, eventually, now, scratch};
use traffic::{Counts, Latencies, fuzz, honest, serves};

/// Connections that are fuzzed concurrently.
const CONNECTIONS: u64 = 4;

/// Quiet and fuzzed phases alternate, so that other load on the machine affects both.
const ROUNDS: u64 = 4;

const QUIET: Duration = Duration::from_secs(1);

/// The bounds that a server must keep.
struct Bounds {
    hosts: u16,
    /// The bytes of memory that it may keep from all messages.
    growth_bytes: u64,
    /// The extra time that a call may take during fuzzing, beyond twice the time without it.
    delay: Duration,
}

/// One host keeps several hundred unanswered calls of each connection, and megabytes that some
/// connections send.
const ONE: Bounds = Bounds { hosts: 1, growth_bytes: 128 << 20, delay: Duration::from_millis(20) };

/// Objects that pass capabilities on are on different hosts. Calls on promises of several hosts
/// that lead to each other circulate until 16,384 calls on one promise are unanswered, and four
/// hosts share the processors with the fuzzer.
const FOUR: Bounds = Bounds { hosts: 4, growth_bytes: 1 << 30, delay: Duration::from_millis(250) };

/// The server process runs this.
#[test]
fn serve_the_fuzzed() {
    server::serve();
}

#[test]
fn a_million_messages_end_no_process_and_slow_nobody_down() {
    let messages = std::env::var("CAPSTEAD_FUZZ_MESSAGES")
        .map_or(1_000_000, |text| text.parse().expect("a number of messages"));
    let mut random = Random::from_printed_seed();
    // One after the other, because each measures how soon other clients are served.
    for bounds in [ONE, FOUR] {
        fuzz_server(&mut random, messages, &bounds);
    }
}

fn fuzz_server(random: &mut Random, messages: u64, bounds: &Bounds) {
    let (_folder, data) = scratch();
    let served = server::start_hosts(&data, bounds.hosts);
    let (pid, mut counts) = (served.pid(), Counts::default());
    let (mut quiet, mut fuzzed) = (Latencies::none(), Latencies::none());
    let mut most = 0;
    let start = now();
    for round in 0..ROUNDS {
        let name = format!("honest {round}");
        quiet.extend(beside(&served, &name, || std::thread::sleep(QUIET)));
        let before = served.resident_bytes();
        fuzzed.extend(beside(&served, &name, || {
            counts.add(fuzz_all(&served, random, messages / ROUNDS));
        }));
        let grown = served.resident_bytes().saturating_sub(before);
        eprintln!(
            "round {round}: {grown} bytes more in memory, {} messages read, {} callbacks",
            counts.read, counts.calls
        );
        most = most.max(grown);
    }
    eprintln!("{counts:#?}\nin {:?}, at most {most} bytes more in memory", start.elapsed());
    let objects = (0..peer::OBJECTS).map(|object| format!("object {object}"));
    let stuck: Vec<_> = objects.filter(|object| !serves(&served, object)).collect();
    assert!(counts.calls > 0 && counts.reflected > 0 && counts.refused.len() > 10, "{counts:?}");
    assert_eq!(counts.resolves, 0, "the path of a capability never changes");
    eventually("the end of all connections", || (served.metric("connections") == 0).then_some(()));
    assert_eq!(served.pid(), pid);
    let (_, _, log) = served.stop();
    check_log(&log);
    assert!(stuck.is_empty(), "{stuck:?} serve nobody any more");
    assert!(most < bounds.growth_bytes, "{most} bytes more in memory");
    check_latencies(quiet, fuzzed, bounds.delay);
}

/// An honest client's latencies while `work` is done.
fn beside(served: &Served, name: &str, work: impl FnOnce()) -> Latencies {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let honest = scope.spawn(|| honest(served, name, &stop));
        work();
        stop.store(true, Ordering::Relaxed);
        honest.join().unwrap_or_else(|_| panic!("it isn't served: {}", served.stderr()))
    })
}

fn fuzz_all(served: &Served, random: &mut Random, messages: u64) -> Counts {
    let mut counts = Counts::default();
    std::thread::scope(|scope| {
        let each = messages.div_ceil(CONNECTIONS);
        let started: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let mut random = random.fork();
                scope.spawn(move || fuzz(served, &mut random, each))
            })
            .collect();
        for thread in started {
            counts.add(thread.join().expect("the fuzzer itself is sound"));
        }
    });
    counts
}

/// Allows twice the time, and the time for which batches of four connections delay a call, on two
/// processors that the fuzzer, the server and other load share.
fn check_latencies(mut quiet: Latencies, mut fuzzed: Latencies, delay: Duration) {
    let (before, during) = (quiet.percentile(99), fuzzed.percentile(99));
    eprintln!(
        "{} quiet reads, p50 {:?}, p99 {before:?}; {} beside the fuzzer, p50 {:?}, p99 {during:?}",
        quiet.count(),
        quiet.percentile(50),
        fuzzed.count(),
        fuzzed.percentile(50),
    );
    assert!(during <= 2 * before + delay, "{before:?} became {during:?}");
}

/// Checks that no code of ours panicked. A panic in the RPC system, or in the futures that it
/// shares, ends a call or the peer's own connection.
fn check_log(log: &str) {
    let mut places = BTreeMap::<_, u32>::new();
    for line in log.lines().filter(|line| line.contains(" panicked at ")) {
        let place = line.split_once("/registry/src/").map(|(_, place)| place);
        *places.entry(place.unwrap_or_else(|| panic!("{line}"))).or_default() += 1;
    }
    eprintln!("panics of the RPC system: {places:#?}");
    assert!(!log.contains("an object panicked"), "a peer ended the object of others");
    assert!(!log.contains("the link to a host broke"), "a peer ended the calls of others: {log}");
}
