//! Frames as a client may send them, good and bad, and what the server answers to each.
//!
//! The numbers are those of the Autobahn suite, whose program needs a Python that no longer exists:
//! these are its cases that matter. Its groups 9 (speed) and 12, 13 (compression, which the server
//! doesn't offer) have no counterpart here; `limits` bounds sizes, and the bench measures.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::talk::{GOOD, shake, with_server};

const CONTINUE: u8 = 0;
const TEXT: u8 = 1;
const DATA: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The last frame of a message.
const FIN: u8 = 0x80;

/// The frame has a mask.
const MASKED: u8 = 0x80;

/// A frame of a client: its first byte, and its payload.
type Frame = (u8, Vec<u8>);

/// The frames that come back, until the connection ends or all were answered.
enum Answer {
    /// These frames, and the connection stays good.
    Frames(Vec<Frame>),
    /// After these frames, a close frame with one of these codes.
    Closed(Vec<Frame>, &'static [u16]),
}

fn masked((first, payload): &Frame) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let length = payload.len();
    let mut frame = vec![*first];
    match length {
        0..126 => frame.push(MASKED | length as u8),
        126..65_536 => {
            frame.push(MASKED | 0x7e);
            frame.extend((length as u16).to_be_bytes());
        }
        _ => {
            frame.push(MASKED | 0x7f);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A frame of the server's, which isn't masked; none if the connection has ended.
async fn read(stream: &mut TcpStream) -> Option<Frame> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).await.ok()?;
    assert_eq!(head[1] & MASKED, 0, "a server masks nothing");
    let length = match head[1] {
        126 => u64::from(stream.read_u16().await.ok()?),
        127 => stream.read_u64().await.ok()?,
        short => u64::from(short),
    };
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[0], payload))
}

fn text(text: &str) -> Frame {
    (FIN | TEXT, text.into())
}

fn close(code: u16, reason: &[u8]) -> Frame {
    (FIN | CLOSE, [&code.to_be_bytes()[..], reason].concat())
}

/// A case: its number, what is sent, and what is answered.
type Case = (&'static str, Vec<Frame>, Answer);

/// Each of these comes back as it went.
fn echoed() -> Vec<Case> {
    let same = |number, frame: Frame| (number, vec![frame.clone()], Answer::Frames(vec![frame]));
    let mut cases = vec![same("1.1.1", text("")), same("1.2.1", (FIN | DATA, vec![]))];
    for (number, length) in
        [("1.1.2", 125), ("1.1.3", 126), ("1.1.4", 127), ("1.1.5", 128), ("1.1.6", 65_535)]
    {
        cases.push(same(number, text(&"*".repeat(length))));
        cases.push(same(number, (FIN | DATA, vec![0xfe; length])));
    }
    cases.push(same("1.1.7", text(&"*".repeat(65_536))));
    for (number, said) in [
        ("6.2.1", "Hello-µ@ßöäüàá-UTF-8!!"),
        ("6.5.1", "κόσμε"),
        ("6.7.1", "\0"),
        ("6.9.1", "\u{7f}\u{7ff}"),
        ("6.11.5", "\u{10ffff}"),
        ("6.22.1", "\u{fffe}\u{ffff}\u{1fffe}"),
    ] {
        cases.push(same(number, text(said)));
    }
    cases
}

/// Control frames, between messages and within them.
fn controls() -> Vec<Case> {
    let ping = |payload: &[u8]| (FIN | PING, payload.to_vec());
    let pong = |payload: &[u8]| (FIN | PONG, payload.to_vec());
    let (frames, closed) = (Answer::Frames, |before| Answer::Closed(before, &[1002]));
    let parts = [(TEXT, b"frag".to_vec()), (FIN | CONTINUE, b"ment".to_vec())];
    let [first, last] = parts;
    vec![
        ("2.1", vec![ping(b"")], frames(vec![pong(b"")])),
        ("2.2", vec![ping(b"Hello")], frames(vec![pong(b"Hello")])),
        ("2.4", vec![ping(&[0xfe; 125])], frames(vec![pong(&[0xfe; 125])])),
        ("2.5", vec![ping(&[0xfe; 126])], closed(vec![])),
        ("2.8", vec![pong(b"unasked"), text("x")], frames(vec![text("x")])),
        (
            "2.10",
            (0..10).map(|n| ping(&[n])).collect(),
            frames((0..10).map(|n| pong(&[n])).collect()),
        ),
        ("5.1", vec![(PING, b"frag".to_vec()), (FIN | CONTINUE, vec![])], closed(vec![])),
        ("5.2", vec![(PONG, b"frag".to_vec()), (FIN | CONTINUE, vec![])], closed(vec![])),
        ("5.3", vec![first.clone(), last.clone()], frames(vec![text("fragment")])),
        (
            "5.6",
            vec![first.clone(), ping(b"between"), last.clone()],
            frames(vec![pong(b"between"), text("fragment")]),
        ),
        ("5.9", vec![(FIN | CONTINUE, b"nothing".to_vec())], closed(vec![])),
        ("5.15", vec![first.clone(), last.clone(), (CONTINUE, vec![1])], {
            closed(vec![text("fragment")])
        }),
        ("5.18", vec![first, text("another")], closed(vec![])),
    ]
}

/// Frames that no client may send.
fn malformed() -> Vec<Case> {
    let closed = |codes| Answer::Closed(vec![], codes);
    let mut cases = Vec::new();
    for (number, reserved) in [("3.1", 0x10), ("3.2", 0x20), ("3.4", 0x30), ("3.5", 0x40)] {
        cases.push((number, vec![(FIN | reserved | TEXT, b"x".to_vec())], closed(&[1002])));
        cases.push((number, vec![(FIN | reserved | PING, b"x".to_vec())], closed(&[1002])));
    }
    for (number, code) in [("4.1.1", 3), ("4.1.5", 7), ("4.2.1", 11), ("4.2.5", 15)] {
        cases.push((number, vec![(FIN | code, b"x".to_vec())], closed(&[1002])));
    }
    for (number, bytes) in [
        ("6.3.1", &b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited"[..]),
        ("6.6.1", b"\xce"),
        ("6.8.1", b"\xf8\x88\x80\x80\x80"),
        ("6.10.1", b"\xf7\xbf\xbf\xbf"),
        ("6.12.1", b"\x80"),
        ("6.14.1", b"\xc0 \xc1 "),
        ("6.18.1", b"\xc0\xaf"),
        ("6.20.1", b"\xed\xa0\x80"),
        ("6.21.1", b"\xed\xa0\x80\xed\xb0\x80"),
    ] {
        cases.push((number, vec![(FIN | TEXT, bytes.to_vec())], closed(&[1007])));
        let (half, rest) = bytes.split_at(bytes.len() / 2);
        let parts = vec![(TEXT, half.to_vec()), (FIN | CONTINUE, rest.to_vec())];
        cases.push((number, parts, closed(&[1007])));
    }
    cases
}

/// Close frames: a good one comes back with its code, and ends the connection.
fn closes() -> Vec<Case> {
    let sent = |number, frame: Frame, codes| (number, vec![frame], Answer::Closed(vec![], codes));
    let mut cases = vec![
        // Nothing that comes after it is looked at.
        ("7.1.2", vec![close(1000, b""), close(1000, b"")], Answer::Closed(vec![], &[1000])),
        ("7.1.3", vec![close(1000, b""), (FIN | PING, vec![])], Answer::Closed(vec![], &[1000])),
        ("7.1.4", vec![close(1000, b""), text("late")], Answer::Closed(vec![], &[1000])),
        (
            "7.1.5",
            vec![(TEXT, b"half".to_vec()), close(1000, b"")],
            Answer::Closed(vec![], &[1000]),
        ),
        sent("7.3.2", (FIN | CLOSE, vec![3]), &[1002]),
        sent("7.3.4", close(1000, b"Hello World!"), &[1000]),
        sent("7.3.5", close(1000, &[b'*'; 123]), &[1000]),
        sent("7.3.6", close(1000, &[b'*'; 124]), &[1002]),
        sent("7.5.1", close(1000, b"\xce\xba\xed\xa0\x80"), &[1002, 1007]),
    ];
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
        let (answered, _) = ANSWERED.iter().find(|(_, only)| *only == code).unwrap();
        cases.push(sent("7.7", close(code, b""), answered));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1100, 2000, 2999, 5000, 65_535] {
        cases.push(sent("7.9", close(code, b""), &[1002]));
    }
    cases
}

/// Each code that a client may send, as the list that its answer may have.
const ANSWERED: [(&[u16], u16); 13] = [
    (&[1000], 1000),
    (&[1001], 1001),
    (&[1002], 1002),
    (&[1003], 1003),
    (&[1007], 1007),
    (&[1008], 1008),
    (&[1009], 1009),
    (&[1010], 1010),
    (&[1011], 1011),
    (&[3000], 3000),
    (&[3999], 3999),
    (&[4000], 4000),
    (&[4999], 4999),
];

#[test]
fn all_frames_are_answered_as_the_protocol_says() {
    with_server(1, async |running| {
        let all = [echoed(), controls(), malformed(), closes()].into_iter().flatten();
        for (number, sent, answer) in all {
            for at_once in [true, false] {
                let (mut stream, answered) = shake(running, "/talk/x/", GOOD).await;
                assert_eq!(answered.status, 101);
                let bytes = sent.iter().flat_map(masked).collect::<Vec<_>>();
                // Each byte by itself, or all of them at once. The server may end it on the way.
                if at_once || bytes.len() > 1000 {
                    let _ = stream.write_all(&bytes).await;
                } else {
                    for byte in &bytes {
                        let _ = stream.write_all(std::slice::from_ref(byte)).await;
                    }
                }
                check(number, &mut stream, &answer).await;
            }
        }
    });
}

async fn check(number: &str, stream: &mut TcpStream, answer: &Answer) {
    let (frames, codes) = match answer {
        Answer::Frames(frames) => (frames, None),
        Answer::Closed(frames, codes) => (frames, Some(codes)),
    };
    for frame in frames {
        assert!(read(stream).await.as_ref() == Some(frame), "case {number}");
    }
    let Some(codes) = codes else {
        let _ = stream.write_all(&masked(&text("still here"))).await;
        assert!(read(stream).await == Some(text("still here")), "case {number}");
        return;
    };
    let (first, payload) = read(stream).await.unwrap_or_else(|| panic!("case {number}: no close"));
    assert_eq!(first, FIN | CLOSE, "case {number}");
    let code = payload.get(..2).map(|code| u16::from_be_bytes([code[0], code[1]]));
    assert!(code.is_some_and(|code| codes.contains(&code)), "case {number}: {code:?}");
    assert_eq!(read(stream).await, None, "case {number}: nothing comes after it");
}
