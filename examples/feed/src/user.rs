//! A user who follows feeds: the references to them, the position in each one, and the posts that
//! were read.
//!
//! All of that is durable. Only the watchers are kept in memory and, while there are any, a
//! subscription to each feed. A follower is told only that there is something new, and reads it by
//! their reference; so a revoked reference gives them nothing more, and can't be subscribed with
//! again.

mod live;
mod timeline;

use std::rc::Rc;

use capstead::{Context, List, Object, Result, conflict, failed};
use futures::future::join_all;

use self::live::{Live, Ringer};
use self::timeline::Timeline;
use crate::feed_capnp::{feed, follower, user};
use crate::sharing;

const NAME_BYTES_MAX: usize = 100;
const FOLLOWED_MAX: usize = 1000;

/// The beginning of the keys of references; the name follows.
const FEEDS: &str = "feed/";

/// A durable user.
pub struct User {
    ctx: Context,
    timeline: Timeline,
    live: Rc<Live>,
}

impl Object for User {
    const CLASS: &'static str = "User";
    type Client = user::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(User { timeline: Timeline::load(&ctx)?, live: Rc::default(), ctx })
    }
}

impl User {
    fn names(&self) -> Result<Vec<String>> {
        let feeds = self.ctx.storage().list(List::all().prefix(FEEDS))?;
        feeds.map(|entry| Ok(String::from_utf8(entry?.0.split_off(FEEDS.len()))?)).collect()
    }

    fn feed(&self, name: &str) -> Result<feed::Client> {
        let feed = self.ctx.storage().get_ref(feed_key(name))?;
        feed.ok_or_else(|| failed("no feed of that name is followed"))
    }

    async fn follow(&self, name: &str, feed: &feed::Client) -> Result<()> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(failed(format!("a name has 1 to {NAME_BYTES_MAX} bytes")));
        }
        let storage = self.ctx.storage();
        if storage.contains(feed_key(name))? {
            return Err(conflict("another feed has that name: unfollow it first"));
        }
        if self.names()?.len() >= FOLLOWED_MAX {
            return Err(failed(format!("a user follows at most {FOLLOWED_MAX} feeds")));
        }
        // The stored reference can't post, even if the caller's may.
        storage.put_ref(feed_key(name), &sharing::narrowed(feed)?).await?;
        // Written in the same turn: a call for the same name may have come in between.
        self.timeline.forget(name)
    }

    fn unfollow(&self, name: &str) -> Result<()> {
        if !self.ctx.storage().delete(feed_key(name))? {
            return Err(failed("no feed of that name is followed"));
        }
        self.live.unsubscribe(name);
        self.timeline.forget(name)
    }

    /// Reads the new posts of a feed, and subscribes to the next one if there is a watcher.
    async fn catch_up(self: &Rc<Self>, name: &str) -> Result<()> {
        let (storage, feed) = (self.ctx.storage(), self.feed(name)?);
        let reference = storage.get(feed_key(name))?;
        let mut request = feed.latest_request();
        request.get().set_after(self.timeline.position(name)?);
        let reply = request.send().promise.await?;
        // Each reference has different bytes, so this tells whether the feed was unfollowed
        // meanwhile, or another one followed under its name.
        if storage.get(feed_key(name))? != reference {
            return Ok(());
        }
        let added = self.timeline.add(name, reply.get()?.get_posts()?)?;
        self.live.show(&added)?;
        if self.live.is_watched() {
            self.subscribe(name, &feed)?;
        }
        Ok(())
    }

    /// Does the same as [`User::catch_up`] for all feeds at once; returns the feeds that failed,
    /// with their errors.
    async fn catch_up_all(self: &Rc<Self>) -> Result<Vec<(String, capnp::Error)>> {
        let names = self.names()?;
        let read = join_all(names.iter().map(|name| self.catch_up(name))).await;
        let failed =
            names.into_iter().zip(read).filter_map(|(name, read)| Some((name, read.err()?)));
        Ok(failed.collect())
    }

    fn subscribe(self: &Rc<Self>, name: &str, feed: &feed::Client) -> Result<()> {
        let ringer = Ringer { user: Rc::downgrade(self), feed: name.to_owned() };
        let mut request = feed.subscribe_request();
        request.get().set_after(self.timeline.position(name)?);
        request.get().set_follower(self.ctx.capability(Rc::new(ringer)));
        self.live.subscribed(name, request.send().pipeline.get_subscription());
        Ok(())
    }
}

fn feed_key(name: &str) -> String {
    format!("{FEEDS}{name}")
}

impl user::Server for User {
    async fn follow(
        self: Rc<Self>,
        params: user::FollowParams,
        _: user::FollowResults,
    ) -> Result<()> {
        let params = params.get()?;
        let name = params.get_name()?.to_str()?;
        User::follow(&self, name, &params.get_feed()?).await?;
        if self.live.is_watched() {
            // The feed is followed even if it can't be read right now.
            let _not_yet = self.catch_up(name).await;
        }
        Ok(())
    }

    async fn unfollow(
        self: Rc<Self>,
        params: user::UnfollowParams,
        _: user::UnfollowResults,
    ) -> Result<()> {
        User::unfollow(&self, params.get()?.get_name()?.to_str()?)
    }

    async fn following(
        self: Rc<Self>,
        _: user::FollowingParams,
        mut results: user::FollowingResults,
    ) -> Result<()> {
        results.get().set_names(&self.names()?[..])
    }

    async fn feed(
        self: Rc<Self>,
        params: user::FeedParams,
        mut results: user::FeedResults,
    ) -> Result<()> {
        results.get().set_feed(User::feed(&self, params.get()?.get_name()?.to_str()?)?);
        Ok(())
    }

    async fn timeline(
        self: Rc<Self>,
        params: user::TimelineParams,
        mut results: user::TimelineResults,
    ) -> Result<()> {
        let failures = self.catch_up_all().await?;
        let latest = self.timeline.latest(params.get()?.get_limit())?;
        let mut entries = results.get().init_entries(latest.len() as u32);
        for (at, entry) in (0..).zip(&latest) {
            entries.set_with_caveats(at, entry.get()?)?;
        }
        let mut list = results.get().init_failures(failures.len() as u32);
        for (at, (name, why)) in (0..).zip(failures) {
            let mut failure = list.reborrow().get(at);
            failure.set_feed(name);
            failure.set_why(why.extra);
        }
        Ok(())
    }

    async fn watch(
        self: Rc<Self>,
        params: user::WatchParams,
        mut results: user::WatchResults,
    ) -> Result<()> {
        let watching = self.live.watch(params.get()?.get_watcher()?);
        results.get().set_watching(self.ctx.capability(Rc::new(watching)));
        // A client that wants to know which feeds can't be read asks for the timeline.
        self.catch_up_all().await.map(drop)
    }
}

impl follower::Server for Ringer {
    async fn posted(
        self: Rc<Self>,
        _: follower::PostedParams,
        _: follower::PostedResults,
    ) -> Result<()> {
        let Some(user) = self.user.upgrade() else { return Ok(()) };
        user.live.unsubscribe(&self.feed);
        if user.live.is_watched() {
            // The feed has no use for the outcome. After a failure, the timeline reports it.
            let _unread = user.catch_up(&self.feed).await;
        }
        Ok(())
    }
}
