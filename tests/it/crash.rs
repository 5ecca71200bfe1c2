//! A server that is killed while it starts, and one under load that is not killed.
//!
//! The kill is `kill -9` at a random moment, from a printed seed. Kills under load are in
//! `tests/crash_lab`, with all other kinds of crashes.

use std::path::Path;
use std::time::Duration;

use crate::support::calls::{by_name, connect, increment, read, run};
use crate::support::random::Random;
use crate::support::{Process, Served, scratch, serve, serve_command};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesOrdered;

const IN_FLIGHT: usize = 16;

/// Makes `count` increments over a new connection; returns the last value.
async fn increments(served: &Served, count: usize) -> i64 {
    let (_connection, counters) = connect(served).await;
    let counter = by_name(&counters, "x");
    let (mut in_flight, mut sent, mut last) = (FuturesOrdered::new(), 0, 0);
    while sent < count || !in_flight.is_empty() {
        while in_flight.len() < 2 * IN_FLIGHT && sent < count {
            in_flight.push_back(increment(&counter));
            sent += 1;
        }
        let value = in_flight.next().await.expect("calls are on their way").expect("it counts");
        assert!(value > last, "calls on one stub happen in their order");
        last = value;
    }
    last
}

async fn value(served: &Served) -> i64 {
    let (_connection, counters) = connect(served).await;
    read(&by_name(&counters, "x")).await.expect("it can be read")
}

// A start can be cut short too, even the very first one: the remains can be started.
#[test]
fn a_server_killed_while_it_starts_starts_again() {
    let mut random = Random::from_printed_seed();
    for _ in 0..5 {
        let (_folder, data) = scratch();
        for _ in 0..6 {
            let mut starting = Process::start(serve_command(&data, &["--json"]));
            std::thread::sleep(Duration::from_micros(random.below(40_000)));
            starting.kill();
        }
        increments_by_one(&data);
    }
}

fn increments_by_one(data: &Path) {
    let served = serve(data);
    run(async {
        let (_connection, counters) = connect(&served).await;
        assert_eq!(increment(&by_name(&counters, "x")).await.expect("it counts"), 1);
    });
}

// Eight clients on separate connections, each with many calls under way: every call counts once,
// and each client's calls happen in its order.
#[test]
fn eight_clients_with_ten_thousand_increments_each_end_at_eighty_thousand() {
    const EACH: usize = 10_000;
    const CLIENTS: usize = 8;
    let (_folder, data) = scratch();
    let served = serve(&data);
    run(async {
        let last = join_all((0..CLIENTS).map(|_| increments(&served, EACH))).await;
        assert_eq!(last.iter().max(), Some(&80_000));
        assert_eq!(value(&served).await, 80_000);
    });
    let ended = served.stop();
    assert_eq!(ended.0, Some(0), "{}", ended.2);
}
