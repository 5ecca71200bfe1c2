//! Imports beside each other.

use capnp::ErrorKind;
use capstead_client::Connection;

use super::world::{World, run, within};
use crate::error::Result;
use crate::schema::admin_capnp::{admin::Client as Operator, import_claim};
use crate::server::admin;

async fn claim(by: &Connection) -> Result<import_claim::Client> {
    let operator = by.bootstrap::<Operator>();
    let reply = within(operator.claim_import_request().send().promise).await?;
    reply.get()?.get_claim()
}

/// Each remembers which archive it brings, in the same place.
#[test]
fn one_import_at_a_time_is_under_way() {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let world = World::start(data.path(), 2).await;
        let first = admin::connect(data.path()).await.unwrap();
        let second = admin::connect(data.path()).await.unwrap();
        let held = claim(&first).await.unwrap();
        for by in [&second, &first] {
            let refused = claim(by).await.err().unwrap();
            assert_eq!(refused.kind, ErrorKind::Overloaded, "{refused}");
            assert!(refused.extra.contains("another import is under way"), "{refused}");
        }
        // It ends, or its process does.
        drop(held);
        let held = until_claimed(&second).await;
        second.disconnect().await;
        until_claimed(&first).await;
        drop(held);
        first.disconnect().await;
        world.stop().await.unwrap();
    });
}

/// The server learns of an end a little later.
async fn until_claimed(by: &Connection) -> import_claim::Client {
    loop {
        match claim(by).await {
            Ok(claim) => return claim,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}
