//! A call with a request id is applied at most once, and told its reply again.

mod class;
mod order;
mod outcomes;

use std::future::Future;
use std::ops::ControlFlow;
use std::pin::pin;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use capnp::ErrorKind;
use capnp::capability::{FromClientHook, RemotePromise};
use capstead_client::once;

pub(super) use class::Steps;
use class::let_go;

use super::shares::pass;
use super::storage::turn;
use super::trial::{
    RETENTION, World, call_note, call_write, log, over, read, run, run_within, settle, trial,
};
use crate::error::Result;
use crate::host::List;
use crate::host::base::watched_clock::WATCHED;
use crate::id::{ObjectId, Pool};
use crate::schema::facet_capnp::facet;
use crate::storage::Space;
use crate::storage::{Range, Reads};

const ID: &[u8] = b"a request id of 30 random byte";
const OTHER: &[u8] = b"another request id";

/// The object called "x" of the class [`Steps`].
fn steps(world: &World) -> trial::Client {
    world.object_of("Steps", "x")
}

fn restart(world: &World) -> World {
    world.restart_with_quotas(u64::MAX, None)
}

async fn written(call: RemotePromise<trial::write_results::Owned>) -> Result<u64> {
    Ok(call.promise.await?.get()?.get_n())
}

async fn noted(call: RemotePromise<trial::note_results::Owned>) -> Result<u64> {
    Ok(call.promise.await?.get()?.get_n())
}

fn is_ready<T>(future: &mut (impl Future<Output = T> + Unpin)) -> bool {
    matches!(pin!(future).poll(&mut TaskContext::from_waker(Waker::noop())), Poll::Ready(_))
}

/// The error's kind, and the name that its text begins with.
fn named<T>(outcome: Result<T>) -> (ErrorKind, String) {
    let error = outcome.err().expect("it is refused");
    // An error that crossed the wire is prefixed by the RPC system.
    let text = error.extra.trim_start_matches("remote exception: ");
    (error.kind, text.split(':').next().unwrap_or_default().to_owned())
}

fn fails(name: &str) -> (ErrorKind, String) {
    (ErrorKind::Failed, name.to_owned())
}

/// The durable records of an object's request ids: keys with the lengths of their records.
fn records(world: &World, class: &str) -> Vec<(Vec<u8>, usize)> {
    let (mut found, id) = (Vec::new(), ObjectId::named(Pool::default(), class, "x"));
    let mut visit = |key: &[u8], record: &[u8]| {
        found.push((key.to_vec(), record.len()));
        ControlFlow::Continue(())
    };
    world.disk.scan(id, Space::Requests, &Range::all(), &mut visit).unwrap();
    found
}

#[test]
fn a_repeated_call_is_applied_once_and_told_the_same() {
    for hops in 0..3 {
        run(async move {
            let world = World::new();
            let object = over(world.object("x"), hops);
            let before = log().len();
            assert_eq!(written(call_write(&once(&object, ID), 7)).await.unwrap(), 7);
            // The parameters of the first time count.
            assert_eq!(written(call_write(&once(&object, ID), 8)).await.unwrap(), 7);
            assert_eq!(written(call_write(&once(&object, OTHER), 9)).await.unwrap(), 9);
            assert_eq!(written(call_write(&once(&object, ID), 8)).await.unwrap(), 7);
            assert_eq!(log()[before..], [7, 9]);
            let again = restart(&world);
            let object = over(again.object("x"), hops);
            assert_eq!(written(call_write(&once(&object, ID), 8)).await.unwrap(), 7);
            assert_eq!((log()[before..].to_vec(), read(&object).await.unwrap()), (vec![7, 9], 9));
            assert_eq!(world.metrics.calls_repeated_total.get(), 2);
        });
    }
}

#[test]
fn an_id_is_for_one_method() {
    run(async {
        let world = World::new();
        let object = steps(&world);
        let first = call_write(&once(&object, ID), 1);
        settle().await;
        let other = noted(call_note(&once(&object, ID), 1)).await;
        assert_eq!(named(other), fails("request-id-reused"));
        let_go(2);
        written(first).await.unwrap();
        let other = noted(call_note(&once(&object, ID), 1)).await;
        assert_eq!(named(other), fails("request-id-reused"));
        assert_eq!(
            noted(call_note(&once(&world.object("x"), ID), 1)).await.unwrap(),
            1,
            "another object"
        );
        assert_eq!(log(), [11, 12, 13, 1]);
    });
}

#[test]
fn an_id_is_kept_to_the_millisecond_and_then_forgotten() {
    run(async {
        let world = World::new();
        let object = world.object("x");
        let retention = RETENTION.as_millis() as u64;
        world.now.set(1_000);
        written(call_write(&once(&object, ID), 1)).await.unwrap();
        world.now.set(1_000 + retention - 1);
        assert_eq!(written(call_write(&once(&object, ID), 2)).await.unwrap(), 1);
        world.now.set(1_000 + retention);
        assert_eq!(written(call_write(&once(&object, ID), 3)).await.unwrap(), 3);
        assert_eq!(written(call_write(&once(&object, ID), 4)).await.unwrap(), 3);
        assert_eq!(records(&world, "Trial").len(), 2, "one id with its place");
        // A clock that is put back forgets nothing.
        world.now.set(0);
        assert_eq!(written(call_write(&once(&object, ID), 5)).await.unwrap(), 3);
        assert_eq!(log(), [1, 3]);
    });
}

/// Each new id takes up to two old ones with it, across a restart too.
#[test]
fn old_ids_leave_as_new_ones_come() {
    run(async {
        let world = World::new();
        for n in 0..10 {
            world.now.set(n);
            written(call_write(&once(&world.object("x"), &[n as u8; 20]), n)).await.unwrap();
        }
        assert_eq!(records(&world, "Trial").len(), 20);
        let again = restart(&world);
        again.now.set(RETENTION.as_millis() as u64 + 6);
        for (n, left) in [(100_u64, 18), (101, 16), (102, 14), (103, 14), (104, 16)] {
            written(call_write(&once(&again.object("x"), &[n as u8; 20]), n)).await.unwrap();
            assert_eq!(records(&again, "Trial").len(), left, "after {n}");
        }
        let kept = once(&again.object("x"), &[7; 20]);
        assert_eq!(written(call_write(&kept, 0)).await.unwrap(), 7);
    });
}

/// An old place of an id that came again doesn't take the new record with it.
#[test]
fn an_id_that_came_again_is_kept_from_then_on() {
    run(async {
        let world = World::new();
        let object = world.object("x");
        for n in [1, 2, 3] {
            written(call_write(&once(&object, &[n; 16]), n.into())).await.unwrap();
        }
        world.now.set(RETENTION.as_millis() as u64);
        // Two go with it; and the next one takes the third one's first place.
        written(call_write(&once(&object, &[3; 16]), 33)).await.unwrap();
        written(call_write(&once(&object, &[4; 16]), 4)).await.unwrap();
        assert_eq!(records(&world, "Trial").len(), 4);
        assert_eq!(written(call_write(&once(&object, &[3; 16]), 333)).await.unwrap(), 33);
    });
}

/// However long it takes: the id of a call that runs is known, and so it is afterwards for those
/// who came in time.
#[test]
fn the_id_of_a_call_that_runs_is_never_forgotten() {
    run(async {
        let world = World::new();
        let object = steps(&world);
        let first = call_write(&once(&object, ID), 1);
        settle().await;
        world.now.set(2 * RETENTION.as_millis() as u64);
        for n in 0..3 {
            noted(call_note(&once(&object, &[n; 16]), 5)).await.unwrap();
        }
        let second = call_write(&once(&object, ID), 1);
        settle().await;
        let_go(2);
        assert_eq!((written(first).await.unwrap(), written(second).await.unwrap()), (1, 1));
        assert_eq!(log(), [11, 5, 5, 5, 12, 13]);
        // It is kept from its end on, and forgotten with the others that came before that.
        let third = call_write(&once(&object, ID), 1);
        assert_eq!(written(third).await.unwrap(), 1);
        noted(call_note(&once(&object, &[9; 16]), 5)).await.unwrap();
        assert_eq!(records(&world, "Steps").len(), 10);
        world.now.set(3 * RETENTION.as_millis() as u64);
        for n in 10..13 {
            noted(call_note(&once(&object, &[n; 16]), 5)).await.unwrap();
        }
        assert_eq!(records(&world, "Steps").len(), 6);
    });
}

#[test]
fn ids_of_other_lengths_are_refused_and_so_is_what_the_object_made() {
    for hops in 0..2 {
        run(async move {
            let world = World::new();
            let object = over(world.object("x"), hops);
            let before = log().len();
            for (length, is_good) in [(0, false), (15, false), (16, true), (64, true), (65, false)]
            {
                let called = noted(call_note(&once(&object, &vec![1; length]), 1)).await;
                if is_good {
                    assert_eq!(called.unwrap(), 1);
                } else {
                    assert_eq!(named(called), fails("request-id-length"));
                }
            }
            let child = object.child_request().send().pipeline.get_cap();
            let called = noted(call_note(&once(&child, ID), 1)).await;
            assert_eq!(named(called), fails("not-repeatable"));
            assert_eq!(log().len(), before + 2);
        });
    }
}

/// The later id counts; a capability that was made for one call gives others as well.
#[test]
fn an_id_can_be_replaced_by_another() {
    run(async {
        let world = World::new();
        let object = once(&once(&world.object("x"), ID), OTHER);
        noted(call_note(&object, 1)).await.unwrap();
        noted(call_note(&once(&world.object("x"), ID), 2)).await.unwrap();
        noted(call_note(&once(&world.object("x"), OTHER), 3)).await.unwrap();
        assert_eq!(log(), [1, 2]);
    });
}

#[test]
fn an_object_that_ended_answers_no_once() {
    run(async {
        let world = World::new();
        let object = world.object("x");
        let panicked = object.panic_request().send().promise;
        panicked.await.err().unwrap();
        let facet: facet::Client = FromClientHook::new(object.as_client_hook().add_ref());
        let mut request = facet.once_request();
        request.get().set_id(ID);
        let error = request.send().promise.await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Disconnected);
        let error = noted(call_note(&once(&object, ID), 1)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Disconnected);
    });
}

/// Neither does the class see the records, nor can it take them away, nor do they count as its own.
#[test]
fn the_class_neither_sees_nor_removes_ids() {
    run(async {
        let world = World::new();
        noted(call_note(&once(&world.object("x"), ID), 1)).await.unwrap();
        let instance = world.instance("x");
        turn(&instance, |storage| {
            assert_eq!((storage.count(), storage.size_bytes()), (0, 0));
            storage.put("a", "1").unwrap();
            storage.delete_all().unwrap();
            assert_eq!(storage.list(List::all()).unwrap().count(), 0);
        });
        world.vat.flush().await.unwrap();
        let again = restart(&world);
        noted(call_note(&once(&again.object("x"), ID), 1)).await.unwrap();
        assert_eq!(log(), [1]);
    });
}

/// Neither is a retry in that moment another call, nor do ids go for it that are good afterwards.
#[test]
fn a_clock_that_is_ahead_for_a_moment_destroys_no_ids() {
    // Hours pass within it.
    run_within(Duration::from_hours(9), async {
        let id = |n: u64| [n.to_be_bytes(), [7; 8]].concat();
        let call = |object: &trial::Client, n: u64| noted(call_note(&once(object, &id(n)), n));
        let world = World::watching(WATCHED);
        let (object, retention) = (world.object("x"), RETENTION.as_millis() as u64);
        for n in 0..5 {
            call(&object, n).await.unwrap();
        }
        let before = log().len();
        for watched in [false, true] {
            if watched {
                pass(WATCHED).await;
            }
            world.now.set(retention + 1);
            call(&object, 0).await.unwrap();
            call(&object, if watched { 6 } else { 5 }).await.unwrap();
            world.now.set(1);
            for n in 0..5 {
                call(&object, n).await.unwrap();
            }
        }
        assert_eq!(log().len(), before + 2, "nothing was forgotten");
        // It is right that so much time has passed.
        world.now.set(retention + 2);
        pass(Duration::from_mins(1)).await;
        call(&object, 0).await.unwrap();
        pass(WATCHED + Duration::from_secs(1)).await;
        call(&object, 0).await.unwrap();
        assert_eq!(log().len(), before + 3, "it was forgotten");
    });
}

/// A clock that was years ahead blocks nothing for years: what began then is forgotten a while
/// after that was noticed. One that is behind for a moment forgets nothing.
#[test]
fn a_clock_that_was_ahead_is_waited_for_once() {
    run(async {
        let id = |n: u64| [n.to_be_bytes(), [7; 8]].concat();
        let call = |object: &trial::Client, n: u64| noted(call_note(&once(object, &id(n)), n));
        let (retention, years) = (RETENTION.as_millis() as u64, 10 * 365 * 24 * 3_600_000);
        let now = 50 * retention;
        for restarts in [false, true] {
            let world = World::new();
            let object = world.object("x");
            world.now.set(years);
            for n in 0..5 {
                call(&object, n).await.unwrap();
            }
            world.now.set(now);
            call(&object, 5).await.unwrap();
            let world = if restarts { restart(&world) } else { world };
            let object = world.object("x");
            // It may as well be that the clock is behind now.
            world.now.set(years + retention / 2);
            let count = log().len();
            call(&object, 0).await.unwrap();
            world.now.set(now + retention - 1);
            call(&object, 1).await.unwrap();
            assert_eq!(log().len(), count, "they are kept as long as any other");
            world.now.set(now + retention);
            for n in 6..9 {
                call(&object, n).await.unwrap();
            }
            call(&object, 0).await.unwrap();
            assert_eq!(log().len(), count + 4, "it was forgotten, and is another call");
        }
    });
}
