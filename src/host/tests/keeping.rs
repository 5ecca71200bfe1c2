//! One grant, with all that was made from it, keeps so many objects awake, and leaves room to all
//! others.

use std::time::Duration;

use capnp::ErrorKind;
use capnp::capability::FromClientHook;
use capstead_client::sturdyref::{Caveats, GrantId};

use super::trial::{
    Wake, World, call_note, call_pass, from_now_on_wake, run, run_within, settle, trial,
};
use crate::host::AwakeLimits;
use crate::host::base::right::{GrantRef, MayGive, Right};
use crate::host::state::slot::ObjectSpec;
use crate::id::{ObjectId, Pool};
use crate::sturdyref::root_grant;

fn grant(number: u8) -> GrantId {
    GrantId::from_bytes([number; 16])
}

fn held_by_one_below(world: &World, number: u8, before: Vec<GrantId>, name: &str) -> trial::Client {
    let class = world.vat.objects.class("Trial").unwrap();
    let id = ObjectId::named(Pool::default(), class.name, name);
    let may_give = MayGive { before, ..MayGive::default() };
    let live = world.vat.live_grants.add(GrantRef::new(id, grant(number)), None, may_give);
    let spec = ObjectSpec { id, class, name: Some(name.into()) };
    trial::Client::new(world.vat.facet(&spec, Right::new(Some(live), Caveats::none())))
}

/// A facet of the object called `name` by the grant with this number, which was made from the root.
pub(super) fn held_by(world: &World, number: u8, name: &str) -> trial::Client {
    held_by_one_below(world, number, vec![root_grant("Trial")], name)
}

fn at_most(world: &World, objects: usize) {
    world.vat.objects.awake().limit(AwakeLimits { objects, ..AwakeLimits::NONE });
}

async fn child(of: &trial::Client) -> trial::Client {
    of.child_request().send().promise.await.unwrap().get().unwrap().get_cap().unwrap()
}

async fn refused(on: &trial::Client) -> String {
    let refused = call_note(on, 1).promise.await.err().expect("it is refused");
    assert_eq!(refused.kind, ErrorKind::Overloaded, "{refused}");
    refused.extra
}

async fn noted(on: &trial::Client) {
    call_note(on, 1).promise.await.unwrap();
}

#[test]
fn a_grant_keeps_a_quarter_awake_and_others_the_rest() {
    run(async {
        let world = World::new();
        at_most(&world, 8);
        let [a, b, c] = ["a", "b", "c"].map(|name| held_by(&world, 1, name));
        let held = [child(&a).await, child(&b).await, child(&a).await];
        let why = refused(&c).await;
        assert!(why.starts_with("overloaded: your grant"), "{why}");
        assert!(why.contains("keeps 2 objects awake"), "{why}");
        let before = vec![grant(1), root_grant("Trial")];
        refused(&held_by_one_below(&world, 2, before, "c")).await;
        assert_eq!(world.metrics.awake_shares_refused_total.get(), 2);
        for kept in held.iter().chain([&a, &b]) {
            noted(kept).await;
        }
        noted(&held_by(&world, 3, "c")).await;
        refused(&c).await;
        let [of_a, of_b, again] = held;
        drop(of_a);
        settle().await;
        refused(&c).await;
        drop(again);
        settle().await;
        noted(&c).await;
        drop(of_b);
    });
}

#[test]
fn what_is_kept_is_in_nobodys_way() {
    const OBJECTS: usize = 2400;
    run_within(Duration::from_mins(2), async {
        let world = World::new();
        at_most(&world, OBJECTS);
        let mut held = Vec::new();
        for n in 0..OBJECTS / 4 {
            held.push(child(&held_by(&world, 1, &format!("kept {n}"))).await);
        }
        refused(&held_by(&world, 1, "more")).await;
        let fresh = async |round: &str| {
            for n in 0..OBJECTS {
                noted(&held_by(&world, 2, &format!("{round} {n}"))).await;
            }
        };
        fresh("first").await;
        let kept = || world.vat.objects.all().len();
        assert!(kept() <= OBJECTS);
        drop(held);
        settle().await;
        // They sleep like all others now.
        fresh("second").await;
        let slots = world.vat.objects.all();
        let is_kept = |name: &str| name.starts_with("kept");
        assert!(!slots.iter().any(|slot| slot.spec.name.as_deref().is_some_and(is_kept)));
    });
}

/// An object has no grant for another one to which it is bound: its caller has.
#[test]
fn what_objects_call_counts_for_whoever_called_them() {
    run(async {
        let world = World::new();
        at_most(&world, 16);
        let never = world.object("never");
        let first = held_by(&world, 1, "a");
        noted(&first).await;
        let path = ["b", "c"].map(|name| world.object(name));
        for object in &path {
            noted(object).await;
        }
        from_now_on_wake(Wake::NeverEnds);
        let under_way = call_pass(&first, &[path[0].clone(), path[1].clone(), never], &[]);
        let under_way = tokio::task::spawn_local(under_way);
        settle().await;
        from_now_on_wake(Wake::Well);
        let why = refused(&held_by(&world, 1, "d")).await;
        assert!(why.contains("keeps 4 objects awake"), "{why}");
        noted(&world.object("d")).await;
        noted(&held_by(&world, 2, "e")).await;
        under_way.abort();
    });
}

#[test]
fn objects_that_wake_are_kept_for_those_who_wait() {
    run(async {
        let world = World::new();
        at_most(&world, 8);
        from_now_on_wake(Wake::NeverEnds);
        let waiting = ["a", "b"].map(|name| call_note(&held_by(&world, 1, name), 1));
        settle().await;
        from_now_on_wake(Wake::Well);
        refused(&held_by(&world, 1, "c")).await;
        noted(&held_by(&world, 2, "c")).await;
        drop(waiting);
    });
}
