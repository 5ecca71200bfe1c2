//! The order of calls with request ids, and the disk that their replies wait for.

use capnp::capability::FromClientHook;
use capnp::traits::HasTypeId;
use capstead_client::once;

use super::super::trial::{World, call_note, call_write, log, over, run, settle};
use super::class::let_go;
use super::{ID, is_ready, records, steps, written};
use crate::id::{ObjectId, Pool};
use crate::membrane::{Body, Results};
use crate::schema::facet_capnp::facet;

/// The canary: even a call that writes nothing is told only what is durable, and a retry is too.
/// One turn makes one record, and the object exists by it.
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

/// The messages that the handler sends in its first turn could be sent twice if nothing told of the
/// call.
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

/// `once` passes neither queue nor gate, and the calls on what it gives are in order with all
/// others. (A vat between that knows nothing of it holds back what is pipelined, and not the rest.)
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

/// A caller that passes the call on doesn't have to come back before calls can follow it.
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
