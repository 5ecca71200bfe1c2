//! Counters over HTTP: every answer has the right status and, if it is a refusal, a sentence.

use crate::support::calls::{by_name, connect, increment, read, run};
use crate::support::http::{self, Http, Response};
use crate::support::{Served, scratch, serve};
use tempfile::TempDir;

/// A gateway with its own data.
struct Gateway {
    served: Served,
    _folder: TempDir,
}

impl Gateway {
    fn start() -> Self {
        let (folder, data) = scratch();
        Self { served: serve(&data), _folder: folder }
    }

    fn address(&self) -> &str {
        &self.served.announced.http
    }

    fn get(&self, path: &str) -> Response {
        http::get(self.address(), path)
    }

    fn post(&self, path: &str) -> Response {
        http::post(self.address(), path)
    }

    /// Checks that the answer to the request has that status and number.
    fn counts(&self, method: &str, path: &str, value: &str) {
        let response = http::ask(self.address(), method, path);
        assert_eq!((response.status, response.body.trim_end()), (200, value), "{method} {path}");
    }

    /// Checks that the request is refused with that status, and a sentence that contains these
    /// words.
    fn refuses(&self, method: &str, path: &str, status: u16, words: &str) {
        let response = http::ask(self.address(), method, path);
        let body = &response.body;
        assert_eq!(response.status, status, "{method} {path}: {body}");
        assert!(body.contains(words) && body.contains(' '), "{method} {path}: {body}");
        let plain =
            response.header("content-type").is_some_and(|kind| kind.starts_with("text/plain"));
        assert!(plain, "{method} {path}: {response:?}");
    }
}

// Everything that the example promises over HTTP, with negative and large steps.
#[test]
fn counters_are_changed_with_post_and_read_with_get() {
    let gateway = Gateway::start();
    gateway.counts("GET", "/counter/x", "0");
    gateway.counts("POST", "/counter/x/increment", "1");
    gateway.counts("POST", "/counter/x/increment?by=41", "42");
    gateway.counts("POST", "/counter/x/decrement", "41");
    gateway.counts("POST", "/counter/x/decrement?by=100", "-59");
    gateway.counts("POST", "/counter/x/increment?by=-1", "-60");
    gateway.counts("POST", "/counter/x/increment?by=0", "-60");
    gateway.counts("GET", "/counter/x/", "-60");
    gateway.counts("GET", "/Counter/x", "-60");
    gateway.counts("GET", "/counter/y", "0");
}

// A name is decoded once, and then names the same object as over Cap'n Proto.
#[test]
fn an_encoded_name_is_the_object_that_capabilities_reach() {
    let gateway = Gateway::start();
    for (encoded, name) in [
        ("a%2Fb%20c", "a/b c"),
        ("%C3%BCber", "über"),
        ("100%2525", "100%25"),
        ("plus+plus", "plus+plus"),
        ("x", "x"),
    ] {
        gateway.counts("POST", &format!("/counter/{encoded}/increment?by=7"), "7");
        run(async {
            let (_connection, counters) = connect(&gateway.served).await;
            assert_eq!(read(&by_name(&counters, name)).await.unwrap(), 7, "{name:?}");
        });
    }
}

// A request for something that doesn't exist says so, and makes nothing.
#[test]
fn what_is_not_there_is_a_404() {
    let gateway = Gateway::start();
    let before = gateway.served.metric("commits_total");
    for path in ["/counter", "/counter/", "/counter//increment", "/nobody/x", "/counter/%ff"] {
        gateway.refuses("GET", path, 404, "nothing at this path");
        gateway.refuses("POST", path, 404, "nothing at this path");
    }
    gateway.refuses("GET", "/counter/x/nothing", 404, "no such path");
    gateway.refuses("POST", "/counter/x/increment/", 404, "no such path");
    gateway.refuses("GET", "/poll/x", 501, "");
    assert_eq!(gateway.served.metric("commits_total"), before);
}

// A wrong request is the caller's fault, and changes nothing.
#[test]
fn a_request_that_makes_no_sense_is_refused_and_changes_nothing() {
    let gateway = Gateway::start();
    gateway.counts("POST", "/counter/x/increment?by=5", "5");
    for method in ["PUT", "DELETE", "PATCH", "POST", "OPTIONS"] {
        gateway.refuses(method, "/counter/x", 405, "use GET");
    }
    gateway.refuses("GET", "/counter/x/increment", 405, "POST to change");
    for by in ["abc", "", "1.5", "0x10", "9223372036854775808", "1e3", "%ff"] {
        gateway.refuses("POST", &format!("/counter/x/increment?by={by}"), 400, "must be a number");
    }
    gateway.refuses("PURGE", "/counter/x", 501, "not supported");
    let long = "n".repeat(1025);
    gateway.refuses("POST", &format!("/counter/{long}/increment"), 414, "1024");
    gateway.counts("POST", &format!("/counter/{}/increment", "n".repeat(1024)), "1");
    gateway.counts("GET", "/counter/x", "5");
}

// The object refuses; the gateway passes its sentence on, and the value stays.
#[test]
fn a_counter_that_would_overflow_is_a_409() {
    let gateway = Gateway::start();
    let (max, min) = (i64::MAX.to_string(), i64::MIN.to_string());
    gateway.counts("POST", &format!("/counter/x/increment?by={max}"), &max);
    gateway.refuses("POST", "/counter/x/increment", 409, "the counter is full");
    gateway.counts("GET", "/counter/x", &max);
    gateway.counts("POST", &format!("/counter/y/increment?by={min}"), &min);
    gateway.refuses("POST", "/counter/y/decrement", 409, "the counter is empty");
    gateway.counts("GET", "/counter/y", &min);
}

// A HEAD is answered like a GET, without the body.
#[test]
fn a_head_has_the_head_of_a_get_and_no_body() {
    let gateway = Gateway::start();
    gateway.counts("POST", "/counter/x/increment?by=123", "123");
    let mut connection = Http::connect(gateway.address());
    for (path, status, length) in [("/counter/x", 200, "3"), ("/nobody/x", 404, "31")] {
        let head = connection.ask("HEAD", path);
        assert_eq!((head.status, head.header("content-length")), (status, Some(length)), "{path}");
        // Bytes after the head would be taken for the start of the next answer.
        assert_eq!(connection.ask("GET", path).status, status);
    }
}

// Clients send an empty body in different ways (`curl -d ''`); all of them mean an increment.
#[test]
fn a_request_with_an_empty_body_counts() {
    let gateway = Gateway::start();
    let mut connection = Http::connect(gateway.address());
    for (value, head) in [
        ("1", "Content-Length: 0\r\n\r\n"),
        ("2", "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 0\r\n\r\n"),
        ("3", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ] {
        let start = "POST /counter/x/increment HTTP/1.1\r\nHost: localhost\r\n";
        connection.send(format!("{start}{head}").as_bytes());
        let response = connection.answer("POST");
        assert_eq!((response.status, &*response.body), (200, value));
    }
}

// A counter has no use for a body. The answer and the counter agree, be it ignored or refused, and
// the next request on the connection is understood.
#[test]
fn a_request_with_a_body_is_answered_as_one_request() {
    let gateway = Gateway::start();
    let mut connection = Http::connect(gateway.address());
    let mut value = 0;
    for length in [1, 100, 65_536, 1 << 20] {
        let body = "GET / HTTP/1.1\r\n".repeat(1 << 16);
        let head = "POST /counter/x/increment HTTP/1.1\r\nHost: localhost\r\nContent-Length: ";
        connection.send(format!("{head}{length}\r\n\r\n{}", &body[..length]).as_bytes());
        let response = connection.answer("POST");
        match response.status {
            200 => value += 1,
            status => assert_eq!(status, 501, "{response:?}"),
        }
        assert_eq!(connection.ask("GET", "/counter/x").body, value.to_string());
    }
    let head =
        "POST /counter/x/increment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999";
    let mut huge = Http::connect(gateway.address());
    huge.send(format!("{head}\r\n\r\n").as_bytes());
    huge.send(&vec![0; 2 << 20]);
    assert!([413, 200].contains(&huge.answer("POST").status));
    gateway.counts("GET", "/counter/y", "0");
}

// Heads have limits: a head beyond them is refused, and all other clients are still served.
#[test]
fn a_head_that_is_too_large_or_no_head_at_all_is_refused() {
    let gateway = Gateway::start();
    let start = "GET /counter/x HTTP/1.1\r\nHost: localhost\r\n";
    let long = format!("{start}X: {}\r\n\r\n", "x".repeat(2 << 20));
    let many = format!("{start}{}\r\n", "X: x\r\n".repeat(1_000));
    for (raw, status) in [
        (long.as_bytes(), 431),
        (many.as_bytes(), 431),
        (b"hello\r\n\r\n", 400),
        (b"GET /counter/x HTTP/9.9\r\n\r\n", 400),
        (b"GET /counter/x HTTP/1.1\r\nno colon\r\n\r\n", 400),
    ] {
        let mut connection = Http::connect(gateway.address());
        connection.send(raw);
        assert_eq!(connection.answer("GET").status, status);
        assert!(connection.is_closed());
        gateway.counts("GET", "/counter/x", "0");
    }
}

// A client that connects and never sends a request is disconnected.
#[test]
fn a_head_that_does_not_come_is_not_waited_for_for_ever() {
    let gateway = Gateway::start();
    let mut silent = Http::connect(gateway.address());
    silent.send(b"GET /counter/x HTTP/1.1\r\nHost:");
    assert!(silent.is_closed() || silent.answer("GET").status == 408);
    gateway.counts("GET", "/counter/x", "0");
}

// A connection takes one request after another, even if the next comes before the answer.
#[test]
fn a_connection_is_kept_and_requests_follow_each_other_on_it() {
    let gateway = Gateway::start();
    let mut connection = Http::connect(gateway.address());
    for value in 1..=100 {
        let response = connection.ask("POST", "/counter/x/increment");
        assert_eq!((response.status, response.body), (200, value.to_string()));
    }
    let request = "POST /counter/x/increment HTTP/1.1\r\nHost: localhost\r\n\r\n";
    connection.send(request.repeat(10).as_bytes());
    for value in 101..=110 {
        assert_eq!(connection.answer("POST").body, value.to_string());
    }
    connection.send(b"GET /counter/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(connection.answer("GET").body, "110");
    assert!(connection.is_closed());
}

// A hundred requests are under way before the first answer is read: each counts once.
#[test]
fn a_hundred_concurrent_requests_count_to_a_hundred() {
    let gateway = Gateway::start();
    let mut open: Vec<Http> = (0..100).map(|_| Http::connect(gateway.address())).collect();
    for connection in &mut open {
        connection.send(b"POST /counter/x/increment HTTP/1.1\r\nHost: localhost\r\n\r\n");
    }
    let mut values: Vec<i64> =
        open.iter_mut().map(|open| open.answer("POST").body.parse().unwrap()).collect();
    values.sort_unstable();
    assert_eq!(values, (1..=100).collect::<Vec<_>>());
}

// Both protocols lead to the same object: each reads the other's writes.
#[test]
fn http_and_capabilities_count_together() {
    let gateway = Gateway::start();
    run(async {
        let (_connection, counters) = connect(&gateway.served).await;
        let counter = by_name(&counters, "x");
        assert_eq!(increment(&counter).await.unwrap(), 1);
        gateway.counts("POST", "/counter/x/increment", "2");
        assert_eq!(increment(&counter).await.unwrap(), 3);
    });
    assert_eq!(gateway.get("/counter/x").body, "3");
    assert_eq!(gateway.post("/counter/x/decrement?by=3").body, "0");
}
