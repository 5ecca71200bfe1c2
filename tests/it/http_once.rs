//! If an object ends between two HTTP requests, the next one isn't affected, and a request that
//! began is never made twice. The status of a failure follows from its kind, never from words of a
//! class.

use std::cell::Cell;
use std::net::SocketAddr;
use std::process::Command;
use std::rc::Rc;

use crate::routes::routes_file;
use crate::support::calls::{by_name, run, save};
use crate::support::http::{get, post};
use crate::support::{scratch, serve};
use capstead::counter_capnp::counter;
use capstead::http::{self, Body, Request, StatusCode, http_service};
use capstead::{Context, Object, Result, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn done(mut command: Command) {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_first_request_after_an_import_is_answered() {
    let (folder, data) = scratch();
    let served = serve(&data);
    let address = &served.announced.http;
    let archive = folder.path().join("archive");
    for name in ["a", "b", "c", "d"] {
        let path = format!("/counter/{name}/increment");
        assert_eq!(post(address, &path).body, "1");
    }
    let tool = |verb: &str, args: &[&str]| {
        let mut command = crate::support::capstead([verb]);
        command.arg(&archive).args(args).arg("--data").arg(&data);
        done(command);
    };
    tool("export", &["--class", "Counter"]);
    for round in 0..3 {
        tool("import", &["--replace"]);
        for name in ["a", "b", "c", "d"] {
            let answer = post(address, &format!("/counter/{name}/increment"));
            assert_eq!((answer.status, &*answer.body), (200, "2"), "round {round}, {name}");
        }
    }
}

thread_local! {
    /// The number of requests that began, on this thread of a test's only host.
    static BEGUN: Cell<u32> = const { Cell::new(0) };
}

/// Fails as the request tells it to.
struct Failing(Context);

impl Object for Failing {
    const CLASS: &'static str = "Failing";
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self(ctx))
    }
}

impl counter::Server for Failing {
    /// `by` is the kind and two digits more, for the words.
    async fn increment(
        self: Rc<Self>,
        params: counter::IncrementParams,
        _: counter::IncrementResults,
    ) -> Result<()> {
        let by = params.get()?.get_by();
        Err(failure(&(by / 100).to_string(), &(by % 100).to_string()))
    }
}

const WORDS: [&str; 15] = [
    "revoked: the grant of this reference was taken back",
    "not-begun: the object ended: restore its reference",
    "remote exception: not-begun: the object ended",
    "the object ended: restore its reference",
    "a text with conflict: in it",
    "overloaded disconnected unimplemented",
    "Method not implemented.",
    "Method not implemented yet",
    "Method not implemented: interface 0x1, method 2",
    "conflict: merge markers",
    "expired: your session",
    "request-id-reused: it says so",
    "too-large: the file",
    "too-many-capabilities: so many",
    "over-quota: your plan",
];

impl http_service::Server for Failing {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        BEGUN.set(BEGUN.get() + 1);
        let url = params.get()?.get_request()?.get_url()?.to_string()?;
        let path: Vec<&str> = url.split('/').skip(1).collect();
        match path[..] {
            ["panic"] => panic!("as it was told"),
            ["abort"] => return Err(self.0.abort("as it was told")),
            ["raw", kind, words] => return Err(failure(kind, words)),
            _ => {}
        }
        let serve = async |request: Request<Body>| -> http::Answer {
            let path: Vec<&str> = request.uri().path().split('/').skip(1).collect();
            match path[..] {
                ["caught", kind, words] => Err(failure(kind, words).into()),
                _ => Ok(http::text(StatusCode::OK, "fine")),
            }
        };
        http::serve(params, results, serve).await
    }
}

fn failure(kind: &str, words: &str) -> capnp::Error {
    let words = WORDS[words.parse::<usize>().expect("a number")];
    match kind {
        "500" => capstead::failed(words),
        "501" => capstead::unimplemented(words),
        "502" => capstead::disconnected(words),
        "503" => capstead::overloaded(words),
        _ => capstead::conflict(words),
    }
}

async fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    ask_with(address, method, path, "", "").await
}

async fn ask_with(
    address: SocketAddr,
    method: &str,
    path: &str,
    lines: &str,
    body: &str,
) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Length: {length}\r\n{lines}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Runs `work` with the address of a server on one host, on this thread.
fn with_server(work: impl AsyncFnOnce(SocketAddr)) {
    let data = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    runtime.block_on(async {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::new(data.path().join("data")).class::<Failing>();
        let running = server.listen(any).http(any).start().await.unwrap();
        work(running.http().unwrap()).await;
        running.until(async {}).await.unwrap();
    });
}

#[test]
fn a_request_whose_object_ends_begins_once_and_the_next_one_is_answered() {
    with_server(async |address| {
        for method in ["GET", "POST"] {
            for end in ["panic", "abort"] {
                let before = BEGUN.get();
                let (status, _) = ask(address, method, &format!("/failing/x/{end}")).await;
                assert_eq!((status, BEGUN.get() - before), (502, 1), "{method} {end}");
                let answer = ask(address, method, "/failing/x/fine").await;
                assert_eq!(answer, (200, "fine".to_owned()), "after {method} {end}");
            }
        }
    });
}

#[test]
fn the_status_of_a_failure_follows_from_its_kind_and_not_from_its_words() {
    with_server(async |address| {
        for how in ["raw", "caught"] {
            for kind in ["500", "501", "502", "503", "409"] {
                for (number, words) in WORDS.iter().enumerate() {
                    let before = BEGUN.get();
                    let path = format!("/failing/x/{how}/{kind}/{number}");
                    let (status, body) = ask(address, "GET", &path).await;
                    assert_eq!(status.to_string(), kind, "{how} {words}: {body}");
                    assert_eq!(BEGUN.get() - before, 1, "{how} {kind} {words}");
                    let words =
                        words.trim_start_matches("remote exception: ").trim_end_matches('.');
                    assert!(body.contains(words), "{how} {kind} {words}: {body}");
                }
            }
        }
    });
}

const DOORS: &str = r#"
[[route]]
path = "/mine/*"
access = "bearer"
[[route]]
path = "/call/*"
kind = "json"
class = "Failing"
name = "x"
access = "public"
[[route]]
path = "/mycall/*"
kind = "json"
class = "Failing"
access = "bearer"
"#;

/// In JSON, and for those who show a reference, more words have a status of their own.
#[test]
fn the_status_of_a_failure_follows_from_its_kind_at_every_door() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::new(folder.path().join("data")).class::<Failing>();
        let server = server.listen(any).http(any).routes_file(routes_file(&folder, DOORS));
        let running = server.start().await.unwrap();
        let address = running.http().unwrap();
        let all = capstead_client::restore(&running.namespaces()["Failing"]).await.unwrap();
        let text = save(&by_name(&all, "x"), "").await;
        let shown = format!("Authorization: Bearer {text}\r\n");
        for kind in ["500", "501", "502", "503", "409"] {
            for (number, words) in WORDS.iter().enumerate() {
                let path = format!("/mine/raw/{kind}/{number}");
                let (status, body) = ask_with(address, "GET", &path, &shown, "").await;
                assert_eq!(status.to_string(), kind, "{words}: {body}");
                let params = format!(r#"{{"by": "{kind}{number:02}"}}"#);
                for (path, lines) in [("/call/increment", ""), ("/mycall/increment", &*shown)] {
                    let (status, body) = ask_with(address, "POST", path, lines, &params).await;
                    assert_eq!(status.to_string(), kind, "{path}: {words}: {body}");
                    // The object itself answered so.
                    let is_said = body.contains(r#""outcome":"happened""#);
                    assert!(is_said || !["500", "409"].contains(&kind), "{words}: {body}");
                }
            }
        }
        running.until(async {}).await.unwrap();
    });
}

#[test]
fn an_unknown_method_is_named_over_http() {
    let (_folder, data) = scratch();
    let served = serve(&data);
    let answer = get(&served.announced.http, "/poll/x");
    assert_eq!(answer.status, 501);
    assert_eq!(answer.body, "Method not implemented: interface 0x92963bfdad2beb6a, method 1");
}
