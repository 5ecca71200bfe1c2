//! References: the speed of restoring them, and the cost of narrowed ones and of many live ones.

use std::cell::RefCell;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capstead_client::sturdyref::Caveats;
use capstead_client::{Terms, attenuate};
use tokio::net::TcpStream;

use super::bare::{BareServer, stock};
use super::measure::{Until, drive, float, median};
use super::process::{Capstead, Process};
use super::row::{Row, Target};
use super::rpc::{Counters, IN_FLIGHT, increment, read};
use super::{Bench, note};
use capstead::counter_capnp::counter;
use capstead::{Result, failed};
use capstead_client::restorer_capnp::restorer;

/// Names of the rows that this module measures.
pub(crate) const NAMES: [&str; 5] =
    ["restore", "restore-again", "forged-texts", "attenuated-cost", "live-grant-bytes"];

/// References that are restored one after another.
const REFERENCES: u64 = 2_000;
/// Live capabilities are as many as the objects of the other rows, and take more than all
/// connections together may hold by default.
const FLAGS: [&str; 4] = ["--limit", "total-bytes=4GiB", "--warm", "1h"];

/// Live capabilities that one connection holds: fewer than its bounds allow.
const HELD_BY_ONE: usize = 10_000;

/// Measures the selected rows.
///
/// # Errors
/// When a server doesn't start, or a call fails.
pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    let server = Capstead::start(&bench.scratch.path("references"), &FLAGS)?;
    let counters = Counters::connect(&server).await?;
    let counter = counters.found("bench").await?;
    increment(&counter).await?;
    if bench.wants_any(&["restore", "restore-again"]) {
        measure_restores(bench, &server, &counter).await?;
    }
    if bench.wants("forged-texts") {
        measure_forged(bench, &server).await?;
    }
    if bench.wants("attenuated-cost") {
        measure_attenuated(bench, &server, &counter).await?;
    }
    if bench.wants("live-grant-bytes") {
        measure_live(bench, &server, &counter).await?;
    }
    Ok(())
}

/// A reference with a grant of its own.
///
/// # Errors
/// When the counter gives none.
pub(crate) async fn save(counter: &counter::Client) -> Result<String> {
    capstead_client::share(counter, Terms::default()).await
}

async fn save_many(counter: &counter::Client, count: u64) -> Result<Vec<String>> {
    let texts = RefCell::new(Vec::new());
    drive(IN_FLIGHT, Until::Calls(count), async |_| {
        let text = save(counter).await?;
        texts.borrow_mut().push(text);
        Ok(())
    })
    .await?;
    Ok(texts.into_inner())
}

/// The capability that a listener gives for a text.
async fn restore(restorer: &restorer::Client, text: &str) -> Result<counter::Client> {
    let mut request = restorer.restore_request();
    request.get().set_sturdy_ref(text);
    request.send().promise.await?.get()?.get_cap().get_as_capability()
}

/// A connection of the stock RPC system, without limits of its own.
async fn connect(address: &str) -> Result<restorer::Client> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut system = stock(stream, Side::Client, None);
    let bootstrap = system.bootstrap(Side::Server);
    // The task ends with its server, which is killed when it is dropped.
    tokio::task::spawn_local(async move { system.await.ok() });
    Ok(bootstrap)
}

/// Restores references to a warm object over one connection, with signatures, grant and facet: some
/// that the server sees for the first time, and some that it saw before.
async fn measure_restores(
    bench: &mut Bench,
    server: &Capstead,
    counter: &counter::Client,
) -> Result<()> {
    let restorer = connect(&server.capnp).await?;
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for round in 0..=bench.plan.rounds {
        let texts = save_many(counter, REFERENCES).await?;
        let restored =
            async |n: u64| restore(&restorer, &texts[(n % REFERENCES) as usize]).await.map(drop);
        let run = drive(IN_FLIGHT, Until::Calls(REFERENCES), restored);
        let shown = server.process.watch(run).await?;
        let run = drive(IN_FLIGHT, Until::Time(bench.plan.round), restored);
        let known = server.process.watch(run).await?;
        let said = [&shown, &known].map(|run| (run.per_second(), run.server_us().unwrap_or(0.0)));
        let [(rate, us), (known_rate, known_us)] = said;
        note(&format!(
            "restore {round}: {rate:.0}/s, {us:.1} us each; again {known_rate:.0}/s, {known_us:.1} us"
        ));
        // Nothing is warm before the first round.
        if round > 0 {
            first.push(rate);
            again.push(known_rate);
        }
    }
    let target = Target::AtLeast(15_000.0);
    bench.add(Row::new("restore", median(first), "1/s").target(target));
    bench.add(Row::new("restore-again", median(again), "1/s").target(target));
    Ok(())
}

/// A reference's offset of the caveats, after version, cluster, key, target and grant.
const CAVEATS_AT: usize = 1 + 32 + 8 + 1 + 16 + 16;
/// Forged texts of each kind.
const FORGED: u64 = 10_000;
/// Maximum number of holder keys in one reference.
const KEYS: u16 = 180;

/// A way to forge a reference of these bytes; each number makes another one.
type Forge = fn(&[u8], u64) -> Vec<u8>;

const FORGES: [(&str, Forge); 6] = [
    ("of another cluster", |genuine, number| with_number_at(genuine, number, 1)),
    ("with changed bytes", |genuine, number| with_number_at(genuine, number, CAVEATS_AT - 8)),
    // An Ed25519 signature is a curve point followed by a scalar; keep the point valid.
    ("with a wrong signature", |genuine, number| {
        with_number_at(genuine, number, CAVEATS_AT + 1 + 32 + 32)
    }),
    ("cut short", |genuine, number| genuine[..number as usize % genuine.len()].to_vec()),
    ("full of keys", full_of_keys),
    ("as long as can be", as_long_as_can_be),
];

fn with_number_at(genuine: &[u8], number: u64, at: usize) -> Vec<u8> {
    let mut bytes = genuine.to_vec();
    bytes[at..at + 8].copy_from_slice(&(number + 1).to_be_bytes());
    bytes
}

/// A genuine signature of something else comes behind as many keys as a text can have.
fn full_of_keys(genuine: &[u8], number: u64) -> Vec<u8> {
    let mut bytes = genuine[..CAVEATS_AT].to_vec();
    bytes.extend([1, 0x83]);
    bytes.extend((KEYS * 32).to_be_bytes());
    for key in 0..KEYS {
        bytes.extend([&[9][..], &key.to_be_bytes(), &number.to_be_bytes(), &[7; 21]].concat());
    }
    bytes.extend([7; 32]);
    bytes.extend(&genuine[CAVEATS_AT + 1 + 32..][..64]);
    bytes.extend([0, 1]);
    bytes.extend([7; 32]);
    bytes
}

/// A wrong signature of as many bytes as a text can have, in a caveat that nobody has to know.
fn as_long_as_can_be(genuine: &[u8], number: u64) -> Vec<u8> {
    let mut bytes = genuine[..CAVEATS_AT].to_vec();
    bytes.extend([1, 0x70]);
    bytes.extend((KEYS * 32).to_be_bytes());
    bytes.extend(number.to_be_bytes().repeat(usize::from(KEYS) * 4));
    bytes.extend(&genuine[CAVEATS_AT + 1..][..32 + 64]);
    bytes.extend([0, 1]);
    bytes.extend([7; 32]);
    bytes
}

/// Measures the server's CPU time for 10,000 forged references of the most expensive kind.
async fn measure_forged(bench: &mut Bench, server: &Capstead) -> Result<()> {
    let restorer = connect(&server.capnp).await?;
    let (address, encoded) =
        server.counters.split_once('#').ok_or_else(|| failed("a reference has an address"))?;
    let genuine = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| failed("a reference is base64"))?;
    let mut most = 0.0_f64;
    for (kind, forge) in FORGES {
        let texts: Vec<_> = (0..FORGED)
            .map(|n| format!("{address}#{}", URL_SAFE_NO_PAD.encode(forge(&genuine, n))))
            .collect();
        let refused = async |n: u64| match restore(&restorer, &texts[n as usize]).await {
            Ok(_) => Err(failed("a forged reference was restored")),
            Err(_) => Ok(()),
        };
        let run = drive(IN_FLIGHT, Until::Calls(FORGED), refused);
        let took = server.process.watch(run).await?;
        let seconds = took.server_us().unwrap_or_default() * float(FORGED) / 1e6;
        note(&format!("{FORGED} forged texts, {kind}: {seconds:.2} s of the server"));
        most = most.max(seconds);
    }
    bench.add(Row::new("forged-texts", most, "s").target(Target::AtMost(0.5)));
    Ok(())
}

/// Reads through a facet that allows nothing else, against reads through one that allows
/// everything.
async fn measure_attenuated(
    bench: &mut Bench,
    server: &Capstead,
    counter: &counter::Client,
) -> Result<()> {
    let less = Caveats::not_after(u64::MAX - 1).with_methods_of::<counter::Client>(["read"])?;
    let narrow = attenuate(counter, &less);
    read(&narrow).await?;
    let reads = async |counter: &counter::Client, until| {
        server.process.watch(drive(IN_FLIGHT, until, async |_| read(counter).await)).await
    };
    let plain = async |until| reads(counter, until).await;
    let attenuated = async |until| reads(&narrow, until).await;
    let rounds = bench.plan.alternate("attenuated-cost", plain, attenuated).await?;
    let costs =
        rounds.iter().filter_map(|(plain, narrow)| Some(narrow.server_us()? - plain.server_us()?));
    let row = Row::new("attenuated-cost", median(costs), "us");
    bench.add(row.target(Target::AtMost(0.3)));
    Ok(())
}

/// The memory of capabilities with a grant each, beyond that of bare ones.
async fn measure_live(
    bench: &mut Bench,
    server: &Capstead,
    counter: &counter::Client,
) -> Result<()> {
    let texts = save_many(counter, bench.objects).await?;
    let (bare, address) = Process::start(BareServer::Exports.args())?;
    let theirs = held(&bare, &address, &texts).await?;
    let ours = held(&server.process, &server.capnp, &texts).await?;
    note(&format!("a bare export takes {theirs:.0} bytes, and one with a grant {ours:.0}"));
    let row = Row::new("live-grant-bytes", ours - theirs, "B");
    bench.add(row.target(Target::AtMost(250.0)));
    Ok(())
}

/// The bytes of a server's memory for each held capability.
async fn held(process: &Process, address: &str, texts: &[String]) -> Result<f64> {
    let mut restorers = Vec::new();
    for _ in texts.chunks(HELD_BY_ONE) {
        restorers.push(connect(address).await?);
    }
    let holder = |n: u64| &restorers[n as usize % restorers.len()];
    // A connection's tables are made with its first capability, so that one isn't counted.
    drive(IN_FLIGHT, Until::Calls(1_000 * restorers.len() as u64), async |n| {
        restore(holder(n), &texts[n as usize % texts.len()]).await.map(drop)
    })
    .await?;
    let (before, held) = (process.resident_bytes()?.0, RefCell::new(Vec::new()));
    let count = texts.len() as u64;
    drive(IN_FLIGHT, Until::Calls(count), async |n| {
        let live = restore(holder(n), &texts[n as usize]).await?;
        held.borrow_mut().push(live);
        Ok(())
    })
    .await?;
    Ok((process.resident_bytes()?.0 - before) / float(count))
}
