//! Attacks by HTTP/2, whose connections have many requests: frames are sent as they are written.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::fortress::{withstands, withstands_from};
use super::over_http::serve_large;
use super::strangers::allow_connections;
use crate::support::http::get;
use crate::support::{DEADLINE, Served, eventually, now};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The time for which each attack goes on.
const TIME: Duration = Duration::from_secs(4);

/// Types of frames (RFC 9113, 6).
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const CONTINUATION: u8 = 9;
}

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field that no table remembers (RFC 7541, 6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

fn head(method: &str, path: &str) -> Vec<u8> {
    let fields =
        [(":method", method), (":scheme", "http"), (":path", path), (":authority", "localhost")];
    fields.map(|(name, value)| field(name, value)).concat()
}

/// A connection that has begun, without a request. `settings` are those of its client.
fn begin(served: &Served, settings: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(&served.announced.http).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let _ = stream.write_all(&[PREFACE, &frame(kind::SETTINGS, 0, 0, settings)].concat());
    stream
}

/// Writes such frames until the server ends the connection, or the time is over; what it answers is
/// read. Tells whether it ended.
fn flood(served: &Served, mut next: impl FnMut(u32) -> Vec<u8>) -> bool {
    let mut stream = begin(served, &[]);
    let mut read = stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || while matches!(read.read(&mut [0; 4096]), Ok(1..)) {});
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    let end = now() + TIME;
    let (mut id, mut is_cut) = (1, false);
    while !is_cut && now() < end {
        is_cut = stream.write_all(&next(id)).is_err();
        id += 2;
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
    reader.join().unwrap();
    is_cut
}

#[test]
fn requests_that_are_taken_back() {
    withstands(&[], |served| {
        let reset = 8_u32.to_be_bytes();
        let is_cut = flood(served, |id| {
            let ask = frame(
                kind::HEADERS,
                END_STREAM | END_HEADERS,
                id,
                &head("POST", "/counter/x/increment"),
            );
            [ask, frame(kind::RST_STREAM, 0, id, &reset)].concat()
        });
        assert!(is_cut, "a flood goes on for as long as its client likes");
    });
}

/// A proxy that turns such a head into HTTP/1 would make two requests of it, or one with another
/// body.
#[test]
fn heads_that_hide_requests() {
    withstands(&[], |served| {
        let asked = |fields: &[(&str, &str)], path: &str| {
            let more: Vec<u8> =
                fields.iter().flat_map(|(name, value)| field(name, value)).collect();
            [head("POST", path), more].concat()
        };
        let path = "/counter/hidden/increment";
        let lines = "x\r\n\r\nPOST /counter/hidden/increment HTTP/1.1\r\nHost: localhost\r\n\r\n";
        for block in [
            asked(&[("transfer-encoding", "chunked")], path),
            asked(&[("connection", "keep-alive")], path),
            asked(&[("content-length", "5")], path),
            asked(&[("content-length", "0"), ("content-length", "5")], path),
            asked(&[("x", lines)], path),
            asked(&[("x\r\ny", "z")], path),
            asked(&[("X", "y")], path),
            asked(&[(":path", "/counter/x")], path),
            asked(&[("y", "z")], "/counter/x HTTP/1.1\r\nHost: localhost\r\n\r\nGET /"),
        ] {
            let mut stream = begin(served, &[]);
            let flags = END_STREAM | END_HEADERS;
            let _ = stream.write_all(&frame(kind::HEADERS, flags, 1, &block));
            let _ = stream.write_all(&frame(kind::PING, 0, 0, &[7; 8]));
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            // The answer to the ping, or the end, comes when the head was looked at.
            let (mut came, mut part) = (Vec::<u8>::new(), [0; 4096]);
            while !came.windows(8).any(|window| window == [7; 8]) {
                match stream.read(&mut part) {
                    Ok(0) | Err(_) => break,
                    Ok(bytes) => came.extend(&part[..bytes]),
                }
            }
            assert_eq!(get(&served.announced.http, "/counter/hidden").body, "0", "{block:?}");
        }
        assert_eq!(get(&served.announced.http, "/counter/x").body, "0");
    });
}

#[test]
fn heads_that_never_end() {
    withstands(&[], |served| {
        let filler = field("x", &"x".repeat(100)).repeat(50);
        let mut is_first = true;
        let is_cut = flood(served, |_| {
            if std::mem::take(&mut is_first) {
                frame(kind::HEADERS, 0, 1, &head("GET", "/counter/x"))
            } else {
                frame(kind::CONTINUATION, 0, 1, &filler)
            }
        });
        assert!(is_cut, "a head has a bound");
    });
}

#[test]
fn frames_without_anything_in_them() {
    withstands(&[], |served| {
        let mut is_first = true;
        let is_cut = flood(served, |_| {
            if std::mem::take(&mut is_first) {
                frame(kind::HEADERS, END_HEADERS, 1, &head("POST", "/counter/x/increment"))
            } else {
                frame(kind::DATA, 0, 1, &[]).repeat(100)
            }
        });
        assert!(is_cut, "empty frames have a bound");
    });
}

#[test]
fn pings_and_settings_whose_answers_nobody_reads() {
    withstands(&[], |served| {
        for one in [frame(kind::PING, 0, 0, &[0; 8]), frame(kind::SETTINGS, 0, 0, &[])] {
            let before = served.resident_bytes();
            let (many, mut held) = (one.repeat(1000), Vec::new());
            for _ in 0..20 {
                let mut stream = begin(served, &[]);
                // Until it waits for us, which it then does at its own cost alone.
                while stream.write_all(&many).is_ok() && held.len() < 20 {
                    if stream.take_error().unwrap().is_some() {
                        break;
                    }
                }
                held.push(stream);
            }
            let taken = served.resident_bytes().saturating_sub(before);
            assert!(taken < 64 << 20, "{} MiB", taken >> 20);
        }
    });
}

#[test]
fn connections_that_ask_nothing() {
    allow_connections();
    withstands(&["--http-head", "2s"], |served| {
        let mut held: Vec<_> = (0..200).map(|_| begin(served, &[])).collect();
        // Half of them ask once, and never again.
        for stream in held.iter_mut().skip(100) {
            let _ = stream.write_all(&frame(
                kind::HEADERS,
                END_STREAM | END_HEADERS,
                1,
                &head("GET", "/counter/x"),
            ));
        }
        eventually("their end", || (served.metric("http_connections") < 10).then_some(()));
    });
}

/// The client takes so little that every response is on its way, and none arrives.
#[test]
fn responses_that_trickle_away() {
    withstands_from(serve_large, |served| {
        const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
        let little = [&INITIAL_WINDOW_SIZE[..], &[0, 0, 0, 1]].concat();
        let mut held: Vec<_> = (0..10).map(|_| begin(served, &little)).collect();
        let end = now() + DEADLINE;
        let mut id = 1;
        while served.metric("http_slow_total") < 10 {
            assert!(now() < end, "a client that takes nothing is cut");
            for stream in &mut held {
                // Each request is one more that isn't idle.
                let asked = head("GET", "/counter/x?bytes=10000");
                let flags = END_STREAM | END_HEADERS;
                let _ = stream.write_all(&frame(kind::HEADERS, flags, id, &asked));
            }
            id += 2;
            std::thread::sleep(Duration::from_millis(500));
        }
        eventually("their places", || (served.metric("http_connections") < 10).then_some(()));
    });
}

/// The client's window is zero, so that its stream takes nothing, and its socket everything.
#[test]
fn responses_for_which_there_is_no_window() {
    withstands_from(serve_large, |served| {
        const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
        let no_window = [&INITIAL_WINDOW_SIZE[..], &[0; 4]].concat();
        let mut held: Vec<_> = (0..20).map(|_| begin(served, &no_window)).collect();
        for stream in &mut held {
            for number in 0..20 {
                let asked = head("GET", "/counter/x?bytes=60000");
                let _ = stream.write_all(&frame(
                    kind::HEADERS,
                    END_STREAM | END_HEADERS,
                    2 * number + 1,
                    &asked,
                ));
            }
        }
        eventually("the responses", || (served.metric("http_connections") >= 300).then_some(()));
        assert_eq!(get(&served.announced.http, "/counter/y?bytes=10").status, 200);
        for stream in &mut held {
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let end = loop {
                match stream.read(&mut [0; 4096]) {
                    Ok(0) => break Ok(()),
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            end.expect("a client that takes nothing is cut");
        }
        assert!(served.metric("http_slow_total") >= 20);
        eventually("their places", || (served.metric("http_connections") < 10).then_some(()));
    });
}
