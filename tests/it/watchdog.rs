//! A turn that doesn't end: it is reported with its name, the host counts as not ready, and finally
//! the process aborts without losing anything that was acknowledged.
#![allow(clippy::disallowed_methods, reason = "how long something takes is what is tested")]

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::support::calls::{by_name, connect_to, read, run};
use crate::support::{Process, Served, http, own, scratch};
use capstead::counter_capnp::counter;
use capstead::http::http_service;
use capstead::{Context, Object, Result, Server, Stored, TurnLimits};
use capstead_client::Connection;

/// Each increment holds a turn for that number of milliseconds.
struct Hog(Stored<i64>);

impl Object for Hog {
    const CLASS: &'static str = "Hog";
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self(ctx.stored("times")?))
    }
}

impl http_service::Server for Hog {}

impl counter::Server for Hog {
    async fn increment(
        self: Rc<Self>,
        params: counter::IncrementParams,
        mut results: counter::IncrementResults,
    ) -> Result<()> {
        let by = params.get()?.get_by();
        std::thread::sleep(Duration::from_millis(by.unsigned_abs()));
        self.0.set(self.0.get() + 1)?;
        results.get().set_value(self.0.get());
        Ok(())
    }

    async fn read(
        self: Rc<Self>,
        _: counter::ReadParams,
        mut results: counter::ReadResults,
    ) -> Result<()> {
        results.get().set_value(self.0.get());
        Ok(())
    }
}

/// The other process runs this.
#[test]
fn serve_the_hog() {
    let Some(data) = own::data() else { return };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let limits = TurnLimits { abort: Duration::from_secs(1), ..TurnLimits::default() };
    own::serve(Server::new(data).class::<Hog>().turn_limits(limits));
}

fn start(data: &Path) -> Served {
    Served::ready(Process::start(own::program("watchdog::serve_the_hog", data)))
}

async fn hog(served: &Served) -> (Connection, counter::Client) {
    let (connection, hogs) = connect_to(served, "Hog").await;
    (connection, by_name(&hogs, "one"))
}

/// The status of an answer of `/ready`.
fn readiness(metrics: &str) -> u16 {
    http::get(metrics, "/ready").status
}

fn increment(hog: &counter::Client, ms: i64) -> impl Future<Output = Result<i64>> + use<> {
    let mut request = hog.increment_request();
    request.get().set_by(ms);
    let sent = request.send().promise;
    async move { Ok(sent.await?.get()?.get_value()) }
}

#[test]
fn a_turn_that_does_not_end_is_reported_and_ends_the_process_at_last() {
    let (_folder, data) = scratch();
    let mut served = start(&data);
    run(async {
        let (_connection, hog) = hog(&served).await;
        let metrics = served.announced.metrics.as_deref().unwrap();
        assert_eq!(increment(&hog, 1).await.unwrap(), 1);
        assert_eq!(readiness(metrics), 200);
        assert_eq!(increment(&hog, 220).await.unwrap(), 2);
        assert_eq!((served.metric("turns_slow_total"), served.metric("hosts_unready")), (1, 0));

        let slow = increment(&hog, 600);
        let (slow, unready_after) = futures::join!(slow, until(metrics, 503));
        assert_eq!(slow.unwrap(), 3);
        assert!(unready_after < Duration::from_millis(450), "{unready_after:?}");
        until(metrics, 200).await;

        let error = increment(&hog, 60_000).await.unwrap_err();
        assert_eq!(error.kind, capnp::ErrorKind::Disconnected, "{error}");
    });
    let status = served.end();
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{status}");
    let log = served.stderr();
    for part in ["holds up its host", "Hog", "isn't ready", "is ready again", "the process aborts"]
    {
        assert!(log.contains(part), "{part:?} is missing in\n{log}");
    }
    let method = format!("@{:#x}.@0", <counter::Client as capnp::traits::HasTypeId>::TYPE_ID);
    assert!(log.contains(&method), "{method} is missing in\n{log}");

    let again = start(&data);
    run(async {
        let (_connection, hog) = hog(&again).await;
        assert_eq!(read(&hog).await.unwrap(), 3);
    });
}

/// Asks on a separate thread, since the test's own must serve the call.
async fn until(metrics: &str, status: u16) -> Duration {
    let (metrics, began) = (metrics.to_owned(), Instant::now());
    let asked = tokio::task::spawn_blocking(move || {
        while readiness(&metrics) != status {
            assert!(began.elapsed() < Duration::from_secs(5), "/ready never answers {status}");
        }
        began.elapsed()
    });
    asked.await.unwrap()
}
