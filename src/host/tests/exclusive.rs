//! Objects that run one call at a time, and calls that would wait for themselves.

use std::time::Duration;

use super::trial::{Trial, World, call_later, call_note, call_pass, log, over, run, settle};

fn assert_deadlock(outcome: capnp::Result<()>) {
    let error = outcome.unwrap_err();
    assert_eq!(error.kind, capnp::ErrorKind::Failed, "{error}");
    assert!(error.extra.contains("deadlock: "), "{error}");
}

/// By default calls interleave where they await; of an exclusive object one runs at a time.
#[test]
fn an_exclusive_object_runs_one_call_at_a_time_in_order() {
    for hops in 0..3 {
        run(async move {
            let world = World::new();
            let objects = [world.object("x"), world.exclusive("x")];
            let expected = [[1, 2, 1000], [1000, 1, 2]];
            for (object, expected) in objects.into_iter().zip(expected) {
                let (object, before) = (over(object, hops), log().len());
                let later = call_later(&object, 20, None).promise;
                let (one, two) = (call_note(&object, 1), call_note(&object, 2));
                two.promise.await.unwrap();
                one.promise.await.unwrap();
                later.await.unwrap();
                assert_eq!(log()[before..], expected, "{hops} hops");
            }
        });
    }
}

/// A calls B, which calls A: by default all goes well; if A is exclusive, B's call is refused.
#[test]
fn a_call_that_waits_for_itself_is_refused_and_by_default_goes_on() {
    run(async {
        let world = World::new();
        let (a, b) = (world.object("a"), world.object("b"));
        call_pass(&a, &[b.clone(), a.clone()], &[]).await.unwrap();
        assert_eq!(log(), [2000, 2001, 2000, 2001, 2000]);

        let a = world.exclusive("a");
        for through in [b, world.exclusive("b")] {
            assert_deadlock(call_pass(&a, &[through.clone(), a.clone()], &[]).await);
            assert_deadlock(call_pass(&a, std::slice::from_ref(&a), &[]).await);
            call_pass(&a, &[through.clone(), through.clone()], &[]).await.err();
            call_pass(&a, &[through], &[]).await.expect("both are free again");
        }
    });
}

/// B lives in another vat. The chain comes back from there, and others of its calls go on.
#[test]
fn a_call_that_comes_back_from_another_host_is_refused() {
    for hops in 1..3 {
        run(async move {
            let (here, there) = (World::new(), World::new());
            let a = here.exclusive("a");
            for b in [there.object("b"), there.exclusive("b")] {
                let b = over(b, hops);
                for _ in 0..3 {
                    assert_deadlock(call_pass(&a, &[b.clone(), a.clone()], &[]).await);
                    call_pass(&a, &[b.clone(), here.object("c")], &[]).await.unwrap();
                    call_pass(&a, std::slice::from_ref(&b), std::slice::from_ref(&b))
                        .await
                        .unwrap();
                    // Its destination isn't known when it is called.
                    let giver = here.object("giver");
                    let promised = call_later(&giver, 9, Some(b.clone())).pipeline.get_cap();
                    assert_deadlock(call_pass(&a, &[promised, a.clone()], &[]).await);
                }
            }
        });
    }
}

/// A capability that isn't an object of a server knows nothing of chains, and is called all the
/// same, in order.
#[test]
fn a_callback_is_called_from_an_exclusive_object_in_order() {
    for hops in 0..3 {
        run(async move {
            let world = World::new();
            let object = world.exclusive("x");
            let callback = capnp_rpc::new_client(Trial::new(world.context("callback")));
            let callback = over(callback, hops);
            let before = log().len();
            for n in 0..5 {
                let mut relay = object.relay_request();
                relay.get().set_to(callback.clone());
                relay.get().set_n(10 * n);
                relay.send().promise.await.unwrap();
            }
            while log().len() < before + 15 {
                settle().await;
            }
            let direct: Vec<_> = log()[before..].iter().copied().filter(|n| n % 10 != 1).collect();
            assert_eq!(direct, [0, 2, 10, 12, 20, 22, 30, 32, 40, 42], "{hops} hops");
        });
    }
}

/// A calls B while B calls A: the second of these calls is refused, and the first goes on.
#[test]
fn two_exclusive_objects_that_call_each_other_do_not_wait_for_ever() {
    run(async {
        let world = World::new();
        let [a, b, c] = ["a", "b", "c"].map(|name| world.exclusive(name));
        let one = call_pass(&a, std::slice::from_ref(&b), &[]);
        let two = call_pass(&b, std::slice::from_ref(&a), &[]);
        let (one, two) = futures::join!(one, two);
        assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
        assert_deadlock(one.and(two));

        // Three in a ring, through objects that aren't exclusive.
        let plain = world.object("x");
        let ring = [(&a, &b), (&b, &c), (&c, &a)];
        let calls = ring.map(|(from, to)| call_pass(from, &[plain.clone(), to.clone()], &[]));
        let ended = futures::future::join_all(calls).await;
        let refused: Vec<_> = ended.into_iter().filter_map(Result::err).collect();
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_deadlock(Err(refused[0].clone()));
    });
}

/// A caller that waits for a call that will end isn't in a deadlock, though both come of one call.
#[test]
fn calls_that_only_have_an_origin_in_common_wait_for_each_other() {
    run(async {
        let world = World::new();
        let [a, b, c] = ["a", "b", "c"].map(|name| world.exclusive(name));
        call_pass(&a, std::slice::from_ref(&b), &[c.clone(), b.clone()]).await.unwrap();
        call_pass(&a, &[c.clone(), b.clone()], &[b.clone(), c.clone()]).await.err();
        call_pass(&a, &[b], &[c]).await.expect("all are free again");
    });
}

/// A call that has nothing to do with the one that runs waits for it, also after turns of its
/// chain.
#[test]
fn a_call_of_somebody_else_waits_and_leaves_nothing_behind() {
    run(async {
        let world = World::new();
        let (a, x) = (world.exclusive("a"), world.object("x"));
        for _ in 0..3 {
            let runs = call_later(&a, 30, None).promise;
            let waits: Vec<_> =
                (0..3).map(|_| call_pass(&x, std::slice::from_ref(&a), &[])).collect();
            futures::future::try_join_all(waits).await.unwrap();
            runs.await.unwrap();
        }
        let b = world.exclusive("b");
        let ring = [
            call_pass(&a, std::slice::from_ref(&b), &[]),
            call_pass(&b, std::slice::from_ref(&a), &[]),
        ];
        futures::future::join_all(ring).await;
        assert!(world.vat.objects.waits().is_empty());
    });
}

/// A deadlock that can't be seen ends too: the call didn't start, and the object goes on.
#[test]
fn a_call_waits_no_longer_than_its_patience() {
    run(async {
        let world = World::new();
        world.vat.objects.waits().set_patience(Duration::from_millis(30));
        let object = world.exclusive("x");
        let (answer, never) = futures::channel::oneshot::channel::<super::trial::trial::Client>();
        let mut ask = object.ask_request();
        let never = async { never.await.map_err(|_| crate::error::failed("it was let go")) };
        ask.get().set_of(capnp_rpc::new_future_client(never));
        let asked = ask.send().promise;
        let waiting: Vec<_> = (0..3).map(|n| call_note(&object, n).promise).collect();
        for refused in futures::future::join_all(waiting).await {
            let error = refused.err().unwrap();
            assert_eq!(error.kind, capnp::ErrorKind::Overloaded, "{error}");
            assert!(error.extra.contains("did not happen"), "{error}");
        }
        drop(answer);
        asked.await.err().unwrap();
        call_note(&object, 7).promise.await.unwrap();
        assert_eq!(log(), [7]);
    });
}

/// A second offer is an error of the handler for every caller, and the object goes on.
#[test]
fn a_capability_can_be_offered_once_ahead_of_the_answer() {
    for hops in 0..3 {
        run(async move {
            let world = World::new();
            let object = over(world.exclusive("x"), hops);
            for times in [1, 2, 0, 3] {
                let mut offer = object.offer_request();
                offer.get().set_times(times);
                let outcome = offer.send().promise.await;
                if times < 2 {
                    outcome.unwrap();
                } else {
                    let error = outcome.err().unwrap();
                    assert!(error.extra.contains("called twice"), "{hops} hops: {error}");
                }
                call_note(&object, 7).promise.await.unwrap();
            }
        });
    }
}

/// Those who wait are told when the instance ends, and none of them starts.
#[test]
fn the_end_of_an_exclusive_instance_is_the_end_of_those_who_wait() {
    run(async {
        let world = World::new();
        let object = world.exclusive("x");
        let later = call_later(&object, 3, None).promise;
        let abort = object.abort_request().send().promise;
        let waiting: Vec<_> = (0..3).map(|n| call_note(&object, n).promise).collect();
        let chained = call_pass(&world.exclusive("y"), std::slice::from_ref(&object), &[]);
        later.await.unwrap();
        abort.await.err().unwrap();
        chained.await.unwrap_err();
        assert!(world.vat.objects.waits().is_empty());
        for ended in futures::future::join_all(waiting).await {
            let error = ended.err().unwrap();
            assert_eq!(error.kind, capnp::ErrorKind::Disconnected, "{error}");
        }
        settle().await;
        assert_eq!(log(), [2000, 1000]);
        call_note(&world.exclusive("x"), 8).promise.await.unwrap();
    });
}
