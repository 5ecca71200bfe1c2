//! HTTP requests through the gateway, against a bare hyper server.
//!
//! The load is a client of a few lines, because a real one would cost more than the bare server:
//! one write and one read a request, and only what is needed is looked at.

use std::cell::RefCell;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::bare::BareServer;
use super::measure::{Sample, Until, drive, median};
use super::process::{Capstead, Process, own_cpu_seconds};
use super::row::{Row, Target};
use super::rpc::IN_FLIGHT;
use super::{Bench, note};
use crate::error::{Result, failed};

/// The rows of this file.
pub(crate) const NAMES: [&str; 2] = ["http-get-64", "http-post-64"];

/// Room for a response; those here have some 120 bytes.
const RESPONSE_BYTES_MAX: usize = 1024;

/// Measures the rows that are wanted.
///
/// # Errors
/// When a server doesn't start, or a request fails.
pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    let (bare, bare_address) = Process::start(BareServer::Http.args())?;
    let server = Capstead::start(&bench.scratch.path("http"), &[])?;
    let get = ("http-get-64", "GET /counter/bench HTTP/1.1\r\nhost: bench\r\n\r\n", 0.45);
    let post = "POST /counter/bench/increment HTTP/1.1\r\nhost: bench\r\ncontent-length: 0\r\n\r\n";
    for (name, request, target) in [get, ("http-post-64", post, 0.2)] {
        if !bench.wants(name) {
            continue;
        }
        let theirs = Load::connect(&bare_address, request, &bare).await?;
        let ours = Load::connect(&server.http, request, &server.process).await?;
        let baseline = async |until| theirs.run(until).await;
        let measured = async |until| ours.run(until).await;
        let rounds = bench.plan.alternate(name, baseline, measured).await?;
        note(&format!("{name}: on the baseline, {}", theirs.bottleneck()));
        note(&format!("{name}: on the server, {}", ours.bottleneck()));
        bench.add(Row::rates(name, &rounds).target(Target::AtLeast(target)));
    }
    Ok(())
}

/// Connections that are kept alive, and what is sent on them.
struct Load<'a> {
    server: &'a Process,
    request: &'static str,
    /// Those that nobody uses at the moment.
    idle: RefCell<Vec<Connection>>,
    /// Cores that load and server were busy with, in each run.
    busy: RefCell<Vec<(f64, f64)>>,
}

impl<'a> Load<'a> {
    async fn connect(address: &str, request: &'static str, server: &'a Process) -> Result<Self> {
        let mut idle = Vec::new();
        for _ in 0..IN_FLIGHT {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            idle.push(Connection { stream, buffer: [0; RESPONSE_BYTES_MAX] });
        }
        Ok(Self { server, request, idle: RefCell::new(idle), busy: RefCell::default() })
    }

    async fn run(&self, until: Until) -> Result<Sample> {
        let before = (own_cpu_seconds()?, self.server.cpu_seconds()?);
        let sample = drive(IN_FLIGHT, until, async |_| {
            let connection = self.idle.borrow_mut().pop();
            let mut connection = connection.ok_or_else(|| failed("no connection is left"))?;
            connection.ask(self.request).await?;
            self.idle.borrow_mut().push(connection);
            Ok(())
        })
        .await?;
        let seconds = sample.elapsed().as_secs_f64();
        let load = (own_cpu_seconds()? - before.0) / seconds;
        let server = (self.server.cpu_seconds()? - before.1) / seconds;
        self.busy.borrow_mut().push((load, server));
        Ok(sample)
    }

    /// Which of the two was at its limit.
    fn bottleneck(&self) -> String {
        let busy = self.busy.borrow();
        let load = median(busy.iter().map(|busy| busy.0));
        let server = median(busy.iter().map(|busy| busy.1));
        format!("the load used {load:.2} cores and the server {server:.2}")
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

/// How long the response is that begins so; none if its head isn't whole.
fn response_length(bytes: &[u8]) -> Result<Option<usize>> {
    const END: &[u8] = b"\r\n\r\n";
    const LENGTH: &[u8] = b"content-length: ";
    let Some(head) = bytes.windows(END.len()).position(|window| window == END) else {
        return Ok(None);
    };
    let lines = bytes[..head].split(|&byte| byte == b'\n');
    let length = lines.filter_map(|line| line.strip_prefix(LENGTH)).next();
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
