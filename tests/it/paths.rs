//! Promises that honest peers pass to objects on any host, by raw messages.
//!
//! An object's host may not be the host that the peer is connected to. If one of the two accepted
//! something from the peer that the other one refused, all other connections would suffer too.

use std::net::TcpStream;
use std::time::Duration;

use capnp::traits::HasTypeId;
use capstead::counter_capnp::counter;
use capstead_client::restorer_capnp::{namespace, restorer};

use crate::support::random::Random;
use crate::support::raw;
use crate::support::raw::{
    Raw, bootstrap, call, dial, finish, next_answer, resolve, restore, send, wait_for_answer,
};
use crate::support::{Served, now, scratch, serve_with};

/// Every host has some of them.
const OBJECTS: u32 = 12;

/// The call whose answer is the first of the objects.
const FIRST: u32 = 2;

const READ: (u64, u16) = (counter::Client::TYPE_ID, 2);

/// Asks for all objects, by the calls from [`FIRST`] on.
fn objects(served: &Served) -> TcpStream {
    let mut stream = dial(served);
    send(&mut stream, &[bootstrap(), restore(served.counters())]);
    for at in 0..OBJECTS {
        let mut message = Raw::new_default();
        let named = (namespace::Client::TYPE_ID, 0);
        let params = call(&mut message, FIRST + at, (FIRST - 1, Some(0)), named);
        let mut by_name = params.get_content().init_as::<namespace::by_name_params::Builder>();
        by_name.set_key(format!("n{at}"));
        send(&mut stream, &[message]);
        assert_eq!(wait_for_answer(&mut stream, FIRST + at), None);
    }
    stream
}

/// A call of `read` that also passes a promise.
fn pass(question: u32, object: u32, promise: u32) -> Raw {
    let mut message = Raw::new_default();
    let mut payload = call(&mut message, question, (object, Some(0)), READ);
    payload.reborrow().init_cap_table(1).get(0).set_sender_promise(promise);
    let mut caps = Vec::new();
    raw::content(payload, &mut caps).set_as_capability(raw::any_cap());
    message
}

/// A restore of the peer's reference, as other clients may ask for at any time.
fn restore_again(question: u32, reference: &str) -> Raw {
    let mut message = Raw::new_default();
    let params = call(&mut message, question, (0, None), (restorer::Client::TYPE_ID, 0));
    params.get_content().init_as::<restorer::restore_params::Builder>().set_sturdy_ref(reference);
    message
}

/// A promise that was passed to an object on another host in two calls, and was then fulfilled,
/// ended the connection between the hosts, and with it the server: found after 108 programs of this
/// kind.
#[test]
fn promises_that_are_passed_on_cost_no_connection() {
    const ROUNDS: u32 = 250;
    const RESTORES: u32 = 20;
    let mut random = Random::from_printed_seed();
    for hosts in ["1", "2", "4"] {
        let (_folder, data) = scratch();
        let served = serve_with(&data, &["--hosts", hosts]);
        let mut stream = objects(&served);
        let mut question = FIRST + OBJECTS;
        for round in 0..ROUNDS {
            let (object, promise) = (FIRST + round % OBJECTS, 2 * round);
            send(&mut stream, &[pass(question, object, promise)]);
            let start = now();
            let delay = Duration::from_micros(random.below(600));
            while start.elapsed() < delay {}
            let mut messages: Vec<Raw> =
                (1..=RESTORES).map(|at| restore_again(question + at, served.counters())).collect();
            let last = question + RESTORES + 1;
            messages.extend([pass(last, object, promise), resolve(promise, promise + 1)]);
            send(&mut stream, &messages);
            for _ in question..=last {
                let (asked, error) = next_answer(&mut stream);
                assert_eq!(error, None, "round {round}: call {asked}, {last} is the last");
            }
            let finishes: Vec<Raw> = (question..=last).map(finish).collect();
            send(&mut stream, &finishes);
            question = last + 1;
        }
        let (code, _, log) = served.stop();
        assert_eq!(code, Some(0), "{hosts} hosts: {log}");
    }
}
