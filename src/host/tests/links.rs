//! References in an object's storage: what they lead to, and who gets something from them.

mod random_writes;

use std::rc::Rc;

use capnp::capability::FromClientHook;
use futures::FutureExt as _;

use super::references::host;
use super::storage::{text, turn};
use super::trial::{World, call_write, made_by, over, read, run, trial};
use crate::error::{Result, failed};
use crate::host::engine::run::{InTurns, TurnCause};
use crate::host::state::instance::Instance;
use crate::host::{Context, Storage, Struct};
use crate::id::{ObjectId, Pool};
use crate::membrane;
use crate::schema::trial_capnp::trial::{later_params, note_params, pass_params};
use crate::storage::{Reads, Space};
use crate::sturdyref::ReferenceCipher;

fn id(name: &str) -> ObjectId {
    ObjectId::named(Pool::default(), "Trial", name)
}

/// Stores what is known in this vat: it needs no second poll.
fn put(storage: &Storage, key: &str, object: &trial::Client) -> Result<()> {
    storage.put_ref(key, object).now_or_never().expect("the first poll completes it")
}

/// Lets all polls of `work` be turns of the object.
async fn turns<T>(instance: &Rc<Instance>, work: impl Future<Output = T>) -> T {
    let turns = InTurns { instance, cause: TurnCause::default(), future: Box::pin(work) };
    turns.await.ok().expect("the instance lives")
}

/// A struct with a list of these.
fn passed(objects: Vec<trial::Client>) -> Struct<pass_params::Owned> {
    let built = Struct::build_with_refs(|params: pass_params::Builder<'_>| {
        let mut list = params.init_two(objects.len() as u32);
        for (at, object) in (0..).zip(objects) {
            list.set(at, object.into_client_hook());
        }
        Ok(())
    });
    built.unwrap()
}

fn edges(instance: &Instance, key: &str) -> Vec<u8> {
    let store = instance.vat.turns.store();
    store.get(instance.spec.id, Space::Edges, key.as_bytes()).unwrap().unwrap_or_default()
}

fn references(instance: &Instance) -> u64 {
    instance.account.usage().references
}

#[test]
fn a_reference_leads_to_its_object_and_writes_nothing_there() {
    run(async {
        let (world, _agent) = host().await;
        let instance = world.instance("x");
        turn(&instance, |storage| put(storage, "a", &world.object("target")).unwrap());
        assert_eq!(edges(&instance, "a"), id("target").as_bytes());
        assert_eq!(references(&instance), 1);
        assert!(!world.vat.exists(id("target")).unwrap());

        let storage = Context::new(instance.clone()).storage();
        let target: trial::Client = storage.get_ref("a").unwrap().unwrap();
        call_write(&target, 7).promise.await.unwrap();
        assert_eq!(read(&world.object("target")).await.unwrap(), 7);
        assert!(storage.get_ref::<trial::Client>("none").unwrap().is_none());

        let value = storage.get("a").unwrap().unwrap();
        for secret in [id("target").as_bytes().as_slice(), b"Trial", b"target"] {
            assert!(!value.windows(secret.len()).any(|part| part == secret), "it is encrypted");
        }
    });
}

/// The bytes of a reference are worth something to its owner, under its key, in its cluster.
#[test]
fn a_stolen_value_is_refused_and_has_no_edges() {
    run(async {
        let (world, _agent) = host().await;
        let (owner, thief) = (world.instance("owner"), world.instance("thief"));
        turn(&owner, |storage| put(storage, "a", &world.object("target")).unwrap());
        let value = turn(&owner, |storage| storage.get("a").unwrap().unwrap());
        let foreign =
            ReferenceCipher::new(&[8; 32]).encrypt(owner.spec.id, b"foreign", &[], b"", [1; 24]);
        turn(&thief, |storage| storage.put("a", &value).unwrap());
        turn(&owner, |storage| {
            storage.put("b", &value).unwrap();
            storage.put("foreign", &foreign).unwrap();
            storage.put("cut", &value[..value.len() - 1]).unwrap();
        });
        for (instance, key) in [(&thief, "a"), (&owner, "b"), (&owner, "foreign"), (&owner, "cut")]
        {
            let storage = Context::new(instance.clone()).storage();
            let refused = storage.get_ref::<trial::Client>(key).map(drop);
            assert!(text(refused).starts_with("sealed-elsewhere: "), "{key}");
            assert!(edges(instance, key).is_empty(), "{key}");
        }
        assert_eq!((references(&owner), references(&thief)), (1, 0));
        // The same bytes under the same key are the same reference.
        turn(&owner, |storage| {
            storage.delete("a").unwrap();
            assert!(edges(&owner, "a").is_empty());
            storage.put("a", &value).unwrap();
            assert_eq!(edges(&owner, "a"), id("target").as_bytes());
            assert!(storage.get_ref::<trial::Client>("a").unwrap().is_some());
        });
    });
}

#[test]
fn what_is_no_reference_is_refused_at_the_put() {
    run(async {
        let world = World::new();
        let instance = world.instance("x");
        let ctx = Context::new(instance.clone());
        let storage = ctx.storage();
        let session = made_by(&world.instance("maker"));
        let own: trial::Client = ctx.capability(Rc::new(super::trial::Trial::new(ctx.clone())));
        let stock: trial::Client = capnp_rpc::new_client(super::trial::Trial::new(ctx.clone()));
        let broken = trial::Client::new(membrane::broken(failed("it broke")));
        let ended = world.object("ended");
        let mut panic = ended.panic_request();
        panic.get().set_n(1);
        panic.send().promise.await.map(drop).unwrap_err();
        let far = over(session.clone(), 1);
        for (what, cap) in [
            ("a session", session),
            ("one of its own", own),
            ("a callback", stock),
            ("a broken one", broken),
            ("one that ended", ended),
            ("a session over a connection", far),
        ] {
            let refused = text(turns(&instance, storage.put_ref("k", &cap)).await);
            assert!(refused.starts_with("not-a-reference: "), "{what}: {refused}");
            let later = Struct::<later_params::Owned>::build_with_refs(|mut later| {
                later.set_cap(cap);
                Ok(())
            });
            let later = later.unwrap();
            let put =
                storage.put_struct_with_refs::<later_params::Owned>("k", later.get().unwrap());
            let refused = text(turns(&instance, put).await);
            assert!(refused.starts_with("not-a-reference: "), "{what}: {refused}");
        }
        assert!(storage.get("k").unwrap().is_none());
        assert_eq!(storage.count(), 0);
    });
}

/// The far end is asked, which may be this vat again; what isn't known in time is `overloaded`.
#[test]
fn a_capability_that_is_not_known_here_is_cited_by_its_host() {
    run(async {
        let (world, _agent) = host().await;
        let instance = world.instance("x");
        let storage = Context::new(instance.clone()).storage();
        let far = over(world.object("target"), 2);
        turns(&instance, storage.put_ref("far", &far)).await.unwrap();
        assert_eq!(edges(&instance, "far"), id("target").as_bytes());
        let again: trial::Client = storage.get_ref("far").unwrap().unwrap();
        call_write(&again, 7).promise.await.unwrap();
        assert_eq!(read(&far).await.unwrap(), 7);

        let never: trial::Client = capnp_rpc::new_future_client(std::future::pending());
        let late = turns(&instance, storage.put_ref("never", &never)).await.unwrap_err();
        assert_eq!(late.kind, capnp::ErrorKind::Overloaded);
        assert!(!storage.contains("never").unwrap());
    });
}

#[test]
fn references_stand_anywhere_in_a_struct() {
    run(async {
        let (world, _agent) = host().await;
        let instance = world.instance("x");
        let names = ["a", "b", "a"];
        let objects = passed(names.map(|name| world.object(name)).into());
        turn(&instance, |storage| {
            let objects = objects.get().unwrap();
            let put = storage.put_struct_with_refs::<pass_params::Owned>("s", objects);
            put.now_or_never().expect("the first poll completes it").unwrap();
        });
        assert_eq!(edges(&instance, "s"), names.map(|name| *id(name).as_bytes()).concat());

        let storage = Context::new(instance.clone()).storage();
        let read_back: Struct<pass_params::Owned> =
            storage.get_struct_with_refs("s").unwrap().unwrap();
        let two = read_back.get().unwrap().get_two().unwrap();
        for (cap, n) in two.iter().zip(5..) {
            call_write(&cap.unwrap(), n).promise.await.unwrap();
        }
        assert_eq!(read(&world.object("a")).await.unwrap(), 7);
        assert_eq!(read(&world.object("b")).await.unwrap(), 6);
        turn(&instance, |storage| {
            // Its bytes alone would be nothing, and so they are not stored.
            let refused = text(storage.put_as("plain", &read_back));
            assert!(refused.starts_with("live-capability:"), "{refused}");
        });
    });
}

#[test]
fn a_value_of_another_type_is_refused_by_its_name() {
    run(async {
        let (world, _agent) = host().await;
        let instance = world.instance("x");
        turn(&instance, |storage| {
            storage.put("plain", "bytes").unwrap();
            put(storage, "ref", &world.object("a")).unwrap();
            let note = Struct::<note_params::Owned>::default();
            let note = note.get().unwrap();
            storage.put_struct::<note_params::Owned>("struct", note).unwrap();
            let put = storage.put_struct_with_refs::<note_params::Owned>("sealed", note);
            put.now_or_never().unwrap().unwrap();
            assert_eq!(references(&instance), 1, "a struct without references has no edges");
            for key in ["plain", "struct", "sealed"] {
                let refused = text(storage.get_ref::<trial::Client>(key).map(drop));
                assert!(refused.starts_with("wrong-type: "), "{key}: {refused}");
            }
            for key in ["plain", "struct", "ref"] {
                let refused = storage.get_struct_with_refs::<note_params::Owned>(key).map(drop);
                assert!(text(refused).starts_with("wrong-type: "), "{key}");
            }
            assert!(
                storage.get_struct_with_refs::<note_params::Owned>("sealed").unwrap().is_some()
            );
            assert!(text(storage.get_as::<i64>("ref")).starts_with("wrong-type: "));
        });
    });
}

/// No block is appended for an object that was created and never wrote.
#[test]
fn creating_an_object_and_storing_nothing_leaves_nothing_behind() {
    run(async {
        let (world, _agent) = host().await;
        let instance = world.instance("x");
        let ctx = Context::new(instance.clone());
        world.vat.flush().await.unwrap();
        let before = world.disk.groups().len();
        let child = turn(&instance, |_| ctx.create::<super::trial::Trial>().unwrap());
        assert_eq!(read(&child).await.unwrap(), 0, "it wakes");
        drop(child);
        world.vat.flush().await.unwrap();
        assert_eq!(world.disk.groups().len(), before);

        // One that is stored and never wrote is reached again, and still isn't there.
        let child = ctx.create::<super::trial::Trial>().unwrap();
        turn(&instance, |storage| put(storage, "child", &child).unwrap());
        let child: trial::Client = ctx.storage().get_ref("child").unwrap().unwrap();
        assert_eq!(read(&child).await.unwrap(), 0);
        world.vat.flush().await.unwrap();
        let mut objects = Vec::new();
        world.disk.objects(&mut |object, _, _| objects.push(object)).unwrap();
        assert_eq!(objects, [instance.spec.id]);
    });
}
