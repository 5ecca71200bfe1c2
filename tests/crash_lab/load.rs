//! Clients of counters that record all their calls and results.
//!
//! A call is recorded when it has ended, in whatever way. A client ends with its connection, and
//! then doesn't know whether its open calls happened.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::future::Future;
use std::rc::Rc;
use std::time::Instant;

use capnp::ErrorKind;
use capstead::counter_capnp::counter;
use capstead_client::namespace;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;

use crate::history::{Call, Operation, Outcome};
use crate::lab::{Counts, evidence};
use crate::linearizable::{SEARCH_MAX, check, search};
use crate::support::calls::{by_name, connect};
use crate::support::random::Random;
use crate::support::{Served, now};

/// Calls of one client under way at a time.
const IN_FLIGHT: usize = 16;
const INCREMENT_MAX: u64 = 3;

/// All calls and results, by counter.
#[derive(Debug)]
pub(crate) struct Recorder {
    start: Instant,
    histories: RefCell<BTreeMap<String, Vec<Operation>>>,
    clients: Cell<u32>,
    acknowledged: Cell<u64>,
    one_more: Notify,
    /// An answer that no caller may ever get.
    strange: RefCell<Option<String>>,
}

impl Recorder {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            start: now(),
            histories: RefCell::default(),
            clients: Cell::default(),
            acknowledged: Cell::default(),
            one_more: Notify::new(),
            strange: RefCell::default(),
        })
    }

    /// A number for a new client.
    pub(crate) fn client(&self) -> u32 {
        self.clients.set(self.clients.get() + 1);
        self.clients.get()
    }

    /// The number of calls that returned.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.get()
    }

    /// Resolves when this number of calls has returned.
    pub(crate) async fn reaches(&self, acknowledged: u64) {
        while self.acknowledged.get() < acknowledged {
            self.one_more.notified().await;
        }
    }

    /// Makes the call at once, records its end, and returns its outcome.
    pub(crate) fn call(
        self: &Rc<Self>,
        client: u32,
        name: &str,
        counter: &counter::Client,
        call: Call,
    ) -> impl Future<Output = Outcome> + use<> {
        let (this, name, invoked) = (self.clone(), name.to_owned(), self.time());
        let answer = answer(counter, call);
        async move {
            let outcome = match answer.await {
                Ok(value) => Outcome::Ok { value, returned: this.time() },
                Err(error) if error.kind == ErrorKind::Disconnected => Outcome::Unknown,
                Err(error) if error.kind == ErrorKind::Overloaded => Outcome::Failed,
                Err(error) => {
                    *this.strange.borrow_mut() = Some(format!("a caller was told: {error}"));
                    Outcome::Unknown
                }
            };
            this.record(name, Operation { client, call, invoked, outcome });
            outcome
        }
    }

    /// Reads these counters over a new connection; the values become part of the history.
    pub(crate) async fn read(self: &Rc<Self>, served: &Served, names: &[String]) {
        let (_connection, counters) = connect(served).await;
        let client = self.client();
        for some in names.chunks(IN_FLIGHT) {
            let reads = some
                .iter()
                .map(|name| self.call(client, name, &by_name(&counters, name), Call::Read));
            futures::future::join_all(reads).await;
        }
    }

    /// Checks that one order of all calls explains the results. If not, the history is kept in a
    /// file.
    pub(crate) fn check(&self, lab: &str) -> Result<Counts, String> {
        if let Some(strange) = self.strange.borrow().clone() {
            return Err(strange);
        }
        let mut counts = Counts::new();
        for (name, history) in self.histories.borrow().iter() {
            judge(history).map_err(|error| {
                let file = evidence(&format!("{lab}-history.jsonl"));
                let mut lines = String::new();
                for operation in history {
                    let _ = writeln!(lines, "{}", operation.json(name));
                }
                fs::write(&file, lines).expect("the history is written");
                format!("counter {name}: {error}; its history is in {}", file.display())
            })?;
            for operation in history {
                let name = match operation.outcome {
                    Outcome::Ok { .. } => "acknowledged",
                    Outcome::Failed => "refused",
                    Outcome::Unknown => "unknown",
                };
                *counts.entry(name).or_default() += 1;
            }
        }
        Ok(counts)
    }

    fn record(&self, name: String, operation: Operation) {
        if matches!(operation.outcome, Outcome::Ok { .. }) {
            self.acknowledged.set(self.acknowledged.get() + 1);
            self.one_more.notify_one();
        }
        self.histories.borrow_mut().entry(name).or_default().push(operation);
    }

    fn time(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).expect("a lab ends within centuries")
    }
}

/// Calls these counters, with several calls under way at a time, until the connection breaks.
pub(crate) async fn load(
    counters: &namespace::Client,
    recorder: &Rc<Recorder>,
    names: &[String],
    mut random: Random,
) {
    let client = recorder.client();
    let counters: Vec<_> = names.iter().map(|name| (name, by_name(counters, name))).collect();
    let mut in_flight = FuturesUnordered::new();
    let mut is_connected = true;
    loop {
        while is_connected && in_flight.len() < IN_FLIGHT {
            let (name, counter) = &counters[random.below(counters.len() as u64) as usize];
            let by = 1 + i64::try_from(random.below(INCREMENT_MAX)).expect("it is small");
            let call = if random.below(5) == 0 { Call::Read } else { Call::Increment(by) };
            in_flight.push(recorder.call(client, name, counter, call));
        }
        match in_flight.next().await {
            Some(outcome) => is_connected &= outcome != Outcome::Unknown,
            None => return,
        }
    }
}

/// Runs both judges on a small history, and only the quick one on a larger one; then checks the
/// order of each client's calls, which all use one stub for each counter.
fn judge(history: &[Operation]) -> Result<(), String> {
    in_order(history)?;
    check(history)?;
    if history.len() <= SEARCH_MAX / 8 { search(history) } else { Ok(()) }
}

/// Calls on one stub happen in the order in which they were made.
fn in_order(history: &[Operation]) -> Result<(), String> {
    let mut history = history.to_vec();
    history.sort_by_key(|operation| operation.invoked);
    let mut last = BTreeMap::new();
    for Operation { client, call, outcome, .. } in history {
        let Outcome::Ok { value, .. } = outcome else { continue };
        let before = last.insert(client, value).unwrap_or(0);
        let is_later = if call == Call::Read { value >= before } else { value > before };
        if !is_later {
            return Err(format!("client {client} was told {value} by a call after {before}"));
        }
    }
    Ok(())
}

fn answer(
    counter: &counter::Client,
    call: Call,
) -> impl Future<Output = capnp::Result<i64>> + use<> {
    let (mut increment, mut read) = (None, None);
    match call {
        Call::Increment(by) => {
            let mut request = counter.increment_request();
            request.get().set_by(by);
            increment = Some(request.send().promise);
        }
        Call::Read => read = Some(counter.read_request().send().promise),
    }
    async move {
        match (increment, read) {
            (Some(sent), _) => Ok(sent.await?.get()?.get_value()),
            (None, Some(sent)) => Ok(sent.await?.get()?.get_value()),
            (None, None) => unreachable!("each call is one of the two"),
        }
    }
}
