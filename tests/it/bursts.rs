//! Objects that write or remove much at once: the server stays, and others go on.
#![allow(clippy::disallowed_methods, reason = "how long something takes is what is tested")]

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::full_disk::SmallDisk;
use crate::support::calls::{by_name, connect_to, read, run};
use crate::support::operator::done;
use crate::support::{Process, Served, own, scratch};
use capstead::counter_capnp::counter;
use capstead::http::http_service;
use capstead::{Context, Object, Result, Server};
use capstead_client::Connection;

/// An increment by a positive number stores as many values of 1 MiB, in one turn. One by a negative
/// number stores as many thousand small values, one by 0 removes all, and one by a thousand
/// overwrites a small value.
struct Hoard(Context);

const RESERVE: u64 = 32 << 20;
const SMALL: i64 = 1_000;

impl Object for Hoard {
    const CLASS: &'static str = "Hoard";
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self(ctx))
    }
}

impl http_service::Server for Hoard {}

impl counter::Server for Hoard {
    async fn increment(
        self: Rc<Self>,
        params: counter::IncrementParams,
        _: counter::IncrementResults,
    ) -> Result<()> {
        let (by, storage) = (params.get()?.get_by(), self.0.storage());
        let first = storage.count();
        if by == SMALL {
            return storage.put("small", "1");
        }
        for n in 0..by.max(0).unsigned_abs() {
            storage.put((first + n).to_be_bytes(), vec![7; 1 << 20])?;
        }
        for n in 0..by.min(0).unsigned_abs() * 1_000 {
            storage.put((first + n).to_be_bytes(), [7; 100])?;
        }
        if by == 0 {
            storage.delete_all()?;
        }
        Ok(())
    }

    async fn read(
        self: Rc<Self>,
        _: counter::ReadParams,
        mut results: counter::ReadResults,
    ) -> Result<()> {
        results.get().set_value(self.0.storage().count().cast_signed());
        Ok(())
    }
}

/// The other process runs this.
#[test]
fn serve_the_hoard() {
    let Some(data) = own::data() else { return };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    own::serve(Server::new(data).class::<Hoard>().reserve(RESERVE).log_backlog(256 << 10));
}

fn start(data: &Path) -> Served {
    Served::ready(Process::start(own::program("bursts::serve_the_hoard", data)))
}

async fn hoard(served: &Served, name: &str) -> (Connection, counter::Client) {
    let (connection, hoards) = connect_to(served, "Hoard").await;
    (connection, by_name(&hoards, name))
}

async fn increment(hoard: &counter::Client, by: i64) -> Result<()> {
    let mut request = hoard.increment_request();
    request.get().set_by(by);
    request.send().promise.await.map(drop)
}

/// The turns that are accepted before the first of them is in the log have room, too.
#[test]
fn a_burst_of_large_turns_on_a_small_disk_ends_in_refusals_and_not_in_the_end_of_the_server() {
    let Some(disk) = SmallDisk::make(192) else { return };
    let data = disk.path().join("data");
    let served = start(&data);
    let stored = run(async {
        let mut stored = 0;
        for round in 0..3 {
            let (_connection, first) = hoard(&served, "0").await;
            let names: Vec<_> = (1..40).map(|n| n.to_string()).collect();
            let others = join_all(names.iter().map(|name| hoard(&served, name))).await;
            let all = [&first].into_iter().chain(others.iter().map(|(_, hoard)| hoard));
            let calls = join_all(all.map(|hoard| increment(hoard, 8))).await;
            for refused in calls.iter().filter_map(|call| call.as_ref().err()) {
                assert!(refused.extra.contains("low-space: "), "round {round}: {refused}");
            }
            assert!(calls.iter().any(Result::is_err), "320 MiB fit");
            // Some of a refused turn is stored all the same.
            stored = 0;
            for hoard in [&first].into_iter().chain(others.iter().map(|(_, hoard)| hoard)) {
                stored += read(hoard).await.unwrap();
            }
        }
        stored
    });
    assert!(stored >= 16, "only {stored} MiB of 192 were used");
    let (code, _, log) = served.stop();
    assert_eq!(code, Some(0), "{log}");
    let served = start(&data);
    run(async {
        let (_connection, hoard) = hoard(&served, "0").await;
        increment(&hoard, 0).await.unwrap();
        assert_eq!(read(&hoard).await.unwrap(), 0);
    });
    assert_eq!(served.stop().0, Some(0));
}

#[test]
fn calls_of_others_go_on_while_a_large_object_is_cleared() {
    const THOUSANDS: i64 = 600;
    let (folder, data) = scratch();
    let served = start(&data);
    let (mut times, whole) = run(async {
        let (_connection, large) = hoard(&served, "large").await;
        for _ in 0..THOUSANDS / 50 {
            increment(&large, -50).await.unwrap();
        }
        let (_other_connection, other) = hoard(&served, "other").await;
        increment(&other, 1).await.unwrap();
        let left = || served.metric("commits_total") - served.metric("commits_applied_total");
        while left() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let began = Instant::now();
        increment(&large, 0).await.unwrap();
        assert_eq!(read(&large).await.unwrap(), 0);
        let mut times = Vec::new();
        // The backlog would be full after 64 of them.
        while times.len() < 400 {
            let began = Instant::now();
            increment(&other, SMALL).await.unwrap();
            times.push(began.elapsed());
        }
        // It waits for the end of the clearing.
        let file = folder.path().join("other");
        let file = file.to_str().unwrap();
        done(&data, &["export", file, "--class", "Hoard", "--name", "other"]);
        (times, began.elapsed())
    });
    times.sort_unstable();
    let (p50, p99, max) = (times[200], times[396], times[399]);
    eprintln!("cleared in {whole:?}; others: p50 {p50:?}, p99 {p99:?}, at most {max:?}");
    assert!(max < whole / 3, "a call waited {max:?} for a clearing of {whole:?}");
    assert_eq!(served.stop().0, Some(0));
}
