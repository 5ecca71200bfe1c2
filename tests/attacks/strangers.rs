//! Attacks by clients without a reference: large messages, slow ones, and many connections.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::fortress::{withstands, withstands_with};
use crate::support::raw::{self, bootstrap};
use crate::support::{Served, capstead, eventually, now};

/// Begins a message of 8 MiB that never ends: sends its table of segments, and the part that the
/// server accepts.
fn begin_large(served: &Served, bytes: usize) -> Option<TcpStream> {
    let mut stream = raw::dial(served);
    // The server may give a client that it ends some time to read the reason, and reads nothing
    // meanwhile.
    stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
    let table = [0_u32.to_le_bytes(), ((8_u32 << 20) / 8 - 8).to_le_bytes()].concat();
    stream.write_all(&table).ok()?;
    // The server may have ended the connection by now.
    let _ = stream.write_all(&vec![0; bytes]);
    Some(stream)
}

#[test]
fn large_messages_that_are_begun() {
    withstands(&[], |served| {
        let before = served.resident_bytes();
        let held: Vec<_> = (0..300).filter_map(|_| begin_large(served, (8 << 20) - 4096)).collect();
        eventually("their end", || {
            (served.bites("stranger-message-bytes") >= held.len() as u64).then_some(())
        });
        assert!(held.len() >= 290, "{}", held.len());
        assert!(served.resident_bytes() < before + (64 << 20));
    });
}

/// With a reference, large messages are accepted, as far as memory allows.
#[test]
fn large_messages_that_are_begun_by_whoever_has_a_reference() {
    withstands(&[], |served| {
        let mut held = Vec::new();
        for _ in 0..120 {
            let mut stream = raw::dial(served);
            raw::send(&mut stream, &[bootstrap(), raw::restore(served.counters())]);
            assert_eq!(raw::wait_for_answer(&mut stream, 1), None);
            stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            let table = [0_u32.to_le_bytes(), ((8_u32 << 20) / 8 - 8).to_le_bytes()].concat();
            let _ = stream.write_all(&[table, vec![0; 7 << 20]].concat());
            held.push(stream);
        }
        eventually("the bound", || (served.bites("total-bytes") > 0).then_some(()));
        assert!(served.metric("connections_bytes") <= 256 << 20);
    });
}

/// Sends a byte now and then, of messages small enough to be accepted.
#[test]
fn messages_that_drip() {
    withstands(&["--limit", "slow-reader=2s", "--limit", "stranger-time=1h"], |served| {
        let message = raw::serialized(&bootstrap());
        let mut dripping: Vec<_> = (0..500).map(|_| raw::dial(served)).collect();
        let began = now();
        for byte in &message[..8] {
            // Connections that the server has ended accept no more.
            dripping.retain_mut(|stream| stream.write_all(&[*byte]).is_ok());
            std::thread::sleep(Duration::from_millis(500));
        }
        eventually("the end of all of them", || (served.bites("slow-reader") >= 500).then_some(()));
        assert!(began.elapsed() < Duration::from_secs(20));
    });
}

/// Connections that ask for the public bootstrap capability, and hold it.
#[test]
fn many_connections_that_show_no_reference() {
    allow_connections();
    withstands(&["--limit", "stranger-time=4s", "--limit", "connections=1000"], |served| {
        let mut held = Vec::new();
        for _ in 0..1500 {
            let mut stream = raw::dial(served);
            // A refused connection accepts nothing.
            let _ = stream.write_all(&raw::serialized(&bootstrap()));
            held.push(stream);
        }
        eventually("the refusals", || (served.bites("connections") >= 300).then_some(()));
        eventually("the end of the strangers", || {
            (served.metric("connections") < 10).then_some(())
        });
        let ended = served.bites("stranger-time");
        assert!(ended >= 900, "{ended}");
    });
}

/// These connections take all descriptors that connections may have; the operator has others.
#[test]
fn as_many_connections_as_there_are_descriptors() {
    allow_connections();
    withstands_with(Some(700), &["--limit", "stranger-time=1h"], |served, data| {
        let addresses = [&served.announced.capnp, &served.announced.http];
        let held: Vec<_> = addresses
            .into_iter()
            .flat_map(|address| {
                (2..5).cycle().take(700).map(|client| raw::dial_from(client, address))
            })
            .collect();
        eventually("the refusals", || {
            let of_http = served.metric("http_connections_refused_total");
            (served.bites("connections") + of_http >= 700).then_some(())
        });
        let key = |args: &[&str]| {
            let output = capstead(["key"]).args(args).arg("--data").arg(data).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        key(&["rotate"]);
        let list = key(&["list"]);
        let oldest = list.lines().nth(1).unwrap().split_whitespace().next().unwrap();
        key(&["revoke", oldest]);
        drop(held);
    });
}

/// Raises the limit of open files: each connection is an open file in this process too.
pub(crate) fn allow_connections() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}
