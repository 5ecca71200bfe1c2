//! Files of routes: what they lead to, which clients they let in, and which files are refused.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::calls::{by_name, connect, increment, revoke, run, save};
use crate::support::http::{Http, Response, ask, get, post};
use crate::support::{Served, capstead, refused_start, root, scratch, serve, serve_with};
use serde_json::json;
use tempfile::TempDir;

/// A file that nobody else can read.
pub(crate) fn routes_file(folder: &TempDir, text: &str) -> PathBuf {
    let path = folder.path().join("routes.toml");
    fs::write(&path, text).unwrap();
    chmod(&path, 0o600);
    path
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A server with these routes.
pub(crate) fn start(text: &str) -> (Served, TempDir) {
    let (folder, data) = scratch();
    let file = routes_file(&folder, text);
    (serve_with(&data, &["--routes", file.to_str().unwrap()]), folder)
}

/// A request that stands there byte for byte but for its end.
pub(crate) fn send(address: &str, method: &str, path: &str, headers: &str, body: &str) -> Response {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    let mut http = Http::connect(address);
    http.send((head + body).as_bytes());
    http.answer(method)
}

#[test]
fn nothing_is_reached_but_by_a_row() {
    let (served, _folder) = start(
        "[[route]]\npath = \"/visits/{page}/*\"\nclass = \"Counter\"\nname = \"page {page}\"\naccess = \"public\"\n",
    );
    let address = &served.announced.http;
    assert_eq!(post(address, "/visits/front/increment").body, "1");
    assert_eq!(post(address, "/visits/front/increment?by=4").body, "5");
    assert_eq!(get(address, "/visits/front").body, "5");
    assert_eq!(get(address, "/visits/other").body, "0");
    for path in ["/", "/visits", "/counter/x", "/chat", "/poll/x", "/json/Counter", "/visits//x"] {
        assert_eq!(get(address, path).status, 404, "{path}");
    }
    assert_eq!(post(address, "/json/Counter/x/increment").status, 404);
    assert_eq!(post(address, "/counter/page%20front/increment").status, 404);
}

#[test]
fn a_row_calls_methods_in_json() {
    let (served, _folder) = start(
        r#"
[[route]]
path = "/call/{name:5}/*"
kind = "json"
class = "Counter"
name = "{name}"
body = "32B"
access = "public"
[[route]]
path = "/hit"
kind = "json"
class = "Counter"
name = "x"
url = "/increment"
access = "public"
"#,
    );
    let address = &served.announced.http;
    let call = |path, body| send(address, "POST", path, "", body);
    assert_eq!(call("/call/x/increment", r#"{"by": "2"}"#).body, r#"{"value":"2"}"#);
    assert_eq!(call("/hit", "").body, r#"{"value":"3"}"#);
    assert_eq!(call("/call/x/read", "").body, r#"{"value":"3"}"#);
    for (method, path, status) in [
        ("PUT", "/hit", 405),
        ("GET", "/call/x/read", 405),
        ("POST", "/call/x/gone", 404),
        ("POST", "/call/x", 404),
        ("POST", "/call/sixsix/read", 404),
        ("POST", "/hit/read", 404),
    ] {
        let answer = ask(address, method, path);
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
        if status == 405 {
            let allowed = if method == "GET" { "POST" } else { "GET, POST" };
            assert_eq!(answer.header("allow"), Some(allowed));
            assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        }
    }
    let large = format!(r#"{{"by": "2"{}}}"#, " ".repeat(32));
    let answer = call("/call/x/increment", &large);
    assert_eq!((answer.status, answer.body.contains("at most 32 bytes")), (413, true));
    assert_eq!(call("/call/x/read", "").body, r#"{"value":"3"}"#);
}

/// As `/json` does, with its own paths.
#[test]
fn a_row_describes_the_calls_in_json_that_it_leads_to() {
    let (served, _folder) = start(
        r#"
[[route]]
path = "/call/{name:5}/*"
kind = "json"
class = "Counter"
name = "{name}"
access = "public"
[[route]]
path = "/hit"
kind = "json"
class = "Counter"
name = "x"
url = "/increment"
access = "public"
[[route]]
path = "/mine/*"
kind = "json"
class = "Counter"
access = "bearer"
"#,
    );
    let address = &served.announced.http;
    let described = |answer: Response| -> serde_json::Value {
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
        serde_json::from_str(&answer.body).unwrap()
    };
    let all = described(get(address, "/call/x"));
    assert_eq!((&all["openapi"], &all["info"]["title"]), (&json!("3.1.0"), &json!("Counter")));
    let increment = &all["paths"]["/call/{name}/increment"]["post"];
    assert_eq!(increment["parameters"][0]["name"], "name", "{increment}");
    assert!(all["paths"]["/call/{name}/read"].is_object(), "{all}");
    let one = described(get(address, "/hit?x"));
    let paths: Vec<_> = one["paths"].as_object().unwrap().keys().collect();
    assert_eq!(paths, ["/hit"]);
    assert_eq!(ask(address, "HEAD", "/hit").status, 200);
    assert_eq!(get(address, "/mine").status, 401, "it is for those who show a reference");
    let mine = run(async {
        let (_connection, counters) = connect(&served).await;
        let saved = save(&by_name(&counters, "x"), "mine").await;
        send(address, "GET", "/mine", &format!("Authorization: Bearer {saved}\r\n"), "")
    });
    assert!(described(mine)["paths"]["/mine/increment"].is_object());
}

#[test]
fn a_row_bounds_methods_and_bodies() {
    let (served, _folder) = start(
        r#"
[[route]]
path = "/read/*"
class = "Counter"
name = "x"
methods = ["GET"]
access = "public"
[[route]]
path = "/all/*"
class = "Counter"
name = "x"
body = "10B"
access = "public"
"#,
    );
    let address = &served.announced.http;
    assert_eq!((get(address, "/read").status, ask(address, "HEAD", "/read").status), (200, 200));
    let refused = post(address, "/read/increment");
    assert_eq!((refused.status, refused.header("allow")), (405, Some("GET")));
    assert_eq!(send(address, "POST", "/all/increment", "", "0123456789").body, "1");
    assert_eq!(send(address, "POST", "/all/increment", "", "0123456789x").status, 413);
    // One that doesn't say its length.
    let mut http = Http::connect(address);
    let head =
        "POST /all/increment HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    http.send(format!("{head}6\r\n012345\r\n6\r\n012345\r\n0\r\n\r\n").as_bytes());
    assert_eq!(http.answer("POST").status, 413);
    assert_eq!(get(address, "/read").body, "1");
}

#[test]
fn pages_come_in_where_a_row_names_their_origin() {
    let (served, _folder) = start(
        r#"
[[route]]
path = "/open/*"
class = "Counter"
name = "x"
origins = ["https://App.example:443"]
access = "public"
[[route]]
path = "/own/*"
class = "Counter"
name = "x"
access = "public"
"#,
    );
    let address = &served.announced.http;
    let page = "Origin: https://app.example\r\nSec-Fetch-Site: cross-site\r\n";
    let other = "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n";
    let allowed = send(address, "POST", "/open/increment", page, "");
    assert_eq!((allowed.status, &*allowed.body), (200, "1"));
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(allowed.header("vary"), Some("origin"));
    let asks = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-own\r\n";
    let preflight = send(address, "OPTIONS", "/open/increment", &format!("{page}{asks}"), "");
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("access-control-allow-methods"), Some("POST"));
    for (path, page) in [("/open/increment", other), ("/own/increment", page)] {
        let refused = send(address, "POST", path, page, "");
        assert_eq!(refused.status, 403, "{path}");
        assert_eq!(refused.header("access-control-allow-origin"), None);
        let preflight = send(address, "OPTIONS", path, &format!("{page}{asks}"), "");
        assert_eq!(preflight.header("access-control-allow-origin"), None);
    }
    let read = send(address, "GET", "/open", other, "");
    assert_eq!((read.status, read.header("access-control-allow-origin")), (200, None));
    assert_eq!(read.header("vary"), Some("origin"), "no cache gives it to the page");
}

/// A data directory with a counter that was counted once, and a reference to it.
pub(crate) fn with_reference() -> (TempDir, PathBuf, String) {
    let (folder, data) = scratch();
    let served = serve(&data);
    let text = run(async {
        let (_connection, counters) = connect(&served).await;
        let counter = by_name(&counters, "x");
        assert_eq!(increment(&counter).await.unwrap(), 1);
        save(&counter, "for a route").await
    });
    served.stop();
    (folder, data, text)
}

/// Revokes what [`with_reference`] shared.
pub(crate) fn revoke_in(served: &Served) {
    run(async {
        let (_connection, counters) = connect(served).await;
        revoke(&by_name(&counters, "x"), "for a route").await;
    });
}

#[test]
fn a_row_leads_by_a_reference_until_that_is_revoked() {
    let (folder, data, text) = with_reference();
    let rows = format!(
        "[[route]]\npath = \"/it/*\"\nsturdyref = \"{text}\"\naccess = \"public\"\n\
         [[route]]\npath = \"/call/*\"\nkind = \"json\"\nclass = \"Counter\"\nsturdyref = '{text}'\naccess = \"public\"\n"
    );
    let file = routes_file(&folder, &rows);
    let served = serve_with(&data, &["--routes", file.to_str().unwrap()]);
    let address = served.announced.http.clone();
    assert_eq!(get(&address, "/it").body, "1");
    assert_eq!(post(&address, "/it/increment").body, "2");
    assert_eq!(send(&address, "POST", "/call/read", "", "").body, r#"{"value":"2"}"#);
    revoke_in(&served);
    assert_eq!(get(&address, "/it").status, 403);
    assert_eq!(send(&address, "POST", "/call/read", "", "").status, 403);
    let (_, out, log) = served.stop();
    let secret = text.split_once('#').unwrap().1;
    assert!(!out.contains(secret) && !log.contains(secret), "{log}");
}

fn refusal(text: &str, mode: u32) -> String {
    let (folder, data) = scratch();
    let file = routes_file(&folder, text);
    chmod(&file, mode);
    let mut command = capstead(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    command.arg("--data").arg(&data).arg("--routes").arg(&file);
    let (code, error) = refused_start(command);
    assert_eq!(code, Some(2), "{error}");
    assert!(!data.exists(), "nothing is made");
    assert!(error.contains("routes.toml"), "{error}");
    error
}

const GOOD: &str =
    "[[route]]\npath = \"/x\"\nclass = \"Counter\"\nname = \"x\"\naccess = \"public\"\n";

/// A row with these keys.
fn of(keys: &str) -> String {
    format!("[[route]]\npath = \"/x\"\n{keys}")
}

/// Nothing can have happened then, and its holder is to ask for another one.
#[test]
fn a_row_by_a_reference_of_another_server_reaches_nothing() {
    let (_folder, data) = scratch();
    let other = serve(&data);
    let text = run(async {
        let (_connection, counters) = connect(&other).await;
        save(&by_name(&counters, "x"), "for a route").await
    });
    let (served, _folder) = start(&format!(
        "[[route]]\npath = \"/call/*\"\nkind = \"json\"\nclass = \"Counter\"\nsturdyref = \"{text}\"\naccess = \"public\"\n"
    ));
    let answer = post(&served.announced.http, "/call/increment");
    let said: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((answer.status, &said["outcome"]), (403, &json!("not")), "{said}");
}

#[test]
fn mistakes_are_told_with_their_line_before_anything_is_made() {
    for (row, line, words) in [
        ("", 1, "no [[route]]"),
        ("[[rout]]\n", 1, "unknown field `rout`"),
        ("[[route]\n", 1, "docs/routes.md"),
        ("[[route]]\nclass = \"Counter\"\n", 1, "missing field `path`"),
        (&format!("{GOOD}\n\nlimits = 3\n"), 8, "unknown field `limits`"),
        (&format!("{GOOD}{GOOD}"), 7, "the route at line 2 takes the same paths"),
        (&GOOD.replace("/x", "x"), 2, "a path begins with /"),
        (&GOOD.replace("/x", "/{a"), 2, "no closing brace"),
        (&GOOD.replace("Counter", "counter"), 3, "this server has Counter, Poll"),
        (&GOOD.replace("\"x\"", "\"{y}\""), 4, "a part in braces that the path hasn't"),
        (&GOOD.replace("name = \"x\"\n", ""), 2, "leads nowhere"),
        (&GOOD.replace("access = \"public\"\n", ""), 2, "who may come in"),
        (&GOOD.replace("\"public\"", "\"all\""), 5, "`public`"),
        (&format!("{GOOD}kind = \"ftp\"\n"), 6, "`json`"),
        (&format!("{GOOD}kind = \"json\"\n"), 2, "calls the method that url says"),
        (
            &format!("{GOOD}kind = \"json\"\nurl = \"/read\"\nmethods = [\"GET\"]\n"),
            8,
            "has its one method",
        ),
        (&format!("{GOOD}methods = [\"get\"]\n"), 6, "write it like \"GET\""),
        (&format!("{GOOD}methods = []\n"), 6, "no method"),
        (&format!("{GOOD}body = \"much\"\n"), 6, "64KiB"),
        (&format!("{GOOD}body = 3\n"), 6, "expected a string"),
        (&format!("{GOOD}origins = [\"https://a.example\", \"*\"]\n"), 6, "origin number 2"),
        (&format!("{GOOD}url = \"page\"\n"), 6, "begins with /"),
        (&format!("{GOOD}sturdyref = \"capstead://h:1/#x\"\n"), 4, "remove the name"),
        (&format!("{GOOD}rate = 0\n"), 6, "from 1 to"),
        (&format!("{GOOD}rate = \"10/s\"\n"), 6, "expected i64"),
        (&format!("{GOOD}burst = 5\n"), 6, "add a rate"),
        (&format!("{GOOD}rate = 1\nburst = -1\n"), 7, "burst is a number"),
        (&format!("{GOOD}sockets = 4294967296\n"), 6, "sockets = 20"),
        (&format!("{GOOD}kind = \"json\"\nurl = \"/read\"\nsockets = 3\n"), 8, "no WebSockets"),
        (&of("kind = \"capnp\"\naccess = \"public\"\n"), 4, "no access"),
        (&of("kind = \"capnp\"\nclass = \"Counter\"\n"), 4, "no class"),
        (&of("kind = \"capnp\"\nmethods = [\"GET\"]\n"), 4, "one method"),
        (&of("kind = \"link\"\nto = \"/x\"\n"), 2, "access = \"public\""),
        (&of("kind = \"link\"\naccess = \"public\"\n"), 2, "needs a path"),
        (&of("kind = \"link\"\naccess = \"public\"\nto = \"/<\"\n"), 5, "letters"),
        (&of("kind = \"link\"\naccess = \"public\"\nto = \"/x\"\n"), 2, "takes a GET"),
        (&of("access = \"bearer\"\nname = \"x\"\n"), 4, "no name"),
        (&of("access = \"bearer\"\nclass = \"Counter\"\n"), 4, "remove the class"),
        (&of("access = \"bearer\"\nto = \"/x\"\n"), 4, "no to"),
        (&of("access = \"bearer\"\nkind = \"json\"\nurl = \"/read\"\n"), 2, "add class"),
    ] {
        let said = refusal(row, 0o600);
        assert!(said.contains(&format!("routes.toml:{line}: ")), "{row}\n{said}");
        assert!(said.contains(words), "{row}\n{said}");
    }
}

/// Wherever a reference stands in a file by mistake.
#[test]
fn no_mistake_shows_a_reference() {
    let secret = format!("capstead://127.0.0.1:4000/#{}", "AbC0".repeat(40));
    for key in [
        "sturdyref",
        "class",
        "name",
        "kind",
        "access",
        "methods",
        "body",
        "origins",
        "url",
        "path",
        "to",
    ] {
        let others =
            ["path = \"/x\"\n", "access = \"public\"\n", "class = \"Counter\"\n", "name = \"x\"\n"];
        let others: String = others.iter().filter(|line| !line.starts_with(key)).copied().collect();
        for value in [format!("\"{secret}\""), format!("[\"{secret}\"]"), format!("\"{secret}")] {
            let said = refusal(&format!("[[route]]\n{others}{key} = {value}\n"), 0o600);
            assert!(!said.contains("AbC0"), "{key}: {said}");
        }
    }
    let said = refusal(&format!("[[route]]\n\"{secret}\" = 1\n"), 0o600);
    assert!(!said.contains("AbC0"), "{said}");
}

#[test]
fn a_file_that_others_could_change_or_read_a_secret_in_is_refused() {
    for mode in [0o620, 0o602, 0o666] {
        let said = refusal(GOOD, mode);
        assert!(said.contains("chmod go-w"), "{said}");
    }
    let secret = format!("{GOOD}# capstead://127.0.0.1:4000/#{}\n", "AbC0".repeat(40));
    for mode in [0o640, 0o604] {
        let said = refusal(&secret, mode);
        assert!(said.contains("chmod 600") && !said.contains("AbC0"), "{said}");
    }
    let (folder, data) = scratch();
    let file = routes_file(&folder, GOOD);
    chmod(&file, 0o644);
    let served = serve_with(&data, &["--routes", file.to_str().unwrap()]);
    assert_eq!(get(&served.announced.http, "/x").body, "0");
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let (folder, data) = scratch();
    let pipe = folder.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
    for (path, words) in [(&pipe, "no regular file"), (&folder.path().join("none"), "No such file")]
    {
        let mut command = capstead(["serve", "--listen", "127.0.0.1:0"]);
        command.arg("--data").arg(&data).arg("--routes").arg(path);
        let (_, error) = refused_start(command);
        assert!(error.contains(words), "{error}");
        assert!(!data.exists());
    }
}

#[test]
fn the_documented_file_works() {
    let page = fs::read_to_string(root().join("docs/routes.md")).unwrap();
    let (_, rest) = page.split_once("```toml\n").unwrap();
    let (served, _folder) = start(rest.split_once("```").unwrap().0);
    let address = &served.announced.http;
    assert_eq!(post(address, "/visits/front/increment").body, "1");
    assert_eq!(get(address, "/status").body, "0");
    assert_eq!(post(address, "/status").status, 405);
    let called = send(address, "POST", "/call/x/increment", "", &json!({"by": 2}).to_string());
    assert_eq!(called.body, r#"{"value":"2"}"#);
}

/// The host decides a browser's route: the reference of a link goes to no route that asks for none.
#[test]
fn a_link_leads_to_no_public_route_on_its_own_host() {
    let route = |path: &str, rest: &str| format!("[[route]]\npath = \"{path}\"\n{rest}\n");
    let link = route("a.example/link", "kind = \"link\"\naccess = \"public\"\nto = \"/mine\"");
    let elsewhere = route("b.example/mine", "access = \"bearer\"");
    let public = route("/mine", "class = \"Counter\"\nname = \"x\"\naccess = \"public\"");
    let said = refusal(&[&*link, &elsewhere, &public].concat(), 0o600);
    assert!(said.contains("takes a GET of that"), "{said}");
    let here = route("a.example/mine", "access = \"bearer\"");
    let (folder, data) = scratch();
    let file = routes_file(&folder, &[&*link, &elsewhere, &here, &public].concat());
    chmod(&file, 0o600);
    serve_with(&data, &["--routes", file.to_str().unwrap()]).stop();
}
