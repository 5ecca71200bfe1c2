//! Chains of calls, each on the result of the one before: they nest no stack, when they are made,
//! answered or dropped, in this vat and over connections.

use std::rc::Rc;

use capnp::capability::{Client, FromClientHook};
use capnp::private::capability::ClientHook;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capstead_client::{Connection, Limits, once};

use super::trial::{World, call_later, call_write, read, run_within, settle, trial};
use crate::membrane::{self, Call, CallTarget, deliver};
use crate::schema::facet_capnp::facet;

/// The stack of an embedding program's thread is four times as large.
const STACK_BYTES: usize = 512 << 10;

const CALLS: u32 = 100_000;

/// Plays `test` on a thread of its own, with a small stack.
fn on_a_small_stack(test: impl AsyncFnOnce() + Send + 'static) {
    let play = || run_within(std::time::Duration::from_mins(2), test());
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(play).unwrap();
    thread.join().unwrap();
}

#[derive(Clone, Copy, Debug)]
enum Link {
    Once,
    Attenuated,
    InChain,
}

/// The number of connections on the way, and the thing that the chain is made of.
const WAYS: [(usize, Link); 5] = [
    (0, Link::Once),
    (0, Link::Attenuated),
    (0, Link::InChain),
    (1, Link::InChain),
    (2, Link::Once),
];

/// One more call in the chain.
fn next(at: &trial::Client, link: Link, number: u32) -> trial::Client {
    let hook = at.as_client_hook().add_ref();
    let on = facet::Client { client: Client::new(hook) };
    let cap = match link {
        Link::Once => return once(at, format!("a request id {number:020}").as_bytes()),
        Link::Attenuated => on.attenuate_request().send().pipeline.get_facet().as_cap(),
        Link::InChain => on.in_chain_request().send().pipeline.get_facet().as_cap(),
    };
    trial::Client::new(cap)
}

/// The end of a chain, of which nothing else is held.
fn chain(from: &trial::Client, link: Link) -> trial::Client {
    chain_of(CALLS, from, link)
}

fn chain_of(calls: u32, from: &trial::Client, link: Link) -> trial::Client {
    (0..calls).fold(from.clone(), |at, number| next(&at, link, number))
}

/// A capability of the next vat, as a vat on the way has it.
struct Hop(Box<dyn ClientHook>);

impl CallTarget for Hop {
    fn enqueue(self: Rc<Self>, call: Call) {
        deliver(&*self.0, call);
    }
}

impl Drop for Hop {
    fn drop(&mut self) {
        membrane::forget(self);
    }
}

/// The same object behind connections such as hosts have.
fn behind(mut client: trial::Client, hops: usize) -> (trial::Client, Vec<Connection>) {
    let mut connections = Vec::new();
    for _ in 0..hops {
        let (near, far) = tokio::io::duplex(1 << 16);
        let hop = membrane::wrap(Rc::new(Hop(client.into_client_hook())));
        let bootstrap = Some(Client::new(hop));
        let limits = Limits::of_trusted();
        connections.push(Connection::new(far, Side::Server, bootstrap, limits).unwrap());
        let peer = Connection::new(near, Side::Client, None, limits).unwrap();
        client = peer.bootstrap();
        connections.push(peer);
    }
    (client, connections)
}

#[test]
fn chains_are_answered() {
    for (hops, link) in WAYS {
        on_a_small_stack(async move || {
            let world = World::new();
            let (object, _connections) = behind(world.object("x"), hops);
            let end = chain(&object, link);
            assert_eq!(read(&end).await.unwrap(), 0, "{link:?} over {hops} hops");
        });
    }
}

#[test]
fn chains_are_dropped() {
    for (hops, link) in WAYS {
        on_a_small_stack(async move || {
            let world = World::new();
            let (object, _connections) = behind(world.object("x"), hops);
            drop(chain(&object, link));
            settle().await;
            assert_eq!(read(&object).await.unwrap(), 0, "{link:?} over {hops} hops");
        });
    }
}

/// A caller that hung up may have had any number of calls in a row that wait for the first one.
#[test]
fn chains_break() {
    for (hops, link) in WAYS.into_iter().filter(|(hops, _)| *hops > 0) {
        on_a_small_stack(async move || {
            let world = World::new();
            let held = world.disk.hold();
            let (object, connections) = behind(world.object("x"), hops);
            let written = call_write(&object, 7);
            let later = call_later(&object, 0, Some(object.clone())).pipeline.get_cap();
            let end = chain(&later, link);
            settle().await;
            for connection in connections {
                connection.disconnect().await;
            }
            let error = read(&end).await.unwrap_err();
            assert_eq!(error.kind, capnp::ErrorKind::Disconnected, "{link:?} over {hops} hops");
            drop((held, written));
            world.vat.finish_calls().await;
        });
    }
}

/// All wait for the first call, whose answer comes last.
#[test]
fn chains_wait_for_their_beginning() {
    for (hops, link) in WAYS {
        on_a_small_stack(async move || {
            let world = World::new();
            let held = world.disk.hold();
            let (object, _connections) = behind(world.object("x"), hops);
            let written = call_write(&object, 7);
            let later = call_later(&object, 0, Some(object.clone())).pipeline.get_cap();
            // A promise that was given away is reached through each host again: so many may.
            let calls = if hops > 1 { 4_000 } else { CALLS };
            let end = chain_of(calls, &later, link);
            settle().await;
            drop(held);
            assert_eq!(read(&end).await.unwrap(), 7, "{link:?} over {hops} hops");
            drop(written);
        });
    }
}
