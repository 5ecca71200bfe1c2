//! Calls on an object of a host other than the one that the client is connected to, whose thread
//! passes them on, against a bare capnp-rpc server that does the same.

use super::Bench;
use super::bare::BareServer;
use super::measure::drive;
use super::process::Capstead;
use super::references::save;
use super::row::{Row, Target};
use super::rpc::{BareEcho, Counters, IN_FLIGHT, read};
use capstead::counter_capnp::counter;
use capstead::{Result, failed};

/// Names of the rows that this module measures.
pub(crate) const NAMES: [&str; 2] = ["rpc-other-host-1", "rpc-other-host-64"];

/// Each host owns half of the names, so one of this many is surely on the other.
const NAMES_TRIED: u32 = 64;

/// Measures the selected rows.
///
/// # Errors
/// When a server doesn't start, or a call fails.
pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    let bare = BareEcho::start(BareServer::Forward).await?;
    let server = Capstead::start(&bench.scratch.path("hosts"), &["--hosts", "2"])?;
    let counters = Counters::connect(&server).await?;
    let far = on_the_other_host(&counters, &server.capnp).await?;
    for (name, in_flight) in NAMES.into_iter().zip([1, IN_FLIGHT]) {
        if bench.wants(name) {
            let baseline = async |until| bare.reads(in_flight, until).await;
            let measured = async |until| {
                server.process.watch(drive(in_flight, until, async |_| read(&far).await)).await
            };
            let rounds = bench.plan.alternate(name, baseline, measured).await?;
            bench.add(Row::rates(name, &rounds).target(Target::AtLeast(0.8)));
        }
    }
    Ok(())
}

/// A counter that isn't on the host to which its client is connected, which is `here`.
async fn on_the_other_host(counters: &Counters, here: &str) -> Result<counter::Client> {
    for n in 0..NAMES_TRIED {
        let counter = counters.found(&format!("far-{n}")).await?;
        if counters.located(&save(&counter).await?).await? != here {
            return Ok(counter);
        }
    }
    Err(failed("all counters are on the first host"))
}
