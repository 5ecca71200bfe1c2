//! The lab `full`: a disk that is really full, and then has room again.
//!
//! A small file system is filled, by the storage alone and by a server. When nothing more fits,
//! every acknowledged write must be there, and the process must have ended with code 3 or refuse
//! calls. Once there is room again everything must still be there, and writes and deletions must
//! work.
//!
//! A server with a reserve refuses growth before that. Writes that grow nothing go on then, however
//! many there are, and even when another program has taken the reserve; and so do deletions.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use capstead_client::facet_capnp::facet;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tempfile::TempDir;

use crate::checker::Checker;
use crate::history::{Call, Outcome};
use crate::lab::{Counts, Found, add, ensure, quick_scratch, runs};
use crate::load::Recorder;
use crate::options::Tier;
use crate::support::calls::{by_name, connect, revoke, run as run_calls, save};
use crate::support::random::Random;
use crate::support::{Process, Served, serve_with};
use crate::writer::{End, IN_FLIGHT, Log, Script, acknowledged};

/// Enough to fill a few megabytes before all of them are written.
const KEYS: u64 = 4_000;
const TURNS: u64 = 100_000;
const SIZE_KIB: u64 = 16_384;
/// The size of the file beside the data that is removed to make room. A log that was not applied at
/// all may fill the rest, and small new objects take thrice as much when it is.
const BALLAST_KIB: u64 = 13_056;
/// Calls of the client under way at a time.
const CALLS: usize = 64;
/// The size of the disk of a server with a reserve, which is for the log, too.
const RESERVED_KIB: u64 = 18_432;
const RESERVE: [&str; 2] = ["--reserve", "2MiB"];
/// Writes that grow nothing, of which each entry has a few: their log is several times as long as
/// the disk.
const OVERWRITES: u64 = 20_000;
/// Grants that are revoked in each state of the disk, each of which deletes a record.
const REVOKED: usize = 20;
/// The states of the disk of a server with a reserve, in their order.
const STATES: [&str; 3] = ["it refuses growth", "the disk is full", "it started on a full disk"];
/// The counter with the grants.
const SHARED: &str = "shared";

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Memory,
    Ext4,
}

/// Fills a disk, given a seed.
type Fill = fn(&Disk, u64) -> Found;

pub(crate) fn run(tier: Tier, seed: u64) -> Found {
    let kinds: &[Kind] = tier.pick(&[Kind::Memory], &[Kind::Memory, Kind::Ext4]);
    let mut counts = Counts::new();
    for kind in kinds {
        let fills: [(u64, Fill); 3] =
            [(SIZE_KIB, fill_storage), (SIZE_KIB, fill_server), (RESERVED_KIB, overwrite)];
        for (size_kib, fill) in fills {
            let disk = Disk::new(*kind, size_kib);
            let more = fill(&disk, seed).map_err(|error| format!("{kind:?}: {error}"))?;
            add(&mut counts, more);
            *counts.entry("full disks").or_default() += 1;
        }
    }
    Ok(counts)
}

/// A small file system that stays mounted until this is dropped.
#[derive(Debug)]
struct Disk {
    path: PathBuf,
    /// Unmounted before the folder is removed: see `drop`.
    _folder: TempDir,
}

impl Disk {
    fn new(kind: Kind, size_kib: u64) -> Self {
        let folder = quick_scratch();
        let path = folder.path().join("disk");
        fs::create_dir(&path).expect("a folder");
        let (at, size) = (path.display().to_string(), format!("size={size_kib}k"));
        match kind {
            Kind::Memory => must("mount", &["-t", "tmpfs", "-o", &size, "crash-lab", &at]),
            Kind::Ext4 => {
                let image = folder.path().join("ext4");
                let file = File::create(&image).expect("a file");
                file.set_len(size_kib * 1_024).expect("a file can be sparse");
                let image = image.display().to_string();
                must("mkfs.ext4", &["-q", "-O", "^has_journal", "-m", "0", &image]);
                must("mount", &["-o", "loop", &image, &at]);
            }
        }
        let disk = Self { path, _folder: folder };
        let ballast = vec![1; usize::try_from(BALLAST_KIB * 1_024).expect("it is small")];
        fs::write(disk.ballast(), ballast).expect("there is room for the ballast");
        disk
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Takes all that is left, as another program may.
    fn fill(&self) {
        let ballast = OpenOptions::new().append(true).open(self.ballast());
        let mut ballast = ballast.expect("the ballast is there");
        while ballast.write_all(&[1; 4_096]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.ballast()).expect("the ballast is there");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let path = self.path.display().to_string();
        // A process that was just killed may hold it for another moment.
        let _ = runs("umount", &[&path]) || runs("umount", &["-l", &path]);
    }
}

fn must(program: &str, args: &[&str]) {
    assert!(runs(program, args), "{program} {args:?} failed");
}

/// The storage alone: turns until the disk is full, and more of them once there is room.
fn fill_storage(disk: &Disk, seed: u64) -> Found {
    let script = Script { seed, keys: KEYS };
    let environment = disk.path.join("e");
    script.make(&environment, 0, Log::Usual, End::InOrder);
    let mut process = Process::start(script.write(&environment, TURNS, Log::Usual));
    let status = process.wait();
    let (acknowledged, stderr) = (acknowledged(&process.stdout()), process.stderr());
    ensure(status.code() == Some(3), || format!("a full disk ended it with {status}: {stderr}"))?;
    ensure(stderr.lines().count() == 1, || format!("standard error is no sentence: {stderr}"))?;
    disk.make_room();
    let mut checker = Checker::new(script.arguments());
    let applied = checker.look(&environment)?;
    ensure((acknowledged..=acknowledged + IN_FLIGHT).contains(&applied), || {
        format!("turn {acknowledged} was the last one acknowledged, and {applied} turns are there")
    })?;
    // This many turns include deletions.
    let more = applied + 100;
    let mut process = Process::start(script.write(&environment, more, Log::Usual));
    let status = process.wait();
    ensure(status.success(), || format!("with room it ended with {status}: {}", process.stderr()))?;
    let applied = checker.look(&environment)?;
    ensure(applied == more, || format!("it went on to turn {more}, and {applied} are there"))?;
    Ok(Counts::from([("acknowledged", acknowledged)]))
}

/// A server: new counters until it ends or refuses, and then a read of each once there is room.
fn fill_server(disk: &Disk, _seed: u64) -> Found {
    let data = disk.path.join("data");
    let served = serve_with(&data, &["--reserve", "0"]);
    let recorder = Recorder::new();
    let names = run_calls(new_counters(&served, &recorder));
    let before = recorder.check("full")?;
    // A failure breaks the connections and ends the server; a refusal is still an answer.
    let failed = before.contains_key("unknown");
    let (code, _, stderr) = served.stop();
    ensure(code == Some(if failed { 3 } else { 0 }), || {
        format!("on a full disk it ended with {code:?}: {stderr}")
    })?;
    disk.make_room();
    let served = serve_with(&data, &["--reserve", "0"]);
    run_calls(recorder.read(&served, &names));
    run_calls(async {
        let (_connection, counters) = connect(&served).await;
        let client = recorder.client();
        for name in ["one more", names[0].as_str()] {
            let counter = by_name(&counters, name);
            recorder.call(client, name, &counter, Call::Increment(1)).await;
        }
    });
    let (code, _, stderr) = served.stop();
    ensure(code == Some(0), || format!("with room it ended with {code:?}: {stderr}"))?;
    let counts = recorder.check("full")?;
    ensure(counts["acknowledged"] > names.len() as u64, || "not all could be read".to_owned())?;
    Ok(counts)
}

/// A server with a reserve: new counters until one is refused, then increments of these, then the
/// same once the disk has no room at all, and after a restart there.
fn overwrite(disk: &Disk, seed: u64) -> Found {
    let data = disk.path.join("data");
    let recorder = Recorder::new();
    let mut random = Random::from_seed(seed);
    let mut served = serve_with(&data, &RESERVE);
    run_calls(make_grants(&served, &recorder));
    let mut names = run_calls(new_counters(&served, &recorder));
    // Of those at the end some were refused, and aren't there.
    names.truncate(names.len().saturating_sub(CALLS));
    ensure(names.len() > CALLS, || format!("only {} counters could be made", names.len()))?;
    for (number, state) in STATES.into_iter().enumerate() {
        if state == "the disk is full" {
            disk.fill();
        }
        if state == "it started on a full disk" {
            let (code, _, stderr) = served.stop();
            ensure(code == Some(0), || format!("on a full disk it ended with {code:?}: {stderr}"))?;
            served = serve_with(&data, &RESERVE);
        }
        let went_well = |counts: &Counts| !counts.contains_key("unknown");
        if went_well(&recorder.check("full")?) {
            run_calls(increments(&served, &recorder, &names, &mut random));
            run_calls(revoke_grants(&served, number));
        }
        let counts = recorder.check("full")?;
        if !went_well(&counts) {
            let (code, _, stderr) = served.stop();
            let text = format!("once {state} it ended with {code:?}, after {counts:?}: {stderr}");
            return Err(text);
        }
    }
    run_calls(recorder.read(&served, &names));
    let grants = run_calls(count_grants(&served));
    ensure(grants == 0, || format!("{grants} grants are left, and all were revoked"))?;
    let counts = recorder.check("full")?;
    let refused = counts.get("refused").copied().unwrap_or(0);
    ensure((1..=CALLS as u64).contains(&refused), || {
        format!("{refused} calls were refused, and only new counters may be")
    })?;
    Ok(counts)
}

fn label(state: usize, number: usize) -> String {
    format!("grant {number} of state {state}")
}

/// Makes a counter with the grants that are revoked later.
async fn make_grants(served: &Served, recorder: &std::rc::Rc<Recorder>) {
    let (_connection, counters) = connect(served).await;
    let (client, counter) = (recorder.client(), by_name(&counters, SHARED));
    recorder.call(client, SHARED, &counter, Call::Increment(1)).await;
    for (state, number) in (0..STATES.len()).flat_map(|state| (0..REVOKED).map(move |n| (state, n)))
    {
        save(&counter, &label(state, number)).await;
    }
}

/// Revokes the grants of that state.
async fn revoke_grants(served: &Served, state: usize) {
    let (_connection, counters) = connect(served).await;
    let counter = by_name(&counters, SHARED);
    for number in 0..REVOKED {
        revoke(&counter, &label(state, number)).await;
    }
}

/// The number of grants of that counter.
async fn count_grants(served: &Served) -> u32 {
    let (_connection, counters) = connect(served).await;
    let facet = facet::Client { client: by_name(&counters, SHARED).client };
    let reply = facet.grants_request().send().promise.await.expect("they are listed");
    let grants = reply.get().and_then(facet::grants_results::Reader::get_grants);
    grants.expect("the answer has a list").len()
}

/// Increments these counters in any order, with several calls under way.
async fn increments(
    served: &Served,
    recorder: &std::rc::Rc<Recorder>,
    names: &[String],
    random: &mut Random,
) {
    let (_connection, counters) = connect(served).await;
    let client = recorder.client();
    let mut in_flight = FuturesUnordered::new();
    for _ in 0..OVERWRITES {
        let name = &names[random.below(names.len() as u64) as usize];
        let counter = by_name(&counters, name);
        in_flight.push(recorder.call(client, name, &counter, Call::Increment(1)));
        if in_flight.len() >= CALLS
            && let Some(Outcome::Unknown) = in_flight.next().await
        {
            return;
        }
    }
    while in_flight.next().await.is_some() {}
}

/// Increments counters that don't exist yet, until none can be made; returns their names.
async fn new_counters(served: &Served, recorder: &std::rc::Rc<Recorder>) -> Vec<String> {
    let (_connection, counters) = connect(served).await;
    let client = recorder.client();
    let mut names = Vec::new();
    let mut in_flight = FuturesUnordered::new();
    let mut is_open = true;
    loop {
        while is_open && in_flight.len() < CALLS {
            let name = format!("{:0>50}", names.len());
            let counter = by_name(&counters, &name);
            in_flight.push(recorder.call(client, &name, &counter, Call::Increment(1)));
            names.push(name);
        }
        match in_flight.next().await {
            Some(outcome) => is_open &= matches!(outcome, Outcome::Ok { .. }),
            None => return names,
        }
    }
}
