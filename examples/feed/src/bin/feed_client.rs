//! Posts to feeds, shares them, and follows them: run it without arguments to see its commands.

use std::rc::Rc;

use ::feed::feed_capnp::{entry, feed, user, watcher};
use ::feed::sharing;
use capnp::capability::FromClientHook;
use capstead_client::{Result, namespace};
use futures::channel::oneshot;

const USAGE: &str = "usage:
  feed_client FEEDS post FEED TEXT       adds a post
  feed_client FEEDS share FEED WHOM      prints a reference to read the feed and to subscribe to it
  feed_client FEEDS revoke FEED WHOM     takes back what was shared with WHOM
  feed_client USERS follow USER NAME REFERENCE
  feed_client USERS unfollow USER NAME
  feed_client USERS timeline USER        prints the last entries
  feed_client USERS watch USER           prints entries as they come

FEEDS and USERS are the references that the server prints; FEED and USER are names of your choice.";

#[tokio::main(flavor = "local")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [feeds, "post", name, text] => post(&object(feeds, name).await?, text).await,
        [feeds, "share", name, whom] => {
            println!("{}", sharing::share(&object(feeds, name).await?, whom).await?);
            Ok(())
        }
        [feeds, "revoke", name, whom] => sharing::revoke(&object(feeds, name).await?, whom).await,
        [users, "follow", name, feed, reference] => {
            follow(&object(users, name).await?, feed, reference).await
        }
        [users, "unfollow", name, feed] => {
            let user: user::Client = object(users, name).await?;
            let mut request = user.unfollow_request();
            request.get().set_name(feed);
            request.send().promise.await.map(drop)
        }
        [users, "timeline", name] => timeline(&object(users, name).await?).await,
        [users, "watch", name] => watch(&object(users, name).await?).await,
        _ => {
            eprintln!("{USAGE}");
            std::process::exit(2)
        }
    }
}

/// The object of that name, of the class to which the reference belongs.
async fn object<C: FromClientHook>(objects: &str, name: &str) -> Result<C> {
    let objects: namespace::Client = capstead_client::restore(objects).await?;
    let mut by_name = objects.by_name_request();
    by_name.get().set_key(name);
    Ok(by_name.send().pipeline.get_object().as_cap().cast_to())
}

async fn post(feed: &feed::Client, text: &str) -> Result<()> {
    let mut request = feed.post_request();
    request.get().set_text(text);
    let reply = request.send().promise.await?;
    println!("this is post {}", reply.get()?.get_number());
    Ok(())
}

async fn follow(user: &user::Client, name: &str, reference: &str) -> Result<()> {
    let mut request = user.follow_request();
    request.get().set_name(name);
    request.get().set_feed(capstead_client::restore::<feed::Client>(reference).await?);
    request.send().promise.await.map(drop)
}

async fn timeline(user: &user::Client) -> Result<()> {
    let reply = user.timeline_request().send().promise.await?;
    let reply = reply.get()?;
    for entry in reply.get_entries()? {
        print(entry)?;
    }
    for failure in reply.get_failures()? {
        let (feed, why) = (failure.get_feed()?.to_str()?, failure.get_why()?.to_str()?);
        eprintln!("{feed} can't be read: {why}");
    }
    Ok(())
}

async fn watch(user: &user::Client) -> Result<()> {
    let mut request = user.watch_request();
    let (held, dropped) = oneshot::channel();
    request.get().set_watcher(capstead_client::capability(Rc::new(Printer { _held: held })));
    let _watching = request.send().promise.await?;
    let _gone = dropped.await;
    Err(capnp::Error::disconnected("nobody shows anything any more: watch again".into()))
}

/// Prints the entries that it is shown.
struct Printer {
    /// Dropped with the printer: when the connection, or the user's instance, has ended.
    _held: oneshot::Sender<()>,
}

impl watcher::Server for Printer {
    async fn added(
        self: Rc<Self>,
        params: watcher::AddedParams,
        _: watcher::AddedResults,
    ) -> Result<()> {
        params.get()?.get_entries()?.iter().try_for_each(print)
    }
}

fn print(entry: entry::Reader<'_>) -> Result<()> {
    let (feed, post) = (entry.get_feed()?.to_str()?, entry.get_post()?);
    println!("{feed} {}: {}", post.get_number(), post.get_text()?.to_str()?);
    Ok(())
}
