//! The posts of an author, and the followers who wait for the next one.
//!
//! Posts are durable, and only `latest` returns them. Subscriptions exist only in memory: each
//! tells one follower once that there is a new post, without its content. So a follower whose
//! reference was revoked learns at most that there is one more post.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use capstead::{Context, List, Object, Result, Stored, failed};

use crate::feed_capnp::{feed, follower, subscription};

/// The longest post, so that a list of posts is never too large for a message.
const TEXT_BYTES_MAX: usize = 4096;

/// The largest number of posts, or entries of a timeline, in one answer.
pub(crate) const LISTED_MAX: u16 = 100;

/// A durable feed.
pub struct Feed {
    ctx: Context,
    /// The number of the last post.
    last: Stored<u64>,
    waiting: Waiting,
}

/// The followers to tell of the next post, by the numbers of their subscriptions.
#[derive(Default)]
struct Waiting {
    next: Cell<u64>,
    followers: RefCell<BTreeMap<u64, follower::Client>>,
}

/// The subscription that a subscriber holds. Dropping it ends the subscription.
struct Subscription {
    feed: Weak<Feed>,
    number: u64,
}

impl Object for Feed {
    const CLASS: &'static str = "Feed";
    type Client = feed::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Feed { last: ctx.stored("last")?, ctx, waiting: Waiting::default() })
    }
}

impl Feed {
    fn add(&self, text: &str) -> Result<u64> {
        if text.is_empty() || text.len() > TEXT_BYTES_MAX {
            return Err(failed(format!("a post has 1 to {TEXT_BYTES_MAX} bytes")));
        }
        let number = self.last.get() + 1;
        self.ctx.storage().put(post_key(number), text)?;
        self.last.set(number)?;
        Ok(number)
    }

    /// The last posts after `after`, the latest first.
    fn latest(&self, after: u64, limit: u16) -> Result<Vec<(u64, String)>> {
        let limit = limit.min(LISTED_MAX).into();
        let newest = List::all().prefix("post/").start_after(post_key(after)).reverse();
        let posts = self.ctx.storage().list(newest.limit(limit))?;
        // Posts are numbered up to the last one, without a gap.
        let numbers = (1..=self.last.get()).rev();
        numbers.zip(posts).map(|(number, post)| Ok((number, String::from_utf8(post?.1)?))).collect()
    }

    fn subscribe(self: &Rc<Self>, follower: follower::Client, after: u64) -> subscription::Client {
        let number = self.waiting.next.replace(self.waiting.next.get() + 1);
        if after < self.last.get() {
            tell(&follower);
        } else {
            self.waiting.followers.borrow_mut().insert(number, follower);
        }
        self.ctx.capability(Rc::new(Subscription { feed: Rc::downgrade(self), number }))
    }
}

/// Tells a follower of a post. The call leaves when all posts so far are durable, and its answer is
/// ignored.
fn tell(follower: &follower::Client) {
    drop(follower.posted_request().send());
}

fn post_key(number: u64) -> Vec<u8> {
    [&b"post/"[..], &number.to_be_bytes()].concat()
}

impl feed::Server for Feed {
    async fn post(
        self: Rc<Self>,
        params: feed::PostParams,
        mut results: feed::PostResults,
    ) -> Result<()> {
        results.get().set_number(self.add(params.get()?.get_text()?.to_str()?)?);
        self.waiting.followers.take().values().for_each(tell);
        Ok(())
    }

    async fn latest(
        self: Rc<Self>,
        params: feed::LatestParams,
        mut results: feed::LatestResults,
    ) -> Result<()> {
        let params = params.get()?;
        let posts = Feed::latest(&self, params.get_after(), params.get_limit())?;
        let mut list = results.get().init_posts(posts.len() as u32);
        for (at, (number, text)) in (0..).zip(posts.into_iter().rev()) {
            let mut post = list.reborrow().get(at);
            post.set_number(number);
            post.set_text(text);
        }
        Ok(())
    }

    async fn subscribe(
        self: Rc<Self>,
        params: feed::SubscribeParams,
        mut results: feed::SubscribeResults,
    ) -> Result<()> {
        let params = params.get()?;
        let subscription = Feed::subscribe(&self, params.get_follower()?, params.get_after());
        results.get().set_subscription(subscription);
        Ok(())
    }
}

impl subscription::Server for Subscription {}

impl Drop for Subscription {
    fn drop(&mut self) {
        let Some(feed) = self.feed.upgrade() else { return };
        // Dropped while nothing is borrowed, since dropping it may in turn end other things.
        let ended = feed.waiting.followers.borrow_mut().remove(&self.number);
        drop(ended);
    }
}
