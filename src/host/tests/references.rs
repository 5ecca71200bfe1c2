//! No bit of a reference can be changed, and no object wakes by trying.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capstead_client::sturdyref::{Caveats, GrantId, NextSecret, Target, TargetId};
use ed25519_dalek::SigningKey;

use super::trial::{World, call_write, read, run, run_within, trial};
use crate::clock::Clock;
use crate::host::Agent;
use crate::host::header::Header;
use crate::host::slot::Birth;
use crate::id::{ObjectId, Pool};
use crate::membrane;
use crate::schema::cluster_capnp::supervisor;
use crate::storage::Space;
use crate::sturdyref::{Grant, KeyRing, Keys, root_grant};

/// All shards belong to whoever joins.
struct OneHost;

impl supervisor::Server for OneHost {
    async fn join(
        self: Rc<Self>,
        _: supervisor::JoinParams,
        mut results: supervisor::JoinResults,
    ) -> crate::error::Result<()> {
        let mut range = results.get().init_shards(1).get(0);
        range.set_first(0);
        range.set_last(u16::MAX);
        results.get().set_router(no_router());
        Ok(())
    }
}

fn no_router() -> crate::schema::cluster_capnp::router::Client {
    capnp::capability::FromClientHook::new(membrane::broken(crate::error::failed(
        "there is one host",
    )))
}

async fn host(clock: Clock) -> (World, Rc<Agent>, Arc<KeyRing>) {
    let world = World::new();
    let key = |seed| SigningKey::from_bytes(&[seed; 32]);
    let keys = Keys::new(KeyRing::new(key(1), vec![key(2)]));
    let agent = Agent::new(world.vat.clone(), keys.clone(), clock);
    let supervisor: supervisor::Client = membrane::serve(Rc::new(OneHost));
    agent.join(&supervisor, 0, "127.0.0.1:4000").await.unwrap();
    (world, agent, keys.current())
}

fn target(namespace: ObjectId) -> Target {
    Target::Namespace(TargetId::from_bytes(*namespace.as_bytes()))
}

/// So many references with grants that exist, for objects that exist; all their bits, one at a time.
fn check(first: u32, count: u32) {
    run_within(Duration::from_mins(10), async move {
        let (world, agent, keys) = host(Clock::real()).await;
        let namespace = ObjectId::namespace(Pool::default(), "Trial");
        let object = ObjectId::named(Pool::default(), "Trial", "x");
        let birth =
            Birth { id: object, class: world.vat.class("Trial").unwrap(), key: Some("x".into()) };
        let header = Header::of(&birth).encode();
        world.vat.write_system(object, Space::Header, &[], &header).unwrap();
        for number in first..first + count {
            let mut grant = [0; 16];
            grant[..4].copy_from_slice(&number.to_be_bytes());
            let record = Grant::root(0).encode();
            let id = if number % 2 == 0 { namespace } else { object };
            world.vat.write_system(id, Space::Grants, &grant, &record).unwrap();
            let mut seed = [7; 32];
            seed[..4].copy_from_slice(&number.to_be_bytes());
            let caveats =
                if number % 4 < 2 { Caveats::none() } else { Caveats::not_after(u64::MAX) };
            let next = NextSecret::from_seed(seed);
            let bytes = TargetId::from_bytes(*id.as_bytes());
            let to = if id == object { Target::Object(bytes) } else { Target::Namespace(bytes) };
            let reference = keys.mint(to, GrantId::from_bytes(grant), caveats, &next);
            let reference = if number % 3 == 0 { reference.seal() } else { reference };
            let mut bytes = reference.expose_bytes().to_vec();
            assert!(agent.restore_bytes(&bytes).is_ok(), "the reference itself is good");
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                let refused = agent.restore_bytes(&bytes).err();
                let error = refused.unwrap_or_else(|| panic!("reference {number}, bit {bit}"));
                assert_eq!(error.extra, "the reference was refused", "bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
        assert_eq!(world.metrics.wakes_total.get(), 0);
    });
}

/// A reference is good in its last millisecond, and not in the next one.
#[test]
fn an_expired_reference_is_refused_like_a_forged_one() {
    run(async {
        let now = Rc::new(Cell::new(1000));
        let (world, agent, keys) = host(Clock::test(now.clone())).await;
        let namespace = ObjectId::namespace(Pool::default(), "Trial");
        let root = keys.root_reference(target(namespace), root_grant("Trial"));
        let short = root.narrow(1000).unwrap();
        assert!(agent.restore_bytes(short.expose_bytes()).is_ok());
        now.set(1001);
        let error = agent.restore_bytes(short.expose_bytes()).err().unwrap();
        assert_eq!(error.extra, "the reference was refused");
        assert!(agent.restore_bytes(root.expose_bytes()).is_ok());
        assert_eq!(world.metrics.wakes_total.get(), 0);
    });
}

/// A reference to one object leads to that object, awake or not, and to nothing if it doesn't exist.
#[test]
fn a_reference_to_an_object_is_restored_by_its_own_grant() {
    run(async {
        let (world, agent, keys) = host(Clock::real()).await;
        call_write(&world.object("x"), 7).promise.await.unwrap();
        let restore = |name: &str, grant: u8| {
            let id = ObjectId::named(Pool::default(), "Trial", name);
            let record = Grant::root(0).encode();
            world.vat.write_system(id, Space::Grants, &[1; 16], &record).unwrap();
            let target = Target::Object(TargetId::from_bytes(*id.as_bytes()));
            let next = NextSecret::from_seed([9; 32]);
            let grant = GrantId::from_bytes([grant; 16]);
            let reference = keys.mint(target, grant, Caveats::none(), &next);
            agent.restore_bytes(reference.expose_bytes()).map(trial::Client::new)
        };
        assert_eq!(read(&restore("x", 1).unwrap()).await.unwrap(), 7);
        let refused = restore("x", 2).err().expect("there is no such grant");
        assert_eq!(refused.extra, "the reference was refused");
        let refused = restore("y", 1).err().expect("there is no such object");
        assert_eq!(refused.extra, "the reference was refused");
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
