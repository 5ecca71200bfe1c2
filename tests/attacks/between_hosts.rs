//! Calls and answers that cross from host to host on the supervisor's thread: more of them, and
//! larger ones, than memory can hold.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use capnp::traits::HasTypeId;
use capstead_client::namespace;
use capstead_client::{Connection, Terms};

use super::fortress::survives_from;
use super::over_http::serve_large;
use crate::passing_capnp::passer;
use crate::support::Served;
use crate::support::calls::run;
use crate::support::raw::{self, Raw, bootstrap, restore};

/// The size of each large message: less than the limit, and more than any buffer on its way holds.
const BYTES: u32 = 6_000_000;

/// One in a hundred honest calls may take longer. With 16 clients that read megabytes beside the
/// server on two processors, this percentile is 100 to 500 ms, in a build without optimisation.
const P99_MAX: Duration = Duration::from_secs(2);
/// The duration of each attack.
const TIME: Duration = Duration::from_secs(5);

/// Clients that attack at once.
const CLIENTS: usize = 16;

/// The number of objects that are called: every host has some.
const OBJECTS: u32 = 16;

/// The number of the call that returns the first object, after [`bootstrap`] and [`restore`].
const FIRST: u32 = 2;

/// The addresses of all listeners that references to the objects name.
fn listeners(served: &Served) -> Vec<String> {
    let found = run(async {
        let connection = Connection::dial(&served.announced.capnp).await.unwrap();
        let all: namespace::Client = connection.restore(plain(served)).unwrap();
        let mut found = BTreeSet::new();
        for object in 0..OBJECTS {
            let mut request = all.by_name_request();
            request.get().set_key(object.to_string());
            let object = request.send().pipeline.get_object().as_cap();
            let text = capstead_client::share(&object, Terms::default()).await.unwrap();
            found.insert(connection.locate(&text).await.unwrap());
        }
        found
    });
    found.into_iter().collect()
}

fn plain(served: &Served) -> &str {
    &served.announced.namespaces["Plain"]
}

/// A connection over which all objects can be called.
fn connected(served: &Served, address: &str) -> TcpStream {
    let mut stream = raw::dial_at(address);
    let mut messages = vec![bootstrap(), restore(plain(served))];
    messages.extend((0..OBJECTS).map(object));
    raw::send(&mut stream, &messages);
    stream
}

fn object(number: u32) -> Raw {
    let mut message = Raw::new_default();
    let params =
        raw::call(&mut message, FIRST + number, (1, Some(0)), (namespace::Client::TYPE_ID, 0));
    let mut name = params.get_content().init_as::<namespace::by_name_params::Builder>();
    name.set_key(number.to_string());
    message
}

/// The call with this number, on one object after the other: its answer is large.
fn large(number: u32) -> Raw {
    let mut message = Raw::new_default();
    let on = (FIRST + number % OBJECTS, Some(0));
    let params =
        raw::call(&mut message, FIRST + OBJECTS + number, on, (passer::Client::TYPE_ID, 12));
    let mut params = params.get_content().init_as::<passer::large_params::Builder>();
    params.set_bytes(BYTES);
    message
}

/// As [`large`], but the call itself is large.
fn take(number: u32) -> Raw {
    let mut message = Raw::new_default();
    let on = (FIRST + number % OBJECTS, Some(0));
    let params =
        raw::call(&mut message, FIRST + OBJECTS + number, on, (passer::Client::TYPE_ID, 14));
    params.get_content().init_as::<passer::take_params::Builder>().init_data(BYTES);
    message
}

/// Reads a little now and then: enough to stay within every limit of time.
fn read_slowly(mut stream: TcpStream, is_over: &AtomicBool) {
    let mut some = vec![0; 64 << 10];
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    while !is_over.load(Ordering::Relaxed) {
        match stream.read(&mut some) {
            Ok(0) => break,
            Ok(_) => std::thread::sleep(Duration::from_millis(20)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    // This ends the writing thread too.
    let _ = stream.shutdown(Shutdown::Both);
}

/// Has this number of clients on all hosts send such calls as fast as they can, and read slowly.
fn attack(served: &Served, calls: u32, call: fn(u32) -> Raw) {
    let (listeners, is_over) = (listeners(served), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for address in listeners.iter().cycle().take(CLIENTS) {
            let stream = connected(served, address);
            let mut writes = stream.try_clone().unwrap();
            scope.spawn(|| read_slowly(stream, &is_over));
            scope.spawn(move || {
                // The server may end the connection at any time.
                (0..calls).try_for_each(|number| writes.write_all(&raw::serialized(&call(number))))
            });
        }
        std::thread::sleep(TIME);
        is_over.store(true, Ordering::Relaxed);
    });
}

fn with_hosts(attack: impl Fn(&Served)) {
    for hosts in ["1", "2", "4"] {
        let serve = |data: &Path| {
            let mut command = serve_large(data);
            command.env("CAPSTEAD_TEST_HOSTS", hosts);
            command
        };
        survives_from(serve, P99_MAX, &attack);
    }
}

#[test]
fn large_answers_between_hosts() {
    with_hosts(|served| attack(served, 200, large));
}

#[test]
fn large_calls_between_hosts() {
    with_hosts(|served| attack(served, 100, take));
}
