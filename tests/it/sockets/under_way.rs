//! Messages of clients that begin and don't end: their memory, and their time.
#![allow(clippy::disallowed_methods, reason = "how long something takes is what is tested")]

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::frame;
use super::talk::{Client, GOOD, shake, with_limits};

async fn opened(running: &capstead::Running) -> TcpStream {
    let (stream, answer) = shake(running, "/talk/x/", GOOD).await;
    assert_eq!(answer.status, 101);
    stream
}

/// The code of the close frame that comes next.
async fn code(stream: &mut TcpStream) -> u16 {
    let mut came = Vec::new();
    // The server may cut the connection while there is something that it hasn't read.
    let _ = stream.read_to_end(&mut came).await;
    assert_eq!(came.first(), Some(&0x88), "a close frame comes");
    u16::from_be_bytes([came[2], came[3]])
}

/// Pongs keep a socket alive, and no message of it.
#[test]
fn a_message_that_does_not_end_is_closed_whatever_else_the_client_says() {
    let limit = |limits: &mut capstead::HttpLimits| limits.transfer = Duration::from_millis(400);
    with_limits(1, limit, async |running| {
        let half_a_head = vec![0x81];
        let half_a_frame = frame(0x81, b"long")[..8].to_vec();
        for begun in [frame(0x01, b"one "), half_a_head, half_a_frame] {
            let mut stream = opened(running).await;
            let start = Instant::now();
            stream.write_all(&begun).await.unwrap();
            let is_whole = begun.len() > 8;
            let (mut reads, mut writes) = stream.split();
            let says = async {
                let pause = if is_whole { Duration::from_millis(20) } else { Duration::MAX };
                loop {
                    tokio::time::sleep(pause).await;
                    // The server may have closed its side.
                    let _ = writes.write_all(&frame(0x8a, b"here")).await;
                }
            };
            let mut came = [0; 4];
            tokio::select! {
                () = says => {}
                read = reads.read_exact(&mut came) => drop(read.unwrap()),
            }
            assert_eq!((came[0], u16::from_be_bytes([came[2], came[3]])), (0x88, 1008));
            assert!(start.elapsed() >= Duration::from_millis(400));
            assert!(start.elapsed() < Duration::from_secs(20));
        }
        // One that comes to its end may take as many messages as it likes.
        let mut client = Client::open(running, "x", "/").await;
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(900) {
            assert_eq!(client.ask("still here").await, "still here");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

/// Reads end anywhere: in the middle of a message that begins while another one ends, too.
#[test]
fn each_message_has_a_time_of_its_own() {
    let limit = |limits: &mut capstead::HttpLimits| limits.transfer = Duration::from_millis(400);
    with_limits(1, limit, async |running| {
        let mut stream = opened(running).await;
        let message = frame(0x81, b"one of many");
        let (first, second) = message.split_at(9);
        let joined = [second, first].concat();
        let (mut reads, mut writes) = stream.split();
        let start = Instant::now();
        let says = async {
            writes.write_all(first).await.unwrap();
            let mut said = 0;
            while start.elapsed() < Duration::from_millis(1200) {
                tokio::time::sleep(Duration::from_millis(20)).await;
                writes.write_all(&joined).await.unwrap();
                said += 1;
            }
            said
        };
        let (said, heard) = (says, async {
            let mut heard = 0;
            while start.elapsed() < Duration::from_millis(1100) {
                let mut answer = [0; 13];
                reads.read_exact(&mut answer).await.unwrap();
                assert_eq!(&answer[2..], b"one of many");
                heard += 1;
            }
            heard
        });
        let (said, heard) = tokio::join!(said, heard);
        assert!(heard > 10 && heard <= said, "{heard} of {said}");
    });
}

/// A client can't answer a ping within a frame.
#[test]
fn a_long_message_that_keeps_coming_is_no_silence() {
    let limit = |limits: &mut capstead::HttpLimits| {
        limits.socket_idle = Duration::from_millis(400);
        limits.transfer = Duration::from_secs(10);
    };
    with_limits(1, limit, async |running| {
        let mut stream = opened(running).await;
        let text = vec![b'x'; 60_000];
        for part in frame(0x81, &text).chunks(2000) {
            stream.write_all(part).await.unwrap();
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        let mut head = [0; 4];
        loop {
            stream.read_exact(&mut head[..2]).await.unwrap();
            // Pings came meanwhile.
            if head[0] != 0x89 {
                break;
            }
        }
        stream.read_exact(&mut head[2..]).await.unwrap();
        assert_eq!(head, [0x81, 126, 0xea, 0x60]);
        let mut echo = vec![0; text.len()];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, text);
    });
}

/// The library answers each ping. A client that takes no answer is cut, however much it sends; one
/// that takes them may ping as often as it likes.
#[test]
fn pings_whose_answers_are_not_read_end_the_socket() {
    with_limits(
        1,
        |_| {},
        async |running| {
            let pings = frame(0x89, &[b'x'; 125]).repeat(100);
            let mut deaf = opened(running).await;
            let flood = async {
                let mut sent = 0;
                while deaf.write_all(&pings).await.is_ok() {
                    sent += pings.len();
                }
                sent
            };
            let cut = tokio::time::timeout(Duration::from_secs(30), flood).await;
            let sent = cut.expect("it is cut");
            // The system takes a few megabytes on both sides; without a bound the pongs of all that
            // comes until the pace is looked at would be kept.
            assert!(sent < 32 << 20, "{} MiB of pings were taken", sent >> 20);
            let mut stream = opened(running).await;
            let (mut reads, mut writes) = stream.split();
            let says = async {
                for _ in 0..40 {
                    writes.write_all(&pings).await.unwrap();
                }
            };
            let hears = async {
                let mut pongs = vec![0; 40 * 100 * 127];
                reads.read_exact(&mut pongs).await.unwrap();
                assert!(pongs.starts_with(&[0x8a, 125, b'x']) && pongs.ends_with(b"x"));
            };
            tokio::join!(says, hears);
        },
    );
}

/// A message counts with bodies, from its first frame until it is whole.
#[test]
fn messages_that_do_not_end_have_no_more_room_than_bodies() {
    let limit = |limits: &mut capstead::HttpLimits| limits.body_bytes = 1 << 20;
    with_limits(2, limit, async |running| {
        let mut streams = Vec::new();
        for _ in 0..7 {
            let mut stream = opened(running).await;
            stream.write_all(&frame(0x02, &vec![0; 200_000])).await.unwrap();
            streams.push(stream);
        }
        let held = loop {
            let held = super::sleep::metric(running, "http_body_bytes").await;
            if held >= 1_400_000 {
                break held;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        assert!(held <= 3 << 19, "a half more than bodies may: {held}");
        let mut late = opened(running).await;
        late.write_all(&frame(0x02, &vec![0; 200_000])).await.unwrap();
        assert_eq!(code(&mut late).await, 1013);
        // Small ones are let in beyond it, as small bodies are.
        let mut client = Client::open(running, "x", "/").await;
        let text = "x".repeat(50_000);
        assert!(client.ask(&text).await == text);
        // One that comes to its end, and one whose client leaves, make room.
        streams[0].write_all(&frame(0x80, b"")).await.unwrap();
        drop(streams.pop());
        let text = "x".repeat(300_000);
        loop {
            let mut client = Client::open(running, "x", "/").await;
            client.send(&text).await;
            match client.next().await {
                Some(Ok(tokio_tungstenite::tungstenite::Message::Text(came))) => {
                    assert!(came.as_str() == text);
                    break;
                }
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
        drop(streams);
        while super::sleep::metric(running, "http_body_bytes").await > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
}
