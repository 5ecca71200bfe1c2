//! Dead grants take no share of what others may keep, and are shown to nobody: on one host and on
//! several, where the grant of a namespace is on another host than those made from it.

use std::path::Path;

use capnp::capability::{Client, FromClientHook};
use capstead_client::facet_capnp::{facet, persistent};
use capstead_client::{Connection, namespace, once};
use futures::future::join_all;

use crate::support::calls::{by_name, increment, run, save};
use crate::support::{DEADLINE, Served, capstead, now, scratch, serve_with};

/// One grant may use a fourth of it.
const QUOTA: &str = "Counter=400KiB";

fn facet(of: &impl FromClientHook) -> facet::Client {
    facet::Client { client: Client::new(of.as_client_hook().add_ref()) }
}

async fn try_save(of: &impl FromClientHook, label: &str) -> capnp::Result<()> {
    let of = persistent::Client { client: Client::new(of.as_client_hook().add_ref()) };
    let mut request = of.save_request();
    request.get().init_seal_for().set_label(label);
    request.send().promise.await.map(drop)
}

/// Saves until the share is full; returns the number of grants.
async fn fill(of: &impl FromClientHook) -> usize {
    let (label, mut made) = ("z".repeat(250), 0);
    loop {
        let saved = join_all((0..50).map(|_| try_save(of, &label))).await;
        let refused: Vec<_> = saved.iter().filter_map(|saved| saved.as_ref().err()).collect();
        made += saved.len() - refused.len();
        if let Some(error) = refused.first() {
            assert!(error.extra.contains("over-quota: "), "{error}");
            return made;
        }
    }
}

async fn revoke(of: &impl FromClientHook, label: &str) {
    let of = facet(of);
    let reply = of.grants_request().send().promise.await.unwrap();
    let grants = reply.get().unwrap().get_grants().unwrap();
    let grant = grants.iter().find(|grant| grant.get_label().unwrap() == label).unwrap();
    let mut request = of.revoke_request();
    request.get().set_grant(grant.get_id().unwrap());
    request.send().promise.await.unwrap();
}

/// The first line of `capstead grants OBJECT`.
fn shown(data: &Path, object: &str) -> String {
    let output = capstead(["grants", object, "--data"]).arg(data).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().next().unwrap().to_owned()
}

fn serve(data: &Path, hosts: &str) -> Served {
    serve_with(data, &["--hosts", hosts, "--object-quota", QUOTA])
}

#[test]
fn what_was_made_below_a_revoked_grant_of_a_namespace_makes_room() {
    for hosts in ["1", "4"] {
        let (_folder, data) = scratch();
        let served = serve(&data, hosts);
        run(async {
            let connection = Connection::dial(&served.announced.capnp).await.unwrap();
            let restore = |text: &str| connection.restore::<namespace::Client>(text).unwrap();
            let root = restore(&served.announced.namespaces["Counter"]);
            // Some of these are on the host of the namespace, and some aren't.
            for name in ["a", "b", "c"] {
                increment(&by_name(&root, name)).await.unwrap();
                let ada = restore(&save(&root, "Ada").await);
                let bob = restore(&save(&ada, "Bob").await);
                assert!(fill(&by_name(&bob, name)).await > 100);
                let adas = by_name(&ada, name);
                assert!(try_save(&adas, "mine").await.is_err(), "the share is Ada's too");
                revoke(&ada, "Bob").await;
                assert_eq!(
                    shown(&data, &format!("Counter/{name}")),
                    format!("Counter/{name}: 0 grants"),
                    "{hosts} hosts"
                );
                // A call with an id asks for room as a save does.
                increment(&once(&adas, &[7; 16])).await.ok();
                let start = now();
                while let Err(error) = try_save(&adas, "mine").await {
                    assert!(start.elapsed() < DEADLINE, "{hosts} hosts, {name}: {error}");
                }
                increment(&once(&adas, &[8; 16])).await.unwrap();
                assert!(shown(&data, &format!("Counter/{name}")).ends_with(": 1 grant"));
            }
        });
        served.stop();
    }
}
