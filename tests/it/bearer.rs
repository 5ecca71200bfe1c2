//! Routes for those who show a reference, the page of links, and where the reference never stands.

use std::rc::Rc;

use crate::routes::{revoke_in, routes_file, send, start, with_reference};
use crate::support::calls::{by_name, connect, run, save};
use crate::support::exchange::{self, exchange};
use crate::support::http::{Response, get};
use crate::support::{Served, serve_with};
use capstead::counter_capnp::counter;
use capstead::http::{self, http_service};
use capstead::{Context, Object, Result, Server};
use capstead_client::sturdyref::{Caveats, TextReference};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;

const ROUTES: &str = r#"
[[route]]
path = "/mine/*"
access = "bearer"
origins = ["https://app.example"]
[[route]]
path = "/call/*"
kind = "json"
class = "Counter"
access = "bearer"
[[route]]
path = "/link"
kind = "link"
to = "/mine"
access = "public"
[[route]]
path = "/capnp"
kind = "capnp"
"#;

fn serve() -> (Served, TempDir, String) {
    let (folder, data, text) = with_reference();
    let file = routes_file(&folder, ROUTES);
    (serve_with(&data, &["--routes", file.to_str().unwrap()]), folder, text)
}

fn shown(address: &str, method: &str, path: &str, text: &str, headers: &str) -> Response {
    send(address, method, path, &format!("Authorization: Bearer {text}\r\n{headers}"), "")
}

#[test]
fn a_reference_leads_to_its_object() {
    let (served, _folder, text) = serve();
    let address = &served.announced.http;
    assert_eq!(shown(address, "GET", "/mine", &text, "").body, "1");
    assert_eq!(shown(address, "POST", "/mine/increment?by=2", &text, "").body, "3");
    assert_eq!(shown(address, "POST", "/call/read", &text, "").body, r#"{"value":"3"}"#);
    assert_eq!(
        send(address, "GET", "/mine", &format!("authorization: bEARER {text}\r\n"), "").body,
        "3"
    );
    let page = "Origin: https://app.example\r\nSec-Fetch-Site: cross-site\r\n";
    let read = shown(address, "POST", "/mine/increment", &text, page);
    assert_eq!(read.body, "4");
    assert_eq!(read.header("access-control-allow-origin"), Some("https://app.example"));
    let asks =
        "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n";
    let preflight = send(address, "OPTIONS", "/mine/increment", &format!("{page}{asks}"), "");
    assert_eq!(preflight.header("access-control-allow-headers"), Some("authorization"));
    let other = "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n";
    assert_eq!(shown(address, "POST", "/mine/increment", &text, other).status, 403);
    assert_eq!(shown(address, "GET", "/mine", &text, "").body, "4");
}

/// Answers with the headers that it sees.
struct Mirror;

impl Object for Mirror {
    const CLASS: &'static str = "Mirror";
    type Client = counter::Client;

    async fn wake(_: Context) -> Result<Self> {
        Ok(Self)
    }
}

impl counter::Server for Mirror {}

impl http_service::Server for Mirror {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        let answer = async |request: http::Request<http::Body>| {
            Ok(http::text(http::StatusCode::OK, format!("{:?}", request.headers())))
        };
        http::serve(params, results, answer).await
    }
}

/// A browser asks first, without the reference, whether a page may show one.
#[test]
fn a_page_of_a_named_origin_may_show_a_reference() {
    let (served, _folder, text) = serve();
    let address = &served.announced.http;
    let page = |origin: &str| format!("Origin: {origin}\r\nSec-Fetch-Site: cross-site\r\n");
    let asks = "Access-Control-Request-Method: POST\r\n\
                Access-Control-Request-Headers: authorization\r\n";
    let (ours, other) = (page("https://app.example"), page("https://evil.example"));
    let preflight = send(address, "OPTIONS", "/mine/increment", &format!("{ours}{asks}"), "");
    assert_eq!(preflight.status, 204);
    for (name, value) in [
        ("access-control-allow-origin", "https://app.example"),
        ("access-control-allow-methods", "POST"),
        ("access-control-allow-headers", "authorization"),
    ] {
        assert_eq!(preflight.header(name), Some(value));
    }
    assert_eq!(preflight.header("access-control-allow-credentials"), None);
    let counted = shown(address, "POST", "/mine/increment", &text, &ours);
    assert_eq!((counted.status, &*counted.body), (200, "2"));
    assert_eq!(counted.header("access-control-allow-origin"), Some("https://app.example"));
    // The page can read why it was refused.
    let refused = send(address, "POST", "/mine/increment", &ours, "");
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(refused.header("access-control-allow-origin"), Some("https://app.example"));
    let preflight = send(address, "OPTIONS", "/mine/increment", &format!("{other}{asks}"), "");
    assert_eq!(preflight.header("access-control-allow-origin"), None);
    assert_eq!(shown(address, "POST", "/mine/increment", &text, &other).status, 403);
    assert_eq!(shown(address, "GET", "/mine", &text, "").body, "2");
}

#[test]
fn an_object_never_sees_the_reference() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::new(folder.path().join("data")).class::<Mirror>();
        let server = server.listen(any).http(any);
        let file = routes_file(&folder, "[[route]]\npath = \"/*\"\naccess = \"bearer\"\n");
        let running = server.routes_file(file).start().await.unwrap();
        let all = capstead_client::restore(&running.namespaces()["Mirror"]).await.unwrap();
        let text = save(&by_name(&all, "x"), "").await;
        let mut stream = TcpStream::connect(running.http().unwrap()).await.unwrap();
        let request = format!(
            "GET /headers HTTP/1.1\r\nhost: localhost\r\nx-own: seen\r\nauthorization: Bearer {text}\r\n\
             sec-websocket-protocol: chat, capstead.bearer.x\r\n\r\n"
        );
        let answer = exchange(&mut stream, request.as_bytes()).await;
        let seen = String::from_utf8(answer.body).unwrap();
        assert_eq!(answer.status, 200, "{seen}");
        assert!(seen.contains("x-own") && !seen.to_lowercase().contains("authorization"), "{seen}");
        assert!(!seen.contains("capstead:") && !seen.contains("bearer"), "{seen}");
        running.until(async {}).await.unwrap();
    });
}

fn is_refused(answer: &Response) {
    assert_eq!(answer.status, 401, "{}", answer.body);
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let problem: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(problem["status"], 401);
}

#[test]
fn nobody_comes_in_without_a_reference_that_is_good() {
    let (served, _folder, text) = serve();
    let address = &served.announced.http;
    let json = "Accept: application/json\r\n";
    let changed = text.replace(&text[text.len() - 40..text.len() - 39], "_");
    let (start, _) = text.split_at(text.len() - 10);
    for (path, method) in [("/mine", "GET"), ("/mine/increment", "POST"), ("/call/read", "POST")] {
        is_refused(&send(address, method, path, json, ""));
        for text in ["", "x", start, &changed, "capstead://127.0.0.1:1/#AAAA", &text.to_uppercase()]
        {
            is_refused(&shown(address, method, path, text, json));
        }
        let twice = format!("Authorization: Bearer {text}\r\n").repeat(2);
        is_refused(&send(address, method, path, &format!("{twice}{json}"), ""));
        is_refused(&send(
            address,
            method,
            path,
            &format!("Authorization: Basic {text}\r\n{json}"),
            "",
        ));
        assert_eq!(shown(address, method, path, &text, json).status, 200);
    }
    assert_eq!(shown(address, "GET", "/mine", &text, "").body, "2");
    revoke_in(&served);
    is_refused(&shown(address, "GET", "/mine", &text, json));
    is_refused(&shown(address, "POST", "/call/read", &text, json));
}

/// A client that shows what was revoked makes nobody else's reference be restored again.
#[test]
fn a_revoked_reference_is_forgotten_alone() {
    let (served, _folder, text) = serve();
    let address = &served.announced.http;
    let other = run(async {
        let (_connection, counters) = connect(&served).await;
        save(&by_name(&counters, "y"), "other").await
    });
    for text in [&text, &other] {
        assert_eq!(shown(address, "GET", "/mine", text, "").status, 200);
    }
    revoke_in(&served);
    for _ in 0..3 {
        assert_eq!(shown(address, "GET", "/mine", &text, "").status, 401);
    }
    let before = served.metric("restores_total");
    assert_eq!(shown(address, "GET", "/mine", &other, "").status, 200);
    assert_eq!(served.metric("restores_total"), before, "it is known");
}

#[test]
fn a_reference_without_the_right_is_told_so() {
    let (served, _folder, text) = serve();
    let address = &served.announced.http;
    let parsed = TextReference::parse(&text).unwrap();
    // The method `read` of a counter alone: `request` isn't among them.
    let caveats =
        Caveats::not_after(u64::MAX).with_methods_of::<counter::Client>(["read"]).unwrap();
    let narrow = parsed.expose_text_of(&parsed.reference().narrow(&caveats).unwrap()).unwrap();
    let refused = shown(address, "GET", "/mine", &narrow, "");
    assert_eq!((refused.status, refused.header("www-authenticate")), (403, None));
    assert_eq!(shown(address, "POST", "/call/increment", &narrow, "").status, 403);
    assert_eq!(shown(address, "POST", "/call/read", &narrow, "").status, 200);
    let past = Caveats::not_after(1);
    let past = parsed.expose_text_of(&parsed.reference().narrow(&past).unwrap()).unwrap();
    assert_eq!(shown(address, "GET", "/mine", &past, "").status, 401);
}

/// Many references that are no good push none of the good ones out for long, and take no memory.
#[test]
fn many_references_are_forgotten_again() {
    let (served, _folder, text) = serve();
    let address = &served.announced.http;
    let parsed = TextReference::parse(&text).unwrap();
    let before = served.metric("restores_total");
    for _ in 0..5 {
        assert_eq!(shown(address, "GET", "/mine", &text, "").status, 200);
    }
    assert_eq!(served.metric("restores_total"), before + 1, "it is known");
    for at in 0..5000_u64 {
        let narrow = Caveats::not_after(u64::MAX - at);
        let narrow = parsed.expose_text_of(&parsed.reference().narrow(&narrow).unwrap()).unwrap();
        assert_eq!(shown(address, "GET", "/mine", &narrow, "").status, 200);
    }
    let before = served.metric("restores_total");
    assert_eq!(shown(address, "GET", "/mine", &text, "").status, 200);
    assert_eq!(served.metric("restores_total"), before + 1, "it was forgotten");
}

#[test]
fn the_page_of_links_runs_its_one_script_and_nothing_else() {
    use base64::Engine;
    use sha2::{Digest, Sha256};
    let (served, _folder) = start(ROUTES);
    let page = get(&served.announced.http, "/link");
    assert_eq!(page.status, 200);
    assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    let (_, rest) = page.body.split_once("<script>").unwrap();
    let (script, rest) = rest.split_once("</script>").unwrap();
    assert!(!rest.contains("<script") && page.body.contains("data-to=\"/mine\""), "{}", page.body);
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(script));
    let policy = page.header("content-security-policy").unwrap();
    assert!(
        policy.starts_with(&format!("default-src 'none'; script-src 'sha256-{hash}';")),
        "{policy}"
    );
    for word in ["http:", "https:", "src=", "import", "localStorage", "cookie"] {
        assert!(!page.body.contains(word), "{word}");
    }
    assert!(script.contains("location.hash") && script.contains("Authorization"));
}

/// A handshake that offers these protocols, and the answer to it.
async fn shake(address: &str, path: &str, protocols: &str) -> exchange::Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{protocols}\r\n"
    );
    exchange(&mut stream, request.as_bytes()).await
}

/// Browsers let no page set another header of a handshake.
#[test]
fn a_websocket_shows_its_reference_among_the_protocols() {
    let (served, _folder, text) = serve();
    let address = &served.announced.http;
    let secret = text.split_once('#').unwrap().1.to_owned();
    let offer = |all: &str| format!("sec-websocket-protocol: {all}\r\n");
    run(async {
        for all in [
            format!("chat, second, capstead.bearer.{secret}"),
            format!("capstead.bearer.{secret},chat"),
            format!("chat\r\nsec-websocket-protocol: capstead.bearer.{secret}"),
        ] {
            let answer = shake(address, "/mine/live", &offer(&all)).await;
            let head = String::from_utf8(answer.head.clone()).unwrap();
            assert_eq!(answer.status, 101, "{head}");
            assert!(answer.says(b"sec-websocket-protocol: chat\r\n"), "{head}");
            assert!(!head.contains("bearer") && !head.contains(&secret), "{head}");
        }
        let page = "origin: https://app.example\r\nsec-fetch-site: cross-site\r\n";
        let good = offer(&format!("chat, capstead.bearer.{secret}"));
        assert_eq!(shake(address, "/mine/live", &format!("{good}{page}")).await.status, 101);
        let other = page.replace("app", "evil");
        assert_eq!(shake(address, "/mine/live", &format!("{good}{other}")).await.status, 403);
        let changed =
            secret.replace(&secret[40..41], if &secret[40..41] == "A" { "B" } else { "A" });
        let header = format!("authorization: Bearer {text}\r\n");
        for (protocols, status) in [
            (offer("chat"), 401),
            (offer("chat, capstead.bearer."), 401),
            (offer(&format!("chat, capstead.bearer.{changed}")), 401),
            (offer(&format!("chat, capstead.bearer.{secret}, capstead.bearer.{secret}")), 401),
            (format!("{good}{header}"), 401),
            (offer(&format!("capstead.bearer.{secret}")), 400),
            (format!("{}{header}", offer("chat")), 101),
        ] {
            let answer = shake(address, "/mine/live", &protocols).await;
            assert_eq!(answer.status, status, "{protocols}");
            // The class takes none of its own accord, and need not.
            assert!(!answer.says(b"sec-websocket-protocol"), "{protocols}");
        }
    });
    // Others than handshakes have a header for it.
    assert_eq!(
        send(address, "GET", "/mine", &offer(&format!("capstead.bearer.{secret}")), "").status,
        401
    );
    revoke_in(&served);
    run(async {
        let good = offer(&format!("chat, capstead.bearer.{secret}"));
        assert_eq!(shake(address, "/mine/live", &good).await.status, 401);
    });
}

/// A reference stands in no output, log or metric, however it was shown.
#[test]
fn a_reference_that_was_shown_stands_nowhere() {
    let (folder, data, text) = with_reference();
    let file = routes_file(&folder, ROUTES);
    let mut command = crate::support::serve_command(
        &data,
        &["--json", "--metrics", "127.0.0.1:0", "--routes", file.to_str().unwrap()],
    );
    command.env("RUST_LOG", "trace");
    let served = Served::ready(crate::support::Process::start(command));
    let address = &served.announced.http;
    // Other references of the cluster begin and end as this one.
    let canary = text[text.len() - 90..text.len() - 40].to_owned();
    let changed = format!("{}AAAA", &text[..text.len() - 4]);
    for text in [&text, &changed] {
        for (method, path) in
            [("GET", "/mine"), ("POST", "/mine/gone"), ("POST", "/call/read"), ("PUT", "/link")]
        {
            let answer = shown(address, method, path, text, "");
            let said = format!("{answer:?}");
            assert!(!said.contains(&canary), "{said}");
        }
        let secret = text.split_once('#').unwrap().1;
        for path in ["/mine/live", "/mine/gone", "/nowhere"] {
            for more in ["", "chat, "] {
                let offered = format!("sec-websocket-protocol: {more}capstead.bearer.{secret}\r\n");
                let answer = run(shake(address, path, &offered));
                let said = [answer.head, answer.body].concat();
                assert!(!String::from_utf8_lossy(&said).contains(&canary), "{path}");
            }
        }
    }
    crate::support::calls::run(async {
        let url = format!("ws://{address}/capnp");
        let connection = capstead_client::Connection::dial(&url).await.unwrap();
        let counter = connection.restore(&text).unwrap();
        assert_eq!(crate::support::calls::read(&counter).await.unwrap(), 1);
    });
    let numbers = get(served.announced.metrics.as_ref().unwrap(), "/metrics").body;
    let (_, out, log) = served.stop();
    // Frames are logged in hex by libraries that say all, in either case.
    let hex = canary.bytes().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    for said in [numbers, out, log] {
        assert!(!said.contains(&canary), "{said}");
        assert!(!said.to_lowercase().contains(&hex), "it is there in hex");
    }
}
