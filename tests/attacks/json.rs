//! Attacks by calls in JSON: bodies that are too large, too deep, full of keys, of wrong types or
//! with huge numbers, many at once. Each gets an answer, and does nothing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::fortress::withstands;
use crate::support::http::{Http, get};
use crate::support::now;

/// The largest body that is read.
const MOST: usize = 1 << 20;

const CLIENTS: usize = 16;
const TIME: Duration = Duration::from_secs(6);

/// Sends calls with these bodies, all clients at once. Each answer must have one of the statuses.
fn bombard(bodies: &[String], statuses: &[u16]) {
    withstands(&["--json-calls", "on"], |served| {
        let before = served.resident_bytes();
        let address = &served.announced.http;
        let (until, answered) = (now() + TIME, AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let answered = &answered;
                scope.spawn(move || {
                    for body in bodies.iter().cycle().skip(client) {
                        if now() > until {
                            return;
                        }
                        // After some refusals the server reads no more of the connection.
                        let mut http = Http::connect(address);
                        http.send(call(body).as_bytes());
                        let answer = http.answer("POST");
                        let start = body.get(..40).unwrap_or(body);
                        assert!(statuses.contains(&answer.status), "{start}: {answer:?}");
                        assert!(!answer.body.contains(r#""outcome":"happened""#), "{answer:?}");
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        let answered = answered.into_inner();
        eprintln!("{answered} calls were answered");
        assert!(answered >= 4 * CLIENTS, "{answered}");
        let grown = served.resident_bytes().saturating_sub(before);
        assert!(grown < 300 << 20, "{} MiB", grown >> 20);
        assert_eq!(get(address, "/counter/x").body, "0");
        let mut http = Http::connect(address);
        http.send(call(r#"{"by": "3"}"#).as_bytes());
        let answer = http.answer("POST");
        assert_eq!(answer.status, 200, "{answer:?}");
    });
}

fn call(body: &str) -> String {
    let length = body.len();
    format!(
        "POST /json/Counter/x/increment HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// As many bytes as `before` and `after` leave of the largest body, of this text over and over.
fn filled(before: &str, with: &str, after: &str) -> String {
    let room = MOST - before.len() - after.len();
    [before, &with.repeat(room / with.len()), after].concat()
}

#[test]
fn bodies_that_are_too_large() {
    let large = filled("{\"by\": \"", "1", "\"}");
    bombard(&[format!("{large}{large}"), large.repeat(8)], &[413]);
}

#[test]
fn bodies_that_are_nested_deeply() {
    bombard(
        &[filled("", "[", ""), filled("", "{\"by\":", ""), filled("{\"by\": ", "[", "")],
        &[400],
    );
}

#[test]
fn bodies_with_many_keys() {
    let many = |key: &dyn Fn(usize) -> String| {
        let keys: Vec<_> = (0..40_000).map(|n| format!("\"{}\":{n}", key(n))).collect();
        format!("{{{}}}", keys.join(","))
    };
    bombard(
        &[many(&|n| format!("key{n}")), many(&|_| "by".to_owned()), many(&|_| String::new())],
        &[400],
    );
}

#[test]
fn bodies_of_wrong_types_and_with_huge_numbers() {
    let values = [
        "true",
        "[]",
        "{}",
        "[1]",
        "{\"by\":1}",
        "\"\"",
        "\"one\"",
        "1.5",
        "1e400",
        "-1e400",
        "9223372036854775808",
        "-9223372036854775809",
        "\"9223372036854775808\"",
    ];
    let mut bodies: Vec<_> = values.iter().map(|value| format!("{{\"by\": {value}}}")).collect();
    bodies.push(filled("{\"by\": ", "9", "}"));
    bodies.push(filled("{\"by\": 1e", "9", "}"));
    bodies.push(filled("{\"by\": \"", "9", "\"}"));
    bodies.push(filled("{\"by\": \"", "\\u0000", "\"}"));
    bodies.push(filled("[", "1,", "1]"));
    bombard(&bodies, &[400]);
}
