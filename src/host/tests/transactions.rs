//! Transactions that are undone, writes that are durable, and what the gate makes of both.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll, Waker};

use super::storage::{keys, text, turn};
use super::trial::{World, run, settle};
use crate::error::{Result, failed};
use crate::host::engine::run as turns;
use crate::host::{Context, List};
use turns::TurnCause;

#[test]
fn a_transaction_undoes_exactly_its_writes() {
    run(async {
        let instance = World::new().instance("x");
        turn(&instance, |storage| {
            storage.put("a", "1").unwrap();
            let kept: Result<()> = storage.transaction(|| {
                storage.put("b", "1").unwrap();
                let inner: Result<()> = storage.transaction(|| {
                    storage.delete_all().unwrap();
                    storage.put("c", "1").unwrap();
                    assert_eq!(keys(storage, List::all()), "c");
                    Err(failed("inner"))
                });
                assert_eq!(text(inner), "inner");
                assert_eq!(keys(storage, List::all()), "a b");
                storage.put("d", "1")
            });
            kept.unwrap();
            assert_eq!(keys(storage, List::all()), "a b d");
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                storage.transaction(|| -> Result<()> {
                    storage.put("e", "1").unwrap();
                    panic!("a test panics")
                })
            }));
            assert!(panicked.is_err());
        });
        turn(&instance, |storage| assert_eq!(keys(storage, List::all()), "a b d"));
    });
}

/// The first write brings an object into existence; undone, it doesn't.
#[test]
fn an_undone_first_write_leaves_no_object_behind() {
    run(async {
        let world = World::new();
        let instance = world.instance("x");
        let undone: Result<()> = turn(&instance, |storage| {
            storage.transaction(|| {
                storage.put("a", "1").unwrap();
                Err(failed("no"))
            })
        });
        undone.unwrap_err();
        assert!(!world.vat.exists(instance.spec.id).unwrap());
        turn(&instance, |storage| storage.put("a", "2").unwrap());
        assert!(world.vat.exists(instance.spec.id).unwrap());
    });
}

/// Messages of an undone transaction leave with what was written before it; waiting for a sync
/// ends.
#[test]
fn nothing_waits_for_writes_that_were_undone() {
    run(async {
        let world = World::new();
        let instance = world.instance("x");
        let _held = world.disk.hold();
        let sent = Rc::new(Cell::new(false));
        let told = sent.clone();
        let synced = turn(&instance, |storage| {
            let undone: Result<()> = storage.transaction(|| {
                storage.put("a", "1").unwrap();
                instance.gate.call(move || told.set(true));
                assert!(!sent.get(), "it waits for the write until that is undone");
                Err(failed("no"))
            });
            undone.unwrap_err();
            storage.sync()
        });
        assert!(sent.get());
        synced.await.unwrap();
    });
}

/// A later message of the same turn doesn't hide an undone one, nor does a panic after both.
#[test]
fn messages_around_an_undone_transaction_leave_in_order() {
    run(async {
        let instance = World::new().instance("x");
        let sent = Rc::new(RefCell::new(Vec::new()));
        let send = |n: u32| {
            let sent = sent.clone();
            instance.gate.call(move || sent.borrow_mut().push(n));
        };
        turn(&instance, |storage| {
            let undone: Result<()> = storage.transaction(|| {
                storage.put("a", "1").unwrap();
                send(1);
                Err(failed("no"))
            });
            undone.unwrap_err();
            send(2);
        });
        assert_eq!(*sent.borrow(), [1, 2]);
        let storage = Context::new(instance.clone()).storage();
        let panicked = turns::turn(&instance, &TurnCause::default(), || {
            let undone: Result<()> = storage.transaction(|| {
                storage.put("a", "1").unwrap();
                Err(failed("no"))
            });
            undone.unwrap_err();
            storage.put("b", "1").unwrap();
            send(3);
            panic!("a test panics");
        });
        assert!(panicked.is_err());
        send(4);
        assert_eq!(*sent.borrow(), [1, 2, 4]);
    });
}

#[test]
fn a_sync_begun_in_an_undone_transaction_ends() {
    run(async {
        let instance = World::new().instance("x");
        let mut synced = None;
        turn(&instance, |storage| {
            let undone: Result<()> = storage.transaction(|| {
                storage.put("a", "1").unwrap();
                synced = Some(storage.sync());
                Err(failed("no"))
            });
            undone.unwrap_err();
        });
        synced.unwrap().await.unwrap();
    });
}

/// The next instance reads what the last one wrote before that is durable: what it says waits too.
#[test]
fn what_a_next_instance_says_waits_for_what_the_last_one_wrote() {
    run(async {
        let world = World::new();
        let held = world.disk.hold();
        turn(&world.instance("x"), |storage| storage.put("a", "1").unwrap());
        settle().await;
        let again = world.instance("x");
        let sent = Rc::new(Cell::new(false));
        let told = sent.clone();
        let mut synced = Box::pin(turn(&again, |storage| {
            assert!(storage.get("a").unwrap().is_some());
            again.gate.call(move || told.set(true));
            storage.sync()
        }));
        settle().await;
        assert!(!sent.get() && poll(&mut synced) == Poll::Pending);
        drop(held);
        synced.await.unwrap();
        settle().await;
        assert!(sent.get());
    });
}

#[test]
fn a_sync_ends_when_all_earlier_writes_are_durable() {
    run(async {
        let world = World::new();
        let instance = world.instance("x");
        let held = world.disk.hold();
        let synced = turn(&instance, |storage| {
            storage.put_unconfirmed("a", "1").unwrap();
            storage.sync()
        });
        let mut synced = Box::pin(synced);
        settle().await;
        assert_eq!(poll(&mut synced), Poll::Pending);
        drop(held);
        synced.await.unwrap();
        assert!(world.vat.turns.store().durable() > crate::storage::Ticket(0));
    });
}

fn poll(sync: &mut (impl Future<Output = Result<()>> + Unpin)) -> Poll<()> {
    let mut cx = TaskContext::from_waker(Waker::noop());
    std::pin::Pin::new(sync).poll(&mut cx).map(|synced| synced.unwrap())
}

/// An unconfirmed write holds nothing back; a confirmed one after it holds back as ever.
#[test]
fn an_unconfirmed_write_does_not_hold_the_gate() {
    run(async {
        let world = World::new();
        let instance = world.instance("x");
        let _held = world.disk.hold();
        let sent = Rc::new(Cell::new(0));
        let send = |sent: &Rc<Cell<u32>>| {
            let sent = sent.clone();
            instance.gate.call(move || sent.set(sent.get() + 1));
        };
        turn(&instance, |storage| {
            storage.put_unconfirmed("a", "1").unwrap();
            send(&sent);
            assert_eq!(sent.get(), 1);
            storage.put("b", "1").unwrap();
            send(&sent);
            assert_eq!(sent.get(), 1);
            assert_eq!(storage.get("a").unwrap().unwrap(), b"1");
        });
    });
}
