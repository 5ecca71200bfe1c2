//! Users follow feeds on a real server, which is killed in between.
//!
//! The tests show that followed feeds and read posts survive; that posts reach watchers without a
//! request; that unfollowing and revoking end this; and that a follower can't post.

mod support;

use std::cell::RefCell;
use std::rc::Rc;

use ::feed::feed_capnp::{entry, feed, follower, post, subscription, user, watcher, watching};
use ::feed::sharing::{revoke, share};
use capnp::ErrorKind;
use capstead_client::{Result, capability, restore};
use support::{Data, Server, by_name, deadline, run};
use tokio::sync::Notify;

async fn feed_of(server: &Server, name: &str) -> feed::Client {
    by_name(&server.namespaces["Feed"], name).await
}

async fn user_of(server: &Server, name: &str) -> user::Client {
    by_name(&server.namespaces["User"], name).await
}

async fn post(feed: &feed::Client, text: &str) -> Result<u64> {
    let mut request = feed.post_request();
    request.get().set_text(text);
    Ok(request.send().promise.await?.get()?.get_number())
}

async fn latest(feed: &feed::Client, after: u64, limit: u16) -> Result<Vec<(u64, String)>> {
    let mut request = feed.latest_request();
    request.get().set_after(after);
    request.get().set_limit(limit);
    let reply = request.send().promise.await?;
    reply.get()?.get_posts()?.iter().map(number_and_text).collect()
}

fn number_and_text(post: post::Reader<'_>) -> Result<(u64, String)> {
    Ok((post.get_number(), post.get_text()?.to_string()?))
}

async fn follow(user: &user::Client, name: &str, feed: feed::Client) -> Result<()> {
    let mut request = user.follow_request();
    request.get().set_name(name);
    request.get().set_feed(feed);
    request.send().promise.await.map(drop)
}

async fn unfollow(user: &user::Client, name: &str) -> Result<()> {
    let mut request = user.unfollow_request();
    request.get().set_name(name);
    request.send().promise.await.map(drop)
}

async fn following(user: &user::Client) -> Vec<String> {
    let reply = user.following_request().send().promise.await.unwrap();
    let names = reply.get().unwrap().get_names().unwrap();
    names.iter().map(|name| name.unwrap().to_string().unwrap()).collect()
}

/// The user's own copy of a reference to a feed.
fn kept(user: &user::Client, name: &str) -> feed::Client {
    let mut request = user.feed_request();
    request.get().set_name(name);
    request.send().pipeline.get_feed()
}

/// The entries as `feed: text`, and the feeds that could not be read, with the reasons.
async fn timeline(user: &user::Client) -> (Vec<String>, Vec<(String, String)>) {
    let reply = user.timeline_request().send().promise.await.unwrap();
    let reply = reply.get().unwrap();
    let failures = reply.get_failures().unwrap().iter().map(|failure| {
        let (feed, why) = (failure.get_feed().unwrap(), failure.get_why().unwrap());
        (feed.to_string().unwrap(), why.to_string().unwrap())
    });
    (lines(reply.get_entries().unwrap()), failures.collect())
}

fn lines(entries: capnp::struct_list::Reader<'_, entry::Owned>) -> Vec<String> {
    let line = |entry: entry::Reader<'_>| {
        let (feed, post) = (entry.get_feed().unwrap(), entry.get_post().unwrap());
        format!("{}: {}", feed.to_str().unwrap(), post.get_text().unwrap().to_str().unwrap())
    };
    entries.iter().map(line).collect()
}

/// The entries that the user's calls have shown to the watcher.
#[derive(Default)]
struct Seen {
    lines: RefCell<Vec<String>>,
    changed: Notify,
}

impl Seen {
    fn add(&self, lines: Vec<String>) {
        self.lines.borrow_mut().extend(lines);
        self.changed.notify_one();
    }

    /// Waits until exactly these entries came, and then forgets them.
    async fn expect(&self, what: &[&str]) {
        while self.lines.borrow().len() < what.len() {
            deadline(self.changed.notified()).await;
        }
        assert_eq!(self.lines.take(), what);
    }
}

struct Watcher(Rc<Seen>);

impl watcher::Server for Watcher {
    async fn added(
        self: Rc<Self>,
        params: watcher::AddedParams,
        _: watcher::AddedResults,
    ) -> Result<()> {
        self.0.add(lines(params.get()?.get_entries()?));
        Ok(())
    }
}

async fn watch(user: &user::Client) -> (Rc<Seen>, watching::Client) {
    let seen = Rc::new(Seen::default());
    let mut request = user.watch_request();
    request.get().set_watcher(capability(Rc::new(Watcher(seen.clone()))));
    let reply = request.send().promise.await.unwrap();
    (seen, reply.get().unwrap().get_watching().unwrap())
}

struct Follower(Rc<Seen>);

impl follower::Server for Follower {
    async fn posted(
        self: Rc<Self>,
        _: follower::PostedParams,
        _: follower::PostedResults,
    ) -> Result<()> {
        self.0.add(vec!["posted".into()]);
        Ok(())
    }
}

async fn subscribe(
    feed: &feed::Client,
    seen: &Rc<Seen>,
    after: u64,
) -> Result<subscription::Client> {
    let mut request = feed.subscribe_request();
    request.get().set_follower(capability(Rc::new(Follower(seen.clone()))));
    request.get().set_after(after);
    request.send().promise.await?.get()?.get_subscription()
}

fn assert_revoked<T>(outcome: Result<T>) {
    let error = outcome.err().expect("it was revoked");
    assert!(error.extra.contains("revoked:"), "{error}");
}

fn assert_unimplemented<T>(outcome: Result<T>) {
    let error = outcome.err().expect("it is not there");
    assert_eq!(error.kind, ErrorKind::Unimplemented, "{error}");
}

/// A feed and two users.
struct Cast {
    news: feed::Client,
    ada: user::Client,
    bob: user::Client,
}

async fn cast(server: &Server) -> Cast {
    let (news, ada) = (feed_of(server, "news").await, user_of(server, "ada").await);
    Cast { news, ada, bob: user_of(server, "bob").await }
}

/// Ada and Bob follow the feed and see its posts; returns the references that they were given.
async fn follow_and_watch(Cast { news, ada, bob }: Cast) -> [String; 2] {
    let for_ada = share(&news, "ada").await.unwrap();
    let for_bob = share(&news, "bob").await.unwrap();
    follow(&ada, "the news", restore(&for_ada).await.unwrap()).await.unwrap();
    follow(&bob, "news", restore(&for_bob).await.unwrap()).await.unwrap();
    post(&news, "one").await.unwrap();
    let ((ada_sees, _a), (bob_sees, _b)) = (watch(&ada).await, watch(&bob).await);
    ada_sees.expect(&["the news: one"]).await;
    bob_sees.expect(&["news: one"]).await;
    for text in ["two", "three"] {
        post(&news, text).await.unwrap();
        ada_sees.expect(&[&format!("the news: {text}")]).await;
        bob_sees.expect(&[&format!("news: {text}")]).await;
    }
    // They are told of it, and may or may not have read it when the server ends.
    post(&news, "four").await.unwrap();
    [for_ada, for_bob]
}

/// After a restart, the followed feeds and read posts are there; the users see new posts, and can't
/// post.
async fn go_on(Cast { news, ada, bob }: &Cast) -> [(Rc<Seen>, watching::Client); 2] {
    let all = |name: &str| ["one", "two", "three", "four"].map(|text| format!("{name}: {text}"));
    for (user, name) in [(ada, "the news"), (bob, "news")] {
        assert_eq!(following(user).await, [name]);
        assert_eq!(timeline(user).await, (all(name).to_vec(), Vec::new()));
    }
    let [ada_watches, bob_watches] = [watch(ada).await, watch(bob).await];
    post(news, "five").await.unwrap();
    ada_watches.0.expect(&["the news: five"]).await;
    bob_watches.0.expect(&["news: five"]).await;
    for kept in [kept(ada, "the news"), kept(bob, "news")] {
        assert_unimplemented(post(&kept, "not by them").await);
    }
    [ada_watches, bob_watches]
}

// The whole story: two users, one feed, a kill, and two ways to stop.
#[test]
fn two_users_follow_a_feed_until_one_leaves_and_one_is_sent_away() {
    let data = Data::new();
    let server = data.serve(&[]);
    let texts = run(async { follow_and_watch(cast(&server).await).await });
    server.kill();

    let server = data.serve(&[]);
    let [for_ada, for_bob] = texts.map(|text| server.at_its_address(&text));
    run(async {
        let cast = cast(&server).await;
        let [(ada_sees, _a), (bob_sees, _b)] = go_on(&cast).await;
        let Cast { news, ada, bob } = cast;

        unfollow(&ada, "the news").await.unwrap();
        assert!(following(&ada).await.is_empty());
        assert!(unfollow(&ada, "the news").await.is_err(), "it isn't followed");
        revoke(&news, "bob").await.unwrap();
        let has = kept(&bob, "news");
        assert_revoked(latest(&has, 0, 100).await);
        assert_revoked(subscribe(&has, &Rc::default(), 0).await);
        assert_revoked(restore::<feed::Client>(&for_bob).await);

        post(&news, "six").await.unwrap();
        let (entries, failures) = timeline(&bob).await;
        assert_eq!(entries.last().unwrap(), "news: five", "what was read stays read");
        let [(name, why)] = &failures[..] else { panic!("{failures:?}") };
        assert!(name == "news" && why.contains("revoked:"), "{name}: {why}");
        let (entries, failures) = timeline(&ada).await;
        assert_eq!((&**entries.last().unwrap(), failures.len()), ("the news: five", 0));
        for sees in [ada_sees, bob_sees] {
            assert_eq!(sees.lines.take(), Vec::<String>::new());
        }
        // Ada left by herself, and may come back.
        follow(&ada, "again", restore(&for_ada).await.unwrap()).await.unwrap();
        assert_eq!(timeline(&ada).await.0.last().unwrap(), "again: six");
    });
    assert_eq!(server.stop(), Some(0));
}

// No reference that a user stores can post, by nothing that a client does; and only feeds of this
// cluster can be stored.
#[test]
fn a_user_keeps_less_than_he_was_given() {
    let data = Data::new();
    let server = data.serve(&[]);
    run(async {
        let (news, ada) = (feed_of(&server, "news").await, user_of(&server, "ada").await);
        post(&news, "one").await.unwrap();
        follow(&ada, "news", news.clone()).await.unwrap();
        let kept = kept(&ada, "news");
        assert_unimplemented(post(&kept, "two").await);
        assert_eq!(latest(&kept, 0, 100).await.unwrap(), [(1, "one".to_owned())]);

        struct NoFeed;
        impl feed::Server for NoFeed {}
        let error = follow(&ada, "mine", capability(Rc::new(NoFeed))).await.unwrap_err();
        assert!(error.extra.contains("not-a-reference:"), "{error}");
        let error = follow(&ada, "news", news.clone()).await.unwrap_err();
        assert!(error.extra.contains("conflict:"), "{error}");
        for name in [String::new(), "n".repeat(101)] {
            assert!(follow(&ada, &name, news.clone()).await.is_err());
        }
        assert_eq!(following(&ada).await, ["news"]);
    });
}

// A follower of the test's own keeps its subscription after its reference was revoked: it is told
// of one more post, and never gets its content.
#[test]
fn who_was_revoked_is_told_at_most_once_more() {
    let data = Data::new();
    let server = data.serve(&[]);
    run(async {
        let news = feed_of(&server, "news").await;
        let guest: feed::Client = restore(&share(&news, "guest").await.unwrap()).await.unwrap();
        let (told, left, good) = (Rc::default(), Rc::default(), Rc::<Seen>::default());
        let _kept = subscribe(&guest, &told, 0).await.unwrap();
        revoke(&news, "guest").await.unwrap();
        assert_revoked(latest(&guest, 0, 1).await);
        assert_revoked(subscribe(&guest, &told, 0).await);
        assert!(revoke(&news, "guest").await.is_err(), "nothing is shared any more");

        // A follower that drops its subscription is told nothing.
        drop(subscribe(&news, &left, 0).await.unwrap());
        let mut told_times = Vec::new();
        for number in 1..=3 {
            // The follower that subscribed last is told last.
            let _good = subscribe(&news, &good, number - 1).await.unwrap();
            assert_eq!(post(&news, "again").await.unwrap(), number);
            good.expect(&["posted"]).await;
            told_times.push(told.lines.take().len());
        }
        assert_eq!(told_times, [1, 0, 0]);
        assert!(left.lines.take().is_empty());
        // If there is something new already, a follower is told at once.
        let _good = subscribe(&news, &good, 2).await.unwrap();
        good.expect(&["posted"]).await;
    });
}

// Numbers have no gaps, and an answer has the last of the posts that were asked for.
#[test]
fn the_latest_posts_are_read_in_their_order() {
    let data = Data::new();
    let server = data.serve(&[]);
    run(async {
        let (news, ada) = (feed_of(&server, "news").await, user_of(&server, "ada").await);
        assert_eq!(latest(&news, 0, 100).await.unwrap(), []);
        for text in [String::new(), "x".repeat(4097)] {
            assert!(post(&news, &text).await.is_err());
        }
        for number in 1..=120 {
            assert_eq!(post(&news, &format!("{number}")).await.unwrap(), number);
        }
        let expected = |numbers: std::ops::RangeInclusive<u64>| {
            numbers.map(|number| (number, format!("{number}"))).collect::<Vec<_>>()
        };
        assert_eq!(latest(&news, 0, u16::MAX).await.unwrap(), expected(21..=120));
        assert_eq!(latest(&news, 117, 100).await.unwrap(), expected(118..=120));
        assert_eq!(latest(&news, 0, 2).await.unwrap(), expected(119..=120));
        assert_eq!(latest(&news, 120, 100).await.unwrap(), []);
        assert_eq!(latest(&news, u64::MAX, 100).await.unwrap(), []);
        follow(&ada, "news", news.clone()).await.unwrap();
        let read: Vec<_> = (21..=120).map(|number| format!("news: {number}")).collect();
        assert_eq!(timeline(&ada).await.0, read);
    });
}

// Two calls read the same post, since the feed answers both only once it is durable: the post is
// added once.
#[test]
fn a_post_that_is_read_twice_at_once_is_added_once() {
    let data = Data::new();
    let server = data.serve(&["--commit-delay", "50"]);
    run(async {
        let (news, ada) = (feed_of(&server, "news").await, user_of(&server, "ada").await);
        follow(&ada, "news", news.clone()).await.unwrap();
        let (posted, first, second) =
            futures::join!(post(&news, "one"), timeline(&ada), timeline(&ada));
        assert_eq!(posted.unwrap(), 1);
        assert!([first.0, second.0].iter().all(|entries| *entries == ["news: one"]));
    });
}

// Following alone keeps nothing in memory; watching does, until the last watcher leaves.
#[test]
fn users_and_feeds_sleep_unless_somebody_watches() {
    let data = Data::new();
    let server = data.serve(&["--warm", "50ms"]);
    run(async {
        let (news, ada) = (feed_of(&server, "news").await, user_of(&server, "ada").await);
        follow(&ada, "news", news.clone()).await.unwrap();
        server.awake(0).await;
        let (sees, watching) = watch(&ada).await;
        // Another object falls asleep meanwhile, while these two stay awake.
        for round in 0..3 {
            latest(&feed_of(&server, "other").await, 0, 1).await.unwrap();
            server.awake(2).await;
            let text = format!("{round}");
            post(&news, &text).await.unwrap();
            sees.expect(&[&format!("news: {text}")]).await;
        }
        drop(watching);
        server.awake(0).await;
        post(&news, "unseen").await.unwrap();
        assert_eq!(timeline(&ada).await.0.last().unwrap(), "news: unseen");
        assert!(sees.lines.take().is_empty());
    });
}
