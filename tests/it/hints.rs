//! The addresses in the texts of references: they are the server's, and not those of the host that
//! made the reference.

use std::path::Path;

use crate::support::calls::{by_name, connect, increment, read, run, save};
use crate::support::{
    Process, Served, capstead, free_address, refused_start, scratch, serve_command, serve_with,
};
use capnp::capability::Client;
use capstead::counter_capnp::counter;
use capstead_client::facet_capnp::facet;
use capstead_client::{Connection, namespace};

/// A server of four hosts, whose first host listens at this address.
fn serve_at(data: &Path, listen: &str) -> Served {
    let mut command = capstead(["serve", "--json", "--hosts", "4", "--http", "127.0.0.1:0"]);
    command.args(["--metrics", "127.0.0.1:0", "--listen", listen, "--data"]).arg(data);
    Served::ready(Process::start(command))
}

fn names() -> impl Iterator<Item = String> {
    (0..16).map(|n| format!("hint {n}"))
}

/// A reference that any host's object saved names the server's listener, and works there after a
/// restart, when all other listeners have other ports.
#[test]
fn a_text_is_good_as_it_is_before_and_after_a_restart() {
    let (_folder, data) = scratch();
    let listen = free_address();
    let served = serve_at(&data, &listen);
    let texts = run(async {
        let (front, counters) = connect(&served).await;
        let (mut texts, mut owners) = (Vec::new(), std::collections::BTreeSet::new());
        for name in names() {
            let counter = by_name(&counters, &name);
            increment(&counter).await.unwrap();
            let text = save(&counter, "mine").await;
            assert!(text.starts_with(&format!("capstead://{listen}/#")), "it names a host");
            owners.insert(front.locate(&text).await.unwrap());
            let restored: counter::Client = capstead_client::restore(&text).await.unwrap();
            assert_eq!(read(&restored).await.unwrap(), 1);
            texts.push(text);
        }
        assert_eq!(owners.len(), 4, "each host has some of them");
        texts
    });
    assert_eq!(served.stop().0, Some(0));
    let served = serve_at(&data, &listen);
    run(async {
        for text in &texts {
            let restored: counter::Client = capstead_client::restore(text).await.unwrap();
            assert_eq!(read(&restored).await.unwrap(), 1);
        }
    });
    assert_eq!(served.stop().0, Some(0));
}

/// An advertised address stands in all references, and an address that no reference could hold is
/// refused.
#[test]
fn an_advertised_address_stands_in_every_reference() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "2", "--advertise", "objects.example:4000"]);
    let start = "capstead://objects.example:4000/#";
    assert!(served.counters().starts_with(start));
    run(async {
        let fragment = served.counters().split_once('#').unwrap().1;
        let here = format!("capstead://{}/#{fragment}", served.announced.capnp);
        let counters: namespace::Client = capstead_client::restore(&here).await.unwrap();
        let front = Connection::dial(&served.announced.capnp).await.unwrap();
        for name in names() {
            let text = save(&by_name(&counters, &name), "").await;
            assert!(text.starts_with(start));
            // The ports of other hosts may be closed to clients that come by this address.
            assert_eq!(front.locate(&text).await.unwrap(), "objects.example:4000");
        }
    });
    assert_eq!(served.stop().0, Some(0));
    for wrong in ["objects.example", "a b:1", "[::1:4000", "x:70000"] {
        let (code, said) = refused_start(serve_command(&data, &["--advertise", wrong]));
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("can't advertise"), "{said}");
    }
}

/// The holder of a grant of a namespace can list and revoke all grants made below it, even those
/// made by way of grants on the namespace's host of which the object's host has no record.
#[test]
fn what_was_made_two_steps_below_is_listed_and_revoked_on_every_host() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "4"]);
    run(async {
        let (_front, counters) = connect(&served).await;
        let child = save(&counters, "child").await;
        let mut below = Vec::new();
        for name in names() {
            let child: namespace::Client = capstead_client::restore(&child).await.unwrap();
            below.push((name.clone(), save(&by_name(&child, &name), "two below").await));
            // Dropping this ends the connection, and with it all that the object's host knew of its
            // grant.
        }
        for (name, text) in below {
            let object = by_name(&counters, &name);
            let of = facet::Client { client: Client::new(object.client.hook.add_ref()) };
            let reply = of.grants_request().send().promise.await.unwrap();
            let grants = reply.get().unwrap().get_grants().unwrap();
            assert_eq!(grants.len(), 1, "{name}");
            let mut request = of.revoke_request();
            request.get().set_grant(grants.get(0).get_id().unwrap());
            request.send().promise.await.expect("it was made below");
            let refused = capstead_client::restore::<counter::Client>(&text).await;
            let refused = match refused {
                Ok(object) => read(&object).await.err(),
                Err(error) => Some(error),
            };
            assert!(refused.expect("it was revoked").extra.contains("revoked:"), "{name}");
        }
    });
    assert_eq!(served.stop().0, Some(0));
}
