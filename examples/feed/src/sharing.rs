//! The ways to hand a feed on: narrowed to what a follower needs, saved as a reference, and
//! revoked.
//!
//! These are calls that every object answers; any holder of the feed can make them, a client or
//! another object. The feed's class has no part in them.

use capnp::capability::FromClientHook;
use capstead_client::Terms;
use capstead_client::facet_capnp::facet;
use capstead_client::sturdyref::Caveats;

use capstead::{Result, failed};

use crate::feed_capnp::feed;

/// The methods that a follower needs.
const READING: [&str; 2] = ["latest", "subscribe"];

/// The same feed, narrowed: it can be read and subscribed to, and nothing else. It doesn't wait for
/// the server.
///
/// # Errors
/// None, because the feed has these methods.
pub fn narrowed(feed: &feed::Client) -> Result<feed::Client> {
    let reading = Caveats::none().with_methods_of::<feed::Client>(READING)?;
    Ok(capstead_client::attenuate(feed, &reading))
}

/// The text of a new reference to the feed, to read and to subscribe. `label` names its holder.
///
/// # Errors
/// When the feed can't be reached, or its server refused: then there may be a grant without a
/// holder.
pub async fn share(feed: &feed::Client, label: &str) -> Result<String> {
    let terms = Terms::new(label).methods::<feed::Client>(READING)?;
    capstead_client::share(feed, terms).await
}

/// Revokes everything that was shared with the holder that `label` names.
///
/// # Errors
/// - When there is no such grant.
/// - When the feed can't be reached, or its server refused: then some of it may be revoked.
pub async fn revoke(feed: &feed::Client, label: &str) -> Result<()> {
    let ids = grants(feed, label).await?;
    if ids.is_empty() {
        return Err(failed(format!("nothing is shared with {label}")));
    }
    for id in ids {
        let mut request = feed.clone().cast_to::<facet::Client>().revoke_request();
        request.get().set_grant(&id);
        request.send().promise.await?;
    }
    Ok(())
}

/// The ids of the grants with that label.
async fn grants(feed: &feed::Client, label: &str) -> Result<Vec<Vec<u8>>> {
    let (mut found, mut after) = (Vec::new(), Vec::new());
    loop {
        let mut request = feed.clone().cast_to::<facet::Client>().grants_request();
        request.get().set_after(&after);
        let reply = request.send().promise.await?;
        for grant in reply.get()?.get_grants()? {
            if grant.get_label()?.as_bytes() == label.as_bytes() {
                found.push(grant.get_id()?.to_vec());
            }
        }
        after = reply.get()?.get_next()?.to_vec();
        if after.is_empty() {
            return Ok(found);
        }
    }
}
