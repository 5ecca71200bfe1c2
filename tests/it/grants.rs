//! Grants of a real server with two hosts: revoked while clients use them, and by the operator.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::support::calls::{by_name, connect, increment, read, revoke, run, save};
use crate::support::operator::{done, output, said};
use crate::support::random::Random;
use crate::support::{Served, capstead, http, now, scratch, serve_with};
use capnp::Error;
use capnp::capability::FromClientHook;
use capstead::counter_capnp::counter;
use capstead_client::{Connection, namespace};
use futures::future::join_all;

/// The time for which capabilities from a revoked grant may still work.
const CUT_WITHIN: Duration = Duration::from_secs(1);

fn is_revoked(error: &Error) -> bool {
    error.extra.contains("revoked:")
}

async fn restored<C: FromClientHook>(connection: &Connection, text: &str) -> Result<C, Error> {
    let mut request = connection
        .bootstrap::<capstead_client::restorer_capnp::restorer::Client>()
        .restore_request();
    request.get().set_sturdy_ref(text);
    request.send().promise.await?.get()?.get_cap().get_as_capability()
}

/// A connection to each host's own listener.
async fn connections(
    served: &Served,
    counters: &namespace::Client,
    count: usize,
) -> Vec<Connection> {
    let (front, _) = connect(served).await;
    let mut addresses = vec![served.announced.capnp.clone()];
    for name in 0.. {
        let text = save(&by_name(counters, &format!("where {name}")), "").await;
        let address = front.locate(&text).await.expect("it is somewhere");
        if !addresses.contains(&address) {
            addresses.push(address);
            break;
        }
    }
    let dial = |at: usize| Connection::dial(&addresses[at % addresses.len()]);
    let dialled = join_all((0..count).map(dial)).await.into_iter().collect::<Result<_, _>>();
    dialled.expect("they are reached")
}

/// One round of the race: clients restore and call continuously, while the grant is revoked.
struct Round {
    text: String,
    /// Set once the owner has learned that the grant is revoked.
    revoked: Cell<bool>,
    restores: Cell<usize>,
    calls: Cell<usize>,
    slowest: RefCell<Duration>,
}

/// Restores and calls until that is refused; then both stay refused.
async fn client(round: &Round, connection: &Connection) {
    let mut held: Option<counter::Client> = None;
    loop {
        let was_revoked = round.revoked.get();
        match restored::<counter::Client>(connection, &round.text).await {
            Ok(live) => {
                assert!(!was_revoked, "a restore that began after the revocation succeeded");
                round.restores.set(round.restores.get() + 1);
                held.get_or_insert(live);
            }
            Err(error) => {
                assert!(is_revoked(&error), "{error}");
                break;
            }
        }
        let live = held.as_ref().expect("it was restored");
        match increment(live).await {
            Ok(_) => round.calls.set(round.calls.get() + 1),
            Err(error) => assert!(is_revoked(&error), "{error}"),
        }
    }
    let Some(live) = held else { return };
    let start = now();
    while increment(&live).await.is_ok() {
        assert!(start.elapsed() < CUT_WITHIN, "a live capability goes on");
    }
    let mut slowest = round.slowest.borrow_mut();
    *slowest = (*slowest).max(start.elapsed());
}

/// After the reply to the revocation no restore succeeds on any host, and live capabilities are
/// cut.
#[test]
fn a_revocation_wins_against_a_hundred_clients() {
    const ROUNDS: u64 = 50;
    const CLIENTS: usize = 100;
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "2"]);
    let mut random = Random::from_printed_seed();
    let (restores, calls) = run(async {
        let (_connection, counters) = connect(&served).await;
        let connections = connections(&served, &counters, CLIENTS).await;
        let (mut restores, mut calls) = (0, 0);
        for number in 0..ROUNDS {
            let object = by_name(&counters, &format!("object {number}"));
            // Half of the grants depend on one of the namespace, which may be on another host.
            let guest = (number % 2 == 0).then_some("guest");
            let by = match guest {
                None => object.clone(),
                Some(guest) => {
                    let guest = save(&counters, guest).await;
                    by_name(
                        &restored(&connections[0], &guest).await.unwrap(),
                        &format!("object {number}"),
                    )
                }
            };
            let round = Rc::new(Round {
                text: save(&by, "shared").await,
                revoked: Cell::default(),
                restores: Cell::default(),
                calls: Cell::default(),
                slowest: RefCell::default(),
            });
            let clients: Vec<_> = connections
                .iter()
                .map(|connection| {
                    let (round, connection) = (round.clone(), connection.clone());
                    tokio::task::spawn_local(async move { client(&round, &connection).await })
                })
                .collect();
            // The race begins once this number of clients have restored the grant.
            let start = random.below(CLIENTS as u64 * 3) as usize + 1;
            while round.restores.get() < start {
                tokio::task::yield_now().await;
            }
            match guest {
                None => revoke(&object, "shared").await,
                Some(guest) => revoke(&counters, guest).await,
            }
            round.revoked.set(true);
            for client in clients {
                client.await.unwrap_or_else(|error| panic!("round {number}: {error}"));
            }
            assert!(*round.slowest.borrow() < CUT_WITHIN);
            restores += round.restores.get();
            calls += round.calls.get();
            read(&object).await.expect("the owner's own capability goes on");
        }
        (restores, calls)
    });
    eprintln!("{restores} restores and {calls} calls in {ROUNDS} rounds");
    assert!(restores >= ROUNDS as usize && calls > 0);
}

/// The id of the grant on the line that contains `label`.
fn id_of(tree: &str, label: &str) -> String {
    let line = tree.lines().find(|line| line.contains(&format!("{label:?}")));
    let line = line.unwrap_or_else(|| panic!("{label} is not in {tree}"));
    line.split_whitespace().next().expect("it begins with the id").to_owned()
}

/// The operator sees who can reach an object, and adds and revokes a grant, whether it is served or
/// not.
#[test]
fn the_operator_grants_lists_and_revokes() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "2"]);
    let counters = served.counters().to_owned();
    let text = run(async {
        let (_connection, counters) = connect(&served).await;
        increment(&by_name(&counters, "visits")).await.unwrap();
        save(&by_name(&counters, "visits"), "saved by a client").await
    });
    let absent = output(&data, &["grant", "Counter/nobody"]);
    assert!(
        !absent.status.success() && said(&absent).contains("no object Counter/nobody"),
        "{}",
        said(&absent)
    );
    let read_only =
        ["grant", "Counter/visits", "--label", "Ada", "--until", "1h", "--method", "read"];
    let read_only = done(&data, &read_only);
    let tree = done(&data, &["grants", "Counter/visits"]);
    assert!(tree.starts_with("Counter/visits: 2 grants"), "{tree}");
    assert!(tree.contains("by way of the namespace"), "{tree}");
    let ada = id_of(&tree, "Ada");
    run(async {
        let (connection, _) = connect(&served).await;
        let ada: counter::Client = restored(&connection, &read_only).await.unwrap();
        assert_eq!(read(&ada).await.unwrap(), 1);
        assert_eq!(increment(&ada).await.err().unwrap().kind, capnp::ErrorKind::Unimplemented);
    });
    assert!(done(&data, &["grants", "Counter/visits"]).contains("restored 2"));
    done(&data, &["revoke", "Counter/visits", &ada]);
    let again = output(&data, &["revoke", "Counter/visits", &ada]);
    assert!(!again.status.success() && said(&again).contains("no grant"), "{}", said(&again));
    run(async {
        let (connection, _) = connect(&served).await;
        assert!(is_revoked(
            &restored::<counter::Client>(&connection, &read_only).await.err().unwrap()
        ));
        restored::<counter::Client>(&connection, &text).await.unwrap();
    });
    served.stop();

    let tree = done(&data, &["grants", "Counter/visits"]);
    assert!(tree.starts_with("Counter/visits: 1 grant\n"), "{tree}");
    let bob = done(&data, &["grant", "Counter", "--label", "Bob", "--address", "127.0.0.1:9"]);
    assert!(bob.starts_with("capstead://127.0.0.1:9/#"), "{bob}");
    let root = id_of(&done(&data, &["grants", "Counter"]), "root");
    done(&data, &["revoke", "Counter", &root]);

    // The root was revoked, with everything made from it; the server serves the other classes.
    let served = serve_with(&data, &["--hosts", "2"]);
    assert!(!served.announced.namespaces.contains_key("Counter"));
    assert!(served.announced.namespaces.contains_key("Poll"));
    // The same as before the restart.
    assert_eq!(http::get(&served.announced.http, "/counter/visits").status, 403);
    run(async {
        let connection = Connection::dial(&served.announced.capnp).await.unwrap();
        for text in [&counters, &text] {
            let refused = restored::<namespace::Client>(&connection, text).await.err().unwrap();
            assert!(is_revoked(&refused), "{refused}");
        }
        let counters: namespace::Client = restored(&connection, &bob).await.unwrap();
        assert_eq!(read(&by_name(&counters, "visits")).await.unwrap(), 1);
    });
}

/// The gateway is a holder like any other: its capabilities are cut too.
#[test]
fn a_revoked_root_ends_its_path_over_http() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "2"]);
    for name in 0..20 {
        assert_eq!(http::get(&served.announced.http, &format!("/counter/{name}")).status, 200);
    }
    let root = id_of(&done(&data, &["grants", "Counter"]), "root");
    done(&data, &["revoke", "Counter", &root]);
    for name in 0..20 {
        let status = http::get(&served.announced.http, &format!("/counter/{name}")).status;
        assert_eq!(status, 403, "{name}");
    }
}

/// The last use is also recorded when the server ends.
#[test]
fn who_was_there_is_known_after_a_restart() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &[]);
    run(async {
        let (connection, counters) = connect(&served).await;
        let text = save(&by_name(&counters, "x"), "used").await;
        save(&by_name(&counters, "x"), "unused").await;
        restored::<counter::Client>(&connection, &text).await.unwrap();
    });
    served.stop();
    let tree = done(&data, &["grants", "Counter/x"]);
    let line = |label: &str| tree.lines().find(|line| line.contains(label)).unwrap().to_owned();
    assert!(line("\"used\"").contains("restored 2"), "{tree}");
    assert!(line("\"unused\"").contains("never restored"), "{tree}");
}

/// An invalid command says how to correct it.
#[test]
fn wrong_words_are_explained() {
    let (_folder, data) = scratch();
    drop(serve_with(&data, &[]));
    for (args, says) in [
        (&["grants", "Counter/"][..], "CLASS/NAME"),
        (&["grant", "Counter", "--until", "soon"], "30d"),
        (&["grant", "Counter", "--method", "0xdc0f:x"], "Counter.read"),
        (&["grant", "Counter", "--holder", "zz"], "64 hexadecimal digits"),
        (&["grant", "Counter", "--address", "nowhere"], "host:port"),
        (&["revoke", "Counter", "12"], "32 hexadecimal digits"),
    ] {
        let output = output(&data, args);
        assert!(
            !output.status.success() && said(&output).contains(says),
            "{args:?}: {}",
            said(&output)
        );
    }
}

/// Everything that depends on a grant of a namespace is cut on every host, whatever the number of
/// grants in between.
#[test]
fn what_is_below_a_revoked_grant_ends_on_all_hosts() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "2"]);
    run(async {
        let (connection, counters) = connect(&served).await;
        for _ in 0..10 {
            let first = save(&counters, "first").await;
            let first: namespace::Client = restored(&connection, &first).await.unwrap();
            let second = save(&first, "second").await;
            let second: namespace::Client = restored(&connection, &second).await.unwrap();
            drop(first);
            // Called at the same time, so that a host asks twice about a grant that it doesn't
            // know.
            let objects: Vec<_> = (0..20).map(|n| by_name(&second, &format!("o{n}"))).collect();
            for answer in join_all(objects.iter().map(read)).await {
                answer.unwrap();
            }
            let saved = join_all(objects.iter().map(|object| save(object, "below"))).await;
            revoke(&counters, "first").await;
            for answer in join_all(objects.iter().map(read)).await {
                assert!(is_revoked(&answer.expect_err("it was cut")));
            }
            for text in &saved {
                let refused = restored::<counter::Client>(&connection, text).await;
                assert!(is_revoked(&refused.err().expect("it was revoked")));
            }
        }
        read(&by_name(&counters, "o0")).await.unwrap();
    });
}

/// The holder of a revoked grant goes on making others until that ends, and so does everybody else
/// with what they do.
#[test]
fn all_below_a_grant_is_revoked_beside_a_holder_who_goes_on() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "2"]);
    run(async {
        let (connection, counters) = connect(&served).await;
        let terms = |label| capstead_client::Terms::new(label).allow_independent();
        let allowed = ["grant", "Counter", "--label", "Mallory", "--allow-independent"];
        let mallory = done(&data, &allowed);
        let theirs: namespace::Client = restored(&connection, &mallory).await.unwrap();
        let ada: namespace::Client =
            restored(&connection, &save(&counters, "Ada").await).await.unwrap();
        let listed = said(&output(&data, &["grants", "Counter"]));
        let id = id_of(&listed, "Mallory");

        let (made, is_over, counted) = (RefCell::new(Vec::new()), Cell::new(false), Cell::new(0));
        let makes = async |number: u32| {
            for n in 0.. {
                let object = by_name(&theirs, &format!("{number}-{}", n % 40));
                let independent = terms("below").independent();
                match capstead_client::share(&object, independent).await {
                    Ok(text) => made.borrow_mut().push(text),
                    Err(error) => return assert!(is_revoked(&error), "{error}"),
                }
            }
        };
        let counts = async {
            let counter = by_name(&ada, "ada");
            while !is_over.get() {
                increment(&counter).await.expect("it is another grant");
                counted.set(counted.get() + 1);
            }
        };
        let revokes = async {
            while made.borrow().len() < 300 {
                tokio::task::yield_now().await;
            }
            let mut revoke = capstead(["revoke", "Counter", &id, "--below", "--data"]);
            let mut revoke =
                revoke.arg(&data).stdout(std::process::Stdio::piped()).spawn().unwrap();
            let before = counted.get();
            let status = loop {
                match revoke.try_wait().expect("it is ours") {
                    Some(status) => break status,
                    None => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            };
            assert!(status.success());
            assert!(counted.get() > before, "the others were served meanwhile");
            is_over.set(true);
        };
        futures::join!(join_all((0..4).map(makes)), counts, revokes);
        let made = made.into_inner();
        for text in &made {
            let refused = restored::<counter::Client>(&connection, text).await;
            assert!(is_revoked(&refused.err().expect("it was below")));
        }
        let left = said(&output(&data, &["grants", "Counter", "--below", &id]));
        assert!(!left.contains("below"), "{left}");
    });
}
