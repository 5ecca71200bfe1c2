//! Many WebSockets of one server: the memory of an idle one, and of one whose object sleeps.

use tokio::net::TcpStream;

use super::broadcast::shake;
use super::measure::{Until, drive, float};
use super::process::Capstead;
use super::row::{Row, Target};
use super::{Bench, note};
use capstead::Result;

/// Names of the rows that this module measures.
pub(crate) const NAMES: [&str; 2] = ["idle-socket-rss", "hibernating-socket-rss"];

/// Sockets whose memory counts.
const SOCKETS: u64 = 4_700;
/// Sockets that are open before, so that all the server needs for the first one is in memory.
const FIRST: u64 = 200;
/// The objects that have them.
const ROOMS: u64 = 50;
/// Sockets that are opened at the same time.
const OPENED_AT_ONCE: usize = 32;
/// No more than the usual limit of 20,000 open files leaves HTTP: of fewer places than these, one
/// address would get half.
const FLAGS: [&str; 4] = ["--http-connections", "4920", "--http-connections-per-peer", "4920"];

/// Measures the selected rows.
///
/// # Errors
/// When a server doesn't start, or a socket isn't opened.
pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    // The second figure has the same buffers in it: 4 KiB into which the socket is read.
    for (name, warm, most) in [(NAMES[0], "1h", 20.0), (NAMES[1], "20ms", 4.0 + 4.0)] {
        if bench.wants(name) {
            let flags = [&FLAGS[..], &["--warm", warm]].concat();
            let server = Capstead::start(&bench.scratch.path(name), &flags)?;
            let each = memory_of_each(&server, warm != "1h").await?;
            note(&format!("{name}: {each:.1} KiB each, of {SOCKETS} sockets"));
            bench.add(Row::new(name, each, "KiB").target(Target::AtMost(most)));
        }
    }
    Ok(())
}

/// KiB of the server for each of its sockets.
async fn memory_of_each(server: &Capstead, sleeps: bool) -> Result<f64> {
    let mut all = open(server, FIRST, sleeps).await?;
    let before = server.process.resident_bytes()?.0;
    all.extend(open(server, SOCKETS, sleeps).await?);
    let after = server.process.resident_bytes()?.0;
    let open = server.metric("capstead_http_sockets").await?;
    if open != FIRST + SOCKETS {
        return Err(capstead::failed(format!("only {open} sockets are open")));
    }
    Ok((after - before) / float(SOCKETS) / 1024.0)
}

/// Opens so many sockets, and returns when their objects sleep, if they do.
async fn open(server: &Capstead, count: u64, sleeps: bool) -> Result<Vec<TcpStream>> {
    let opened = std::cell::RefCell::new(Vec::new());
    drive(OPENED_AT_ONCE, Until::Calls(count), async |n| {
        let stream = shake(&server.http, &format!("/room/{}/", n % ROOMS)).await?;
        opened.borrow_mut().push(stream);
        Ok(())
    })
    .await?;
    while sleeps && server.metric("capstead_objects_awake").await? > 0 {
        tokio::task::yield_now().await;
    }
    Ok(opened.into_inner())
}
