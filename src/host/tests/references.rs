//! No bit of a reference can be changed, and no object wakes by trying.

use std::rc::Rc;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capstead_client::sturdyref::{Caveats, GrantId, Method, NextSecret, Target, TargetId};
use ed25519_dalek::SigningKey;

use super::trial::{World, call_write, read, run, run_within, trial};
use crate::error::Result;
use crate::host::authority::records;
use crate::host::{Agent, ListenerHint};
use crate::id::{ObjectId, Pool};
use crate::membrane;
use crate::schema::cluster_capnp::{router, supervisor};
use crate::sturdyref::{Grant, KeyRing, Keys, root_grant};

/// All shards belong to every host that joins.
struct OneHost;

impl supervisor::Server for OneHost {
    async fn join(
        self: Rc<Self>,
        _: supervisor::JoinParams,
        mut results: supervisor::JoinResults,
    ) -> Result<()> {
        let mut range = results.get().init_shards(1).get(0);
        range.set_first(0);
        range.set_last(u16::MAX);
        results.get().set_router(membrane::serve(Rc::new(OneHost)));
        Ok(())
    }
}

impl router::Server for OneHost {
    async fn cut(self: Rc<Self>, _: router::CutParams, _: router::CutResults) -> Result<()> {
        Ok(()) // the host has cut it by itself
    }
}

/// The keys of the cluster.
pub(super) fn keys() -> Keys {
    let key = |seed| SigningKey::from_bytes(&[seed; 32]);
    Keys::new(KeyRing::new(key(1), vec![key(2)]))
}

/// A host of a cluster that has no other.
pub(super) async fn host() -> (World, Rc<Agent>) {
    let world = World::new();
    let agent = join(&world).await;
    (world, agent)
}

/// The only host of its cluster, over the vat of `world`.
pub(super) async fn join(world: &World) -> Rc<Agent> {
    let agent = Agent::new(world.vat.clone(), keys());
    let supervisor: supervisor::Client = membrane::serve(Rc::new(OneHost));
    let hint = ListenerHint { address: "127.0.0.1:4000".to_owned(), tls: false };
    agent.join(&supervisor, 0, hint.address.clone(), hint).await.unwrap();
    agent
}

fn target(namespace: ObjectId) -> Target {
    Target::Namespace(TargetId::from_bytes(*namespace.as_bytes()))
}

/// So many references with grants that exist, for objects that exist; all their bits, one at a
/// time.
fn check(first: u32, count: u32) {
    run_within(Duration::from_mins(10), async move {
        let ((world, agent), keys) = (host().await, keys().current());
        let namespace = ObjectId::namespace(Pool::default(), "Trial");
        let object = ObjectId::named(Pool::default(), "Trial", "x");
        call_write(&world.object("x"), 1).promise.await.unwrap();
        let wakes = world.metrics.wakes_total.get();
        for number in first..first + count {
            let mut grant = [0; 16];
            grant[..4].copy_from_slice(&number.to_be_bytes());
            let grant = GrantId::from_bytes(grant);
            let record = Grant::root(0).encode();
            let id = if number % 2 == 0 { namespace } else { object };
            records::write(&world.vat, id, [(&grant, Some(record))]).unwrap();
            let mut seed = [7; 32];
            seed[..4].copy_from_slice(&number.to_be_bytes());
            let caveats =
                if number % 4 < 2 { Caveats::none() } else { Caveats::not_after(u64::MAX) };
            let next = NextSecret::from_seed(seed);
            let bytes = TargetId::from_bytes(*id.as_bytes());
            let to = if id == object { Target::Object(bytes) } else { Target::Namespace(bytes) };
            let reference = keys.mint(to, grant, caveats, &next);
            let narrow =
                Caveats::not_after(u64::MAX - 1).with_methods([Method::new(7, 1)]).unwrap();
            let reference = match number % 4 {
                3 => reference.narrow(&narrow).unwrap(),
                _ => reference,
            };
            let reference = if number % 3 == 0 { reference.seal() } else { reference };
            let mut bytes = reference.expose_bytes().to_vec();
            assert!(agent.restore_bytes(&bytes).await.is_ok(), "the reference itself is good");
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                let refused = agent.restore_bytes(&bytes).await.err();
                let error = refused.unwrap_or_else(|| panic!("reference {number}, bit {bit}"));
                assert_eq!(error.extra, "the reference was refused", "bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
        assert_eq!(world.metrics.wakes_total.get(), wakes);
    });
}

/// A reference is good in its last millisecond, and not in the next one.
#[test]
fn an_expired_reference_is_refused_like_a_forged_one() {
    run(async {
        let ((world, agent), keys) = (host().await, keys().current());
        world.now.set(1000);
        let namespace = ObjectId::namespace(Pool::default(), "Trial");
        let root = keys.root_reference(target(namespace), root_grant("Trial"));
        let short = root.narrow(&Caveats::not_after(1000)).unwrap();
        assert!(agent.restore_bytes(short.expose_bytes()).await.is_ok());
        world.now.set(1001);
        let error = agent.restore_bytes(short.expose_bytes()).await.err().unwrap();
        assert_eq!(error.extra, "the reference was refused");
        assert!(agent.restore_bytes(root.expose_bytes()).await.is_ok());
        assert_eq!(world.metrics.wakes_total.get(), 0);
    });
}

/// A reference to one object leads to that object, awake or not, as long as its grant and it exist.
#[test]
fn a_reference_to_an_object_is_restored_by_its_own_grant() {
    run(async {
        let ((world, agent), keys) = (host().await, keys().current());
        call_write(&world.object("x"), 7).promise.await.unwrap();
        let restore = async |name: &str, grant: u8| {
            let id = ObjectId::named(Pool::default(), "Trial", name);
            let record = Grant::root(0).encode();
            records::write(&world.vat, id, [(&GrantId::from_bytes([1; 16]), Some(record))])
                .unwrap();
            let target = Target::Object(TargetId::from_bytes(*id.as_bytes()));
            let next = NextSecret::from_seed([9; 32]);
            let grant = GrantId::from_bytes([grant; 16]);
            let reference = keys.mint(target, grant, Caveats::none(), &next);
            agent.restore_bytes(reference.expose_bytes()).await.map(trial::Client::new)
        };
        assert_eq!(read(&restore("x", 1).await.unwrap()).await.unwrap(), 7);
        for (name, grant) in [("x", 2), ("y", 1)] {
            let refused =
                restore(name, grant).await.err().expect("there is no such grant or object");
            assert!(refused.extra.starts_with("revoked:"), "{refused}");
        }
    });
}

/// Two halves at once: most of the time goes into signatures.
#[test]
fn no_bit_of_a_thousand_references_can_be_flipped() {
    std::thread::scope(|scope| {
        scope.spawn(|| check(0, 500));
        scope.spawn(|| check(500, 500));
    });
}
