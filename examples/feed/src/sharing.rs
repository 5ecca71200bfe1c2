//! The ways to hand a feed on: narrowed to what a follower needs, saved for somebody, and taken
//! back.
//!
//! These are calls that every object answers, made by whoever holds the feed: a client or another object.
//! The feed's class has no part in them.

use capnp::capability::FromClientHook;
use capnp::traits::HasTypeId;
use capstead_client::facet_capnp::{caveats, facet, persistent};

use capstead::{Result, failed};

use crate::feed_capnp::feed;

/// The ordinals of `latest` and `subscribe`.
const READING: [u16; 2] = [1, 2];

/// The same feed, which can be read and subscribed to, and nothing else. Nothing is waited for.
pub fn narrowed(feed: &feed::Client) -> feed::Client {
    let mut request = feed.clone().cast_to::<facet::Client>().attenuate_request();
    only_reading(request.get().init_caveats());
    request.send().pipeline.get_facet().as_cap().cast_to()
}

/// The text of a new reference to the feed, to read and to subscribe, for whom `label` says.
///
/// # Errors
/// When the feed can't be reached, or its server refused: then there may be a grant that nobody has.
pub async fn share(feed: &feed::Client, label: &str) -> Result<String> {
    let mut request = feed.clone().cast_to::<persistent::Client>().save_request();
    let mut terms = request.get().init_seal_for();
    terms.set_label(label);
    only_reading(terms.init_caveats());
    let reply = request.send().promise.await?;
    Ok(reply.get()?.get_sturdy_ref()?.to_string()?)
}

/// Takes back everything that was shared with whom `label` says.
///
/// # Errors
/// When there is no such grant; when the feed can't be reached, or its server refused: then some of it may
/// have been taken back.
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

fn only_reading(caveats: caveats::Builder<'_>) {
    let mut methods = caveats.init_methods(1).get(0);
    methods.set_interface(feed::Client::TYPE_ID);
    let mut ordinals = methods.init_ordinals(READING.len() as u32);
    for (at, ordinal) in (0..).zip(READING) {
        ordinals.set(at, ordinal);
    }
}
