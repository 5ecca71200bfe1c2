//! Nothing leaves an object before the writes that it made before are durable.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{self, Poll, Waker};

use super::trial::{World, call_note, call_write, log, over, read, run, settle, trial};
use crate::host::Context;
use crate::host::engine::run::{InTurns, TurnCause};
use crate::limits::{COMMIT_GROUP_BYTES, COMMIT_QUEUE_BYTES};

fn is_ready<T>(future: &mut (impl Future<Output = T> + Unpin)) -> bool {
    matches!(pin!(future).poll(&mut task::Context::from_waker(Waker::noop())), Poll::Ready(_))
}

fn relay(object: &trial::Client, to: trial::Client, n: u64) {
    let mut request = object.relay_request();
    request.get().set_to(to);
    request.get().set_n(n);
    drop(request.send());
}

/// The canary: the sync is held back, so the reply must not be there; later calls run meanwhile.
#[test]
fn a_reply_waits_until_its_write_is_durable() {
    for hops in 0..2 {
        run(async move {
            let world = World::new();
            let object = over(world.object("x"), hops);
            let held = world.disk.hold();
            let before = log().len();
            let mut written = call_write(&object, 1).promise;
            let mut noted = call_note(&object, 2).promise;
            settle().await;
            assert_eq!(log()[before..], [1, 2], "both calls ran, {hops} hops");
            assert!(!is_ready(&mut written) && !is_ready(&mut noted), "no reply, {hops} hops");
            drop(held);
            written.await.unwrap();
            noted.await.unwrap();
        });
    }
}

/// Another object's write is no reason to wait, nor is an older write that is durable.
#[test]
fn with_no_write_pending_a_reply_leaves_at_once() {
    run(async {
        let world = World::new();
        let object = world.object("x");
        call_write(&object, 1).promise.await.unwrap();
        let _held = world.disk.hold();
        let mut other = call_write(&world.object("y"), 2).promise;
        settle().await;
        assert!(is_ready(&mut call_note(&object, 3).promise), "answered within the call");
        assert!(!is_ready(&mut other));
    });
}

/// Reads see the object's own writes before they are durable, and their replies wait with them.
#[test]
fn an_object_reads_its_own_write_before_it_is_durable() {
    run(async {
        let world = World::new();
        let object = world.object("x");
        let held = world.disk.hold();
        drop(call_write(&object, 7));
        let mut reading = Box::pin(read(&object));
        settle().await;
        assert!(!is_ready(&mut reading));
        drop(held);
        assert_eq!(reading.await.unwrap(), 7);
    });
}

/// The calls that an object makes wait like its replies, in the order made, pipelined calls
/// included.
#[test]
fn calls_out_wait_and_keep_their_order() {
    for hops in 0..3 {
        run(async move {
            let world = World::new();
            let (object, target) = (world.object("x"), over(world.object("y"), hops));
            let held = world.disk.hold();
            let before = log().len();
            for n in 0..20 {
                relay(&object, target.clone(), 10 * n);
            }
            settle().await;
            assert!(log()[before..].is_empty(), "all wait, {hops} hops");
            drop(held);
            let all = || log().len() == before + 60;
            while !all() {
                settle().await;
            }
            let seen = &log()[before..];
            let direct: Vec<_> = seen.iter().filter(|n| *n % 10 != 1).collect();
            assert!(direct.is_sorted(), "{hops} hops: {direct:?}");
        });
    }
}

/// A handler that writes without end waits for the disk, as new calls do.
#[test]
fn a_handler_that_writes_without_end_fills_no_memory_and_holds_up_nobody() {
    const PUTS: usize = 200;
    run(async {
        let world = World::new();
        call_write(&world.object("y"), 1).promise.await.unwrap();
        let instance = world.instance("x");
        let (count, writing) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(true)));
        let held = world.disk.hold();
        let (counted, ended) = (count.clone(), writing.clone());
        tokio::task::spawn_local(async move {
            let work = async {
                let storage = Context::new(instance.clone()).storage();
                for n in 0..PUTS {
                    storage.put(n.to_be_bytes(), vec![7; 1 << 20]).unwrap();
                    counted.set(n + 1);
                    tokio::task::yield_now().await;
                }
            };
            let cause = TurnCause::default();
            let future = Box::pin(work);
            let turns = InTurns { instance: &instance, cause, future };
            assert!(turns.await.is_ok());
            ended.set(false);
        });
        settle().await;
        let most = 2 * COMMIT_QUEUE_BYTES + COMMIT_GROUP_BYTES;
        // New calls stop earlier, so that those that began end before others begin.
        let least = COMMIT_QUEUE_BYTES + COMMIT_GROUP_BYTES;
        assert!((least >> 20 < count.get()) && count.get() <= most >> 20, "{} MiB", count.get());
        let mut later = call_write(&world.object("y"), 2).promise;
        settle().await;
        assert!(!is_ready(&mut later));
        drop(held);
        later.await.unwrap();
        while writing.get() {
            tokio::task::yield_now().await;
        }
        assert_eq!(count.get(), PUTS);
    });
}

/// When the disk fails, what waits for it never leaves.
#[test]
fn after_a_failed_commit_nothing_leaves() {
    run(async {
        let world = World::new();
        let object = world.object("x");
        call_write(&object, 1).promise.await.unwrap();
        world.disk.fail_next(crate::storage::testing::model::Fault::Failed);
        let mut lost = call_write(&object, 2).promise;
        world.vat.failure().await;
        settle().await;
        assert!(!is_ready(&mut lost));
        let refused = call_write(&world.object("y"), 3).promise.await.err().unwrap();
        assert_eq!(refused.kind, capnp::ErrorKind::Disconnected, "{refused}");
    });
}
