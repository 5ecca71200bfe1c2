//! JSON over HTTP: invalid bodies get a clear answer, errors come in the form that a client asks
//! for, and a HEAD is answered from the GET.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::support::exchange::{self, exchange};
use capstead::counter_capnp::counter;
use capstead::http::{self, Answer, Body, Request, StatusCode, http_service};
use capstead::{Context, Object, Reason, Result, Server, Stored, conflict};
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// Keeps a list of notes.
struct Notes {
    all: Stored<String>,
}

impl Object for Notes {
    const CLASS: &'static str = "Notes";
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self { all: ctx.stored("all")? })
    }
}

impl counter::Server for Notes {}

impl Notes {
    fn http(&self, request: &Request<Body>) -> Answer {
        match (request.method().as_str(), request.uri().path()) {
            ("GET", "/") => http::json(StatusCode::OK, &self.all.get().lines().collect::<Vec<_>>()),
            ("POST", "/") => {
                let note: BTreeMap<String, String> = http::read_json(request)?;
                let text = note.get("text").ok_or_else(|| conflict("a note has a text"))?;
                self.all.set(format!("{}{text}\n", self.all.get()))?;
                http::json(StatusCode::CREATED, &note)
            }
            ("GET", "/full") => Err(Reason::OverQuota.error("there are too many").into()),
            ("GET", "/nothing") => {
                let mut response = http::text(StatusCode::NO_CONTENT, "");
                response.headers_mut().clear();
                Ok(response)
            }
            ("GET", "/empty") => Ok(http::text(StatusCode::OK, "")),
            ("GET", "/odd") => http::json(StatusCode::OK, &BTreeMap::from([(vec![1], 2)])),
            _ => Err(http::refuse(StatusCode::NOT_FOUND, "notes have no such path")),
        }
    }
}

impl http_service::Server for Notes {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        http::serve(params, results, async |request| self.http(&request)).await
    }
}

/// Runs `work` with a server, over one connection.
fn with_notes(work: impl AsyncFnOnce(&mut TcpStream)) {
    let data = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    runtime.block_on(async {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::new(data.path().join("data")).class::<Notes>();
        let running = server.listen(any).http(any).start().await.unwrap();
        work(&mut TcpStream::connect(running.http().unwrap()).await.unwrap()).await;
        running.until(async {}).await.unwrap();
    });
}

async fn ask(stream: &mut TcpStream, line: &str, headers: &str, body: &str) -> exchange::Answer {
    let length = body.len();
    let length =
        if body.is_empty() { String::new() } else { format!("content-length: {length}\r\n") };
    let asked = format!("{line} HTTP/1.1\r\nhost: localhost\r\n{headers}{length}\r\n{body}");
    exchange(stream, asked.as_bytes()).await
}

fn text(answer: &exchange::Answer) -> &str {
    std::str::from_utf8(&answer.body).unwrap()
}

#[test]
fn a_value_goes_in_and_out_as_json() {
    with_notes(async |stream| {
        for kind in ["", "content-type: application/json\r\n"] {
            let made = ask(stream, "POST /notes/a", kind, r#"{"text": "buy milk"}"#).await;
            assert_eq!((made.status, text(&made)), (201, r#"{"text":"buy milk"}"#));
        }
        let all = ask(stream, "GET /notes/a", "", "").await;
        assert!(all.says(b"content-type: application/json\r\n"));
        assert_eq!((all.status, text(&all)), (200, r#"["buy milk","buy milk"]"#));
    });
}

#[test]
fn a_body_that_is_no_json_is_the_clients_fault_and_changes_nothing() {
    with_notes(async |stream| {
        for (kind, body, status, says) in [
            ("", "", 400, "the request has no body: send JSON"),
            (
                "",
                "{\"text\": ",
                400,
                "the body isn't JSON: EOF while parsing a value at line 1 column 9",
            ),
            ("", "{\"text\": \"x\"} and more", 400, "the body isn't JSON: trailing characters"),
            (
                "",
                "{\"text\": 1}",
                400,
                "the JSON isn't what is expected: invalid type: integer `1`",
            ),
            ("", "\u{feff}{}", 400, "the body isn't JSON"),
            (
                "content-type: text/plain\r\n",
                "{\"text\": \"x\"}",
                415,
                "Content-Type: application/json",
            ),
            ("", "{}", 409, "a note has a text"),
        ] {
            let refused = ask(stream, "POST /notes/a", kind, body).await;
            assert_eq!(refused.status, status, "{body}: {}", text(&refused));
            assert!(text(&refused).contains(says), "{body}: {}", text(&refused));
            assert!(refused.says(b"content-type: text/plain; charset=utf-8\r\n"), "{body}");
        }
        let deep = "[".repeat(900_000);
        assert_eq!(ask(stream, "POST /notes/a", "", &deep).await.status, 400);
        let all = ask(stream, "GET /notes/a", "", "").await;
        assert_eq!((all.status, text(&all)), (200, "[]"));
        let odd = ask(stream, "GET /notes/a/odd", "", "").await;
        assert!(
            odd.status == 500 && text(&odd).contains("can't be written as JSON"),
            "{}",
            text(&odd)
        );
    });
}

#[test]
fn a_body_that_is_too_large_is_told_so() {
    with_notes(async |stream| {
        let large = format!("[\"{}\"]", "x".repeat(1 << 20));
        let head = format!("content-length: {}\r\naccept: application/json\r\n", large.len());
        let refused = ask(stream, "POST /notes/a", &head, "").await;
        assert_eq!(refused.status, 413);
        let problem: Value = serde_json::from_slice(&refused.body).unwrap();
        assert_eq!(problem["detail"], "A body has at most 1048576 bytes.");
    });
}

/// The class's own errors, those with which its calls end, and those of the gateway.
#[test]
fn a_client_that_asks_for_json_gets_errors_as_problems() {
    with_notes(async |stream| {
        let problem = |status: u16, title: &str, detail: &str| json!({"status": status, "title": title, "detail": detail});
        let mut full = problem(500, "Internal Server Error", "over-quota: there are too many");
        full["reason"] = json!("over-quota");
        let mut conflict = problem(409, "Conflict", "a note has a text");
        conflict["reason"] = json!("conflict");
        for (line, body, expected) in [
            ("GET /notes/a/what", "", problem(404, "Not Found", "notes have no such path")),
            ("GET /notes/a/full", "", full),
            ("POST /notes/a", "{}", conflict),
            ("GET /nobody/a", "", problem(404, "Not Found", "There is nothing at this path.")),
            (
                "POST /notes/a",
                "{",
                problem(
                    400,
                    "Bad Request",
                    "the body isn't JSON: EOF while parsing an object at line 1 column 1",
                ),
            ),
        ] {
            for accept in ["application/json", "text/html, application/problem+json;q=0.3"] {
                let answer = ask(stream, line, &format!("accept: {accept}\r\n"), body).await;
                assert!(answer.says(b"content-type: application/problem+json\r\n"), "{line}");
                assert!(answer.says(b"vary: accept\r\n"), "{line}");
                let found: Value = serde_json::from_slice(&answer.body).unwrap();
                assert_eq!(found, expected, "{line}");
                assert_eq!(Value::from(answer.status), expected["status"], "{line}");
            }
            for accept in ["", "accept: */*\r\n", "accept: application/json;q=0\r\n"] {
                let answer = ask(stream, line, accept, body).await;
                assert!(answer.says(b"content-type: text/plain; charset=utf-8\r\n"), "{line}");
                assert_eq!(text(&answer).trim_end(), expected["detail"].as_str().unwrap());
            }
        }
        let other = "origin: https://evil.example\r\naccept: application/json\r\n";
        let refused = ask(stream, "POST /notes/a", other, "{}").await;
        assert!(refused.status == 403 && refused.says(b"application/problem+json"));
    });
}

#[test]
fn a_head_is_answered_from_the_get() {
    with_notes(async |stream| {
        ask(stream, "POST /notes/a", "", r#"{"text": "buy milk"}"#).await;
        for path in [
            "/notes/a",
            "/notes/a/full",
            "/notes/a/what",
            "/notes/a/empty",
            "/notes/a/nothing",
            "/nobody/a",
        ] {
            for accept in ["", "accept: application/json\r\n"] {
                let get = ask(stream, &format!("GET {path}"), accept, "").await;
                let head = ask(stream, &format!("HEAD {path}"), accept, "").await;
                assert_eq!(head.status, get.status, "{path}");
                let without_date = |answer: &exchange::Answer| {
                    let head = String::from_utf8(answer.head.clone()).unwrap();
                    let mut lines: Vec<_> = head.lines().map(str::to_owned).collect();
                    lines.retain(|line| !line.starts_with("date: "));
                    lines.sort();
                    lines
                };
                assert_eq!(without_date(&head), without_date(&get), "{path}");
            }
        }
    });
}
