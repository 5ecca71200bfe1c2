//! Attacks by requests that two readers take for different ones, by bytes that are no text, and by
//! bodies that are small only as long as nobody unpacks them.

use std::io::{Read, Write};
use std::net::TcpStream;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::fortress::withstands;
use crate::support::http::{Http, get};
use crate::support::{DEADLINE, Served};

/// A request that hides in the body of another one. A proxy that took it for a part of that body
/// would have looked at neither its path nor its head.
const HIDDEN: &str = "POST /counter/hidden/increment HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Sends these bytes, and returns all that comes until the server ends the connection.
fn until_it_ends(served: &Served, raw: &[u8]) -> String {
    let mut stream = TcpStream::connect(&served.announced.http).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    // The server may refuse it before it has all of it.
    let _ = stream.write_all(raw);
    let mut came = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut came);
    String::from_utf8_lossy(&came).into_owned()
}

fn hidden_runs(served: &Served) -> String {
    get(&served.announced.http, "/counter/hidden").body
}

/// Each has a head that says the length of its body in two ways, or in none that is one.
#[test]
fn requests_that_end_in_two_places() {
    withstands(&["--http-head", "2s"], |served| {
        let all = HIDDEN.len() + 5;
        for (lines, body) in [
            (format!("Content-Length: {all}\r\nTransfer-Encoding: chunked"), "0\r\n\r\n"),
            (format!("Transfer-Encoding: chunked\r\nContent-Length: {all}"), "0\r\n\r\n"),
            (format!("Content-Length: 0\r\nContent-Length: {all}"), ""),
            (format!("Content-Length: 0, {all}"), ""),
            ("Content-Length: +0".to_owned(), ""),
            ("Content-Length: -0".to_owned(), ""),
            ("Content-Length: 0x0".to_owned(), ""),
            ("Content-Length : 0".to_owned(), ""),
            ("Content-Length: 0\r\n ,1".to_owned(), ""),
            ("Content-Length: ".to_owned(), ""),
            ("Transfer-Encoding: xchunked".to_owned(), "0\r\n\r\n"),
            ("Transfer-Encoding: chunked, identity".to_owned(), "0\r\n\r\n"),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: x".to_owned(), "0\r\n\r\n"),
            ("Transfer-Encoding : chunked".to_owned(), "0\r\n\r\n"),
            ("Transfer-Encoding:\r\n chunked".to_owned(), "0\r\n\r\n"),
            ("Transfer-Encoding: \u{b}chunked".to_owned(), "0\r\n\r\n"),
            ("X: x\rTransfer-Encoding: chunked".to_owned(), "0\r\n\r\n"),
            ("X: x\0\r\nTransfer-Encoding: chunked".to_owned(), "0\r\n\r\n"),
            ("Transfer-Encoding: chunked".to_owned(), "0x0\r\n\r\n"),
            ("Transfer-Encoding: chunked".to_owned(), "+0\r\n\r\n"),
            ("Transfer-Encoding: chunked".to_owned(), "10000000000000000\r\n\r\n"),
            ("Transfer-Encoding: chunked".to_owned(), "1\r\nxx\r\n0\r\n\r\n"),
            ("Transfer-Encoding: chunked".to_owned(), "0\n\n"),
        ] {
            let head = "POST /counter/seen/increment HTTP/1.1\r\nHost: localhost\r\n";
            let came =
                until_it_ends(served, format!("{head}{lines}\r\n\r\n{body}{HIDDEN}").as_bytes());
            assert!(came.matches("HTTP/1.1 ").count() <= 1, "{lines:?}, {body:?}: {came}");
            assert_eq!(hidden_runs(served), "0", "{lines:?}, {body:?}: {came}");
        }
        // HTTP/1.0 has no chunks.
        let old = "POST /counter/seen/increment HTTP/1.0\r\nConnection: keep-alive\r\n\
                   Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        let came = until_it_ends(served, format!("{old}{HIDDEN}").as_bytes());
        assert_eq!(hidden_runs(served), "0", "{came}");
        // The same two requests behind each other are two.
        let head = "POST /counter/seen/increment HTTP/1.1\r\nHost: localhost\r\n";
        let came = until_it_ends(
            served,
            format!("{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}").as_bytes(),
        );
        assert_eq!((came.matches("HTTP/1.1 200").count(), &*hidden_runs(served)), (2, "1"));
    });
}

/// Paths that a proxy may read as others than the class would.
#[test]
fn paths_with_two_meanings() {
    withstands(&["--json-calls", "on"], |served| {
        for path in [
            "/counter/other/../x/increment",
            "/counter/x/./increment",
            "/counter/%2e%2e/increment",
            "/counter/x/increment/..%2fincrement",
            "/counter/x%00/increment",
            "/counter/x/increment?",
        ] {
            let mut http = Http::connect(&served.announced.http);
            let request = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            http.send(request.as_bytes());
            let expected = if path.ends_with('?') { 200 } else { 400 };
            assert_eq!(http.answer("POST").status, expected, "{path}");
        }
        let json = "POST /json/Counter/%2e/increment HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let mut http = Http::connect(&served.announced.http);
        http.send(json.as_bytes());
        assert_eq!(http.answer("POST").status, 400);
        assert_eq!(get(&served.announced.http, "/counter/x").body, "1");
    });
}

/// Paths, names, hosts, headers and bodies that aren't UTF-8.
#[test]
fn bytes_that_are_no_text() {
    withstands(&["--json-calls", "on"], |served| {
        let call = "Content-Length: 11\r\n\r\n{\"by\": \"\u{ff}\"}";
        let latin: fn(&str) -> Vec<u8> = |text| text.chars().map(|letter| letter as u8).collect();
        for (what, line, rest) in [
            ("a path", "POST /counter/x/\u{ff}\u{fe}", "\r\n"),
            ("a name", "POST /counter/%ff%fe/increment", "\r\n"),
            ("half a letter", "POST /counter/%c3/increment", "\r\n"),
            ("a letter that is too long", "POST /counter/%c0%af/increment", "\r\n"),
            ("half a surrogate", "POST /counter/%ed%a0%80/increment", "\r\n"),
            ("a header", "POST /counter/x/increment", "X: \u{ff}\r\n\r\n"),
            ("a method", "P\u{ff}ST /counter/x/increment", "\r\n"),
            ("a body", "POST /json/Counter/x/increment", call),
        ] {
            for _ in 0..50 {
                let mut http = Http::connect(&served.announced.http);
                http.send(&latin(&format!("{line} HTTP/1.1\r\nHost: localhost\r\n{rest}")));
                let status = http.answer("POST").status;
                assert!((400..500).contains(&status), "{what}: {status}");
            }
        }
        let mut http = Http::connect(&served.announced.http);
        http.send(&latin("POST /counter/x/increment HTTP/1.1\r\nHost: \u{ff}\r\n\r\n"));
        assert!((400..500).contains(&http.answer("POST").status));
        assert_eq!(get(&served.announced.http, "/counter/x").body, "0");
    });
}

/// Nothing that comes is unpacked: neither a request's body nor, by an extension, a message.
#[test]
fn bodies_that_would_unpack_to_gigabytes() {
    const UNPACKED: usize = 1 << 30;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let zeros = vec![0; 1 << 20];
    for _ in 0..UNPACKED / zeros.len() {
        encoder.write_all(&zeros).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    // Two bombs in one body would be too large for their packed bytes alone.
    let bomb = &bomb[..bomb.len().min(1 << 20)];
    withstands(&["--json-calls", "on"], |served| {
        let before = served.resident_bytes();
        for encoding in ["gzip", "gzip, gzip", "deflate", "br", "zstd"] {
            for path in ["/json/Counter/x/increment", "/json/Counter/x/read"] {
                let head = format!(
                    "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: {encoding}\r\n\
                     Content-Length: {}\r\n\r\n",
                    bomb.len()
                );
                let mut http = Http::connect(&served.announced.http);
                http.send(&[head.as_bytes(), bomb].concat());
                let status = http.answer("POST").status;
                assert!((400..500).contains(&status), "{encoding} to {path}: {status}");
            }
        }
        let mut stream = TcpStream::connect(&served.announced.http).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let asked = "GET /counter/x/live HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                     Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";
        stream.write_all(asked.as_bytes()).unwrap();
        // A message that says it is packed, as it may be only where that was agreed on.
        let mut message = vec![0xc2, 0xff];
        message.extend((bomb.len() as u64).to_be_bytes());
        message.extend([0; 4]);
        message.extend(bomb);
        let _ = stream.write_all(&message);
        let mut came = Vec::new();
        let _ = stream.read_to_end(&mut came);
        let text = String::from_utf8_lossy(&came).to_lowercase();
        assert!(text.starts_with("http/1.1 101") && !text.contains("permessage"), "{text}");
        assert!(came.windows(4).any(|end| end[0] == 0x88 && end[2..] == 1002_u16.to_be_bytes()));
        let grown = served.resident_bytes().saturating_sub(before);
        assert!(grown < 64 << 20, "{} MiB", grown >> 20);
        assert_eq!(get(&served.announced.http, "/counter/x").body, "0");
    });
}
