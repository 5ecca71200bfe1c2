//! Outcomes of calls with request ids: replies, errors, panics, and calls that were cut short.

use capnp::ErrorKind;
use capstead_client::once;

use super::super::trial::{World, call_later, call_write, log, over, run, settle};
use super::class::{PANIC_IN, REPLY_BYTES, let_go};
use super::{ID, OTHER, fails, named, records, restart, steps, written};
use crate::id::{ObjectId, Pool};
use crate::limits::VALUE_BYTES_MAX;
use crate::storage::Space;

#[test]
fn what_was_cut_short_is_unknown_and_never_runs_again() {
    run(async {
        let world = World::new();
        let first = call_write(&once(&steps(&world), ID), 1).promise;
        world.vat.flush().await.unwrap();
        // As after a crash: what is durable is all there is.
        let again = restart(&world);
        for _ in 0..2 {
            let retried = written(call_write(&once(&steps(&again), ID), 1)).await;
            assert_eq!(named(retried), fails("unknown"));
        }
        assert_eq!(log(), [11]);
        drop(first);
    });
}

/// As it was before the first turn, or as it was before the last one.
#[test]
fn a_panic_takes_back_what_its_own_turn_recorded() {
    run(async {
        let world = World::new();
        PANIC_IN.set(1);
        let lost = written(call_write(&once(&steps(&world), ID), 1)).await;
        assert_eq!(lost.unwrap_err().kind, ErrorKind::Disconnected);
        assert!(records(&world, "Steps").is_empty(), "it did not happen");
        PANIC_IN.set(2);
        let lost = call_write(&once(&steps(&world), ID), 2);
        settle().await;
        let_go(1);
        let lost = written(lost).await;
        assert_eq!(lost.unwrap_err().kind, ErrorKind::Disconnected);
        PANIC_IN.set(0);
        for _ in 0..2 {
            let retried = written(call_write(&once(&steps(&world), ID), 3)).await;
            assert_eq!(named(retried), fails("unknown"));
        }
        assert_eq!(log(), [11, 21, 22]);
        let_go(2);
        assert_eq!(written(call_write(&once(&steps(&world), OTHER), 4)).await.unwrap(), 4);
    });
}

/// Those who wait for the handler's end are told with its first caller that there is none.
#[test]
fn a_panic_is_the_end_of_waiting() {
    run(async {
        let world = World::new();
        let object = steps(&world);
        let first = call_write(&once(&object, ID), 1);
        settle().await;
        let second = call_write(&once(&object, ID), 1);
        settle().await;
        PANIC_IN.set(2);
        let_go(1);
        for call in [first, second] {
            assert_eq!(written(call).await.unwrap_err().kind, ErrorKind::Disconnected);
        }
        world.vat.finish_calls().await;
    });
}

#[test]
fn an_error_is_a_reply_like_any_other() {
    for hops in 0..2 {
        run(async move {
            let world = World::new();
            let before = log().len();
            let object = over(steps(&world), hops);
            let first = once(&object, ID).stray_request().send().promise.await.err().unwrap();
            let again = over(steps(&restart(&world)), hops);
            let second = once(&again, ID).stray_request().send().promise.await.err().unwrap();
            assert_eq!((first.kind, &first.extra), (second.kind, &second.extra));
            assert_eq!(first.kind, ErrorKind::Overloaded);
            assert!(first.extra.ends_with("the object is tired"), "{first}");
            assert_eq!(log()[before..], [1]);
        });
    }
}

#[test]
fn a_reply_that_cannot_be_stored_is_an_error_each_time_and_what_was_written_stays() {
    run(async {
        let world = World::new();
        for _ in 0..2 {
            let child = once(&steps(&world), ID).child_request().send().promise.await;
            assert_eq!(named(child), fails("reply-not-storable"));
        }
        // A record's own bytes, room for grants, the table of two segments, the root, and where it
        // leads.
        let most = VALUE_BYTES_MAX.next_multiple_of(8) - 592;
        for (number, (bytes, fits)) in
            [(0, true), (most, true), (most + 1, false)].iter().enumerate()
        {
            REPLY_BYTES.set(*bytes as u32);
            for _ in 0..2 {
                let object = once(&steps(&world), &[number as u8; 16]);
                let reply = object.read_request().send().promise.await;
                if *fits {
                    reply.unwrap();
                } else {
                    assert_eq!(named(reply), fails("reply-not-storable"));
                }
            }
        }
        assert_eq!(log(), [1; 4]);
        let again = restart(&world);
        let written = ObjectId::named(Pool::default(), "Steps", "x");
        assert!(again.vat.turns.store().get(written, Space::Data, b"a").unwrap().is_some());
    });
}

/// A field of a reply that isn't filled in is nothing, and nothing is a reply too.
#[test]
fn an_empty_reply_is_stored_and_told_again() {
    run(async {
        let world = World::new();
        for _ in 0..2 {
            let later = call_later(&once(&world.object("x"), ID), 3, None).promise.await.unwrap();
            assert!(!later.get().unwrap().has_cap());
        }
        assert_eq!(log(), [1000]);
    });
}
