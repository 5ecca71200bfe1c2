//! Objects that never wake, or whose `wake` waits for a call that waits for it.

use std::time::Duration;

use capnp::ErrorKind;

use super::trial::{
    Trial, Wake, World, call_note, from_now_on_wake, log, over, run, settle, trial, wake_calls,
};

const PATIENCE: Duration = Duration::from_millis(100);

/// The first step of the way back to the object that wakes.
#[derive(Clone, Copy, Debug)]
enum Way {
    Itself,
    Object,
    Exclusive,
    Host,
    Callback,
}

async fn told(calls: Vec<impl Future<Output = capnp::Result<()>>>) -> Vec<capnp::Error> {
    let ended = futures::future::join_all(calls).await;
    ended.into_iter().map(|ended| ended.expect_err("the object did not wake")).collect()
}

fn three_calls(of: &trial::Client) -> Vec<impl Future<Output = capnp::Result<()>> + use<>> {
    let notes: Vec<_> = (0..3).map(|n| call_note(of, n).promise).collect();
    notes.into_iter().map(|note| async { note.await.map(drop) }).collect()
}

#[test]
fn a_wake_that_waits_for_itself_ends_and_the_object_wakes_again() {
    for is_exclusive in [false, true] {
        for way in [Way::Itself, Way::Object, Way::Exclusive, Way::Host, Way::Callback] {
            run(async move {
                let (world, there) = (World::new(), World::new());
                world.vat.objects.waits().set_wake_patience(PATIENCE);
                let a = if is_exclusive { world.exclusive("a") } else { world.object("a") };
                let via = match way {
                    Way::Itself => vec![],
                    Way::Object => vec![world.object("b")],
                    Way::Exclusive => vec![world.exclusive("b")],
                    Way::Host => vec![over(there.object("b"), 1)],
                    Way::Callback => {
                        let callback = Trial::new(world.context("callback"));
                        vec![over(capnp_rpc::new_client(callback), 1)]
                    }
                };
                for first in &via {
                    call_note(first, 1).promise.await.unwrap();
                }
                wake_calls(via.into_iter().chain([a.clone()]).collect());
                from_now_on_wake(Wake::Calls);
                for error in told(three_calls(&a)).await {
                    let is_told = match way {
                        Way::Callback => {
                            error.kind == ErrorKind::Overloaded
                                && error.extra.contains("did not happen")
                        }
                        _ => error.extra.contains("deadlock: "),
                    };
                    assert!(is_told, "{way:?}, exclusive: {is_exclusive}: {error}");
                }
                from_now_on_wake(Wake::Well);
                call_note(&a, 7).promise.await.unwrap();
                assert!(world.vat.objects.waits().is_empty() && !log().contains(&3000), "{way:?}");
            });
        }
    }
}

/// Two that wake call each other: the second of these calls is refused, and the first object wakes.
#[test]
fn two_that_wake_do_not_wait_for_each_other() {
    run(async {
        let world = World::new();
        let (a, b) = (world.object("a"), world.object("b"));
        let x = world.exclusive("x");
        wake_calls(vec![b.clone(), x.clone(), a.clone()]);
        from_now_on_wake(Wake::Calls);
        // That of `a` calls `b`, which passes on to `x`, which calls `a`.
        let error = told(three_calls(&a)).await.swap_remove(0);
        assert!(error.extra.contains("deadlock: "), "{error}");
        call_note(&a, 7).promise.await.unwrap();
        assert!(world.vat.objects.waits().is_empty());
    });
}

#[test]
fn a_wake_that_never_ends_is_given_up() {
    for is_exclusive in [false, true] {
        run(async move {
            let world = World::new();
            world.vat.objects.waits().set_wake_patience(PATIENCE);
            let a = if is_exclusive { world.exclusive("a") } else { world.object("a") };
            from_now_on_wake(Wake::NeverEnds);
            for error in told(three_calls(&a)).await {
                assert_eq!(error.kind, ErrorKind::Overloaded, "{error}");
                assert!(error.extra.contains("did not happen"), "{error}");
            }
            assert_eq!(world.metrics.waits_given_up_total.get(), 1);
            from_now_on_wake(Wake::Well);
            call_note(&a, 7).promise.await.unwrap();
            assert!(log().iter().all(|n| *n == 7), "no call began");
        });
    }
}

/// The server doesn't wait for a `wake` longer than for any other call.
#[test]
fn a_server_that_ends_ends_what_wakes() {
    run(async {
        let world = World::new();
        let a = world.object("a");
        from_now_on_wake(Wake::NeverEnds);
        let calls = three_calls(&a);
        settle().await;
        let finished = tokio::time::timeout(PATIENCE, world.vat.finish_calls()).await;
        assert!(finished.is_err(), "calls are under way");
        world.vat.close().unwrap();
        told(calls).await;
    });
}
