//! Clients of WebSockets that come and go, and leave at every point on the way: nothing of them
//! stays.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

use super::fortress::withstands;
use crate::support::raw::dial_from;
use crate::support::{DEADLINE, Served, eventually};

/// Clients that come and go before memory is measured, so that all that is kept once is there.
const FIRST: usize = 3_000;
const CLIENTS: usize = 12_000;
/// Clients that are there at the same time.
const AT_ONCE: usize = 8;

/// Fewer than a hundred for each client: a small part of each that stays is seen.
const GROWTH_BYTES_MAX: u64 = 1 << 20;

const COUNTER: &str = "/counter/churn/live";
const ROOM: &str = "/api/room/churn/websocket";

/// Frames with a mask of zeros.
const NAME: &[u8] = b"\x81\x8e\0\0\0\0{\"name\":\"ann\"}";
const MESSAGE: &[u8] = b"\x81\x90\0\0\0\0{\"message\":\"hi\"}";
const CLOSE: &[u8] = b"\x88\x82\0\0\0\0\x03\xe8";
const PING: &[u8] = b"\x89\x81\0\0\0\0x";
/// A thousand bytes are announced, and three come.
const BEGUN: &[u8] = b"\x81\xfe\x03\xe8\0\0\0\0abc";
/// The first of several frames, whole.
const FIRST_OF_MANY: &[u8] = b"\x01\x83\0\0\0\0abc";
const FIRST_OF_MANY_AND_PING: &[u8] = b"\x01\x83\0\0\0\0abc\x89\x80\0\0\0\0";

/// The point at which a client leaves.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    /// It has said so much of the handshake, in percent.
    Shaking(usize),
    /// The handshake is whole, and its answer is unread.
    Unread,
    /// It has the socket, said this, and reads no answer.
    Said(&'static [u8]),
    /// As [`Said`](Self::Said), and something came back.
    Heard(&'static [u8]),
    /// It said this and a close frame, and the server ended the connection.
    Ended(&'static [u8]),
}

use Leaves::{Ended, Heard, Said, Shaking, Unread};

/// Those of the counter, which greets and takes no messages, and those of the room.
const AT_COUNTER: [Leaves; 10] = [
    Shaking(0),
    Shaking(50),
    Unread,
    Said(b""),
    Said(b"\x81"),
    Said(BEGUN),
    Heard(PING),
    Ended(MESSAGE),
    Ended(b""),
    Said(CLOSE),
];
const AT_ROOM: [Leaves; 9] = [
    Shaking(99),
    Unread,
    Said(b""),
    Said(NAME),
    Heard(NAME),
    Said(MESSAGE),
    Heard(FIRST_OF_MANY_AND_PING),
    Said(FIRST_OF_MANY),
    Ended(b""),
];

fn handshake(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// Reads until that has come.
fn read_to(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut came = Vec::new();
    while !came.ends_with(end) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        came.extend(byte);
    }
    came
}

fn open(mut stream: TcpStream, path: &str) -> TcpStream {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(handshake(path).as_bytes()).unwrap();
    let head = read_to(&mut stream, b"\r\n\r\n");
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream
}

/// One client, to its end. Each second one goes without a word of its system: its connection is
/// reset.
fn come_and_go(served: &Served, number: usize) {
    let (path, leaves) = match number % 2 {
        0 => (COUNTER, AT_COUNTER[number / 2 % AT_COUNTER.len()]),
        _ => (ROOM, AT_ROOM[number / 2 % AT_ROOM.len()]),
    };
    let mut stream = TcpStream::connect(&served.announced.http).unwrap();
    if (number / 2).is_multiple_of(3) {
        set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    }
    match leaves {
        Shaking(percent) => {
            let head = handshake(path);
            stream.write_all(&head.as_bytes()[..head.len() * percent / 100]).unwrap();
        }
        Unread => stream.write_all(handshake(path).as_bytes()).unwrap(),
        Said(frames) => open(stream, path).write_all(frames).unwrap(),
        Heard(frames) => {
            stream = open(stream, path);
            stream.write_all(frames).unwrap();
            stream.read_exact(&mut [0]).unwrap();
        }
        Ended(frames) => {
            stream = open(stream, path);
            stream.write_all(&[frames, CLOSE].concat()).unwrap();
            // It may be reset: the server may have ended it before it read all.
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
}

fn come_and_go_all(served: &Served, clients: usize) {
    std::thread::scope(|scope| {
        for first in 0..AT_ONCE {
            scope.spawn(move || {
                (first..clients).step_by(AT_ONCE).for_each(|number| come_and_go(served, number));
            });
        }
    });
}

/// All that the server says it has of clients: connections, sockets, and bytes.
fn held(served: &Served) -> [u64; 3] {
    ["http_connections", "http_sockets", "http_body_bytes"].map(|name| served.metric(name))
}

fn open_files(served: &Served) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", served.pid())).unwrap().count()
}

#[test]
fn clients_that_leave_at_any_point() {
    withstands(&[], |served| {
        let (before, files) = (held(served), open_files(served));
        let is_gone = || held(served) == before && open_files(served) < files + AT_ONCE;
        let gone = || eventually("the end of all", || is_gone().then_some(()));
        come_and_go_all(served, FIRST);
        gone();
        let resident = served.resident_bytes();
        come_and_go_all(served, CLIENTS);
        gone();
        let grown = served.resident_bytes().saturating_sub(resident);
        eprintln!("{CLIENTS} clients came and went, and {grown} bytes more are resident");
        assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes stay of {CLIENTS} clients");
        // Neither does the room believe that anybody is there. This one has a pace of its own.
        let mut last = open(dial_from(9, &served.announced.http), ROOM);
        last.write_all(NAME).unwrap();
        let heard = read_to(&mut last, br#"{"ready":true}"#);
        assert_eq!(String::from_utf8_lossy(&heard).matches(r#""joined""#).count(), 1);
    });
}
