//! Calls in JSON: of any method of any class, on every host, with every outcome told.

use std::rc::Rc;
use std::time::Duration;

use crate::class::{Passer, Plain};
use crate::support::DEADLINE;
use crate::support::exchange::exchange;
use capstead::classes::{Counter, Poll};
use capstead::counter_capnp::counter;
use capstead::http::http_service;
use capstead::{Context, HttpLimits, Object, Reason, Result, Running, Server};
use capstead::{conflict, failed, overloaded};
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// An answer in JSON.
struct Answer {
    status: u16,
    head: String,
    json: Value,
}

/// A client of a server, on one connection.
struct Json(TcpStream);

impl Json {
    async fn connect(running: &Running) -> Self {
        Self(TcpStream::connect(running.http().unwrap()).await.unwrap())
    }

    /// Sends a request with these lines in its head.
    async fn ask(&mut self, method: &str, path: &str, lines: &str, body: &str) -> Answer {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{lines}\r\n{body}"
        );
        let answer = exchange(&mut self.0, request.as_bytes()).await;
        let head = String::from_utf8(answer.head).unwrap();
        let json = serde_json::from_slice(&answer.body).unwrap_or_else(|error| {
            panic!("{path}: {error}: {}", String::from_utf8_lossy(&answer.body))
        });
        Answer { status: answer.status, head, json }
    }

    async fn call(&mut self, path: &str, params: Value) -> Answer {
        self.ask("POST", &format!("/json/{path}"), "", &params.to_string()).await
    }

    /// The results of a call that succeeds.
    async fn results(&mut self, path: &str, params: Value) -> Value {
        let answer = self.call(path, params).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.json);
        answer.json
    }
}

/// Fails as `by` says.
struct Failing(Context);

impl Object for Failing {
    const CLASS: &'static str = "Failing";
    type Client = counter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(Self(ctx))
    }
}

impl http_service::Server for Failing {}

impl counter::Server for Failing {
    async fn increment(
        self: Rc<Self>,
        params: counter::IncrementParams,
        _: counter::IncrementResults,
    ) -> Result<()> {
        Err(match params.get()?.get_by() {
            1 => conflict("it is full"),
            2 => overloaded("not now"),
            3 => failed("by must not be 3"),
            4 => Reason::OverQuota.error("too much"),
            5 => Reason::Deadlock.error("it would wait for itself"),
            6 => panic!("on purpose"),
            7 => self.0.abort("on purpose"),
            _ => std::future::pending().await,
        })
    }
}

/// Runs `work` with a server on so many hosts.
fn with_server(hosts: u16, work: impl AsyncFnOnce(&Running)) {
    let data = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    let mut limits = HttpLimits::default();
    limits.transfer = Duration::from_secs(3);
    let all = async {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::new(data.path().join("data"))
            .class::<Counter>()
            .class::<Poll>()
            .class::<Passer<Plain>>()
            .class::<Failing>()
            .bind::<Poll, Counter>("votes");
        let server = server.hosts(hosts).listen(any).http(any).http_limits(limits).json_calls();
        let running = server.start().await.unwrap();
        work(&running).await;
        running.until(async {}).await.unwrap();
    };
    runtime.block_on(async { tokio::time::timeout(DEADLINE, all).await }).expect("it ends in time");
}

#[test]
fn any_method_of_any_object_is_called_on_every_host() {
    for hosts in [1, 2, 4] {
        with_server(hosts, async |running| {
            let mut json = Json::connect(running).await;
            for object in 0..12 {
                let path = format!("Counter/no%20{object}");
                let value = json.results(&format!("{path}/increment"), json!({})).await;
                assert_eq!(value, json!({"value": "1"}), "{hosts} hosts");
                let value = json.results(&format!("{path}/increment"), json!({"by": "41"})).await;
                assert_eq!(value, json!({"value": "42"}));
                // The class's own HTTP speaks of the same object.
                let path = format!("/counter/no%20{object}");
                assert_eq!(json.ask("GET", &path, "", "").await.json, json!(42));
                // No body is one without parameters.
                let path = format!("/json/counter/no%20{object}/Counter.read");
                assert_eq!(json.ask("POST", &path, "", "").await.json, json!({"value": "42"}));
            }
            json.results("Poll/lunch/vote", json!({"option": "soup"})).await;
            let votes = json.results("poll/lunch/vote", json!({"option": "soup"})).await;
            assert_eq!(votes, json!({"votes": "2"}));
            let results = json.results("poll/lunch/results", json!({})).await;
            assert_eq!(results, json!({"options": [{"name": "soup", "votes": "2"}]}));
            let large = json.results("Plain/p/large", json!({"bytes": 5, "caps": 0})).await;
            assert_eq!(large["data"], "AQEBAQE=");
        });
    }
}

/// Its objects may be named by what only the hash of a secret leads to.
#[test]
fn a_class_that_only_routes_lead_to_has_no_calls_in_json() {
    let data = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    runtime.block_on(async {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::new(data.path().join("data")).class::<Counter>().class::<Poll>();
        let server = server.bind::<Poll, Counter>("votes").only_by_routes::<Counter>();
        let running = server.listen(any).http(any).json_calls().start().await.unwrap();
        let mut json = Json::connect(&running).await;
        for path in ["Counter/x/read", "counter/x/increment"] {
            let answer = json.call(path, json!({})).await;
            assert_eq!((answer.status, &answer.json["outcome"]), (404, &json!("not")), "{path}");
        }
        assert_eq!(json.ask("GET", "/json/Counter", "", "").await.status, 404);
        json.results("Poll/lunch/vote", json!({"option": "soup"})).await;
        running.until(async {}).await.unwrap();
    });
}

#[test]
fn what_is_not_there_is_named_and_nothing_happens() {
    with_server(1, async |running| {
        let mut json = Json::connect(running).await;
        let many = format!("Counter/a/increment?{}", "save=value&".repeat(65));
        for (path, body, status, says) in [
            (
                "Counter/a/Increment",
                "{}",
                404,
                "Counter has no method \"Increment\"; it has increment, decrement, read.",
            ),
            ("Counter/a/save", "{}", 404, "Counter has no method \"save\""),
            ("Counter/a/once", "{}", 404, "Counter has no method"),
            ("Counters/a/read", "{}", 404, "There is no class Counters"),
            ("Counter/a/increment", "{\"to\": 1}", 400, "there is no field \"to\"; there are by"),
            ("Counter/a/increment", "{\"by\": \"x\"}", 400, "by: it must be a whole number"),
            (
                "Counter/a/increment",
                "{\"by\": 9223372036854775808}",
                400,
                "by: the number is out of",
            ),
            ("Counter/a/increment", "{\"by\": 1, \"by\": 2}", 400, "the key \"by\" is there twice"),
            ("Counter/a/increment", "{\"by\": ", 400, "The body isn't JSON: EOF"),
            ("Counter/a/increment", "[]", 400, "it must be an object, and is an array"),
            ("Counter/a/increment?x=1", "{}", 400, "There is no x to ask for"),
            (&*many, "{}", 400, "At most 64 fields can be saved"),
            // Requests come by the gateway alone, which answers for their heads.
            ("Counter/a/request", "{}", 404, "Counter has no method \"request\""),
        ] {
            let answer = json.ask("POST", &format!("/json/{path}"), "", body).await;
            let detail = answer.json["detail"].as_str().unwrap();
            assert_eq!(answer.status, status, "{path}: {detail}");
            assert!(detail.contains(says), "{path} {body}: {detail}");
            assert_eq!(answer.json["outcome"], "not", "{path}");
            assert!(answer.head.contains("content-type: application/problem+json"));
        }
        let (path, kind) = ("/json/Counter/a/increment", "Content-Type: text/plain\r\n");
        assert_eq!(json.ask("POST", path, kind, "{}").await.status, 415);
        assert_eq!(json.ask("PUT", path, "", "{}").await.status, 405);
        let answer = json.ask("GET", path, "", "").await;
        assert!(answer.status == 405 && answer.head.contains("allow: POST\r\n"));
        let answer = json.ask("PUT", "/json/Counter/a", "", "").await;
        assert!(answer.status == 405 && answer.head.contains("allow: GET, HEAD\r\n"));
        for field in ["valeu", "value", "value.x", ""] {
            let path = format!("/json/Counter/a/increment?save={field}");
            let answer = json.ask("POST", &path, "", "{}").await;
            assert_eq!((answer.status, &answer.json["outcome"]), (400, &json!("not")), "{field}");
        }
        let long = format!("Counter/{}/read", "n".repeat(1025));
        assert_eq!(json.call(&long, json!({})).await.status, 414);
        assert_eq!(json.results("Counter/a/read", json!({})).await, json!({"value": "0"}));
        let body = "x".repeat((1 << 20) + 1);
        assert_eq!(json.ask("POST", path, "", &body).await.status, 413);
    });
}

#[test]
fn a_page_of_another_origin_and_a_foreign_host_are_refused() {
    with_server(1, async |running| {
        let mut json = Json(TcpStream::connect(running.http().unwrap()).await.unwrap());
        let problem = "Accept: application/json\r\n";
        for line in ["Origin: https://evil.example\r\n", "Sec-Fetch-Site: cross-site\r\n"] {
            let lines = format!("{line}{problem}");
            let answer = json.ask("POST", "/json/Counter/a/increment", &lines, "{}").await;
            assert_eq!(answer.status, 403, "{line}");
        }
        let request = format!(
            "POST /json/Counter/a/increment HTTP/1.1\r\nHost: evil.example\r\n{problem}\r\n"
        );
        assert_ne!(exchange(&mut json.0, request.as_bytes()).await.status, 200);
        let mut json = Json::connect(running).await;
        assert_eq!(json.results("Counter/a/read", json!({})).await, json!({"value": "0"}));
    });
}

#[test]
fn a_call_with_a_key_is_applied_once_and_answered_the_same() {
    for hosts in [1, 2, 4] {
        with_server(hosts, async |running| {
            let mut json = Json::connect(running).await;
            for object in 0..8 {
                let path = format!("/json/Counter/{object}/increment");
                let key = "Idempotency-Key: \"8e03978e-40d5-43dd-bc93-6894a57f9324\"\r\n";
                for _ in 0..3 {
                    let answer = json.ask("POST", &path, key, "{\"by\": 5}").await;
                    assert_eq!((answer.status, answer.json), (200, json!({"value": "5"})));
                }
                // With or without the quotation marks it is the same key, and it is for one method.
                let bare = key.replace('"', "");
                let path = format!("/json/Counter/{object}/read");
                let answer = json.ask("POST", &path, &bare, "{}").await;
                assert_eq!(
                    (answer.status, &answer.json["reason"]),
                    (409, &json!("request-id-reused"))
                );
                assert_eq!(answer.json["outcome"], "unknown");
                let other = "Idempotency-Key: 00000000-40d5-43dd-bc93-6894a57f9324\r\n";
                assert_eq!(json.ask("POST", &path, other, "{}").await.json, json!({"value": "5"}));
            }
            for keys in
                ["Idempotency-Key: 1\r\n", &"Idempotency-Key: 8e03978e40d543ddbc93\r\n".repeat(2)]
            {
                let answer = json.ask("POST", "/json/Counter/0/increment", keys, "{}").await;
                assert_eq!((answer.status, &answer.json["outcome"]), (400, &json!("not")));
            }
        });
    }
}

#[test]
fn a_failure_has_a_status_a_reason_and_an_outcome() {
    for hosts in [1, 2] {
        with_server(hosts, async |running| {
            let mut json = Json::connect(running).await;
            for (by, status, reason, outcome) in [
                (1, 409, Some("conflict"), "happened"),
                (2, 503, None, "unknown"),
                (3, 500, None, "happened"),
                (4, 429, Some("over-quota"), "unknown"),
                (5, 500, Some("deadlock"), "unknown"),
                (6, 502, None, "unknown"),
                (7, 502, None, "unknown"),
                (8, 504, None, "unknown"),
            ] {
                let answer = json.call(&format!("Failing/{by}/increment"), json!({"by": by})).await;
                let told = (
                    answer.status,
                    answer.json["reason"].as_str(),
                    answer.json["outcome"].as_str(),
                );
                assert_eq!(told, (status, reason, Some(outcome)), "{}", answer.json);
                assert_eq!(answer.json["status"], status);
                assert_eq!(answer.head.contains("retry-after: "), status == 503);
            }
            let answer = json.call("Failing/a/read", json!({})).await;
            assert_eq!((answer.status, &answer.json["outcome"]), (501, &json!("unknown")));
            // An object that ended is another one for the next call.
            let answer = json.call("Failing/6/increment", json!({"by": 1})).await;
            assert_eq!(answer.status, 409, "{}", answer.json);
        });
    }
}

#[test]
fn capabilities_are_references_where_they_are_asked_for() {
    for hosts in [1, 2, 4] {
        with_server(hosts, async |running| {
            let mut json = Json::connect(running).await;
            json.results("Plain/mine/note", json!({"stub": 7, "n": 3})).await;
            let namespace = &running.namespaces()["Plain"];
            let plain: capstead_client::namespace::Client =
                capstead_client::restore(namespace).await.unwrap();
            let mut request = plain.by_name_request();
            request.get().set_key("mine");
            let mine = request.send().pipeline.get_object().as_cap();
            let mine = crate::passing_capnp::passer::Client {
                client: capnp::capability::Client::new(mine),
            };
            let terms = capstead_client::Terms::new("JSON");
            let mine = capstead_client::share(&mine, terms).await.unwrap();
            let given = json!({"cap": mine});
            let named = json.results("Plain/other/echo", given.clone()).await;
            assert_eq!(named, json!({"cap": {"capability": "Passer"}}));
            let saved = json.results("Plain/other/echo?save=cap", given).await;
            let text = saved["cap"].as_str().unwrap();
            assert!(text.starts_with("capstead://") && text != mine, "{saved}");
            // It is the object that was given.
            let called = json!({"on": text, "stub": "9", "count": 2});
            json.results("Plain/other/call", called).await;
            let notes = json.results("Plain/mine/notes", json!({"stub": 9})).await;
            assert_eq!(notes, json!({"notes": ["0", "1"]}));
            assert_eq!(
                json.results("Plain/mine/notes", json!({"stub": 7})).await["notes"],
                json!(["3"])
            );

            // The class passes on what generated code said of it, which has a kind and no text.
            let unset = json.call("Plain/other/echo", json!({})).await;
            let detail = unset.json["detail"].as_str().unwrap();
            assert!(unset.status == 500 && detail.contains("null capability"), "{detail}");
            let wrong = json.call("Plain/other/echo", json!({"cap": "capstead://x/#AAAA"})).await;
            assert_eq!(
                (wrong.status, &wrong.json["outcome"]),
                (403, &json!("not")),
                "{}",
                wrong.json
            );
            let many: Vec<_> = (0..65).map(|_| mine.clone()).collect();
            let answer = json.call("Plain/other/take", json!({"caps": many})).await;
            assert_eq!(answer.status, 400);
            let large = json.results("Plain/other/large?save=caps", json!({"caps": 2})).await;
            assert_eq!(large["caps"].as_array().unwrap().len(), 2, "{large}");
            // A reply with live capabilities can't be kept.
            let key = "Idempotency-Key: 8e03978e-40d5-43dd-bc93-6894a57f9324\r\n";
            let given = json!({"cap": mine}).to_string();
            let answer = json.ask("POST", "/json/Plain/other/echo", key, &given).await;
            assert_eq!(answer.json["reason"], "reply-not-storable", "{}", answer.json);
            assert_eq!(answer.json["outcome"], "happened");
        });
    }
}

#[test]
fn a_class_describes_itself_as_open_api() {
    with_server(2, async |running| {
        let mut json = Json::connect(running).await;
        for path in ["/json/counter", "/json/Counter/", "/json/Counter/visits"] {
            let api = json.ask("GET", path, "", "").await.json;
            assert_eq!(api["openapi"], "3.1.0");
            assert_eq!(api["info"]["title"], "Counter");
            let increment = &api["paths"]["/json/Counter/{name}/increment"]["post"];
            assert!(increment["description"].as_str().unwrap().len() > 10, "{increment}");
            let params = &increment["requestBody"]["content"]["application/json"]["schema"]["$ref"];
            let params = params.as_str().unwrap().strip_prefix("#/components/schemas/").unwrap();
            let params = &api["components"]["schemas"][params];
            assert_eq!(params["properties"]["by"]["format"], "int64", "{params}");
        }
        let poll = json.ask("GET", "/json/poll", "", "").await.json;
        let options = &poll["components"]["schemas"]["Poll.Option"]["properties"];
        assert_eq!(options["name"]["type"], json!(["string", "null"]));
        let answer = json.ask("GET", "/json/Nobody", "", "").await;
        assert_eq!(answer.status, 404);
    });
}
