//! The objects that are awake are bounded: those that were not used for long make room, and those
//! that are needed stay.

use capnp::ErrorKind;

use super::keeping::held_by;
use super::storage::{stored, turn};
use super::trial::{World, call_note, call_write, read, run, settle};
use crate::error::failed;
use crate::host::{AwakeLimits, Storage};

fn is_awake(world: &World, name: &str) -> bool {
    let slots = world.vat.objects.all();
    slots.iter().any(|slot| slot.spec.name.as_deref() == Some(name) && slot.awake().is_some())
}

fn awake<'a>(world: &World, names: &[&'a str]) -> Vec<&'a str> {
    names.iter().copied().filter(|name| is_awake(world, name)).collect()
}

fn at_most(world: &World, objects: usize) {
    world.vat.objects.awake().limit(AwakeLimits { objects, ..AwakeLimits::NONE });
}

async fn write(world: &World, name: &str) {
    call_write(&world.object(name), 1).promise.await.unwrap();
    settle().await;
}

#[test]
fn the_least_recently_used_makes_room() {
    run(async {
        let world = World::new();
        at_most(&world, 3);
        for name in ["a", "b", "c"] {
            write(&world, name).await;
        }
        assert_eq!(read(&world.object("a")).await.unwrap(), 1);
        write(&world, "d").await;
        assert_eq!(awake(&world, &["a", "b", "c", "d"]), ["a", "c", "d"]);
        write(&world, "e").await;
        assert_eq!(awake(&world, &["a", "b", "c", "d", "e"]), ["a", "d", "e"]);
        assert_eq!(read(&world.object("b")).await.unwrap(), 1, "it lost nothing");
    });
}

/// A stranger who asks for names that nobody uses drives out nobody who is there.
#[test]
fn what_never_wrote_makes_room_before_all_others() {
    run(async {
        let world = World::new();
        at_most(&world, 4);
        for name in ["a", "b"] {
            write(&world, name).await;
        }
        for n in 0..1000 {
            call_note(&world.object(&format!("blank {n}")), 1).promise.await.unwrap();
        }
        assert_eq!(awake(&world, &["a", "b"]), ["a", "b"]);
        assert_eq!(world.metrics.objects_awake.get(), 4);
        // It has written since it woke.
        write(&world, "blank 998").await;
        call_note(&world.object("blank 1000"), 1).promise.await.unwrap();
        assert!(is_awake(&world, "blank 998"));
    });
}

#[test]
fn nothing_wakes_while_all_that_is_awake_is_needed() {
    run(async {
        let world = World::new();
        at_most(&world, 4);
        let names = ["a", "b", "d", "e"];
        // Each keeps as much as one grant may.
        let held = (1..).zip(names).map(|(grant, name)| held_by(&world, grant, name));
        let held: Vec<_> = held.map(|object| object.child_request().send()).collect();
        let held: Vec<_> = held.into_iter().map(|child| child.pipeline.get_cap()).collect();
        for child in &held {
            call_note(child, 1).promise.await.unwrap();
        }
        let refused = call_note(&world.object("c"), 1).promise.await.err().unwrap();
        assert_eq!(refused.kind, ErrorKind::Overloaded);
        assert!(refused.extra.starts_with("overloaded: 4 objects are awake"), "{refused}");
        assert_eq!(awake(&world, &["a", "b", "c", "d", "e"]), names);
        drop(held);
        settle().await;
        call_note(&world.object("c"), 1).promise.await.unwrap();
    });
}

/// Values that grow put others to sleep, and count no longer than they are there.
#[test]
fn values_in_memory_count_as_they_are() {
    const LIMIT: usize = 1 << 20;
    run(async {
        let world = World::new();
        world.vat.objects.awake().limit(AwakeLimits { bytes: LIMIT, ..AwakeLimits::NONE });
        let heavy = world.instance("heavy");
        let value = stored::<Vec<u8>>(&heavy, "value");
        let grow = || value.set(vec![1; LIMIT]);
        for name in ["a", "b"] {
            write(&world, name).await;
        }
        turn(&heavy, |_| grow().unwrap());
        settle().await;
        assert!(awake(&world, &["a", "b"]).is_empty());
        let refused = call_note(&world.object("a"), 1).promise.await.err().unwrap();
        assert_eq!(refused.kind, ErrorKind::Overloaded, "{refused}");

        turn(&heavy, |storage| storage.delete("value").unwrap());
        assert_eq!(read(&world.object("a")).await.unwrap(), 1);
        let undone = |storage: &Storage| {
            storage.transaction(|| grow().and(Err::<(), _>(failed("it is undone"))))
        };
        turn(&heavy, |storage| undone(storage).unwrap_err());
        assert_eq!(read(&world.object("b")).await.unwrap(), 1);

        turn(&heavy, |_| grow().unwrap());
        drop((value, heavy));
        assert_eq!(read(&world.object("b")).await.unwrap(), 1);
    });
}
