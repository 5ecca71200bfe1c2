//! The resources that HTTP clients may use are bounded: connections, room for bodies, and time.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use crate::support::http::{Http, get, post};
use crate::support::{DEADLINE, eventually, scratch, serve_with};

const STALLED: &[u8] =
    b"POST /json/counter/x/increment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 600000\r\n\r\n";

#[test]
fn connections_have_a_bound_for_each_address_and_in_all() {
    for (flag, most) in [("--http-connections", 3), ("--http-connections-per-peer", 3)] {
        let (_folder, data) = scratch();
        let served = serve_with(&data, &[flag, "3"]);
        let address = &served.announced.http;
        let mut open: Vec<Http> = (0..most).map(|_| Http::connect(address)).collect();
        for connection in &mut open {
            assert_eq!(connection.ask("GET", "/counter/x").status, 200);
        }
        assert_eq!(served.metric("http_connections"), most);
        let mut more = TcpStream::connect(address).unwrap();
        more.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut refused = String::new();
        more.read_to_string(&mut refused).unwrap();
        assert!(refused.starts_with("HTTP/1.1 503") && refused.ends_with("try again later"));
        assert_eq!(served.metric("http_connections_refused_total"), 1);
        drop(open);
        eventually("a place", || (served.metric("http_connections") == 0).then_some(()));
        assert_eq!(get(address, "/counter/x").status, 200);
    }
}

#[test]
fn bodies_that_stall_go_and_give_their_room_back() {
    let (_folder, data) = scratch();
    let flags = ["--http-body-bytes", "1MiB", "--http-transfer", "3s"];
    let served = serve_with(&data, &flags);
    let address = &served.announced.http;
    let mut stalled: Vec<Http> = (0..2).map(|_| Http::connect(address)).collect();
    for connection in &mut stalled {
        connection.send(STALLED);
        connection.send(&vec![b'x'; 590_000]);
    }
    // One of them gets no room; the other one is awaited until its time limit.
    let mut statuses: Vec<u16> =
        stalled.iter_mut().map(|connection| connection.answer("POST").status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [408, 503]);
    assert!(stalled.iter_mut().all(Http::is_closed));
    assert_eq!(served.metric("http_bodies_refused_total"), 1);
    assert_eq!(served.metric("http_slow_total"), 1);
    let mut next = Http::connect(address);
    next.send(STALLED);
    next.send(&vec![b'x'; 600_000]);
    assert_ne!(next.answer("POST").status, 503, "there is room again");
    assert_eq!(post(address, "/counter/y/increment").status, 200);
}

/// The object has most of it by then, and gives it back, too.
#[test]
fn a_stream_that_stalls_goes_and_gives_its_room_back() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--http-transfer", "1s"]);
    let mut stalled = Http::connect(&served.announced.http);
    stalled.send(
        b"POST /counter/x/increment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 600000\r\n\r\n",
    );
    stalled.send(&vec![b'x'; 590_000]);
    eventually("its bytes", || (served.metric("http_body_bytes") >= 590_000).then_some(()));
    assert_eq!(stalled.answer("POST").status, 408);
    assert!(stalled.is_closed());
    assert_eq!(served.metric("http_slow_total"), 1);
    eventually("room", || (served.metric("http_body_bytes") == 0).then_some(()));
    assert_eq!(get(&served.announced.http, "/counter/x").body, "0");
}

#[test]
fn a_head_has_its_time() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--http-head", "200ms"]);
    let mut slow = Http::connect(&served.announced.http);
    slow.send(b"GET /counter/x HTTP/1.1\r\nHost:");
    assert!(slow.is_closed() || slow.answer("GET").status == 408);
}

/// Answers are small, so it takes many unread ones to reach the limit.
#[test]
fn a_client_that_takes_no_answers_is_cut() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--http-transfer", "1s"]);
    let mut client = TcpStream::connect(&served.announced.http).unwrap();
    client.set_write_timeout(Some(DEADLINE)).unwrap();
    let request = b"GET /counter/x HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(1000);
    let cut = loop {
        match std::io::Write::write_all(&mut client, &request) {
            Ok(()) => {}
            Err(error) => break error.kind(),
        }
    };
    assert!([ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&cut), "{cut:?}");
    assert_eq!(served.metric("http_slow_total"), 1);
    eventually("the place", || (served.metric("http_connections") == 0).then_some(()));
    assert_eq!(get(&served.announced.http, "/counter/x").status, 200);
}
