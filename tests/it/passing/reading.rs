//! Large results for clients that read, that read slowly, and that don't read.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::TcpStream;
use std::rc::Rc;
use std::time::Duration;

use capnp::traits::HasTypeId;
use capstead::Result;
use capstead_client::Connection;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rustix::net::sockopt::set_socket_recv_buffer_size;
use tokio::sync::Notify;

use super::{OBJECTS, large, listeners, objects, with_server};
use crate::class::note;
use crate::passing_capnp::passer;
use crate::support::eventually;
use crate::support::raw::{self, Raw};

/// As [`with_server`], for work on a separate thread, as clients have it.
fn with_clients(
    hosts: u16,
    work: impl AsyncFnOnce(String, BTreeMap<String, String>) + Send + 'static,
) {
    with_server(hosts, async move |address, namespaces| {
        let (over, is_over) = tokio::sync::oneshot::channel::<()>();
        let clients = std::thread::spawn(move || {
            let runtime = tokio::runtime::LocalRuntime::new().unwrap();
            runtime.block_on(work(address, namespaces));
            drop(over);
        });
        drop(is_over.await);
        clients.join().unwrap();
    });
}

/// The size of each large result that a client asks for.
const LARGE: u32 = 2_000_000;

/// Keeps one object busy until it is told to end.
struct Busy {
    took: Notify,
    ends: Notify,
}

impl passer::Server for Busy {
    async fn note(self: Rc<Self>, _: passer::NoteParams, _: passer::NoteResults) -> Result<()> {
        self.took.notify_one();
        self.ends.notified().await;
        Ok(())
    }
}

/// Has clients of all hosts ask one busy object for more than each of them may leave unread.
async fn wait_for_the_busy_one(hosts: u16, address: String, namespaces: BTreeMap<String, String>) {
    const CALLS: u64 = 240;
    let front = Connection::dial(&address).await.unwrap();
    let all = objects(&front, &namespaces);
    let others: Vec<_> = listeners(&front, &all).await.into_iter().collect();
    assert_eq!(others.len(), usize::from(hosts));
    let object = &all[OBJECTS / 2];
    let busy = Rc::new(Busy { took: Notify::new(), ends: Notify::new() });
    let mut keeps = object.later_request();
    keeps.get().set_cap(object.clone());
    keeps.get().set_until(capstead_client::capability(busy.clone()));
    let keeps = keeps.send().promise;
    busy.took.notified().await;
    let mut waiting = FuturesUnordered::new();
    let mut connections = Vec::new();
    for (stub, other) in (1..).zip(&others) {
        let connection = Connection::dial(other).await.unwrap();
        let all = objects(&connection, &namespaces);
        let object = &all[OBJECTS / 2];
        for n in 0..CALLS {
            let noted = (n % 20 == 0).then(|| note(object, stub, n).promise);
            let mut request = object.large_request();
            request.get().set_bytes(LARGE);
            let large = request.send().promise;
            waiting.push(async move {
                if let Some(noted) = noted {
                    noted.await.unwrap();
                }
                let large = large.await.unwrap();
                assert_eq!(large.get().unwrap().get_data().unwrap().len(), LARGE as usize);
            });
        }
        // All calls have arrived before the first gets its turn, because on each path calls keep
        // their order.
        for plain in &all[..OBJECTS / 2] {
            large(plain, 0, 0).await.unwrap();
        }
        connections.push(connection);
    }
    busy.ends.notify_one();
    keeps.await.unwrap();
    while waiting.next().await.is_some() {}
    for (stub, _) in (1..).zip(&others) {
        let mut request = object.notes_request();
        request.get().set_stub(stub);
        let notes = request.send().promise.await.unwrap();
        let notes: Vec<u64> = notes.get().unwrap().get_notes().unwrap().iter().collect();
        assert_eq!(notes, (0..CALLS).step_by(20).collect::<Vec<_>>(), "in the order made");
    }
}

// Calls used to ask for room before they waited for the object, and not again afterwards: a client
// that read everything lost its connection.
#[test]
fn a_client_that_reads_gets_all_large_results_of_an_object_for_which_it_waited() {
    for hosts in [1, 2, 4] {
        with_clients(hosts, async move |address, namespaces| {
            wait_for_the_busy_one(hosts, address, namespaces).await;
        });
    }
}

// The host of the client's connection used to pass all calls on at once, and to cut the client off
// when the answers came.
#[test]
fn a_client_that_reads_gets_all_large_results_that_come_through_another_host() {
    const CALLS: usize = 20;
    for hosts in [1, 2, 4] {
        with_clients(hosts, async |address, namespaces| {
            let front = Connection::dial(&address).await.unwrap();
            let objects = objects(&front, &namespaces);
            let all = objects.iter().flat_map(|object| std::iter::repeat_n(object, CALLS));
            let mut answers: FuturesUnordered<_> = all.map(|of| large(of, LARGE, 0)).collect();
            let mut got = 0;
            while let Some(answer) = answers.next().await {
                assert_eq!(answer.unwrap().0, LARGE as usize);
                got += 1;
            }
            assert_eq!(got, OBJECTS * CALLS);
        });
    }
}

/// Reads a little now and then: enough to stay within every limit of time.
struct Slow(TcpStream);

impl Read for Slow {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        std::thread::sleep(Duration::from_millis(10));
        let most = into.len().min(32 << 10);
        self.0.read(&mut into[..most])
    }
}

/// A connection for each of some objects, with this number of large results under way that aren't
/// read yet.
fn ask_for_much(
    address: &str,
    namespaces: &BTreeMap<String, String>,
    calls: u32,
) -> Vec<TcpStream> {
    let ask = |name: usize| {
        let mut stream = raw::dial_at(address);
        // Bytes that the system buffers for a slow reader are no progress that the server can see.
        set_socket_recv_buffer_size(&stream, 256 << 10).unwrap();
        let mut messages = vec![raw::bootstrap(), raw::restore(&namespaces["Plain"])];
        messages.push(raw::by_name(&name.to_string()));
        messages.extend((1..=calls).map(|n| {
            let mut message = Raw::new_default();
            let (on, method) = ((raw::COUNTER, Some(0)), (passer::Client::TYPE_ID, 12));
            let params = raw::call(&mut message, raw::COUNTER + n, on, method);
            params.get_content().init_as::<passer::large_params::Builder>().set_bytes(LARGE);
            message
        }));
        raw::send(&mut stream, &messages);
        // Part of the first result has arrived, so that the calls behind it wait for this client.
        let mut part = vec![0; 64 << 10];
        eventually("a result", || (stream.peek(&mut part).unwrap() == part.len()).then_some(()));
        stream
    };
    (0..OBJECTS / 2).map(ask).collect()
}

// The end used to take the whole 10 s, since the calls waited for these clients.
#[test]
fn the_end_waits_a_moment_for_those_who_read_nothing() {
    for hosts in [1, 2, 4] {
        let (sender, asked) = std::sync::mpsc::channel();
        with_clients(hosts, async move |address, namespaces| {
            let streams = ask_for_much(&address, &namespaces, 100);
            sender.send((streams, tokio::time::Instant::now())).unwrap();
        });
        let (_streams, began) = asked.recv().unwrap();
        // Two seconds for an answer that waits, and one for the written bytes to be read.
        assert!(began.elapsed() < Duration::from_secs(4), "{hosts} hosts: {:?}", began.elapsed());
    }
}

// The clients used to have one second for the last megabytes. Calls whose answers weren't read by
// then never began.
#[test]
fn those_who_read_slowly_get_all_that_was_answered_before_the_end() {
    for hosts in [1, 2] {
        let (sender, read) = std::sync::mpsc::channel();
        with_clients(hosts, async move |address, namespaces| {
            let streams = ask_for_much(&address, &namespaces, 10);
            let read = |stream| std::thread::spawn(|| raw::reason_of_end(Slow(stream)));
            let reads: Vec<_> = streams.into_iter().map(read).collect();
            sender.send(reads).unwrap();
        });
        for read in read.recv().unwrap() {
            let reason = read.join().unwrap();
            assert_eq!(reason.as_deref(), Some("not-begun: the server is shutting down"));
        }
    }
}
