//! A call that exceeds a message fails alone, wherever the objects live; and its error is the same
//! over any number of hosts.

mod reading;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capnp::traits::HasTypeId;
use capstead::{Result, Server, ServerError, failed};
use capstead_client::{
    CAPABILITIES_SENT_MAX, Connection, ERROR_BYTES_MAX, Terms, namespace, share,
};

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::class::{Exclusive, Passer, Plain};
use crate::passing_capnp::passer;
use crate::support::raw::{self, Raw};

/// Every host has some of them.
const OBJECTS: usize = 12;

/// More than one message may have.
const TOO_MANY_BYTES: u32 = 9 << 20;
const TOO_MANY: u32 = CAPABILITIES_SENT_MAX as u32 + 1;

/// Longer than anything here takes, even on a busy machine.
const DEADLINE: Duration = Duration::from_mins(1);

/// Runs `work` with objects of a server with this number of hosts.
fn with_objects(hosts: u16, work: impl AsyncFnOnce(Vec<passer::Client>)) {
    with_server(hosts, async |address, namespaces| {
        let connection = Connection::dial(&address).await.unwrap();
        work(objects(&connection, &namespaces)).await;
    });
}

fn objects(over: &Connection, namespaces: &BTreeMap<String, String>) -> Vec<passer::Client> {
    let mut objects = Vec::new();
    for kind in ["Plain", "Exclusive"] {
        let all: namespace::Client = over.restore(&namespaces[kind]).unwrap();
        for at in 0..OBJECTS / 2 {
            let mut request = all.by_name_request();
            request.get().set_key(format!("{at}"));
            objects.push(request.send().pipeline.get_object().as_cap().cast_to());
        }
    }
    objects
}

/// Runs `work` with the address and the references of a server with this number of hosts, and then
/// ends it in order.
fn with_server(hosts: u16, work: impl AsyncFnOnce(String, BTreeMap<String, String>)) {
    let data = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    let all = async {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::new(data.path().join("data")).listen(any).http(any).hosts(hosts);
        let server = server.class::<Passer<Plain>>().class::<Passer<Exclusive>>();
        let running = server.start().await.unwrap();
        let (address, namespaces) = (running.capnp().to_string(), running.namespaces().clone());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let served = tokio::task::spawn_local(running.until(async { drop(stopped.await) }));
        work(address, namespaces).await;
        drop(stop);
        served.await.unwrap().unwrap();
    };
    runtime.block_on(async { tokio::time::timeout(DEADLINE, all).await }).expect("it ends in time");
}

/// A client's callback that fails with this text.
struct Failing(String);

impl passer::Server for Failing {
    async fn note(self: Rc<Self>, _: passer::NoteParams, _: passer::NoteResults) -> Result<()> {
        Err(failed(&self.0))
    }

    async fn fail(self: Rc<Self>, _: passer::FailParams, _: passer::FailResults) -> Result<()> {
        Err(failed(&self.0))
    }
}

/// A client's callback that never answers.
struct Silent;

impl passer::Server for Silent {
    async fn echo(self: Rc<Self>, _: passer::EchoParams, _: passer::EchoResults) -> Result<()> {
        std::future::pending().await
    }
}

/// The capability that `by.echo` will return, as a promise of `from`.
fn promised(from: &passer::Client, by: &passer::Client) -> passer::Client {
    let mut request = from.promised_request();
    request.get().set_by(by.clone());
    request.get().set_cap(from.clone());
    request.send().pipeline.get_cap()
}

/// A call under way on `from`, until `by` has answered.
fn waits_for(
    from: &passer::Client,
    by: &passer::Client,
) -> impl Future<Output = Result<()>> + use<> {
    let mut request = from.call_promised_request();
    request.get().set_by(by.clone());
    request.get().set_on(from.clone());
    request.get().set_count(1);
    let sent = request.send().promise;
    async move { sent.await.map(drop) }
}

fn failing(text: impl Into<String>) -> passer::Client {
    capstead_client::capability(Rc::new(Failing(text.into())))
}

async fn large(of: &passer::Client, bytes: u32, caps: u32) -> Result<(usize, u32)> {
    let mut request = of.large_request();
    request.get().set_bytes(bytes);
    request.get().set_caps(caps);
    let response = request.send().promise.await?;
    Ok((response.get()?.get_data()?.len(), response.get()?.get_caps()?.len()))
}

async fn pass(from: &passer::Client, to: &passer::Client, bytes: u32, caps: u32) -> Result<()> {
    let mut request = from.pass_request();
    request.get().set_to(to.clone());
    request.get().set_bytes(bytes);
    request.get().set_caps(caps);
    request.send().promise.await.map(drop)
}

/// A change of the directory's own files ends every host at once, also while calls are under way
/// elsewhere: one host used to acknowledge writes for as long as another one took to finish.
#[test]
fn no_host_goes_on_after_a_file_of_the_directory_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    let all = async {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::new(&data).listen(any).http(any).hosts(2);
        let server = server.class::<Passer<Plain>>().class::<Passer<Exclusive>>();
        let running = server.start().await.unwrap();
        let (address, namespaces) = (running.capnp().to_string(), running.namespaces().clone());
        let served = tokio::task::spawn_local(running.until(std::future::pending()));
        let holder = Connection::dial(&address).await.unwrap();
        let silent: passer::Client = capstead_client::capability(Rc::new(Silent));
        let held = objects(&holder, &namespaces);
        // Exclusive ones would answer nothing else meanwhile.
        let plain = &held[..OBJECTS / 2];
        let mut under_way: Vec<_> = plain.iter().map(|from| waits_for(from, &silent)).collect();
        for object in &held {
            large(object, 0, 0).await.unwrap();
        }
        let mut texts = Vec::new();
        for object in &held {
            texts.push(share(object, Terms::new("own")).await.unwrap());
        }
        std::fs::remove_file(data.join("format")).unwrap();
        let removed = crate::support::now();
        loop {
            let Ok(connection) = Connection::dial(&address).await else { break };
            // By references of their own, so that each call needs its object's host alone.
            let calls = texts.iter().map(async |text| {
                let object: passer::Client = connection.restore(text)?;
                large(&object, 0, 0).await
            });
            if futures::future::join_all(calls).await.iter().all(Result::is_err) {
                break;
            }
            assert!(removed.elapsed() < Duration::from_secs(5), "it still answers");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        under_way.clear();
        let error = served.await.unwrap().unwrap_err();
        assert!(matches!(&error, ServerError::Storage(said) if said.contains("format")), "{error}");
    };
    runtime.block_on(async { tokio::time::timeout(DEADLINE, all).await }).expect("it ends in time");
}

/// The text of an error that crossed connections: it has one prefix, whatever their number.
fn remote(error: &capnp::Error) -> &str {
    error.extra.strip_prefix("remote exception: ").expect("it came from elsewhere")
}

/// A result of 9 MiB used to arrive on one host, and to fail without a reason on four. More than 64
/// capabilities ended the receiver's connection.
#[test]
fn what_is_too_much_fails_its_call_alone_and_says_why_on_any_number_of_hosts() {
    for hosts in [1, 2, 4] {
        with_objects(hosts, async |objects| {
            for (at, object) in objects.iter().enumerate() {
                let next = &objects[(at + 1) % OBJECTS];
                let (bytes, caps) = (TOO_MANY_BYTES, TOO_MANY);
                for outcome in
                    [large(object, bytes, 0).await.map(drop), pass(object, next, bytes, 0).await]
                {
                    let error = outcome.unwrap_err();
                    assert!(remote(&error).starts_with("too-large: "), "{hosts} hosts: {error}");
                }
                for outcome in
                    [large(object, 0, caps).await.map(drop), pass(object, next, 0, caps).await]
                {
                    let error = outcome.unwrap_err();
                    let named = remote(&error).starts_with("too-many-capabilities: 65 in ");
                    assert!(named, "{hosts} hosts: {error}");
                }
                // The most that is allowed, over the same connections.
                let (bytes, caps) = (8_000_000, TOO_MANY - 1);
                let got = large(object, bytes, caps).await.unwrap();
                assert_eq!(got, (bytes as usize, caps), "{hosts} hosts");
                pass(object, next, bytes, caps).await.unwrap();
            }
        });
    }
}

/// The listeners of the objects' hosts.
async fn listeners(front: &Connection, objects: &[passer::Client]) -> BTreeSet<String> {
    let mut listeners = BTreeSet::new();
    for object in objects {
        let text = crate::support::calls::save(object, "the test's").await;
        listeners.insert(front.locate(&text).await.unwrap());
    }
    listeners
}

/// Calls objects of all hosts from clients of each host, and signals the first answer. Each call
/// that began is answered.
async fn call_from_everywhere(
    hosts: u16,
    address: String,
    namespaces: BTreeMap<String, String>,
    answered: tokio::sync::oneshot::Sender<()>,
) {
    // More than the socket between two hosts takes at once.
    const BYTES: u32 = 512 << 10;
    let front = Connection::dial(&address).await.unwrap();
    let listeners = listeners(&front, &objects(&front, &namespaces)).await;
    assert_eq!(listeners.len(), usize::from(hosts), "each host has some of the objects");
    let mut clients = Vec::new();
    for address in listeners {
        let client = Connection::dial(&address).await.unwrap();
        let objects = objects(&client, &namespaces);
        // Each object is reached before the end of the server.
        for object in &objects {
            large(object, 0, 0).await.unwrap();
        }
        clients.push((client, objects));
    }
    let objects = clients.iter().flat_map(|(_, objects)| objects);
    let mut answers: FuturesUnordered<_> = objects.map(|object| large(object, BYTES, 0)).collect();
    let mut got = vec![answers.next().await.unwrap()];
    answered.send(()).unwrap();
    got.extend(answers.collect::<Vec<_>>().await);
    for answer in got {
        match answer {
            Ok((bytes, _)) => assert_eq!(bytes, BYTES as usize),
            Err(error) => assert!(error.extra.contains("not-begun:"), "{error}"),
        }
    }
}

// A host that ended at once used to lose the answers on their way to its clients, two links away.
#[test]
fn every_call_is_answered_when_the_server_ends_through_whichever_hosts_it_came() {
    for hosts in [1, 2, 4] {
        let mut clients = None;
        with_server(hosts, async |address, namespaces| {
            let (answered, first) = tokio::sync::oneshot::channel();
            clients = Some(std::thread::spawn(move || {
                let runtime = tokio::runtime::LocalRuntime::new().unwrap();
                let calls = call_from_everywhere(hosts, address, namespaces, answered);
                let calls = async { tokio::time::timeout(DEADLINE, calls).await };
                runtime.block_on(calls).expect("all calls end");
            }));
            first.await.unwrap();
        });
        clients.unwrap().join().unwrap();
    }
}

// Each connection used to add its prefix to the error.
#[test]
fn an_error_says_once_that_it_is_remote() {
    for hosts in [1, 2, 4] {
        with_objects(hosts, async |objects| {
            for (at, object) in objects.iter().enumerate() {
                let mut request = object.relay_request();
                request.get().set_to(objects[(at + 1) % OBJECTS].clone());
                request.get().set_on(failing("no such day"));
                request.get().set_count(1);
                let error = request.send().promise.await.map(drop).unwrap_err();
                assert_eq!(error.extra, "remote exception: no such day", "{hosts} hosts");
            }
        });
    }
}

/// A class that repeated a text of nearly 8 MiB made an error of its own that exceeded a message.
#[test]
fn a_class_that_repeats_a_long_error_has_its_own_cut() {
    for hosts in [1, 2, 4] {
        with_objects(hosts, async |objects| {
            for (at, object) in objects.iter().enumerate() {
                // Exclusive objects come last, and no object may wait for itself.
                let other = &objects[(at + OBJECTS / 2) % OBJECTS];
                for on in [other.clone(), failing("€".repeat(1 << 20))] {
                    let mut request = object.repeat_request();
                    request.get().set_on(on);
                    request.get().set_bytes(7 << 20);
                    let error = request.send().promise.await.map(drop).unwrap_err();
                    let (said, bytes) = (remote(&error), error.extra.len());
                    assert!(said.starts_with("repeated: "), "{hosts} hosts: {said:.40}");
                    assert!(said.contains(" ... (cut; it had "), "{hosts} hosts: {bytes} bytes");
                    assert!(said.len() <= ERROR_BYTES_MAX, "{hosts} hosts: {bytes} bytes");
                }
            }
        });
    }
}

/// Each promise of such a row used to lead through all earlier ones, by way of all hosts: 400 of
/// them took 1.5 gigabytes, and 1,000 took all memory.
#[test]
fn a_long_row_of_promises_through_all_hosts_breaks_and_nothing_else_does() {
    for hosts in [2, 4] {
        with_objects(hosts, async |objects| {
            let silent = capstead_client::capability(Rc::new(Silent));
            let mut row = vec![promised(&objects[0], &silent)];
            for at in 1..150 {
                // Not the exclusive ones, which first ask the promise whether it takes part in a
                // chain.
                row.push(promised(&objects[at % (OBJECTS / 2)], &row[at - 1]));
            }
            let error = row[149].note_request().send().promise.await.map(drop).unwrap_err();
            let said = remote(&error);
            let is_named =
                ["too-many-hops: ", "too many calls pass"].map(|it| said.starts_with(it));
            assert!(is_named.contains(&true), "{hosts} hosts: {said}");
            for object in &objects {
                object.note_request().send().promise.await.unwrap();
            }
        });
    }
}

/// A call of `call` on an object, with a capability of the peer's.
fn raw_call(question: u32, object: u32) -> Raw {
    let mut message = Raw::new_default();
    let method = (passer::Client::TYPE_ID, 6);
    let mut payload = raw::call(&mut message, question, (object, Some(0)), method);
    payload.reborrow().init_cap_table(1).get(0).set_sender_hosted(1);
    let mut caps = Vec::new();
    let content = raw::content(payload, &mut caps);
    let mut params = content.init_as::<passer::call_params::Builder>();
    params.set_on(FromClientHook::new(raw::any_cap()));
    params.set_count(1);
    message
}

/// Fails calls of each object with an error almost as large as a message, and checks the error that
/// comes back.
fn fail_at_length(address: &str, objects: &str, hosts: u16) {
    const LONGEST: usize = (8 << 20) - 1024;
    let mut stream = raw::dial_at(address);
    raw::send(&mut stream, &[raw::bootstrap(), raw::restore(objects)]);
    for object in (2..).step_by(3).take(OBJECTS / 2) {
        let question = object + 1;
        raw::send(&mut stream, &[named(object), raw_call(question, object)]);
        // The prefix varies by one byte, so that the cut falls on each byte of a character.
        let reason = format!("{}{}", "x".repeat(object as usize), "€".repeat(LONGEST / 3 - 100));
        let error = raw::fail_until_answer(&mut stream, &reason, question).expect("the call fails");
        let bytes = error.len();
        assert!((ERROR_BYTES_MAX - 3..=ERROR_BYTES_MAX).contains(&bytes), "{hosts}: {bytes} bytes");
        let note = format!("€ ... (cut; it had {} bytes)", reason.len());
        assert!(error.ends_with(&note), "{hosts} hosts: {:?}", &error[bytes - 100..]);
    }
}

/// The call whose answer is a new object.
fn named(question: u32) -> Raw {
    let mut message = Raw::new_default();
    let method = (namespace::Client::TYPE_ID, 0);
    let params = raw::call(&mut message, question, (1, Some(0)), method).get_content();
    let mut by_name = params.init_as::<namespace::by_name_params::Builder>();
    by_name.set_key(question.to_string());
    message
}

/// A peer's error of nearly 8 MiB used to exceed the limit of the next connection, and ended it;
/// between hosts it ended the server.
#[test]
fn a_long_error_of_a_peer_is_cut_and_no_connection_ends() {
    for hosts in [1, 4] {
        with_server(hosts, async |address, namespaces| {
            for kind in ["Plain", "Exclusive"] {
                let (address, objects) = (address.clone(), namespaces[kind].clone());
                let done = tokio::task::spawn_blocking(move || {
                    fail_at_length(&address, &objects, hosts);
                });
                done.await.unwrap();
            }
        });
    }
}

/// The answers exceed the bytes that may wait for one connection: the calls wait until their caller
/// reads, and keep their order.
#[test]
fn many_large_results_at_once_reach_a_client_that_reads() {
    const RESULTS: u64 = 24;
    with_objects(1, async |objects| {
        let object = &objects[0];
        let (mut large, mut noted) = (Vec::new(), Vec::new());
        for n in 0..RESULTS {
            let mut request = object.large_request();
            request.get().set_bytes(8_000_000);
            large.push(request.send().promise);
            noted.push(crate::class::note(object, 7, n).promise);
        }
        for answer in large {
            assert_eq!(answer.await.unwrap().get().unwrap().get_data().unwrap().len(), 8_000_000);
        }
        for answer in noted {
            answer.await.unwrap();
        }
        let mut notes = object.notes_request();
        notes.get().set_stub(7);
        let notes = notes.send().promise.await.unwrap();
        let notes: Vec<_> = notes.get().unwrap().get_notes().unwrap().iter().collect();
        assert_eq!(notes, (0..RESULTS).collect::<Vec<_>>());
    });
}
