//! Calls with request ids, on a server that is killed with `kill -9` at random moments.
//!
//! The server is this very binary, started again: it serves a class of its own, whose handler takes
//! three turns. Seeds are printed.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use crate::support::calls::{by_name, connect_to, run};
use crate::support::random::Random;
use crate::support::{Process, Served, own, scratch};
use capstead::counter_capnp::counter;
use capstead::http::http_service;
use capstead::{Context, Object, Result, Server, Stored, failed};
use capstead_client::{Connection, once, request_id};
use futures::future::join_all;

const KILLS: usize = 60;
const OBJECTS: usize = 4;
/// Calls on each object; each has its own digit in the sum of a step.
const CALLS: usize = 3;
const DIGIT_BITS: usize = 20;

/// Counts in three turns, each of which is durable before the next one.
struct Steps {
    ctx: Context,
    sums: [Stored<i64>; 3],
}

impl Object for Steps {
    const CLASS: &'static str = "Steps";
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        let sums = [ctx.stored("a")?, ctx.stored("b")?, ctx.stored("c")?];
        Ok(Self { ctx, sums })
    }
}

impl counter::Server for Steps {
    async fn increment(
        self: Rc<Self>,
        params: counter::IncrementParams,
        mut results: counter::IncrementResults,
    ) -> Result<()> {
        let by = params.get()?.get_by();
        let [first, second, third] = &self.sums;
        first.set(first.get() + by)?;
        self.ctx.storage().sync().await?;
        second.set(second.get() + by)?;
        self.ctx.storage().sync().await?;
        third.set(third.get() + by)?;
        results.get().set_value(third.get());
        Ok(())
    }

    /// Returns the sum of the step with the number `by`; it subtracts nothing.
    async fn decrement(
        self: Rc<Self>,
        params: counter::DecrementParams,
        mut results: counter::DecrementResults,
    ) -> Result<()> {
        let step =
            usize::try_from(params.get()?.get_by()).ok().and_then(|step| self.sums.get(step));
        results.get().set_value(step.ok_or_else(|| failed("there are three steps"))?.get());
        Ok(())
    }
}

impl http_service::Server for Steps {}

#[test]
fn a_server_of_steps_for_the_other_tests() {
    let Some(data) = own::data() else { return };
    own::serve(Server::new(data).class::<Steps>().commit_delay(Duration::from_millis(1)));
}

fn start(data: &Path) -> Served {
    Served::ready(Process::start(own::program("once::a_server_of_steps_for_the_other_tests", data)))
}

/// A new connection, and the object of that name.
async fn object(served: &Served, name: &str) -> (Connection, counter::Client) {
    let (connection, objects) = connect_to(served, "Steps").await;
    (connection, by_name(&objects, name))
}

/// One call, from its caller's view.
struct Call {
    object: String,
    digit: usize,
    id: [u8; 16],
    told: Told,
}

/// The last answer to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Reply(i64),
    Unknown,
}

impl Call {
    /// Makes the call, for the first time or again.
    async fn make(&mut self, served: &Served, wait: Duration) {
        tokio::time::sleep(wait).await;
        let (_connection, object) = object(served, &self.object).await;
        let mut request = once(&object, &self.id).increment_request();
        request.get().set_by(1 << (self.digit * DIGIT_BITS));
        let reply = request.send().promise.await;
        let told = match reply.and_then(|reply| Ok(reply.get()?.get_value())) {
            Ok(value) => Told::Reply(value),
            Err(error) if error.kind == capnp::ErrorKind::Disconnected => return,
            Err(error) if error.extra.contains("unknown: ") => Told::Unknown,
            Err(error) => panic!("{error}"),
        };
        let (id, before) = (self.id, self.told);
        assert!(before == Told::Nothing || before == told, "{id:?}: {before:?}, then {told:?}");
        self.told = told;
    }

    /// The number of times that each step of the call was taken.
    async fn steps(&self, served: &Served) -> [i64; 3] {
        let (_connection, object) = object(served, &self.object).await;
        let mut taken = [0; 3];
        for (step, taken) in taken.iter_mut().enumerate() {
            let mut request = object.decrement_request();
            request.get().set_by(i64::try_from(step).unwrap());
            let sum = request.send().promise.await.unwrap().get().unwrap().get_value();
            *taken = sum >> (self.digit * DIGIT_BITS) & ((1 << DIGIT_BITS) - 1);
        }
        taken
    }
}

/// Makes all calls, and kills the server meanwhile.
async fn make_and_kill(served: &mut Served, calls: &mut [Call], random: &mut Random) {
    /// The approximate time of a call's three steps, so that kills come before, within and after
    /// them.
    const WHILE: u64 = 16_000;
    let mut moments = |count| -> Vec<Duration> {
        (0..count).map(|_| Duration::from_micros(random.below(WHILE))).collect()
    };
    let (waits, kill) = (moments(calls.len()), moments(1)[0]);
    // A caller that starts after the kill finds no server, and makes no call.
    let calls = calls.iter_mut().zip(waits).filter(|(_, wait)| *wait < kill);
    let connected: &Served = served;
    let made = join_all(calls.map(|(call, wait)| call.make(connected, wait)));
    let _ = tokio::time::timeout(kill, made).await;
    served.kill();
}

async fn round(data: &Path, number: usize, random: &mut Random) -> Vec<Told> {
    let calls = (0..OBJECTS * CALLS).map(|call| Call {
        object: format!("{number}/{}", call / CALLS),
        digit: call % CALLS,
        id: request_id().unwrap(),
        told: Told::Nothing,
    });
    let mut calls: Vec<Call> = calls.collect();
    for _ in 0..2 {
        make_and_kill(&mut start(data), &mut calls, random).await;
    }
    let served = start(data);
    // The second round asks for the replies that the first one stored.
    for _ in 0..2 {
        join_all(calls.iter_mut().map(|call| call.make(&served, Duration::ZERO))).await;
    }
    for call in &calls {
        let steps = call.steps(&served).await;
        match call.told {
            Told::Reply(_) => assert_eq!(steps, [1, 1, 1], "{}: a reply", call.object),
            Told::Unknown => assert!(
                steps == [1, 0, 0] || steps == [1, 1, 0],
                "{}: unknown, after the steps {steps:?}",
                call.object
            ),
            Told::Nothing => panic!("{}: a server that isn't killed answers", call.object),
        }
    }
    calls.iter().map(|call| call.told).collect()
}

// Every call is retried with its id until there is a reply or the answer `unknown`. It is never
// applied twice, the same reply is given again, and `unknown` means that it was applied in part.
#[test]
fn retried_calls_are_applied_once_whenever_the_server_is_killed() {
    let mut random = Random::from_printed_seed();
    let (_folder, data) = scratch();
    let mut told = Vec::new();
    for number in 0..KILLS / 2 {
        told.extend(run(round(&data, number, &mut random)));
    }
    let unknown = told.iter().filter(|told| **told == Told::Unknown).count();
    eprintln!("{KILLS} kills, {} calls, {unknown} of them unknown", told.len());
    assert!(unknown > 0 && unknown < told.len(), "kills fell between the steps, and beside them");
}
