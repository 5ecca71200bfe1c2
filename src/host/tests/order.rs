//! Calls on one stub start in the order made, whatever happens to their promises.

use super::trial::{World, call_later, call_note, log, over, read, run, settle, wake_takes};
use crate::membrane;
use capnp::capability::FromClientHook;

/// The second call is awaited before the first, the third is never polled, the fourth dropped.
#[test]
fn calls_start_in_the_order_made_also_when_awaited_in_another_or_never() {
    for hops in 0..3 {
        run(async move {
            let world = World::new();
            let object = over(world.object("x"), hops);
            let before = log().len();
            let (one, two, _three) =
                (call_note(&object, 1), call_note(&object, 2), call_note(&object, 3));
            drop(call_note(&object, 4));
            two.promise.await.unwrap();
            one.promise.await.unwrap();
            settle().await;
            assert_eq!(log()[before..], [1, 2, 3, 4], "{hops} hops");
        });
    }
}

/// Calls that arrive while the object wakes wait for it, and one instance serves them all.
#[test]
fn calls_wait_for_a_waking_object_in_order() {
    run(async {
        let world = World::new();
        wake_takes(5);
        let calls: Vec<_> = (0..50).map(|n| call_note(&world.object("x"), n).promise).collect();
        assert!(log().is_empty());
        futures::future::try_join_all(calls).await.unwrap();
        assert_eq!(log(), (0..50).collect::<Vec<_>>());
        assert_eq!(world.metrics.wakes_total.get(), 1);
    });
}

/// However many calls wait, other tasks of the thread run in between.
#[test]
fn queued_calls_let_other_tasks_run() {
    const CALLS: usize = 1000;
    const IN_A_ROW: usize = 100;
    run(async {
        let world = World::new();
        let object = world.object("x");
        call_note(&object, 0).promise.await.unwrap();
        let calls: Vec<_> =
            world.vat.busy(|| (1..CALLS as u64).map(|n| call_note(&object, n).promise).collect());
        while log().len() < CALLS {
            let before = log().len();
            tokio::task::yield_now().await;
            assert!(log().len() - before <= IN_A_ROW, "{} at once", log().len() - before);
        }
        futures::future::try_join_all(calls).await.unwrap();
        assert!(log().is_sorted());
    });
}

/// Calls on a promised capability follow each other, though everything was dropped before it is
/// known.
#[test]
fn pipelined_calls_start_in_order_and_after_what_they_wait_for() {
    for hops in 0..3 {
        run(async move {
            let world = World::new();
            let (holder, target) = (over(world.object("a"), hops), over(world.object("b"), hops));
            let before = log().len();
            let promised = call_later(&holder, 5, Some(target)).pipeline.get_cap();
            (1..=4).for_each(|n| drop(call_note(&promised, n)));
            drop(promised);
            settle().await;
            settle().await;
            assert_eq!(log()[before..], [1000, 1, 2, 3, 4], "{hops} hops");
        });
    }
}

/// The holder calls before, at and after the moment when the promise turns out to be its own
/// object.
#[test]
fn a_promise_that_becomes_a_local_object_keeps_the_order() {
    for hops in 1..3 {
        run(async move {
            let (host, mine) = (World::new(), World::new());
            let far = over(host.object("far"), hops);
            let before = log().len();
            let sent = call_later(&far, 3, Some(mine.object("mine")));
            let promised = sent.pipeline.get_cap();
            let mut calls: Vec<_> = (0..50).map(|n| call_note(&promised, n).promise).collect();
            sent.promise.await.unwrap();
            calls.extend((50..100).map(|n| call_note(&promised, n).promise));
            tokio::task::yield_now().await;
            calls.extend((100..150).map(|n| call_note(&promised, n).promise));
            futures::future::try_join_all(calls).await.unwrap();
            let noted: Vec<u64> = log()[before..].iter().copied().filter(|n| *n < 1000).collect();
            assert_eq!(noted, (0..150).collect::<Vec<_>>(), "{hops} hops");
        });
    }
}

/// The RPC library hands the waiting calls over while it has the promise borrowed, and the object
/// calls just that.
#[test]
fn a_promise_may_be_a_parameter_of_a_call_on_itself() {
    for hops in 1..3 {
        run(async move {
            let world = World::new();
            let object = over(world.object("x"), hops);
            let before = log().len();
            let promised = call_later(&object, 20, Some(object.clone())).pipeline.get_cap();
            let mut relay = promised.relay_request();
            relay.get().set_to(promised.clone());
            relay.get().set_n(10);
            relay.send().promise.await.unwrap();
            while log().len() < before + 4 {
                settle().await;
            }
            assert_eq!(log()[before], 1000, "{hops} hops");
            assert_eq!(read(&object).await.unwrap(), 10, "the object lives on");
        });
    }
}

/// A facet that went out and came back is known again, so that no call takes a detour.
#[test]
fn a_facet_that_comes_back_is_recognised() {
    run(async {
        let world = World::new();
        let (facet, far) = (world.object("x"), over(world.object("y"), 1));
        let reply = call_later(&far, 0, Some(facet.clone())).promise.await.unwrap();
        let back = reply.get().unwrap().get_cap().unwrap();
        let found = |client: &super::trial::trial::Client| {
            membrane::find::<crate::host::state::facet::Facet>(client.as_client_hook()).unwrap()
        };
        assert!(std::rc::Rc::ptr_eq(&found(&facet), &found(&back)));
    });
}

/// Ten thousand objects that call each other one behind the other don't nest the stack.
#[test]
fn long_chains_of_calls_do_not_nest() {
    run(async {
        let world = World::new();
        let mut promised = world.object("end");
        for n in 0..10_000 {
            let object = world.object(&n.to_string());
            promised = call_later(&object, 0, Some(promised)).pipeline.get_cap();
        }
        assert_eq!(read(&promised).await.unwrap(), 0);
    });
}
