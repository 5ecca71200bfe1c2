//! Concurrent imports.

use capnp::ErrorKind;
use capstead_client::Connection;

use super::world::{World, by_name, increment, run, save, within};
use crate::error::Result;
use crate::id::{ObjectId, Pool};
use crate::schema::admin_capnp::{
    Existing, ImportedGrants, admin::Client as Operator, host_admin, import, import_claim,
};
use crate::server::admin;
use crate::storage::Space;
use crate::storage::archive::{Frame, Record, Records};

async fn claim(by: &Connection) -> Result<import_claim::Client> {
    let operator = by.bootstrap::<Operator>();
    let reply = within(operator.claim_import_request().send().promise).await?;
    reply.get()?.get_claim()
}

/// Each import marks its archive, in the same file.
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
        // The import ends, or its process does.
        drop(held);
        let held = until_claimed(&second).await;
        second.disconnect().await;
        until_claimed(&first).await;
        drop(held);
        first.disconnect().await;
        world.stop().await.unwrap();
    });
}

/// The server learns of the end of an import a little later.
async fn until_claimed(by: &Connection) -> import_claim::Client {
    loop {
        match claim(by).await {
            Ok(claim) => return claim,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

async fn begin(host: &host_admin::Client) -> import::Client {
    let mut request = host.begin_import_request();
    request.get().set_existing(Existing::Replace);
    request.get().set_grants(ImportedGrants::Replace);
    let reply = within(request.send().promise).await.unwrap();
    reply.get().unwrap().get_incoming().unwrap()
}

/// Frames of a namespace without grants, and of an impossible object, in one message.
fn namespace_and_nonsense() -> Vec<u8> {
    let id = ObjectId::namespace(Pool::default(), "Counter");
    let (mut frames, mut record) = (Vec::new(), Vec::new());
    Record { space: Space::Header, key: b"", value: b"no header" }.encode(&mut record);
    for frame in [Frame::Object(id), Frame::Object(id), Frame::Records(Records::encoded(&record))] {
        frame.encode(&mut frames);
    }
    frames
}

// When an import revoked the grants of a namespace and then failed in the same message, other hosts
// used never to be told, and capabilities made from the grants kept working there.
#[test]
fn an_import_that_fails_tells_all_hosts_what_it_revoked_before() {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let world = World::start(data.path(), 3).await;
        let (front, counters) = world.connect().await;
        let guest: capstead_client::namespace::Client =
            front.restore(&save(&counters, "guest").await).unwrap();
        let held: Vec<_> = (0..3).map(|host| by_name(&guest, &world.name_on(host, 0))).collect();
        for counter in &held {
            increment(counter).await.unwrap();
        }
        let operator = admin::connect(data.path()).await.unwrap();
        let mut request = operator.bootstrap::<Operator>().host_request();
        request.get().set_number(world.namespace_is_on());
        let host = request.send().pipeline.get_host();
        let import = begin(&host).await;
        let mut request = import.write_request();
        request.get().set_frames(&namespace_and_nonsense());
        let refused = within(request.send().promise).await.err().expect("it is nonsense");
        assert!(!refused.extra.contains("revoked"), "{refused}");
        for (host, counter) in held.iter().enumerate() {
            let refused = increment(counter).await.err();
            let refused = refused.unwrap_or_else(|| panic!("host {host} was told"));
            assert!(refused.extra.contains("revoked:"), "{refused}");
        }
        operator.disconnect().await;
        front.disconnect().await;
        world.stop().await.unwrap();
    });
}
