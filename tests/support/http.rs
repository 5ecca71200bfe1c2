//! HTTP/1 by hand: requests are sent exactly as they are written.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;

use super::DEADLINE;

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// The headers, with their names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Response {
    /// The first header of that name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// A connection that stays open.
#[derive(Debug)]
pub(crate) struct Http(BufReader<TcpStream>);

impl Http {
    pub(crate) fn connect(address: &str) -> Self {
        Self::try_connect(address).expect("the gateway is reached")
    }

    /// None if nobody listens there any more.
    pub(crate) fn try_connect(address: &str) -> Option<Self> {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout can be set");
        stream.set_write_timeout(Some(DEADLINE)).expect("a timeout can be set");
        stream.set_nodelay(true).expect("TCP has it");
        Some(Self(BufReader::new(stream)))
    }

    /// Writes a request unchanged. A failure is ignored: the server may have closed the connection
    /// already.
    pub(crate) fn send(&mut self, raw: &[u8]) {
        let _ = self.0.get_mut().write_all(raw);
    }

    /// Sends a request, and reads the answer.
    pub(crate) fn ask(&mut self, method: &str, path: &str) -> Response {
        self.send(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        self.answer(method)
    }

    /// Reads the answer to a request with that method.
    pub(crate) fn answer(&mut self, method: &str) -> Response {
        let line = self.line().expect("there is an answer");
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut headers = Vec::new();
        while let Some((name, value)) = self.line().expect("the head is whole").split_once(':') {
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        let mut response =
            Response { status: status.expect("a status"), headers, body: String::new() };
        let length = response.header("content-length").map(str::parse);
        let length = length.unwrap_or(Ok(0)).expect("a length is a number");
        if method != "HEAD" {
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).expect("the body is whole");
            response.body = String::from_utf8(body).expect("the body is text");
        }
        response
    }

    /// Tells whether the server has closed the connection and nothing more comes. A reset counts
    /// too.
    pub(crate) fn is_closed(&mut self) -> bool {
        match self.0.fill_buf() {
            Ok(more) => more.is_empty(),
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.0.read_line(&mut line).ok()?;
        line.strip_suffix("\r\n").map(str::to_owned)
    }
}

/// One request on a connection of its own.
pub(crate) fn ask(address: &str, method: &str, path: &str) -> Response {
    Http::connect(address).ask(method, path)
}

pub(crate) fn get(address: &str, path: &str) -> Response {
    ask(address, "GET", path)
}

pub(crate) fn post(address: &str, path: &str) -> Response {
    ask(address, "POST", path)
}
