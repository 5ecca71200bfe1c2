//! Objects that nobody needs fall asleep and lose nothing; those that somebody needs stay awake.

use std::time::Duration;

use capnp::Error;

use super::trial::{
    IN_TRANSACTION, Wake, World, call_later, call_note, call_write, ended, from_now_on_wake, log,
    made_by, over, read, run, settle, trial, wake_takes,
};
use crate::error::failed;

const WARM: Duration = Duration::from_millis(20);

/// Waits until all objects sleep.
async fn all_sleep(world: &World) {
    while world.metrics.objects_awake.get() > 0 {
        tokio::time::sleep(WARM / 4).await;
    }
}

/// Many times the warm time passes.
async fn rest() {
    tokio::time::sleep(WARM * 5).await;
}

fn linger(object: &trial::Client, n: u64) {
    let mut request = object.linger_request();
    request.get().set_n(n);
    drop(request.send());
}

fn assert_ended(outcome: Result<impl Sized, Error>, how: &str) {
    let error = outcome.err().unwrap();
    assert_eq!(error.kind, capnp::ErrorKind::Disconnected, "{error}");
    assert!(error.extra.contains(how), "{error}");
}

/// The stub that was there before reaches the next instance, which reads what was stored.
#[test]
fn an_object_without_calls_sleeps_and_its_facets_wake_it_again() {
    for hops in 0..3 {
        run(async move {
            let world = World::new();
            world.vat.rest_after(WARM);
            let (object, before) = (over(world.object("x"), hops), ended());
            for round in 1..4 {
                call_write(&object, round).promise.await.unwrap();
                all_sleep(&world).await;
                assert_eq!(ended() - before, round, "{hops} hops");
                let (one, two) = (call_note(&object, 1), call_note(&object, 2));
                two.promise.await.unwrap();
                one.promise.await.unwrap();
                assert!(log().ends_with(&[1, 2]));
                assert_eq!(read(&object).await.unwrap(), round);
                assert_eq!(world.metrics.wakes_total.get(), round + 1, "it stayed awake since");
            }
            drop(object);
        });
    }
}

/// An object that sleeps and is held by nobody takes no memory.
#[test]
fn a_sleeping_object_that_nobody_holds_leaves_its_place() {
    run(async {
        let world = World::new();
        world.vat.rest_after(WARM);
        for n in 0..1_000 {
            call_note(&world.object(&n.to_string()), n).promise.await.unwrap();
        }
        let held = world.object("held");
        call_note(&held, 1).promise.await.unwrap();
        all_sleep(&world).await;
        assert_eq!(world.vat.objects.count(), 1);
        drop(held);
        assert_eq!(world.vat.objects.count(), 0);
    });
}

/// Calls come seldom, but never later than the warm time after the last one.
#[test]
fn an_object_stays_awake_for_its_warm_time_after_each_call() {
    run(async {
        let world = World::new();
        world.vat.rest_after(WARM * 10);
        let object = world.object("x");
        for n in 0..20 {
            call_note(&object, n).promise.await.unwrap();
            tokio::time::sleep(WARM).await;
        }
        assert_eq!(world.metrics.wakes_total.get(), 1);
    });
}

/// A call under way, a capability that the object made, a task of it, a write on its way to the
/// disk.
#[test]
fn an_object_that_somebody_needs_stays_awake() {
    run(async {
        let world = World::new();
        world.vat.rest_after(WARM);
        let object = world.object("x");
        let mut called = object.ask_request();
        let (answer, never) = futures::channel::oneshot::channel::<trial::Client>();
        let never = async { never.await.map_err(|_| failed("it was let go")) };
        called.get().set_of(capnp_rpc::new_future_client(never));
        let called = called.send().promise;
        rest().await;
        assert_eq!(world.metrics.objects_awake.get(), 1, "a call runs");
        drop(answer);
        called.await.err().unwrap();

        let child = object.child_request().send().pipeline.get_cap();
        call_note(&child, 4).promise.await.unwrap();
        rest().await;
        assert_eq!(world.metrics.objects_awake.get(), 1, "a capability that it made is held");
        call_note(&child, 5).promise.await.unwrap();
        drop(child);
        all_sleep(&world).await;

        let held = world.disk.hold();
        let written = call_write(&object, 5);
        rest().await;
        assert_eq!(world.metrics.objects_awake.get(), 1, "a reply waits in the gate");
        drop(held);
        written.promise.await.unwrap();
        linger(&object, u64::MAX);
        rest().await;
        assert_eq!(world.metrics.objects_awake.get(), 1, "a task holds it");
    });
}

/// All that was awake before the end, capabilities that the object made too, breaks and says why.
#[test]
fn abort_ends_the_instance_and_drops_its_unfinished_turn() {
    for hops in 0..3 {
        run(async move {
            let world = World::new();
            let object = over(world.object("x"), hops);
            let child = object.child_request().send().promise.await.unwrap();
            let child = child.get().unwrap().get_cap().unwrap();
            let held = world.disk.hold();
            let written = call_write(&object, 1).promise;
            let waiting = call_later(&object, u64::MAX, None).promise;
            let mut abort = object.abort_request();
            abort.get().set_n(2);
            let aborted = abort.send().promise;
            settle().await;
            drop(held);
            written.await.expect("it was submitted before");
            assert_ended(aborted.await, "was aborted: as asked");
            assert_ended(waiting.await, "was aborted: as asked");
            assert_ended(call_note(&object, 3).promise.await, "was aborted: as asked");
            assert_ended(call_note(&child, 3).promise.await, "was aborted: as asked");
            let fresh = over(world.object("x"), hops);
            assert_eq!(read(&fresh).await.unwrap(), 1, "{hops} hops");
            let silent = fresh.abort_request().send().promise;
            assert_ended(silent.await, "was aborted: as asked");
        });
    }
}

/// The caller is told why, held capabilities or not, and a shutdown doesn't wait for it. The turn
/// took with it the transaction's word of waiting.
#[test]
fn an_abort_in_a_transaction_answers_its_caller() {
    for is_held in [false, true] {
        run(async move {
            let world = World::new();
            let object = world.object("x");
            let child = object.child_request().send().promise.await.unwrap();
            let child = child.get().unwrap().get_cap().unwrap();
            let held = is_held.then_some(child);
            settle().await;
            let mut abort = object.abort_request();
            abort.get().set_n(IN_TRANSACTION);
            let aborted = abort.send().promise;
            world.vat.finish_calls().await;
            assert_ended(aborted.await, "was aborted: in a transaction");
            assert_ended(read(&object).await, "was aborted: in a transaction");
            assert_eq!(held.is_some(), is_held);
        });
    }
}

/// An error of `wake` is for those who wait, and the next call tries again; an abort breaks them.
#[test]
fn an_object_that_cannot_wake_leaves_nothing_behind() {
    run(async {
        let world = World::new();
        world.vat.rest_after(WARM);
        from_now_on_wake(Wake::Fails);
        for polls in [1, 5] {
            wake_takes(polls);
            let [x, y, z] = ["x", "y", "z"].map(|name| format!("{name}{polls}"));
            let object = world.object(&x);
            let failed = call_note(&object, 1).promise.await.err().unwrap();
            assert!(failed.extra.contains("can't wake"), "{failed}");
            from_now_on_wake(Wake::Well);
            call_note(&object, 2).promise.await.unwrap();
            drop(object);
            from_now_on_wake(Wake::Aborts);
            let other = world.object(&y);
            assert_ended(call_note(&other, 1).promise.await, "was aborted: it can't wake");
            from_now_on_wake(Wake::Well);
            assert_ended(call_note(&other, 2).promise.await, "was aborted: it can't wake");
            from_now_on_wake(Wake::AbortsInTransaction);
            let again = world.object(&y);
            assert_ended(call_note(&again, 2).promise.await, "aborted: in a transaction");
            from_now_on_wake(Wake::Well);
            assert_ended(call_note(&other, 2).promise.await, "was aborted: it can't wake");
            assert_ended(call_note(&again, 2).promise.await, "aborted: in a transaction");
            drop(again);
            call_note(&world.object(&y), 3).promise.await.unwrap();
            drop(other);
            from_now_on_wake(Wake::Fails);
            // It waits in the queue when it is all that holds the object.
            world.vat.busy(|| drop(call_note(&world.object(&z), 1)));
            settle().await;
        }
        all_sleep(&world).await;
        assert_eq!(world.vat.objects.count(), 0);
    });
}

/// A capability that an instance gave away in a `wake` that failed never reaches the next instance.
#[test]
fn a_capability_made_in_a_failed_wake_is_broken() {
    run(async {
        let world = World::new();
        let instance = world.instance("x");
        let made = made_by(&instance);
        drop(instance.end("could not wake"));
        assert_ended(call_note(&made, 2).promise.await, "could not wake");
    });
}
