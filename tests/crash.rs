//! What is acknowledged is durable: a server is killed under load, over and over, and counted after.
//!
//! The kill is `kill -9` at a random moment, from a seed that is printed. A counter tells how many
//! calls happened: at least those that were acknowledged, at most those that were sent.

mod support;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use capstead_client::{Connection, namespace};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesOrdered;
use support::calls::{by_name, connect, increment, read, run};
use support::random::Random;
use support::{Process, Served, scratch, serve, serve_command};
use tokio::sync::Notify;

const CYCLES: i64 = 50;
const CLIENTS: usize = 4;
const IN_FLIGHT: usize = 16;

/// What the clients of one run of the server know.
#[derive(Debug, Default)]
struct Ledger {
    sent: Cell<i64>,
    acknowledged: RefCell<BTreeSet<i64>>,
    one_more: Notify,
}

impl Ledger {
    fn acknowledge(&self, value: i64) {
        let is_new = self.acknowledged.borrow_mut().insert(value);
        assert!(is_new, "{value} was acknowledged twice");
        self.one_more.notify_one();
    }

    /// Resolves when so many calls were acknowledged.
    async fn reaches(&self, acknowledged: usize) {
        while self.acknowledged.borrow().len() < acknowledged {
            self.one_more.notified().await;
        }
    }
}

/// Increments until the connection breaks, with several calls on their way at any time.
async fn load((_connection, counters): (Connection, namespace::Client), ledger: Rc<Ledger>) {
    let counter = by_name(&counters, "x");
    let mut in_flight = FuturesOrdered::new();
    let mut last = i64::MIN;
    loop {
        while in_flight.len() < IN_FLIGHT {
            ledger.sent.set(ledger.sent.get() + 1);
            in_flight.push_back(increment(&counter));
        }
        match in_flight.next().await.expect("calls are on their way") {
            Ok(value) => {
                assert!(value > last, "calls on one stub happen in their order");
                last = value;
                ledger.acknowledge(value);
            }
            Err(error) => {
                assert_eq!(error.kind, capnp::ErrorKind::Disconnected, "{error}");
                return;
            }
        }
    }
}

/// So many increments on a connection of their own; returns the last value.
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

/// One life of the server: load, death, and what the clients know afterwards.
async fn live_and_die(served: &mut Served, random: &mut Random) -> Ledger {
    let ledger = Rc::new(Ledger::default());
    let connections = join_all((0..CLIENTS).map(|_| connect(served))).await;
    let clients = connections.into_iter().map(|one| load(one, ledger.clone()));
    let (acknowledged, later) = (random.below(1_000) as usize, random.below(3_000));
    let die = async {
        ledger.reaches(acknowledged).await;
        tokio::time::sleep(Duration::from_micros(later)).await;
        served.kill();
    };
    futures::join!(join_all(clients), die);
    Rc::into_inner(ledger).expect("the clients are gone")
}

// The promise of the whole: a call that was acknowledged happened, and none happened twice. What is
// on the way when the server dies happened or not. The reference from before works afterwards.
#[test]
fn nothing_acknowledged_is_lost_when_the_server_is_killed_under_load() {
    let (_folder, data) = scratch();
    let mut random = Random::from_printed_seed();
    let (mut before, mut acknowledged, mut unknown) = (0, 0, 0);
    let mut served = serve(&data);
    for cycle in 0..CYCLES {
        let ledger = run(live_and_die(&mut served, &mut random));
        served = serve(&data);
        let now = run(value(&served));
        let (sent, seen) = (ledger.sent.get(), ledger.acknowledged.into_inner());
        let (happened, known) = (now - before, i64::try_from(seen.len()).unwrap());
        assert!(now >= seen.last().copied().unwrap_or(before), "cycle {cycle}: lost {seen:?}");
        assert!(happened >= known, "cycle {cycle}: {happened} happened, {known} acknowledged");
        assert!(happened <= sent, "cycle {cycle}: {happened} happened, {sent} sent");
        acknowledged += known;
        unknown += sent - known;
        before = now;
    }
    eprintln!("{CYCLES} kills: {acknowledged} acknowledged, {unknown} on the way, value {before}");
    assert!(acknowledged > 1_000, "there was load");
    assert!(unknown >= CYCLES, "the kills hit calls on their way");
}

// A start can be cut short as well, the very first one included: what it leaves can be started.
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

// Eight clients on connections of their own, each with many calls on their way: every call counts
// once, and each client sees its own calls happen in order.
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
