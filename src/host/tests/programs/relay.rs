//! An object that only passes messages on between its clients writes nothing.

use futures::future::join_all;

use super::actor::{Actor, Gifts, Held, Step, ask};
use super::ledger::{self, CLIENT, Sent};
use super::links::{Host, Link, object_id};
use super::plan::Kind;
use super::table::NOTHING;
use crate::host::tests::trial::run;

const MESSAGES: u64 = 10_000;
const AT_ONCE: u64 = 100;

/// The object keeps the callback of one client in memory and calls it for each message of the
/// other.
#[test]
fn relaying_messages_between_clients_commits_nothing() {
    run(async {
        let host = Host::new();
        ledger::begin(std::iter::once((host.world.disk.clone(), object_id(0))));
        let links = [Link::new(&host, 1), Link::new(&host, 1)];
        let [listener, speaker] = links.each_ref().map(|link| {
            let mut request = link.door.open_request();
            let stub = ledger::new_stub();
            request.get().set_stub(stub);
            Held { cap: request.send().pipeline.get_cap(), stub }
        });
        let client = Sent { sender: CLIENT, wrote: 0 };
        let keep = Step { keep: true, ..NOTHING };
        let gifts = Gifts { on: None, gift: Some(Actor::callback(Kind::Rust)) };
        ask(&listener, client, &keep, &gifts).outcome.await.unwrap();
        let relay = Step {
            use_kept: true,
            calls: 1,
            awaits: true,
            next: Some(Box::new(NOTHING)),
            ..NOTHING
        };
        for _ in 0..MESSAGES / AT_ONCE {
            let relayed = (0..AT_ONCE).map(|_| ask(&speaker, client, &relay, &Gifts::default()));
            join_all(relayed.map(|made| made.outcome)).await.into_iter().for_each(|end| {
                end.unwrap();
            });
        }
        let verdict = ledger::end();
        assert!(verdict.problems.is_empty(), "{:?}", verdict.problems);
        assert_eq!(verdict.started, 1 + 2 * MESSAGES);
        assert!(host.world.disk.groups().is_empty(), "nothing was given to the disk");
        for link in &links {
            link.end().await;
        }
    });
}
