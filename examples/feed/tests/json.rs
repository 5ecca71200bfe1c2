//! Calls in JSON reach classes of a package of its own, whose schemas no gateway was built with.

mod support;

use std::process::{Command, Stdio};

use serde_json::json;
use support::Data;

/// A reference to a feed, made with the client.
fn share(feeds: &str, feed: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_feed_client"));
    let output = command.args([feeds, "share", feed, "Ada"]).stdin(Stdio::null()).output();
    let output = output.expect("it runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("it is text").trim().to_owned()
}

#[test]
fn feeds_and_users_are_called_in_json_with_references() {
    let data = Data::new();
    for hosts in ["1", "2"] {
        let data = if hosts == "1" { &data } else { &Data::new() };
        let server = data.serve(&["--json-calls", "on", "--hosts", hosts]);
        let call = |path: &str, params| {
            let (status, results) = server.json(path, &params);
            assert_eq!(status, 200, "{path}: {results}");
            results
        };
        assert_eq!(call("Feed/news/post", json!({"text": "hello"})), json!({"number": "1"}));
        let reference = share(&server.namespaces["Feed"], "news");
        call("User/ada/follow", json!({"name": "n", "feed": reference}));
        let timeline = call("User/ada/timeline", json!({}));
        let post = json!({"number": "1", "text": "hello"});
        assert_eq!(timeline["entries"][0]["post"], post, "{timeline}");
        assert_eq!(call("User/ada/feed", json!({"name": "n"}))["feed"]["capability"], "Feed");
        let saved = call("User/ada/feed?save=feed", json!({"name": "n"}));
        let saved = saved["feed"].as_str().expect("a reference");
        call("User/bob/follow", json!({"name": "ada's", "feed": saved}));
        assert_eq!(call("User/bob/timeline", json!({}))["entries"][0]["post"], post);
        let (status, problem) =
            server.json("User/ada/follow", &json!({"name": "n", "feed": reference}));
        assert_eq!((status, &problem["reason"]), (409, &json!("conflict")));
        assert_eq!(server.stop(), Some(0));
    }
}

#[test]
fn methods_are_called_in_json_only_where_somebody_said_so() {
    let data = Data::new();
    let server = data.serve(&[]);
    assert_eq!(server.json("Feed/news/post", &json!({"text": "hello"})).0, 404);
    assert_eq!(server.stop(), Some(0));
}
