//! Calls that never end, on more objects than may be awake.

use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capstead::classes::Counter;
use capstead::{Result, Server};
use capstead_client::{Connection, Terms, namespace};
use tokio::task::JoinHandle;

use super::class::{Exclusive, Passer, Plain};
use super::fortress::survives_from;
use crate::passing_capnp::passer;
use crate::support::calls::{by_name, connect, connect_to, increment, run};
use crate::support::{DEADLINE, Served, now, own};

/// The objects that may be awake in all, on however many hosts.
const AWAKE: usize = 400;

/// An honest call that wakes an object takes no longer, and nor do nearly all others.
const FRESH_MAX: Duration = Duration::from_millis(250);

/// Objects that are woken beside the attack, in each round.
const FRESH: usize = 100;

/// The number of rounds: a machine that others use may stall for a moment.
const ROUNDS: usize = 3;

/// The attacker's connections.
const PARTS: usize = 4;

#[test]
fn a_server_of_few_awake_objects() {
    let Some(data) = own::data() else { return };
    let hosts = std::env::var("CAPSTEAD_TEST_HOSTS").map_or(1, |hosts| hosts.parse().unwrap());
    let server = Server::new(data).class::<Counter>().awake_objects(AWAKE);
    let server = server.class::<Passer<Plain>>().class::<Passer<Exclusive>>();
    own::serve(server.hosts(hosts));
}

/// A callback that never answers.
struct Never;

impl passer::Server for Never {
    async fn note(self: Rc<Self>, _: passer::NoteParams, _: passer::NoteResults) -> Result<()> {
        std::future::pending().await
    }
}

/// A connection with calls that never end on these objects, of which some are refused.
async fn hold(
    served: &Served,
    text: &str,
    objects: Range<usize>,
) -> (Connection, Vec<JoinHandle<()>>) {
    let connection = Connection::dial(&served.announced.capnp).await.unwrap();
    let all: namespace::Client = connection.restore(text).unwrap();
    let held = objects.map(|object| {
        let mut name = all.by_name_request();
        name.get().set_key(format!("held {object}"));
        let object: passer::Client = name.send().pipeline.get_object().as_cap().cast_to();
        let mut later = object.later_request();
        later.get().set_cap(capnp_rpc::new_client(Never));
        later.get().set_until(capnp_rpc::new_client(Never));
        let never = later.send().promise;
        tokio::task::spawn_local(async move { assert!(never.await.is_err(), "it never answers") })
    });
    let held = held.collect();
    (connection, held)
}

/// Wakes new objects by increments; returns the time of all but one in a hundred.
async fn wake_fresh(counters: &namespace::Client, round: usize) -> Duration {
    let mut took = Vec::new();
    for n in 0..FRESH {
        let began = now();
        let value = increment(&by_name(counters, &format!("fresh {round} {n}"))).await;
        assert_eq!(value.expect("an honest call wakes an object"), 1);
        took.push(began.elapsed());
    }
    took.sort_unstable();
    took[FRESH * 99 / 100 - 1]
}

fn attack(served: &Served) {
    run(async {
        let (connection, plain) = connect_to(served, "Plain").await;
        let text = capstead_client::share(&plain, Terms::new("Mallory")).await.unwrap();
        let mut held = Vec::new();
        for part in 0..PARTS {
            let objects = AWAKE * 2 / PARTS;
            held.push(hold(served, &text, part * objects..(part + 1) * objects).await);
        }
        let refused = || served.metric("awake_shares_refused_total");
        let begun = now();
        while refused() < (2 * AWAKE - AWAKE / 4) as u64 {
            assert!(begun.elapsed() < DEADLINE, "{} were refused", refused());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (_connection, counters) = connect(served).await;
        let mut took = Vec::new();
        while took.len() < ROUNDS {
            match wake_fresh(&counters, took.len()).await {
                fast if fast < FRESH_MAX => break,
                slow => took.push(slow),
            }
        }
        assert!(took.len() < ROUNDS, "one in a hundred took {took:?} or longer");
        // A share is as much as a quarter, and not nothing.
        let still = held.iter().flat_map(|(_, held)| held);
        let still = still.filter(|never| !never.is_finished()).count();
        assert!((AWAKE / 8..=AWAKE / 4).contains(&still), "{still} are held");
        drop((held, connection));
    });
}

#[test]
fn calls_that_never_end_on_all_objects() {
    for hosts in ["1", "2", "4"] {
        let serve = |data: &Path| {
            let mut command = own::program("awake::a_server_of_few_awake_objects", data);
            command.env("CAPSTEAD_TEST_HOSTS", hosts);
            command
        };
        survives_from(serve, FRESH_MAX, attack);
    }
}
