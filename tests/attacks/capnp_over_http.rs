//! Attacks at the gateway's way in for Cap'n Proto, a WebSocket: strangers there have the limits of
//! those on the other port, and what belongs to the WebSocket alone is bounded too.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::fortress::withstands;
use super::strangers::allow_connections;
use crate::support::raw::{self, bootstrap, restore};
use crate::support::{DEADLINE, Served, eventually, now};

const MANY: [&str; 4] = ["--http-connections", "2000", "--http-connections-per-peer", "2000"];

/// The largest message that the WebSocket takes; those of Cap'n Proto go in several.
const PART: usize = 64 << 10;

const BINARY: u8 = 0x82;
const PING: u8 = 0x89;

/// Opens a WebSocket; `None` if that is refused.
fn open(served: &Served) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(&served.announced.http).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = "GET /capnp HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).ok()?;
    // The server says nothing after its head before it is asked something.
    let mut head = BufReader::new(stream.try_clone().unwrap()).lines();
    let is_open = head.next()?.ok()?.starts_with("HTTP/1.1 101 ");
    let is_whole = head.any(|line| line.is_ok_and(|line| line.is_empty()));
    (is_open && is_whole).then_some(stream)
}

/// A frame whose mask changes nothing.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len();
    let head = match length {
        0..126 => vec![first, 0x80 | length as u8],
        126..65_536 => [&[first, 0xfe][..], &(length as u16).to_be_bytes()].concat(),
        _ => [&[first, 0xff][..], &(length as u64).to_be_bytes()].concat(),
    };
    [&head[..], &[0; 4], payload].concat()
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(PART).flat_map(|part| frame(BINARY, part)).collect()
}

/// Begins a message of 8 MiB that never ends.
fn begin_large(served: &Served) -> Option<TcpStream> {
    let mut stream = open(served)?;
    stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
    let table = [0_u32.to_le_bytes(), ((8_u32 << 20) / 8 - 8).to_le_bytes()].concat();
    stream.write_all(&framed(&table)).ok()?;
    // The server may have ended the connection by now.
    let _ = stream.write_all(&framed(&vec![0; (8 << 20) - 4096]));
    Some(stream)
}

#[test]
fn large_messages_that_are_begun_over_http() {
    withstands(&MANY, |served| {
        let before = served.resident_bytes();
        let held: Vec<_> = (0..300).filter_map(|_| begin_large(served)).collect();
        eventually("their end", || {
            (served.bites("stranger-message-bytes") >= held.len() as u64).then_some(())
        });
        assert!(held.len() >= 290, "{}", held.len());
        assert!(served.resident_bytes() < before + (64 << 20));
    });
}

/// Some drip a message of Cap'n Proto, each byte in a frame, and others drip a frame.
#[test]
fn messages_that_drip_over_http() {
    allow_connections();
    let limits = ["--limit", "slow-reader=2s", "--limit", "stranger-time=6s"];
    withstands(&[&MANY[..], &limits].concat(), |served| {
        let message = raw::serialized(&bootstrap());
        let whole = frame(BINARY, &vec![0; PART]);
        let mut dripping: Vec<_> =
            (0..500).map(|number| (number % 2, open(served).expect("it opens"))).collect();
        for at in 0..16 {
            dripping.retain_mut(|(kind, stream)| {
                let bytes = match kind {
                    0 => frame(BINARY, &message[at..=at]),
                    _ => vec![whole[at]],
                };
                stream.write_all(&bytes).is_ok()
            });
            std::thread::sleep(Duration::from_millis(250));
        }
        eventually("the end of all of them", || {
            let (slow, late) = (served.bites("slow-reader"), served.bites("stranger-time"));
            (slow >= 250 && slow + late >= 500).then_some(())
        });
    });
}

#[test]
fn many_connections_over_http_that_show_no_reference() {
    allow_connections();
    let limits = ["--limit", "stranger-time=4s", "--limit", "connections=1000"];
    withstands(&[&MANY[..], &limits].concat(), |served| {
        let before = served.resident_bytes();
        let hello = framed(&raw::serialized(&bootstrap()));
        let mut held: Vec<_> = (0..1500).filter_map(|_| open(served)).collect();
        held.retain_mut(|stream| stream.write_all(&hello).is_ok());
        let refused = served.bites("connections");
        assert!(refused >= 300, "{refused}");
        assert!(served.resident_bytes() < before + (200 << 20));
        eventually("the end of the strangers", || {
            (served.metric("connections") < 10).then_some(())
        });
        let ended = served.bites("stranger-time");
        assert!(ended >= 900, "{ended}");
        // Their places at the gateway are free, too.
        assert!(open(served).is_some());
    });
}

/// The library answers each ping, and nobody takes the answers.
#[test]
fn pings_whose_answers_nobody_reads() {
    const SOCKETS: usize = 8;
    const TIME: Duration = Duration::from_secs(5);
    withstands(&["--limit", "stranger-time=1h"], |served| {
        let before = served.resident_bytes();
        let pings = frame(PING, &[b'x'; 125]).repeat(500);
        let until = now() + TIME;
        let sent: usize = std::thread::scope(|scope| {
            let flood = |has_reference: bool| {
                let mut stream = open(served).expect("it opens");
                stream.set_write_timeout(Some(TIME)).unwrap();
                if has_reference {
                    for message in [bootstrap(), restore(served.counters())] {
                        stream.write_all(&framed(&raw::serialized(&message))).unwrap();
                    }
                }
                let mut sent = 0;
                while now() < until && stream.write_all(&pings).is_ok() {
                    sent += pings.len();
                }
                // It stays open, to the end.
                while now() < until {
                    std::thread::sleep(Duration::from_millis(20));
                }
                sent
            };
            let floods: Vec<_> =
                (0..SOCKETS).map(|number| scope.spawn(move || flood(number % 2 == 0))).collect();
            floods.into_iter().map(|flood| flood.join().unwrap()).sum()
        });
        let grown = served.resident_bytes().saturating_sub(before);
        eprintln!("{} MiB of pings took {} MiB", sent >> 20, grown >> 20);
        assert!(grown < 48 << 20, "{} MiB of pings took {} MiB", sent >> 20, grown >> 20);
    });
}
