//! Attacks by the frames of WebSockets of an object: each alone is what the protocol allows.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::fortress::withstands;
use crate::support::{DEADLINE, Served, now};

/// Longer than a message may take that doesn't come at the pace.
const TIME: Duration = Duration::from_secs(30);

/// The first bytes of frames with a mask and without content.
const TEXT_BEGUN: [u8; 6] = [0x01, 0x80, 0, 0, 0, 0];
const CONTINUED: [u8; 6] = [0x00, 0x80, 0, 0, 0, 0];
const EMPTY: [u8; 6] = [0x82, 0x80, 0, 0, 0, 0];
const PONG: [u8; 6] = [0x8a, 0x80, 0, 0, 0, 0];

fn open(served: &Served) -> TcpStream {
    let mut stream = TcpStream::connect(&served.announced.http).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    let request = "GET /counter/x/live HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    stream
}

/// Writes such frames until the server ends the connection, or the time is over; what it says is
/// read. Tells whether it ended.
fn flood(served: &Served, first: &[u8], frames: &[u8], time: Duration) -> bool {
    let mut stream = open(served);
    let mut read = stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || while matches!(read.read(&mut [0; 4096]), Ok(1..)) {});
    let end = now() + time;
    let mut is_cut = stream.write_all(first).is_err();
    while !is_cut && now() < end {
        is_cut = stream.write_all(frames).is_err();
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
    reader.join().unwrap();
    is_cut
}

#[test]
fn continuations_without_end_or_content() {
    withstands(&[], |served| {
        let before = served.resident_bytes();
        let is_cut = flood(served, &TEXT_BEGUN, &CONTINUED.repeat(1000), TIME);
        assert!(is_cut, "a message that never ends is cut");
        assert!(served.resident_bytes() < before + (64 << 20));
    });
}

/// Each is a whole message without content, or an answer that nobody asked for.
#[test]
fn messages_without_content_and_unasked_answers() {
    const SHORT: Duration = Duration::from_secs(4);
    withstands(&[], |served| {
        for frame in [EMPTY, PONG] {
            let before = (served.resident_bytes(), served.processor_secs());
            flood(served, &[], &frame.repeat(1000), SHORT);
            assert!(served.resident_bytes() < before.0 + (64 << 20));
            let took = served.processor_secs() - before.1;
            eprintln!("{took} s of the processor within {SHORT:?}");
        }
    });
}
