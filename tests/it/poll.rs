//! Objects that reach other objects: only through the bindings of their class.
//!
//! The bundled poll counts its votes in counters. Classes of this file show the effect of a missing
//! binding: an error that names it, and no object is made.

use std::path::Path;
use std::rc::Rc;

use crate::support::calls::{by_name, connect, increment, read, run};
use crate::support::{Served, http, scratch, serve, serve_with};
use capnp::capability::FromClientHook;
use capstead::classes::Counter;
use capstead::counter_capnp::counter;
use capstead::http::http_service;
use capstead::poll_capnp::poll;
use capstead::{Context, Object, Result, Running, Server};
use capstead_client::namespace;

fn poll_by_name(polls: &namespace::Client, name: &str) -> poll::Client {
    let mut request = polls.by_name_request();
    request.get().set_key(name);
    request.send().pipeline.get_object().as_cap().cast_to()
}

async fn vote(poll: &poll::Client, option: &str) -> Result<i64> {
    let mut request = poll.vote_request();
    request.get().set_option(option);
    Ok(request.send().promise.await?.get()?.get_votes())
}

async fn results(poll: &poll::Client) -> Vec<(String, i64)> {
    let reply = poll.results_request().send().promise.await.expect("there are results");
    let options =
        reply.get().and_then(poll::results_results::Reader::get_options).expect("they can be read");
    let entry = |option: poll::option::Reader<'_>| {
        let name = option.get_name().expect("a name").to_string().expect("it is UTF-8");
        (name, option.get_votes())
    };
    options.iter().map(entry).collect()
}

fn expected(results: &[(&str, i64)]) -> Vec<(String, i64)> {
    results.iter().map(|(name, votes)| ((*name).to_owned(), *votes)).collect()
}

async fn counter_of(served: &Served, name: &str) -> i64 {
    let (_connection, counters) = connect(served).await;
    read(&by_name(&counters, name)).await.expect("a counter can be read")
}

// A vote is a call on another object, a counter of that name, which other clients may reach as
// well.
#[test]
fn votes_are_counted_in_counters_and_survive_a_kill() {
    let (_folder, data) = scratch();
    let mut served = serve(&data);
    run(async {
        let polls: namespace::Client =
            capstead_client::restore(&served.announced.namespaces["Poll"]).await.unwrap();
        let lunch = poll_by_name(&polls, "lunch");
        assert_eq!(results(&lunch).await, []);
        for (option, votes) in [("soup", 1), ("bread", 1), ("soup", 2), ("ünî/ 🦀", 1), ("soup", 3)]
        {
            assert_eq!(vote(&lunch, option).await.unwrap(), votes);
        }
        assert_eq!(vote(&poll_by_name(&polls, "dinner"), "soup").await.unwrap(), 1);
        for wrong in ["", "two\nlines"] {
            assert!(vote(&lunch, wrong).await.unwrap_err().extra.contains("one line"));
        }
        assert_eq!(counter_of(&served, "poll/lunch/soup").await, 3);
        assert_eq!(counter_of(&served, "poll/dinner/soup").await, 1);
    });
    served.kill();
    let served = serve(&data);
    run(async {
        let polls: namespace::Client =
            capstead_client::restore(&served.announced.namespaces["Poll"]).await.unwrap();
        let all = expected(&[("bread", 1), ("soup", 3), ("ünî/ 🦀", 1)]);
        assert_eq!(results(&poll_by_name(&polls, "lunch")).await, all);
        assert_eq!(counter_of(&served, "poll/lunch/bread").await, 1);
    });
}

// The option's counter may live on another host than the poll: the call leaves one thread's objects
// for another's, and comes back.
#[test]
fn votes_are_counted_on_whichever_host_the_counter_lives() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "2"]);
    run(async {
        let polls: namespace::Client =
            capstead_client::restore(&served.announced.namespaces["Poll"]).await.unwrap();
        for poll in 0..8 {
            let poll = poll_by_name(&polls, &format!("poll {poll}"));
            for option in 0..8 {
                let option = format!("option {option}");
                assert_eq!(vote(&poll, &option).await.unwrap(), 1);
                assert_eq!(vote(&poll, &option).await.unwrap(), 2);
            }
            assert!(results(&poll).await.iter().all(|(_, votes)| *votes == 2));
        }
    });
    let last = http::get(&served.announced.http, "/counter/poll%2Fpoll%207%2Foption%207");
    assert_eq!(last.body, "2");
}

// An option of one poll used to be the counter of another one's.
#[test]
fn polls_share_no_counter_whatever_their_names() {
    let (_folder, data) = scratch();
    let served = serve(&data);
    run(async {
        let polls: namespace::Client =
            capstead_client::restore(&served.announced.namespaces["Poll"]).await.unwrap();
        for (poll, option, votes) in
            [("a/b", "c", 1), ("a", "b/c", 1), ("a%2Fb", "c", 1), ("a", "b/c", 2), ("a/b", "c", 2)]
        {
            assert_eq!(vote(&poll_by_name(&polls, poll), option).await.unwrap(), votes, "{poll}");
        }
        assert_eq!(results(&poll_by_name(&polls, "a%2Fb")).await, expected(&[("c", 1)]));
    });
}

/// A poll in its former stored form: all options in one text.
struct PollBefore(capstead::Stored<String>);

impl Object for PollBefore {
    const CLASS: &'static str = "Poll";
    type Client = poll::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self(ctx.stored("options")?))
    }
}

impl poll::Server for PollBefore {
    async fn vote(self: Rc<Self>, params: poll::VoteParams, _: poll::VoteResults) -> Result<()> {
        let option = params.get()?.get_option()?.to_str()?;
        self.0.set(format!("{}{option}\n", self.0.get()))
    }
}

impl http_service::Server for PollBefore {}

// The costs of a vote and of an answer stop growing at a number of options, and former data are
// taken over.
#[test]
fn a_poll_has_a_bound_of_options_and_keeps_what_was_stored_before() {
    const OPTIONS: u32 = 1_000;
    let (_folder, data) = scratch();
    run(async {
        let running = server(&data).class::<PollBefore>().start().await.unwrap();
        let polls = capstead_client::restore(&running.namespaces()["Poll"]).await.unwrap();
        for option in ["a", "c"] {
            vote(&poll_by_name(&polls, "lunch"), option).await.unwrap();
        }
        running.until(async {}).await.unwrap();

        let free = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let running = loop {
            let server = capstead::classes::bundled(&data).listen(free).http(free);
            match server.start().await {
                // A process that another test of this program starts holds the lock until it has
                // called `exec`.
                Err(error) if error.to_string().contains("in use by another process") => {
                    tokio::task::yield_now().await;
                }
                started => break started.unwrap(),
            }
        };
        let polls = capstead_client::restore(&running.namespaces()["Poll"]).await.unwrap();
        let lunch = poll_by_name(&polls, "lunch");
        assert_eq!(vote(&lunch, "b").await.unwrap(), 1);
        assert_eq!(results(&lunch).await, expected(&[("a", 0), ("b", 1), ("c", 0)]));
        let others: Vec<_> = (3..OPTIONS).map(|n| format!("option {n}")).collect();
        let votes = others.iter().map(|option| vote(&lunch, option));
        futures::future::try_join_all(votes).await.unwrap();
        let refused = vote(&lunch, "one more").await.unwrap_err();
        assert!(refused.extra.contains("too-many-options: "), "{refused}");
        assert_eq!(vote(&lunch, "b").await.unwrap(), 2);
        assert_eq!(results(&lunch).await.len(), OPTIONS as usize);
        running.until(async {}).await.unwrap();
    });
}

/// A counter each of whose calls asks for another object, in the way of `T`.
struct Asking<T> {
    ctx: Context,
    of: std::marker::PhantomData<T>,
}

/// A way to ask for a counter.
trait Ask: 'static {
    const CLASS: &'static str;
    fn ask(ctx: &Context) -> Result<counter::Client>;
}

/// Asks by a name without a binding.
struct Nowhere;

impl Ask for Nowhere {
    const CLASS: &'static str = "Nowhere";

    fn ask(ctx: &Context) -> Result<counter::Client> {
        ctx.namespace::<Counter>("nowhere")?.get("victim")
    }
}

/// Asks by a name that is bound to another class.
struct Wrong;

impl Ask for Wrong {
    const CLASS: &'static str = "Wrong";

    fn ask(ctx: &Context) -> Result<counter::Client> {
        ctx.namespace::<Counter>("others")?.get("victim")
    }
}

/// Creates an object of a class that isn't bound.
struct Creating;

impl Ask for Creating {
    const CLASS: &'static str = "Creating";

    fn ask(ctx: &Context) -> Result<counter::Client> {
        ctx.create::<Counter>()
    }
}

/// Asks correctly.
struct Bound;

impl Ask for Bound {
    const CLASS: &'static str = "Bound";

    fn ask(ctx: &Context) -> Result<counter::Client> {
        ctx.namespace::<Counter>("counters")?.get("victim")
    }
}

impl<T: Ask> Object for Asking<T> {
    const CLASS: &'static str = T::CLASS;
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self { ctx, of: std::marker::PhantomData })
    }
}

impl<T: Ask> counter::Server for Asking<T> {
    async fn increment(
        self: Rc<Self>,
        _: counter::IncrementParams,
        mut results: counter::IncrementResults,
    ) -> Result<()> {
        let reply = T::ask(&self.ctx)?.increment_request().send().promise.await?;
        results.get().set_value(reply.get()?.get_value());
        Ok(())
    }
}

impl<T: Ask> http_service::Server for Asking<T> {}

/// A server of this process on free ports.
fn server(data: &Path) -> Server {
    let free = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    Server::new(data).listen(free).http(free).metrics(free).class::<Counter>()
}

/// The page of metrics. The server is on this thread, so the blocking request runs on another one.
async fn page_of_numbers(running: &Running) -> String {
    let address = running.metrics().expect("it was asked for").to_string();
    let page = tokio::task::spawn_blocking(move || http::get(&address, "/metrics"));
    page.await.expect("there is a page").body
}

/// A line of the page.
async fn number(running: &Running, name: &str) -> u64 {
    let page = page_of_numbers(running).await;
    let found = page.lines().find_map(|line| line.strip_prefix(&format!("capstead_{name} ")));
    found.expect("the number is there").parse().expect("it is a number")
}

/// Makes the only call on an object of the class `T`.
async fn ask<T: Ask>(running: &Running) -> Result<i64> {
    let objects = capstead_client::restore(&running.namespaces()[T::CLASS]).await?;
    increment(&by_name(&objects, "asking")).await
}

/// Checks that a request fails with these words, and that no counter is made.
async fn makes_nothing<T: Ask>(running: &Running, words: &[&str]) {
    let before = number(running, "commits_total").await;
    let woken = number(running, "wakes_total").await;
    let error = ask::<T>(running).await.expect_err("it isn't bound");
    assert_eq!(error.kind, capnp::ErrorKind::Failed);
    for word in words {
        assert!(error.extra.contains(word), "{word}: {error}");
    }
    assert_eq!(number(running, "commits_total").await, before, "something was made");
    assert_eq!(number(running, "wakes_total").await, woken + 1, "only who asked woke");
}

// Authority comes only from bindings: the error says which one is missing, and nothing is made.
#[test]
fn what_is_not_bound_is_a_named_error_and_makes_nothing() {
    let (_folder, data) = scratch();
    let server = server(&data)
        .class::<Asking<Nowhere>>()
        .class::<Asking<Wrong>>()
        .class::<Asking<Creating>>()
        .class::<Asking<Bound>>()
        .bind::<Asking<Wrong>, Asking<Bound>>("others")
        .bind::<Asking<Bound>, Counter>("counters");
    run(async {
        let running = server.start().await.unwrap();
        makes_nothing::<Nowhere>(&running, &["unbound", "Nowhere", "nowhere", "Counter"]).await;
        makes_nothing::<Wrong>(&running, &["unbound", "others", "Bound", "Counter"]).await;
        makes_nothing::<Creating>(&running, &["unbound", "Creating", "Counter"]).await;
        assert_eq!(ask::<Bound>(&running).await.unwrap(), 1, "the victim was not there before");
        running.until(async {}).await.unwrap();
    });
}

// Embedders may log the started server: the references in it are secrets.
#[test]
fn the_debug_form_of_a_server_shows_no_reference() {
    let (_folder, data) = scratch();
    run(async {
        let running = server(&data).start().await.unwrap();
        let shown = format!("{running:?}");
        assert!(shown.contains("Counter") && !shown.contains("capstead://"), "{shown}");
        let fragment = running.namespaces()["Counter"].split_once('#').unwrap().1;
        assert!(!shown.contains(&fragment[fragment.len() - 30..]), "{shown}");
        running.until(async {}).await.unwrap();
    });
}

// A server with contradictory bindings doesn't start: the mistake shows at once, and nothing is
// made.
#[test]
fn bindings_that_contradict_each_other_are_refused_at_the_start() {
    let (_folder, data) = scratch();
    let check = |server: Server, words: &str| {
        let refused = run(server.start()).expect_err(words).to_string();
        assert!(refused.contains(words), "{refused}");
        assert!(!data.exists(), "nothing is made");
    };
    let bound = || server(&data).class::<Asking<Bound>>();
    check(server(&data).class::<Counter>(), "Counter and Counter can't be told apart");
    check(bound().bind::<Asking<Bound>, Asking<Nowhere>>("x"), "add .class::<Nowhere>()");
    check(server(&data).bind::<Asking<Bound>, Counter>("x"), "add .class::<Bound>()");
    let twice = bound().bind::<Asking<Bound>, Counter>("x").bind::<Asking<Bound>, Counter>("x");
    check(twice, "two bindings named \"x\"");
}

/// A vote costs the same however many options there are, also one that adds an option.
#[test]
fn a_vote_takes_no_longer_the_more_options_there_are() {
    const VOTES: usize = 60;
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "1", "--warm", "1h"]);
    run(async {
        let polls: namespace::Client =
            capstead_client::restore(&served.announced.namespaces["Poll"]).await.unwrap();
        let mut costs = Vec::new();
        for options in [10, 930] {
            let poll = poll_by_name(&polls, &format!("poll {options}"));
            let option = |n: usize| format!("option {n:03}{}", "x".repeat(900));
            let names: Vec<_> = (0..options).map(option).collect();
            futures::future::join_all(names.iter().map(|name| vote(&poll, name))).await;
            let before = served.processor_secs();
            for n in 0..VOTES {
                assert_eq!(vote(&poll, &option(options + n)).await.unwrap(), 1);
                assert_eq!(
                    vote(&poll, &option(n % 7)).await.unwrap(),
                    2 + i64::try_from(n / 7).unwrap()
                );
            }
            costs.push(served.processor_secs() - before);
            assert_eq!(results(&poll).await.len(), options + VOTES);
        }
        let [few, many] = costs[..] else { unreachable!("there are two") };
        assert!(many < 2.0 * few + 0.06, "{many} s with many options, and {few} s with few");
    });
}
