//! The ends of instances, writes outside of a turn, and the things that a class may reach.

use capnp::capability::{FromClientHook, Promise};
use capnp::private::capability::{ClientHook, ParamsHook, ResultsHook};
use capnp::traits::HasTypeId;

use super::trial::{
    World, call_later, call_note, call_write, ended, log, over, read, run, settle, trial,
};
use crate::host::{Context, Object};

fn assert_disconnected<T>(outcome: capnp::Result<T>, what: &str) {
    let error = outcome.err().expect(what);
    assert_eq!(error.kind, capnp::ErrorKind::Disconnected, "{what}: {error}");
}

/// The panicking turn's write is dropped, its instance ends with all facets, and nothing else does.
#[test]
fn a_panic_ends_one_instance_and_drops_its_unfinished_turn() {
    for hops in 0..2 {
        run(async move {
            let world = World::new();
            let (object, other) = (over(world.object("x"), hops), over(world.object("y"), hops));
            call_write(&object, 1).promise.await.unwrap();
            call_note(&other, 1).promise.await.unwrap();
            let waiting = call_later(&object, 1_000_000, None).promise;
            let mut request = object.panic_request();
            request.get().set_n(2);
            assert_disconnected(request.send().promise.await, "the panicking call");
            assert_disconnected(waiting.await, "a call that was under way");
            assert_disconnected(call_note(&object, 3).promise.await, "a call on the broken stub");
            call_note(&other, 4).promise.await.expect("another object on the same connection");
            let again = over(world.object("x"), hops);
            assert_eq!(read(&again).await.unwrap(), 1, "a new stub wakes the object from storage");
        });
    }
}

/// A reply that waits for its commit leaves though the object panicked meanwhile.
#[test]
fn what_was_submitted_before_a_panic_is_still_answered() {
    run(async {
        let world = World::new();
        let object = world.object("x");
        let held = world.disk.hold();
        let written = call_write(&object, 1).promise;
        let panicked = object.panic_request().send().promise;
        settle().await;
        drop(held);
        written.await.expect("its write was submitted before the panic");
        assert_disconnected(panicked.await, "the panicking call");
    });
}

/// Handlers that wait for something for ever end with their instance, and their callers are told,
/// though the panicking turn had written.
#[test]
fn a_panic_after_a_write_answers_everybody_and_ends_waiting_handlers() {
    run(async {
        let world = World::new();
        let (object, never) = (world.object("x"), futures::channel::oneshot::channel::<()>());
        let silent = capnp_rpc::new_future_client(async move {
            never.1.await.map_err(|_| crate::error::failed("it was let go"))?;
            Err::<trial::Client, _>(crate::error::failed("unreachable"))
        });
        let mut request = object.ask_request();
        request.get().set_of(silent);
        let waiting = request.send().promise;
        let mut request = object.panic_request();
        request.get().set_n(2);
        assert_disconnected(request.send().promise.await, "the panicking call");
        assert_disconnected(waiting.await, "a call that was under way");
        settle().await;
        assert_eq!(ended(), 1, "nothing holds the old value any more, no handler either");
        drop(never.0);
        assert_eq!(read(&world.object("x")).await.unwrap(), 0, "its write was dropped");
    });
}

/// A message that panics when it leaves is lost, and takes nothing else with it.
#[test]
fn a_message_that_panics_is_the_end_of_that_message_alone() {
    run(async {
        let world = World::new();
        let object = world.object("x");
        let held = world.disk.hold();
        let mut request = object.relay_request();
        request.get().set_to(trial::Client::new(Box::new(Explosive)));
        let relayed = request.send().promise;
        let written = call_write(&object, 7).promise;
        settle().await;
        drop(held);
        relayed.await.unwrap();
        written.await.unwrap();
        assert_eq!(read(&world.object("x")).await.unwrap(), 7);
        call_note(&world.object("y"), 1).promise.await.unwrap();
    });
}

/// A call whose caller has left before its reply counts as ended, so that shutdown isn't held up.
#[test]
fn a_caller_that_left_does_not_hold_up_the_end() {
    run(async {
        let world = World::new();
        let held = world.disk.hold();
        let object = world.object("x");
        let (results, _slot) = crate::membrane::Results::new();
        let params = crate::membrane::Body::new();
        let hook = object.as_client_hook();
        drop(hook.call(trial::Client::TYPE_ID, 1, Box::new(params), Box::new(results)));
        settle().await;
        drop(held);
        world.vat.finish_calls().await;
    });
}

/// A foreign capability that panics when it is called.
#[derive(Clone)]
struct Explosive;

impl ClientHook for Explosive {
    fn add_ref(&self) -> Box<dyn ClientHook> {
        Box::new(self.clone())
    }

    fn new_call(
        &self,
        _: u64,
        _: u16,
        _: Option<capnp::MessageSize>,
    ) -> capnp::capability::Request<capnp::any_pointer::Owned, capnp::any_pointer::Owned> {
        panic!("as it must")
    }

    fn call(
        &self,
        _: u64,
        _: u16,
        _: Box<dyn ParamsHook>,
        _: Box<dyn ResultsHook>,
    ) -> Promise<(), capnp::Error> {
        panic!("as it must")
    }

    fn get_brand(&self) -> usize {
        0
    }

    fn get_ptr(&self) -> usize {
        1
    }

    fn get_resolved(&self) -> Option<Box<dyn ClientHook>> {
        None
    }

    fn when_more_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, capnp::Error>> {
        None
    }

    fn when_resolved(&self) -> Promise<(), capnp::Error> {
        Promise::ok(())
    }
}

/// A caller that asks may leave: a handler that started runs to its end.
#[test]
fn a_handler_goes_on_when_its_caller_leaves() {
    run(async {
        let world = World::new();
        drop(call_later(&over(world.object("x"), 1), 20, None));
        while log() != [1000] {
            settle().await;
        }
    });
}

/// A write from a bare task belongs to no turn: it is refused by name, and nothing is written.
#[test]
fn a_write_outside_a_turn_is_refused() {
    run(async {
        let world = World::new();
        let object = world.object("x");
        let error = object.stray_request().send().promise.await.err().unwrap();
        assert!(error.extra.contains("outside a turn"), "{error}");
        assert!(world.disk.groups().is_empty());
    });
}

/// A class reaches what it was bound to and nothing else, and asking creates nothing.
#[test]
fn an_unbound_class_is_a_named_error() {
    struct Stranger;
    impl Object for Stranger {
        const CLASS: &'static str = "Stranger";
        type Client = crate::schema::counter_capnp::counter::Client;
        async fn wake(_: Context) -> crate::error::Result<Self> {
            unreachable!("nobody can reach it")
        }
    }
    impl crate::schema::counter_capnp::counter::Server for Stranger {}
    impl crate::http::http_service::Server for Stranger {}

    run(async {
        let world = World::new();
        let ctx = world.context("x");
        let unbound = ctx.namespace::<Stranger>("strangers").unwrap_err();
        assert!(unbound.extra.contains("unbound"), "{unbound}");
        let unbound = ctx.create::<Stranger>().err().unwrap();
        assert!(unbound.extra.contains("unbound"), "{unbound}");
        let wrong = ctx.namespace::<Stranger>("trials").unwrap_err();
        assert!(wrong.extra.contains("leads to Trial"), "{wrong}");
        assert!(ctx.namespace::<super::trial::Trial>("trials").is_ok());
        assert!(world.disk.groups().is_empty());
    });
}

/// Objects that nobody holds and that sleep leave nothing behind in memory.
#[test]
fn an_object_that_was_never_called_costs_nothing_once_it_is_let_go() {
    run(async {
        let world = World::new();
        let held: Vec<_> = (0..100).map(|n| world.object(&n.to_string())).collect();
        assert_eq!(world.vat.objects.count(), 100);
        drop(held);
        assert_eq!(world.vat.objects.count(), 0);
    });
}
