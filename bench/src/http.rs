//! HTTP requests through the gateway, against a bare hyper server; and calls in JSON, against the
//! class's own HTTP.
//!
//! A minimal client makes the load, since a full one would cost more than the bare server. It
//! writes once and reads once for each request, and parses only the necessary bytes.

use std::cell::RefCell;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Bench;
use super::bare::BareServer;
use super::measure::{Sample, Until, drive};
use super::process::{Capstead, Process};
use super::row::{Row, Target};
use super::rpc::IN_FLIGHT;
use capstead::{Result, failed};

/// Names of the rows that this module measures.
pub(crate) const NAMES: [&str; 4] =
    ["http-get-64", "http-post-64", "json-read-64", "json-increment-64"];

/// Room for a response; those here have about 120 bytes.
const RESPONSE_BYTES_MAX: usize = 1024;

/// Measures the selected rows.
///
/// # Errors
/// When a server doesn't start, or a request fails.
pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    let (bare, bare_address) = Process::start(BareServer::Http.args())?;
    let server = Capstead::start(&bench.scratch.path("http"), &[])?;
    let get = ("http-get-64", "GET /counter/bench HTTP/1.1\r\nHost: localhost\r\n\r\n", 0.55);
    let post =
        "POST /counter/bench/increment HTTP/1.1\r\nHost: localhost\r\ncontent-length: 0\r\n\r\n";
    for (name, request, target) in [get, ("http-post-64", post, 0.35)] {
        if !bench.wants(name) {
            continue;
        }
        let theirs = Load::connect(&bare_address, request).await?;
        let ours = Load::connect(&server.http, request).await?;
        let baseline = async |until| bare.watch(theirs.run(until)).await;
        let measured = async |until| server.process.watch(ours.run(until)).await;
        let rounds = bench.plan.alternate(name, baseline, measured).await?;
        bench.add(Row::rates(name, &rounds).target(Target::AtLeast(target)));
    }
    json(bench, &server).await
}

/// The same calls by the class's own HTTP and in JSON.
async fn json(bench: &mut Bench, server: &Capstead) -> Result<()> {
    let read = (
        "json-read-64",
        "GET /counter/bench HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "POST /json/Counter/bench/read HTTP/1.1\r\nHost: localhost\r\ncontent-length: 0\r\n\r\n",
    );
    let increment = (
        "json-increment-64",
        "POST /counter/bench/increment?by=2 HTTP/1.1\r\nHost: localhost\r\ncontent-length: 0\r\n\r\n",
        "POST /json/Counter/bench/increment HTTP/1.1\r\nHost: localhost\r\n\
         content-length: 11\r\n\r\n{\"by\": \"2\"}",
    );
    for (name, own, json) in [read, increment] {
        if !bench.wants(name) {
            continue;
        }
        let theirs = Load::connect(&server.http, own).await?;
        let ours = Load::connect(&server.http, json).await?;
        let baseline = async |until| server.process.watch(theirs.run(until)).await;
        let measured = async |until| server.process.watch(ours.run(until)).await;
        let rounds = bench.plan.alternate(name, baseline, measured).await?;
        bench.add(Row::rates(name, &rounds).target(Target::AtLeast(0.8)));
    }
    Ok(())
}

/// Connections that are kept alive, and the request that is sent on them.
struct Load {
    request: &'static str,
    /// The connections that are not in use.
    idle: RefCell<Vec<Connection>>,
}

impl Load {
    async fn connect(address: &str, request: &'static str) -> Result<Self> {
        let mut idle = Vec::new();
        for _ in 0..IN_FLIGHT {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            idle.push(Connection { stream, buffer: [0; RESPONSE_BYTES_MAX] });
        }
        Ok(Self { request, idle: RefCell::new(idle) })
    }

    async fn run(&self, until: Until) -> Result<Sample> {
        drive(IN_FLIGHT, until, async |_| {
            let connection = self.idle.borrow_mut().pop();
            let mut connection = connection.ok_or_else(|| failed("no connection is left"))?;
            connection.ask(self.request).await?;
            self.idle.borrow_mut().push(connection);
            Ok(())
        })
        .await
    }
}

struct Connection {
    stream: TcpStream,
    buffer: [u8; RESPONSE_BYTES_MAX],
}

impl Connection {
    /// Sends a request and reads the whole response, which must be a good one.
    async fn ask(&mut self, request: &str) -> Result<()> {
        self.stream.write_all(request.as_bytes()).await?;
        let mut filled = 0;
        loop {
            let count = self.stream.read(&mut self.buffer[filled..]).await?;
            filled += count;
            if count == 0 {
                return Err(failed("the HTTP server left, or said too much"));
            }
            match response_length(&self.buffer[..filled])? {
                Some(length) if length == filled => return Ok(()),
                Some(length) if length < filled => return Err(failed("a response too many")),
                _ => {}
            }
        }
    }
}

/// The length of the response that begins with these bytes; none if its head isn't whole.
fn response_length(bytes: &[u8]) -> Result<Option<usize>> {
    const END: &[u8] = b"\r\n\r\n";
    const LENGTH: &[u8] = b"content-length: ";
    let Some(head) = bytes.windows(END.len()).position(|window| window == END) else {
        return Ok(None);
    };
    let mut lines = bytes[..head].split(|&byte| byte == b'\n');
    let length = lines.find_map(|line| line.strip_prefix(LENGTH));
    let length =
        length.and_then(|digits| str::from_utf8(digits).ok()?.trim().parse::<usize>().ok());
    match length {
        Some(length) if bytes.starts_with(b"HTTP/1.1 200 ") => Ok(Some(head + END.len() + length)),
        _ => Err(failed(format!("not the response: {}", bytes.escape_ascii()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_whole_when_its_body_is() {
        let response = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ndate: x\r\n\r\n17";
        assert_eq!(response_length(response).unwrap(), Some(response.len()));
        assert_eq!(response_length(&response[..40]).unwrap(), None);
        assert!(response_length(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n").is_err());
        assert!(response_length(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
