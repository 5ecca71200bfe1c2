//! The lab `kill`: a server under load is killed at random moments, again and again.
//!
//! Several clients call several counters and record the results. After each death the next server
//! must start soon, and the counters are read. In the end one order of all calls, over all lives of
//! the server, must explain every result. Some lives apply their log all the time, some seconds
//! later, some never, and in some so little may wait that calls keep waiting for the applier.

use std::rc::Rc;
use std::time::Duration;

use futures::future::join_all;

use crate::lab::{Found, ensure};
use crate::load::{Recorder, load};
use crate::options::Tier;
use crate::support::calls::{connect, run as run_calls};
use crate::support::random::Random;
use crate::support::{Served, now, scratch, serve_with};

const CYCLES: usize = 100;
const CLIENTS: usize = 4;
const COUNTERS: usize = 3;
/// The backlogs of the lives of the server, in turn: applied at once, as usual, seconds later,
/// never, and with so little room, and so slowly, that calls keep waiting for it.
const BACKLOGS: [&[&str]; 5] = [
    &["--log-backlog", "64KiB", "--log-age", "1ms"],
    &[],
    &["--log-age", "3s"],
    &["--log-age", "1h"],
    &["--log-backlog", "32KiB", "--log-age", "1h", "--apply-delay", "5"],
];
/// The limit for the second slowest of a hundred starts.
const RESTART: Duration = Duration::from_secs(2);

pub(crate) fn run(_tier: Tier, seed: u64) -> Found {
    let mut random = Random::from_seed(seed);
    let names: Vec<String> = (0..COUNTERS).map(|number| format!("counter-{number}")).collect();
    let (_folder, data) = scratch();
    let recorder = Recorder::new();
    let mut served = serve_with(&data, &[]);
    let mut restarts = Vec::new();
    for cycle in 0..CYCLES {
        run_calls(live_and_die(&mut served, &recorder, &names, &mut random));
        let died = now();
        served = serve_with(&data, BACKLOGS[cycle % BACKLOGS.len()]);
        restarts.push(died.elapsed());
        run_calls(recorder.read(&served, &names));
    }
    let mut counts = recorder.check("kill")?;
    restarts.sort();
    let restart = restarts[CYCLES * 99 / 100 - 1];
    ensure(restart < RESTART, || format!("it took {restart:?} to start again after a death"))?;
    let (acknowledged, unknown) = (counts["acknowledged"], counts["unknown"]);
    ensure(acknowledged > 2_000, || format!("there was no load: only {acknowledged} calls"))?;
    ensure(unknown >= CYCLES as u64, || {
        format!("only {unknown} calls were hit by {CYCLES} kills")
    })?;
    counts.insert("cycles", CYCLES as u64);
    counts.insert("restart_p99_ms", u64::try_from(restart.as_millis()).expect("it was short"));
    Ok(counts)
}

/// One life of the server: load, and death.
async fn live_and_die(
    served: &mut Served,
    recorder: &Rc<Recorder>,
    names: &[String],
    random: &mut Random,
) {
    let connections = join_all((0..CLIENTS).map(|_| connect(served))).await;
    let seeds: Vec<u64> = (0..CLIENTS).map(|_| random.below(u64::MAX)).collect();
    let clients = connections.iter().zip(seeds);
    let clients = clients.map(|((_connection, counters), seed)| {
        load(counters, recorder, names, Random::from_seed(seed))
    });
    let (acknowledged, later) =
        (recorder.acknowledged() + random.below(1_000), random.below(3_000));
    let die = async {
        recorder.reaches(acknowledged).await;
        tokio::time::sleep(Duration::from_micros(later)).await;
        served.kill();
    };
    futures::join!(join_all(clients), die);
}
