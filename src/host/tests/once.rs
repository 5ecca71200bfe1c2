//! A call with a request id is applied at most once, and told its reply again.

use std::cell::Cell;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use capnp::capability::{FromClientHook, RemotePromise};
use capnp::traits::HasTypeId;
use capnp::{ErrorKind, data};
use capstead_client::once;
use tokio::sync::Semaphore;

use super::storage::turn;
use super::trial::{
    RETENTION, World, call_later, call_note, call_write, log, note, over, read, run, run_within,
    settle, trial,
};
use crate::error::{Result, failed, overloaded};
use crate::host::{Context, List, Object};
use crate::id::{ObjectId, Pool};
use crate::limits::{REQUEST_IDS_MAX, VALUE_BYTES_MAX};
use crate::membrane::{Body, Results};
use crate::schema::facet_capnp::facet;
use crate::storage::Space;
use crate::storage::log::{Range, Reads};

const ID: &[u8] = b"a request id of 30 random byte";
const OTHER: &[u8] = b"another request id";

thread_local! {
    /// How many steps the handlers of this test's thread may still take.
    static PERMITS: Rc<Semaphore> = Rc::new(Semaphore::new(0));
    /// In which of its turns `write` panics; 0 in none.
    static PANIC_IN: Cell<u64> = const { Cell::new(0) };
    static REPLY_BYTES: Cell<u32> = const { Cell::new(0) };
}

/// Lets handlers that wait take so many steps, all together.
fn let_go(steps: usize) {
    PERMITS.with(|permits| permits.add_permits(steps));
}

/// A class whose calls take several turns, or end in another way than with a plain reply.
pub(super) struct Steps(Context);

impl Object for Steps {
    const CLASS: &'static str = "Steps";
    type Client = trial::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self(ctx))
    }
}

impl Steps {
    /// Notes `n`, and writes it under `key`.
    fn step(&self, n: u64, key: &str) -> Result<()> {
        note(n);
        self.0.storage().put(key, n.to_be_bytes())?;
        assert_ne!(PANIC_IN.get(), n % 10, "as asked");
        Ok(())
    }
}

async fn may_go_on() -> Result<()> {
    let permits = PERMITS.with(Rc::clone);
    permits.acquire().await.map_err(|error| failed(error.to_string()))?.forget();
    Ok(())
}

impl trial::Server for Steps {
    /// Three turns, each with a write. It takes steps to go on.
    async fn write(
        self: Rc<Self>,
        params: trial::WriteParams,
        mut results: trial::WriteResults,
    ) -> Result<()> {
        let n = params.get()?.get_n();
        self.step(10 * n + 1, "a")?;
        may_go_on().await?;
        self.step(10 * n + 2, "b")?;
        may_go_on().await?;
        self.step(10 * n + 3, "c")?;
        results.get().set_n(n);
        Ok(())
    }

    async fn note(
        self: Rc<Self>,
        params: trial::NoteParams,
        mut results: trial::NoteResults,
    ) -> Result<()> {
        note(params.get()?.get_n());
        results.get().set_n(params.get()?.get_n());
        Ok(())
    }

    /// A reply of so many bytes.
    async fn read(
        self: Rc<Self>,
        _: trial::ReadParams,
        mut results: trial::ReadResults,
    ) -> Result<()> {
        self.step(1, "a")?;
        results.hook.get()?.initn_as::<data::Builder<'_>>(REPLY_BYTES.get());
        Ok(())
    }

    async fn child(
        self: Rc<Self>,
        _: trial::ChildParams,
        mut results: trial::ChildResults,
    ) -> Result<()> {
        self.step(1, "a")?;
        results.get().set_cap(capnp_rpc::new_client_from_rc(self.clone()));
        Ok(())
    }

    async fn stray(self: Rc<Self>, _: trial::StrayParams, _: trial::StrayResults) -> Result<()> {
        self.step(1, "a")?;
        Err(overloaded("the object is tired"))
    }

    async fn ask(self: Rc<Self>, params: trial::AskParams, _: trial::AskResults) -> Result<()> {
        read(&params.get()?.get_of()?).await.map(drop)
    }
}

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

/// What is durable of an object's request ids: keys with the lengths of their records.
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

/// The canary: even a call that writes nothing is told only what is durable, and a retry is too. One
/// turn makes one record, and the object exists by it.
#[test]
fn a_reply_waits_for_its_record_the_first_time_and_again() {
    run(async {
        let world = World::new();
        let object = world.object("x");
        let held = world.disk.hold();
        let mut first = call_note(&once(&object, ID), 1).promise;
        let mut again = call_note(&once(&object, ID), 1).promise;
        settle().await;
        assert_eq!(log(), [1]);
        assert!(!is_ready(&mut first) && !is_ready(&mut again));
        drop(held);
        first.await.unwrap();
        again.await.unwrap();
        let kinds: Vec<u8> = records(&world, "Trial").into_iter().map(|(key, _)| key[0]).collect();
        assert_eq!(kinds, [0, 1]);
        let writes: usize =
            world.disk.groups().iter().flatten().map(|block| block.writes.len()).sum();
        assert_eq!(writes, 1);
        assert!(world.vat.exists(ObjectId::named(Pool::default(), "Trial", "x")).unwrap());
    });
}

/// What the handler sends in its first turn could happen twice if nothing told of the call.
#[test]
fn what_a_first_turn_sends_waits_until_the_beginning_is_durable() {
    run(async {
        let world = World::new();
        let held = world.disk.hold();
        let target = world.object("y");
        let mut request = once(&steps(&world), ID).ask_request();
        request.get().set_of(target.clone());
        let asked = request.send().promise;
        settle().await;
        assert_eq!(world.metrics.calls_total.get(), 1, "the target isn't called yet");
        drop(held);
        asked.await.unwrap();
        assert_eq!(world.metrics.calls_total.get(), 2);
    });
}

/// `once` passes neither queue nor gate, and the calls on what it gives are in order with all others.
/// (A vat between that knows nothing of it holds back what is pipelined, and not the rest.)
#[test]
fn calls_on_the_new_and_the_old_capability_start_in_the_order_made() {
    for hops in 0..2 {
        run(async move {
            let world = World::new();
            let object = over(world.object("x"), hops);
            let held = world.disk.hold();
            let before = log().len();
            let calls: Vec<_> = (0..20_u64)
                .map(|n| match n % 2 {
                    0 => call_write(&object, n).promise,
                    _ => call_write(&once(&object, &[n as u8; 16]), n).promise,
                })
                .collect();
            settle().await;
            assert_eq!(log()[before..], (0..20).collect::<Vec<u64>>(), "{hops} hops");
            drop(held);
            futures::future::try_join_all(calls).await.unwrap();
        });
    }
}

/// Whoever passes the call on doesn't have to come back before calls can follow it.
#[test]
fn once_is_answered_when_it_returns() {
    run(async {
        let world = World::new();
        let hook = world.object("x").as_client_hook().add_ref();
        let mut params = Body::new();
        params.builder().unwrap().init_as::<facet::once_params::Builder<'_>>().set_id(ID);
        let (results, slot) = Results::new();
        let called = hook.call(facet::Client::TYPE_ID, 0, Box::new(params), Box::new(results));
        assert!(slot.take().is_some());
        called.await.unwrap();
        assert_eq!(world.metrics.wakes_total.get(), 0, "nothing wakes");
    });
}

#[test]
fn a_retry_waits_for_the_handler_that_runs() {
    for hops in 0..2 {
        run(async move {
            let world = World::new();
            let object = over(steps(&world), hops);
            let before = log().len();
            let first = call_write(&once(&object, ID), 1);
            settle().await;
            let mut second = call_write(&once(&object, ID), 2).promise;
            let third = call_write(&once(&object, ID), 3);
            // Callers may leave, the first one included: the handler runs on.
            drop((first, third));
            settle().await;
            assert!(!is_ready(&mut second));
            let_go(1);
            settle().await;
            assert!(!is_ready(&mut second));
            let held = world.disk.hold();
            let_go(1);
            settle().await;
            assert!(!is_ready(&mut second), "the end is not durable");
            drop(held);
            assert_eq!(second.await.unwrap().get().unwrap().get_n(), 1);
            assert_eq!(written(call_write(&once(&object, ID), 4)).await.unwrap(), 1);
            assert_eq!(log()[before..], [11, 12, 13]);
            world.vat.finish_calls().await;
        });
    }
}

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
        // A record's own bytes, room for grants, the table of two segments, the root, and where it leads.
        let most = VALUE_BYTES_MAX.next_multiple_of(8) - 576;
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
        assert!(again.vat.store.borrow().get(written, Space::Data, b"a").unwrap().is_some());
    });
}

/// What a reply holds that isn't filled in is nothing, and nothing is a reply too.
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

/// However long it takes: the id of a call that runs is known, and so it is afterwards for those who
/// came in time.
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
fn an_object_keeps_so_many_ids_and_refuses_more() {
    run_within(Duration::from_mins(2), async {
        let world = World::new();
        let object = world.object("x");
        let id = |n: u64| [n.to_be_bytes(), [7; 8]].concat();
        for n in 0..REQUEST_IDS_MAX {
            world.now.set(u64::from(n > 0));
            let call = call_note(&once(&object, &id(n)), n);
            if n % 1_000 == 0 || n + 1 == REQUEST_IDS_MAX {
                noted(call).await.unwrap();
            }
        }
        let count = log().len();
        for world in [&world, &restart(&world)] {
            let object = world.object("x");
            let refused = noted(call_note(&once(&object, &id(REQUEST_IDS_MAX)), 1)).await;
            assert_eq!(refused.unwrap_err().kind, ErrorKind::Overloaded);
            assert_eq!(noted(call_note(&once(&object, &id(9)), 1)).await.unwrap(), 9);
            assert_eq!(noted(call_note(&object, 1)).await.unwrap(), 1, "without an id");
        }
        assert_eq!(log().len(), count + 2);
        // The first one is over, and makes room for one.
        let again = restart(&world);
        again.now.set(RETENTION.as_millis() as u64);
        let object = again.object("x");
        noted(call_note(&once(&object, &id(REQUEST_IDS_MAX)), 1)).await.unwrap();
        let refused = noted(call_note(&once(&object, &id(REQUEST_IDS_MAX + 1)), 1)).await;
        assert_eq!(refused.unwrap_err().kind, ErrorKind::Overloaded);
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

/// A clock that was years ahead blocks nothing for years: what began then is forgotten a while after that
/// was noticed. One that is behind for a moment forgets nothing.
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
