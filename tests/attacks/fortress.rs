//! A server under attack, with little memory, and the honest client that uses it meanwhile.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use crate::support::calls::{by_name, connect, increment, run};
use crate::support::{Process, Served, now, scratch, serve_command};

/// The memory limit of the server, like that of a container: 1 GiB, in KiB.
const DATA_KIB: &str = "1048576";

/// One in a hundred honest calls may take longer.
const P99_MAX: Duration = Duration::from_millis(250);

/// One attack at a time: the honest client of one would measure the other, too.
static ONE: Mutex<()> = Mutex::new(());

/// The number of times that an attack is made, because honest calls were slow. A machine that
/// others use may stall for a moment; a server that doesn't withstand is slow every time.
const TRIES: usize = 3;

/// Starts a server with little memory, and runs `attack` while an honest client makes durable
/// increments.
///
/// The test passes if no honest call failed or was slow, and the server ended in order.
pub(crate) fn withstands(args: &[&str], attack: impl Fn(&Served)) {
    withstands_with(None, args, |served, _| attack(served));
}

/// As [`withstands`], with a limit of open files; the attack gets the path of the data.
pub(crate) fn withstands_with(files: Option<u64>, args: &[&str], attack: impl Fn(&Served, &Path)) {
    let all = [&["--json", "--metrics", "127.0.0.1:0"], args].concat();
    let serve = |data: &Path| with_little(&serve_command(data, &all), files);
    withstands_started(serve, P99_MAX, attack);
}

/// As [`withstands`], for a server other than the command's.
pub(crate) fn withstands_from(serve: impl Fn(&Path) -> Command, attack: impl Fn(&Served)) {
    survives_from(serve, P99_MAX, attack);
}

/// As [`withstands_from`], where an honest call may take up to `p99_max`.
pub(crate) fn survives_from(
    serve: impl Fn(&Path) -> Command,
    p99_max: Duration,
    attack: impl Fn(&Served),
) {
    let serve = |data: &Path| with_little(&serve(data), None);
    withstands_started(serve, p99_max, |served, _| attack(served));
}

fn withstands_started(
    serve: impl Fn(&Path) -> Command,
    p99_max: Duration,
    attack: impl Fn(&Served, &Path),
) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut slow = Vec::new();
    while slow.len() < TRIES {
        match attacked(&serve, &attack) {
            p99 if p99 < p99_max => return,
            p99 => slow.push(p99),
        }
    }
    panic!("one honest call in a hundred took {slow:?} or longer");
}

/// Attacks a new server once; returns the percentile of the honest calls' times.
fn attacked(serve: &impl Fn(&Path) -> Command, attack: &impl Fn(&Served, &Path)) -> Duration {
    let (_folder, data) = scratch();
    let served = Served::ready(Process::start(serve(&data)));
    let (is_over, served_ref) = (AtomicBool::new(false), &served);
    let took = std::thread::scope(|scope| {
        let (begun, begins) = mpsc::channel();
        let honest = scope.spawn(|| run(be_honest(served_ref, &is_over, begun)));
        // The client is connected before the attack can take all places. A failure shows at its
        // end.
        let _ = begins.recv();
        let attacked =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| attack(served_ref, &data)));
        is_over.store(true, Ordering::Relaxed);
        let took = honest.join().expect("the honest client comes to its end");
        attacked.expect("the attack is as it was meant");
        took
    });
    let (code, _, says) = served.stop();
    assert_eq!(code, Some(0), "{says}");
    p99(took)
}

/// The same command in a process with limited memory and open files.
fn with_little(command: &Command, files: Option<u64>) -> Command {
    let mut limited = Command::new("sh");
    limited.args(["-c", r#"ulimit -d "$0" && ulimit -n "$1" && shift && exec "$@""#, DATA_KIB]);
    let files = files.or(getrlimit(Resource::Nofile).maximum);
    limited.arg(files.map_or("unlimited".to_owned(), |files| files.to_string()));
    limited.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited.stdin(std::process::Stdio::null());
    limited
}

/// The counters of the honest client: with several hosts they are on different hosts.
pub(crate) const COUNTERS: usize = 4;

/// Makes one durable increment after the other; returns the time of each.
async fn be_honest(served: &Served, is_over: &AtomicBool, begun: Sender<()>) -> Vec<Duration> {
    let (_connection, counters) = connect(served).await;
    let counters: Vec<_> =
        (0..COUNTERS).map(|n| by_name(&counters, &format!("honest {n}"))).collect();
    for counter in &counters {
        assert_eq!(increment(counter).await.expect("an honest call succeeds"), 1);
    }
    // The receiver is gone if the attack failed to begin.
    let _ = begun.send(());
    let mut took = Vec::new();
    while !is_over.load(Ordering::Relaxed) || took.len() < 300 {
        let began = now();
        let counter = &counters[took.len() % COUNTERS];
        let value = increment(counter).await.expect("an honest call succeeds");
        assert_eq!(usize::try_from(value), Ok(took.len() / COUNTERS + 2), "each counts once");
        took.push(began.elapsed());
    }
    took
}

fn p99(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    let p99 = took[took.len() * 99 / 100];
    eprintln!("of {} honest calls one in a hundred took {p99:?} or longer", took.len());
    p99
}
