//! The server's own answers about objects and grants are durable, on every host and for every
//! caller.
//!
//! Every commit is slow here, so that an answer that comes before the delay has passed can't tell
//! anything that was written after the delay began.

use std::time::Duration;

use capnp::capability::{Client, FromClientHook};
use capstead_client::{Connection, namespace};
use tokio::time::Instant;

use super::world::{World, by_name, increment, revoke, run, save, within};
use crate::error::{Result, is_revoked};
use crate::schema::counter_capnp::counter;
use crate::schema::facet_capnp::facet;

const COMMIT: Duration = Duration::from_millis(300);

/// Asks until the answer is true, and checks that the write that began at `began` was durable by
/// then.
async fn told_when_durable(what: &str, began: Instant, ask: impl AsyncFn() -> bool) {
    while !ask().await {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let after = began.elapsed();
    assert!(after >= COMMIT, "{what} was told after {after:?}");
}

fn as_facet(of: &impl FromClientHook) -> facet::Client {
    facet::Client { client: Client::new(of.as_client_hook().add_ref()) }
}

async fn is_listed(of: &impl FromClientHook, label: &str) -> bool {
    let reply = within(as_facet(of).grants_request().send().promise).await.unwrap();
    let grants = reply.get().unwrap().get_grants().unwrap();
    grants.iter().any(|grant| grant.get_label().unwrap().to_str() == Ok(label))
}

async fn is_there(counters: &namespace::Client, name: &str) -> bool {
    let mut request = counters.try_get_request();
    request.get().set_key(name);
    within(request.send().promise).await.unwrap().get().unwrap().has_object()
}

async fn restored(front: &Connection, text: &str) -> Result<i64> {
    let counter: counter::Client = front.restore(text)?;
    within(counter.read_request().send().promise)
        .await?
        .get()
        .map(counter::read_results::Reader::get_value)
}

async fn answers_of(world: &World, name: &str) {
    let (front, counters) = world.connect().await;
    let counter = by_name(&counters, name);

    let began = Instant::now();
    let written = increment(&counter);
    let cited = {
        let mut cite = as_facet(&counter).cite_request();
        cite.get().set_owner(&[7; 32]);
        cite.send().promise
    };
    told_when_durable("tryGet", began, || is_there(&counters, name)).await;
    within(cited).await.unwrap();
    assert!(began.elapsed() >= COMMIT, "cite was answered after {:?}", began.elapsed());
    written.await.unwrap();

    for (what, of) in [("an object", as_facet(&counter)), ("a namespace", as_facet(&counters))] {
        let (began, label) = (Instant::now(), format!("{what} of {name}"));
        let saved = save(&of, &label);
        let listed = told_when_durable(what, began, || is_listed(&of, &label));
        futures::join!(saved, listed);
    }

    taken_back(&front, &counters, &counter).await;
}

/// Revokes a grant that is in use, one that isn't, and one of the namespace.
async fn taken_back(front: &Connection, counters: &namespace::Client, counter: &counter::Client) {
    let is_told = |error: capnp::Error| is_revoked(&error);
    let [in_use, not_in_use] = [save(counter, "Eve").await, save(counter, "Bob").await];
    let live: counter::Client = front.restore(&in_use).unwrap();
    within(live.read_request().send().promise).await.unwrap();
    let began = Instant::now();
    let taken = revoke(counter, "Eve");
    let used = told_when_durable("a live capability", began, || async {
        within(live.read_request().send().promise).await.is_err_and(is_told)
    });
    let (taken, ()) = futures::join!(taken, used);
    taken.unwrap();

    let began = Instant::now();
    let taken = revoke(counter, "Bob");
    let restore = told_when_durable("a restore", began, || async {
        restored(front, &not_in_use).await.is_err_and(is_told)
    });
    let (taken, ()) = futures::join!(taken, restore);
    taken.unwrap();

    let text = save(counters, "Mallory").await;
    let all: namespace::Client = front.restore(&text).unwrap();
    let live = by_name(&all, "any");
    within(live.read_request().send().promise).await.unwrap();
    let began = Instant::now();
    let taken = revoke(counters, "Mallory");
    let reached = told_when_durable("an object of a namespace", began, || async {
        within(live.read_request().send().promise).await.is_err_and(is_told)
    });
    let used = told_when_durable("a live namespace", began, || async {
        let by_it = by_name(&all, "any").read_request().send().promise;
        within(by_it).await.is_err_and(is_told)
    });
    let (taken, (), ()) = futures::join!(taken, reached, used);
    taken.unwrap();
}

#[test]
fn the_servers_own_answers_wait_for_the_disk_of_whichever_host() {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let world = World::start_slow(data.path(), 2, COMMIT).await;
        for host in 0..2 {
            answers_of(&world, &world.name_on(host, 0)).await;
        }
        world.stop().await.unwrap();
    });
}
