//! Sockets of sleeping objects in a server that is a process of its own: how they end by the
//! operator's hand, and the memory that they take.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use crate::support::{Served, capstead, eventually, http, scratch, serve_with};

/// Runs a command on the server's data that must succeed; returns its output.
fn done(data: &Path, args: &[&str]) -> String {
    let output = capstead(args).arg("--data").arg(data).output().expect("the command runs");
    let said = String::from_utf8([output.stdout, output.stderr].concat()).expect("it says text");
    assert!(output.status.success(), "{args:?}: {said}");
    said.trim().to_owned()
}

/// A window on the counter of that name, which has heard its value.
fn window(served: &Served, name: &str) -> TcpStream {
    let mut stream = TcpStream::connect(&served.announced.http).unwrap();
    let good = super::talk::GOOD;
    let request = format!(
        "GET /counter/{name}/live HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n{good}\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    assert_eq!(text(&mut stream), "0");
    stream
}

/// The next short text.
fn text(stream: &mut TcpStream) -> String {
    let mut head = [0; 2];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[0], 0x81, "a text comes");
    let mut text = vec![0; head[1].into()];
    stream.read_exact(&mut text).unwrap();
    String::from_utf8(text).unwrap()
}

/// The code of the close frame that comes next, with which the connection ends.
fn code(stream: &mut TcpStream) -> u16 {
    let mut head = [0; 4];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[0], 0x88, "a close frame comes");
    u16::from_be_bytes([head[2], head[3]])
}

fn all_sleep(served: &Served) {
    eventually("all sleep", || (served.metric("objects_awake") == 0).then_some(()));
}

/// A gateway whose grant is taken back loses the sockets that it opened by it, whether their
/// objects sleep or not, on every host.
#[test]
fn a_revoked_grant_closes_the_sockets_of_sleeping_objects() {
    for (hosts, warm) in [("1", "20ms"), ("2", "20ms"), ("4", "20ms"), ("2", "1m")] {
        let (_folder, data) = scratch();
        let served = serve_with(&data, &["--hosts", hosts, "--warm", warm]);
        let mut windows: Vec<_> = (0..12).map(|n| window(&served, &format!("n{n}"))).collect();
        if warm == "20ms" {
            all_sleep(&served);
        }
        let tree = done(&data, &["grants", "Counter"]);
        let root = tree.lines().nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
        done(&data, &["revoke", "Counter", &root]);
        for window in &mut windows {
            assert_eq!(code(window), 1008, "{hosts} hosts");
        }
        drop(windows);
        eventually("none is open", || (served.metric("http_sockets") == 0).then_some(()));
        assert_eq!(served.stop().0, Some(0));
    }
}

/// An object that is replaced is another one, which knows nothing of the sockets.
#[test]
fn a_replaced_objects_sockets_close_whether_it_sleeps_or_not() {
    for hosts in ["1", "2"] {
        let (folder, data) = scratch();
        let file = folder.path().join("all");
        let file = file.to_str().unwrap();
        let served = serve_with(&data, &["--hosts", hosts, "--warm", "20ms"]);
        for n in 0..8 {
            let answer = http::post(&served.announced.http, &format!("/counter/n{n}/increment"));
            assert_eq!(answer.status, 200);
            let answer = http::post(&served.announced.http, &format!("/counter/n{n}/decrement"));
            assert_eq!(answer.status, 200);
        }
        done(&data, &["export", file, "--all"]);
        let mut windows: Vec<_> = (0..8).map(|n| window(&served, &format!("n{n}"))).collect();
        let mut other = window(&served, "other");
        all_sleep(&served);
        done(&data, &["import", file, "--replace"]);
        for window in &mut windows {
            assert_eq!(code(window), 1011, "{hosts} hosts");
        }
        let answer = http::post(&served.announced.http, "/counter/other/increment");
        assert_eq!((answer.status, text(&mut other).as_str()), (200, "1"));
        // A new window hears the new object.
        let mut again = window(&served, "n0");
        http::post(&served.announced.http, "/counter/n0/increment");
        assert_eq!(text(&mut again), "1");
        drop((again, other, windows));
        assert_eq!(served.stop().0, Some(0));
    }
}

/// The memory of sockets whose objects sleep, with all that the gateway needs for each.
#[test]
fn a_sleeping_objects_socket_takes_little_memory() {
    const FIRST: usize = 500;
    const MORE: usize = 2_000;
    const BYTES_MAX: u64 = 20 << 10;
    let (_folder, data) = scratch();
    let flags = ["--warm", "20ms", "--http-connections", "4000"];
    let flags = [&flags[..], &["--http-connections-per-peer", "4000", "--hosts", "2"]].concat();
    let served = serve_with(&data, &flags);
    let mut windows: Vec<_> =
        (0..FIRST).map(|n| window(&served, &format!("n{}", n % 20))).collect();
    all_sleep(&served);
    let before = served.resident_bytes();
    windows.extend((0..MORE).map(|n| window(&served, &format!("n{}", n % 20))));
    all_sleep(&served);
    let each = served.resident_bytes().saturating_sub(before) / MORE as u64;
    assert!(each <= BYTES_MAX, "{each} bytes for each socket");
    assert_eq!(served.metric("http_sockets"), (FIRST + MORE) as u64);
    for n in 0..20 {
        http::post(&served.announced.http, &format!("/counter/n{n}/increment"));
    }
    assert!(windows.iter_mut().all(|window| text(window) == "1"));
    drop(windows);
    eventually("none is open", || (served.metric("http_sockets") == 0).then_some(()));
    assert_eq!(served.stop().0, Some(0));
}
