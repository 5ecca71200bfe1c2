//! The lab `inject`, second part: a whole server dies or gets an error at a write or sync of its
//! log or of LMDB's file.
//!
//! Clients call its counters meanwhile. After an error no reply may come that isn't durable; the
//! server must exit with code 3 soon, and the next one must have everything that was acknowledged.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use futures::future::join_all;

use crate::inject::paths;
use crate::inject_judge::{Files, stopped};
use crate::lab::{Counts, Found, ensure, quick_scratch};
use crate::load::{Recorder, load};
use crate::options::Tier;
use crate::strace::{How, finished, under};
use crate::support::calls::{connect, run as run_calls};
use crate::support::random::Random;
use crate::support::{Process, Served, now, serve, serve_command};

const CLIENTS: usize = 3;
const COUNTERS: usize = 2;
/// The time in which a server whose storage failed must have ended.
const EXIT: Duration = Duration::from_secs(5);
const FAULTS: [(Files, &str); 9] = [
    (Files::Log, "fdatasync:error=EIO"),
    (Files::Log, "fdatasync:error=ENOSPC"),
    (Files::Log, "fdatasync:signal=SIGKILL"),
    (Files::Log, "pwrite64:signal=SIGKILL"),
    (Files::Data, "fdatasync:error=EIO"),
    (Files::Data, "pwrite64:error=EIO"),
    (Files::Data, "writev:error=ENOSPC"),
    (Files::Data, "pwrite64:signal=SIGKILL"),
    (Files::Data, "fdatasync:error=ENOSPC"),
];
/// Entries are applied soon, so that both files are busy.
const ARGUMENTS: [&str; 5] = ["--json", "--log-age", "1ms", "--log-backlog", "64KiB"];

pub(crate) fn run(tier: Tier, seed: u64) -> Found {
    let mut random = Random::from_seed(seed);
    let mut counts = Counts::new();
    for _ in 0..tier.pick(1, 20) {
        for (files, fault) in FAULTS {
            // The first few calls come before the server is ready.
            let what = format!("{fault}:when={}", 5 + random.below(tier.pick(40, 200)));
            let more = one(files, &what, &mut random)
                .map_err(|error| format!("serve, {what}: {error}"))?;
            crate::lab::add(&mut counts, more);
        }
    }
    Ok(counts)
}

fn one(files: Files, what: &str, random: &mut Random) -> Found {
    let folder = quick_scratch();
    let data = folder.path().join("data");
    drop(serve(&data).stop());
    let recorder = Recorder::new();
    let names: Vec<String> = (0..COUNTERS).map(|number| format!("counter-{number}")).collect();
    fail((files, what), &data, folder.path(), &recorder, &names, random)?;
    let served = serve(&data);
    run_calls(recorder.read(&served, &names));
    let mut counts = recorder.check("inject")?;
    counts.insert("faults of servers", 1);
    Ok(counts)
}

/// One life of the server, up to the fault.
fn fail(
    (files, what): (Files, &str),
    data: &Path,
    folder: &Path,
    recorder: &Rc<Recorder>,
    names: &[String],
    random: &mut Random,
) -> Result<(), String> {
    let (trace, paths) = (folder.join("trace"), paths(&data.join("host-0"), files));
    let how = How::Inject { what: what.to_owned(), files: &paths };
    let served =
        Served::ready(Process::start(under(&how, &trace, &serve_command(data, &ARGUMENTS))));
    run_calls(async {
        let connections = join_all((0..CLIENTS).map(|_| connect(&served))).await;
        let seeds: Vec<u64> = (0..CLIENTS).map(|_| random.below(u64::MAX)).collect();
        let clients = connections.iter().zip(seeds).map(|((_connection, counters), seed)| {
            load(counters, recorder, names, Random::from_seed(seed))
        });
        join_all(clients).await;
    });
    let broken = now();
    let (code, _, stderr) = served.wait();
    let trace = finished(&trace);
    if what.contains("SIGKILL") {
        return ensure(code.is_none(), || format!("it was not killed but ended with {code:?}"));
    }
    ensure(code == Some(3), || format!("it ended with {code:?} and not with code 3: {stderr}"))?;
    let slow = broken.elapsed();
    ensure(slow < EXIT, || format!("it was there for {slow:?} after its storage had failed"))?;
    let says_so = stderr.lines().last().is_some_and(|line| line.starts_with("capstead: "));
    ensure(says_so, || format!("it did not say why it ended: {stderr}"))?;
    stopped(files, &trace)
}
