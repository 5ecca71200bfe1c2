//! The fuzzer's connections, and an honest client that measures meanwhile how it is served.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use capnp::capability::FromClientHook;
use capnp::message::ReaderOptions;
use capnp::serialize;
use capnp_rpc::rpc_capnp::message;
use capstead::http::http_service::{self, client_request_context};
use capstead_client::{Connection, namespace};

use super::broken::broken;
use super::peer::Peer;
use super::support::calls::{by_name, connect, increment, read, run};
use super::support::random::Random;
use super::support::raw;
use super::support::{Served, now};

/// The largest number of messages between two checks of the server's messages.
const BATCH: u64 = 100;

/// One in this number of batches is followed by a broken message.
const BROKEN_IN: u64 = 8;

/// One in this number of batches is followed by the end of the connection, with everything open.
const GONE_IN: u64 = 60;

/// The time limit for the answer that shows that the server has read the batch.
const PATIENCE: Duration = Duration::from_secs(1);

/// The results of several conversations.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Messages that the server has certainly processed; `unread` counts those of which that isn't
    /// known.
    pub(crate) read: u64,
    pub(crate) unread: u64,
    pub(crate) connections: u64,
    /// The messages that the server sent.
    pub(crate) returns: u64,
    pub(crate) calls: u64,
    pub(crate) resolves: u64,
    pub(crate) reflected: u64,
    pub(crate) disembargoes: u64,
    /// Conversations that the server ended, by its reason without numbers; and those that it did
    /// not continue.
    pub(crate) refused: BTreeMap<String, u64>,
    pub(crate) stuck: u64,
    /// Calls that failed alone, by the reason.
    pub(crate) errors: BTreeMap<String, u64>,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.read += other.read;
        self.unread += other.unread;
        self.connections += other.connections;
        self.returns += other.returns;
        self.calls += other.calls;
        self.resolves += other.resolves;
        self.reflected += other.reflected;
        self.disembargoes += other.disembargoes;
        self.stuck += other.stuck;
        for (reason, count) in other.refused {
            *self.refused.entry(reason).or_default() += count;
        }
        for (reason, count) in other.errors {
            *self.errors.entry(reason).or_default() += count;
        }
    }
}

/// Holds conversations until the server has read this number of messages.
pub(crate) fn fuzz(served: &Served, random: &mut Random, messages: u64) -> Counts {
    let mut counts = Counts::default();
    while counts.read < messages {
        let mut conversation = Conversation::begin(served, random.fork());
        conversation.go_on(served, &mut counts, messages);
        counts.connections += 1;
        let seen = &conversation.peer.seen;
        counts.returns += seen.returns;
        counts.calls += seen.calls;
        counts.resolves += seen.resolves;
        counts.reflected += seen.reflected;
        counts.disembargoes += seen.disembargoes;
        let without_numbers = |reason: &str| reason.replace(|c: char| c.is_ascii_digit(), "");
        if let Some(reason) = &seen.abort {
            *counts.refused.entry(without_numbers(reason)).or_default() += 1;
        }
        for (reason, count) in &seen.errors {
            *counts.errors.entry(without_numbers(reason)).or_default() += count;
        }
    }
    counts
}

struct Conversation {
    stream: TcpStream,
    peer: Peer,
    /// The received bytes that aren't parsed yet.
    received: Vec<u8>,
}

/// The behaviour of the server after a batch.
#[derive(PartialEq, Eq)]
enum After {
    Synced,
    Ended,
    Stuck,
}

impl Conversation {
    fn begin(served: &Served, random: Random) -> Self {
        let stream = raw::dial(served);
        stream.set_nodelay(true).expect("TCP has it");
        stream.set_read_timeout(Some(PATIENCE)).expect("it isn't zero");
        stream.set_write_timeout(Some(PATIENCE)).expect("it isn't zero");
        Self { stream, peer: Peer::new(random), received: Vec::new() }
    }

    fn go_on(&mut self, served: &Served, counts: &mut Counts, messages: u64) {
        let mut batch: Vec<u8> = Vec::new();
        let beginning = self.peer.begin(&served.announced.namespaces["Fuzzed"]);
        let mut count = beginning.len() as u64;
        batch.extend(beginning.iter().flat_map(raw::serialized));
        loop {
            for _ in 0..self.peer.random.below(BATCH) {
                let message = self.peer.plausible();
                serialize::write_message(&mut batch, &message).expect("memory takes it");
                count += 1;
            }
            let after = self.say(&batch);
            counts.stuck += u64::from(after == After::Stuck);
            if after != After::Synced {
                counts.unread += count;
                return;
            }
            counts.read += count + 1;
            (count, batch) = (0, Vec::new());
            if counts.read >= messages || self.peer.random.below(GONE_IN) == 0 {
                return;
            }
            if self.peer.random.below(BROKEN_IN) == 0 {
                // Everything before it was read, so the broken message is read too.
                batch = broken(&mut self.peer);
                counts.read += 1;
                if self.peer.random.below(2) == 0 {
                    return self.last_words(&batch);
                }
            }
        }
    }

    /// Writes a batch, and waits until the server has processed it.
    fn say(&mut self, batch: &[u8]) -> After {
        let (sync, call) = self.peer.sync();
        if self.stream.write_all(&[batch, &raw::serialized(&sync)].concat()).is_err() {
            self.hear_to_the_end();
            return After::Ended;
        }
        let mut room = [0; 16 << 10];
        while self.peer.open.iter().any(|asked| asked.id == call) {
            match self.stream.read(&mut room) {
                Ok(0) => return After::Ended,
                Ok(length) => self.hear(&room[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return After::Stuck,
                Err(_) => return After::Ended,
            }
        }
        After::Synced
    }

    /// Sends a broken message, and nothing after it.
    fn last_words(&mut self, bytes: &[u8]) {
        if self.stream.write_all(bytes).is_ok() && self.stream.shutdown(Shutdown::Write).is_ok() {
            self.hear_to_the_end();
        }
    }

    fn hear_to_the_end(&mut self) {
        let mut rest = Vec::new();
        // A reset counts as the end, too.
        let _ = self.stream.read_to_end(&mut rest);
        self.hear(&rest);
    }

    fn hear(&mut self, bytes: &[u8]) {
        self.received.extend(bytes);
        let mut rest = &self.received[..];
        while let Ok(message) = serialize::read_message_from_flat_slice(&mut rest, options()) {
            let root = message.get_root::<message::Reader>().expect("the server's are messages");
            self.peer.learn(root).expect("what the server says can be read");
        }
        let used = self.received.len() - rest.len();
        self.received.drain(..used);
    }
}

fn options() -> ReaderOptions {
    ReaderOptions::new()
}

/// The durations of an honest client's reads, in one phase.
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The duration that `percent` of the reads didn't exceed.
    pub(crate) fn percentile(&mut self, percent: usize) -> Duration {
        self.0.sort_unstable();
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }
}

/// Reads a counter of its own, one call at a time, until it is told to stop; checks every answer.
pub(crate) fn honest(served: &Served, name: &str, stop: &AtomicBool) -> Latencies {
    let (took, calls) = (Cell::new(Vec::new()), Cell::new(0_u64));
    run(async {
        let (_connection, counters) = connect(served).await;
        let counter = by_name(&counters, name);
        let mut value = read(&counter).await.expect("a counter is read");
        let mut reads = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            calls.set(calls.get() + 1);
            if calls.get() % 16 == 0 {
                value += 1;
                assert_eq!(increment(&counter).await.expect("it counts"), value);
            }
            let start = now();
            assert_eq!(read(&counter).await.expect("a counter is read"), value);
            reads.push(start.elapsed());
        }
        took.set(reads);
    });
    Latencies(took.into_inner())
}

/// Answers every call.
struct Answers;

impl client_request_context::Server for Answers {
    async fn start_response(
        self: Rc<Self>,
        _: client_request_context::StartResponseParams,
        _: client_request_context::StartResponseResults,
    ) -> capnp::Result<()> {
        Ok(())
    }
}

/// Tells whether the fuzzed server serves other clients: takes their calls, and calls them.
pub(crate) fn serves(served: &Served, name: &str) -> bool {
    asks(served, name, "/call")
}

/// Tells whether the object answers an honest client's request for that URL.
pub(crate) fn asks(served: &Served, name: &str, url: &str) -> bool {
    run(async {
        let connection = Connection::dial(&served.announced.capnp).await.expect("it is reached");
        let objects: namespace::Client = connection
            .restore(&served.announced.namespaces["Fuzzed"])
            .expect("it can be asked for");
        let mut object = objects.by_name_request();
        object.get().set_key(name);
        let object: http_service::Client = object.send().pipeline.get_object().as_cap().cast_to();
        let mut request = object.request_request();
        request.get().init_request().set_url(url);
        request.get().set_context(capnp_rpc::new_client(Answers));
        let answered = tokio::time::timeout(5 * PATIENCE, request.send().promise).await;
        let answered = answered.map(|answer| answer.map(drop));
        let is_well = matches!(answered, Ok(Ok(())));
        if !is_well {
            eprintln!("{name} says {answered:?}");
        }
        is_well
    })
}
