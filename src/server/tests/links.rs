//! A link between hosts breaks: the capabilities that came over it break, everything else works on,
//! and the link is made anew.

use std::cell::Cell;
use std::time::Duration;

use capnp::ErrorKind;
use capstead_client::Connection;

use super::world::{World, address_in, by_name, increment, revoke, run, save, straight, within};
use crate::schema::admin_capnp::admin::Client as Operator;
use crate::schema::counter_capnp::counter;
use crate::server::admin;

const ROUNDS: u64 = 20;
/// The time in which a cut-off host is back, even on a busy machine.
const BACK: Duration = Duration::from_secs(10);

/// Ends the link of `host`, from either side in turn.
async fn break_link(world: &World, host: u16, round: u64) {
    if round.is_multiple_of(2) {
        return world.break_link(host);
    }
    world
        .on_host(
            host,
            Box::new(|_, link| {
                let link = link.clone();
                tokio::task::spawn_local(async move { link.disconnect().await });
            }),
        )
        .await;
}

/// Resolves when this number of links has been made anew.
async fn made_anew(world: &World, links: u64) {
    let made = async {
        while world.metric("links_remade_total").await < links {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(BACK, made).await.expect("the link is made anew soon");
}

/// Repeats a call that must always be answered.
async fn goes_on(what: &str, done: &Cell<bool>, call: impl AsyncFn()) {
    while !done.get() {
        tokio::time::timeout(BACK, call()).await.unwrap_or_else(|_| panic!("{what} stands still"));
        tokio::task::yield_now().await;
    }
}

/// A counter over a connection to its own host's listener.
async fn by_own_listener(counter: &counter::Client) -> (Connection, counter::Client) {
    let text = save(counter, "own").await;
    let front = Connection::dial(&address_in(&text)).await.unwrap();
    let connection = Connection::dial(&front.locate(&text).await.unwrap()).await.unwrap();
    let own: counter::Client = connection.restore(&text).unwrap();
    (connection, own)
}

/// The possible values of a counter: the acknowledged increments, and those that may have happened
/// without an answer.
#[derive(Clone, Copy, Default)]
struct Expected {
    least: i64,
    more: i64,
}

async fn breaks_and_comes_back(hosts: u16) {
    let data = tempfile::tempdir().unwrap();
    let world = World::start(data.path(), hosts).await;
    let mut expected = vec![Expected::default(); usize::from(hosts)];
    let mut wakes = None;
    for round in 0..ROUNDS {
        let victim = 1 + (round % u64::from(hosts - 1)) as u16;
        one_round(&world, round, victim, &mut expected[usize::from(victim)]).await;
        if round >= u64::from(hosts) {
            let now = world.metric("wakes_total").await;
            assert_eq!(*wakes.get_or_insert(now), now, "objects were woken again");
        }
    }
    let operator = admin::connect(data.path()).await.unwrap();
    for number in 0..hosts {
        let mut request = operator.bootstrap::<Operator>().host_request();
        request.get().set_number(number);
        let host = request.send().pipeline.get_host();
        within(host.present_request().send().promise).await.unwrap();
    }
    world.stop().await.unwrap();
}

async fn one_round(world: &World, round: u64, victim: u16, expected: &mut Expected) {
    let (front, counters) = world.connect().await;
    let far = world.name_on(victim, 0);
    let held = by_name(&counters, &far);
    let on =
        async |host, nth| straight(&front, &by_name(&counters, &world.name_on(host, nth))).await;
    // With two hosts, the first is the only other one.
    let (near, other) = (on(0, 1).await, on((victim + 1) % world.hosts, 2).await);
    let (_own_connection, own) =
        by_own_listener(&by_name(&counters, &world.name_on(victim, 1))).await;
    for counter in [&held, &near, &other, &own] {
        increment(counter).await.unwrap();
    }
    // The gateway holds a capability that will break.
    let (status, body) = world.post(&far).await;
    assert_eq!(status, 200, "{body}");
    expected.least += 2;

    let done = Cell::new(false);
    let under_way = increment(&held);
    break_link(world, victim, round).await;
    let broken = async {
        match under_way.await {
            Ok(_) => expected.least += 1,
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Disconnected, "{error}");
                expected.more += 1;
            }
        }
        made_anew(world, round + 1).await;
        // The capability is broken for good, although the host is there again.
        let error = increment(&held).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Disconnected, "{error}");
        // No request that changes something is made twice, so the first one must succeed.
        let (status, body) = world.post(&far).await;
        assert_eq!(status, 200, "round {round}: {body}");
        expected.least += 1;
        done.set(true);
    };
    let gateway = goes_on("the gateway", &done, async || {
        // The gateway reaches the objects of a class by its namespace, whichever host has that.
        if world.namespace_is_on() == victim {
            return drop(world.ask("GET", &format!("/counter/{far}")).await);
        }
        world.value(&world.name_on(0, 0)).await;
    });
    let calls = |what, counter| {
        goes_on(what, &done, async move || assert!(increment(counter).await.unwrap() > 0))
    };
    let (near, other, own) = (
        calls("the first host", &near),
        calls("another host", &other),
        calls("the host's own client", &own),
    );
    futures::join!(broken, gateway, near, other, own);

    // A namespace of another host is unaffected.
    let again = if world.namespace_is_on() == victim {
        front.restore(&world.counters).unwrap()
    } else {
        counters.clone()
    };
    increment(&by_name(&again, &far)).await.unwrap();
    expected.least += 1;
    let value = world.value(&far).await;
    let Expected { least, more } = *expected;
    assert!((least..=least + more).contains(&value), "{value}, and not {least}");
    assert!(world.is_ready().await);
}

#[test]
fn a_broken_link_is_made_anew_while_all_others_go_on_with_two_hosts() {
    run(breaks_and_comes_back(2));
}

// Here the second host has the gateway's namespaces, too.
#[test]
fn a_broken_link_is_made_anew_while_all_others_go_on_with_four_hosts() {
    run(breaks_and_comes_back(4));
}

// Callers in the meantime are answered at once, and told to try again; in both directions.
#[test]
fn requests_to_a_host_that_is_cut_off_say_so() {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let world = World::start(data.path(), 2).await;
        let (_front, counters) = world.connect().await;
        let (far, near) = (world.name_on(1, 0), world.name_on(0, 0));
        increment(&by_name(&counters, &far)).await.unwrap();
        let mut told = 0;
        // The time without a link is short, so some tries come too late.
        for round in 0..ROUNDS {
            world.break_link(1);
            while world.is_ready().await {
                if world.metric("links_remade_total").await > round {
                    break;
                }
            }
            let Err(error) = increment(&by_name(&counters, &far)).await else { continue };
            assert_eq!(error.kind, ErrorKind::Disconnected, "{error}");
            told += u64::from(error.extra.contains("try again"));
            made_anew(&world, round + 1).await;
            increment(&by_name(&counters, &near)).await.unwrap();
        }
        assert!(told > 0, "nobody was told to try again");
        world.stop().await.unwrap();
    });
}

// The answer to a revocation means that it holds on every host, so it waits for one that is cut
// off.
#[test]
fn a_revocation_reaches_a_host_that_is_cut_off_before_it_is_answered() {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let world = World::start(data.path(), 2).await;
        assert_eq!(world.namespace_is_on(), 0);
        for round in 0..ROUNDS {
            let (front, counters) = world.connect().await;
            let label = format!("round {round}");
            let text = save(&counters, &label).await;
            let narrow = front.restore(&text).unwrap();
            let (_own, own) = by_own_listener(&by_name(&narrow, &world.name_on(1, 0))).await;
            increment(&own).await.unwrap();
            world.break_link(1);
            tokio::task::yield_now().await;
            revoke(&counters, &label).await.unwrap();
            let error = increment(&own).await.unwrap_err();
            assert!(error.extra.contains("revoked:"), "round {round}: {error}");
            made_anew(&world, round + 1).await;
        }
        world.stop().await.unwrap();
    });
}

// The operator may stop a server at any moment, even while a host is cut off.
#[test]
fn a_server_ends_in_order_while_a_link_is_broken() {
    for hosts in [2, 4] {
        let data = tempfile::tempdir().unwrap();
        let mut sure = 0;
        for round in 0..6 {
            sure = run(async {
                let world = World::start(data.path(), hosts).await;
                let (_front, counters) = world.connect().await;
                let (_own_connection, own) =
                    by_own_listener(&by_name(&counters, &world.name_on(1, 0))).await;
                assert!(increment(&own).await.unwrap() > sure, "something was lost");
                let under_way: Vec<_> = (0..50).map(|_| increment(&own)).collect();
                break_link(&world, 1, round).await;
                for _ in 0..round * 3 {
                    tokio::task::yield_now().await;
                }
                let stopped = tokio::task::spawn_local(world.stop());
                let answers = futures::future::join_all(under_way).await;
                sure = answers.into_iter().flatten().fold(sure, i64::max);
                within(stopped).await.unwrap().unwrap();
                sure
            });
        }
        run(async {
            let world = World::start(data.path(), hosts).await;
            let value = world.value(&world.name_on(1, 0)).await;
            assert!(value >= sure, "{value} is there, and {sure} was acknowledged");
            world.stop().await.unwrap();
        });
    }
}
