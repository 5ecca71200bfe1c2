//! Sockets that were opened by a reference whose time has an end.
#![allow(clippy::disallowed_methods, reason = "the time of references is what is tested")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use capstead::Running;
use capstead_client::namespace;
use capstead_client::sturdyref::{Caveats, TextReference};
use serde_json::json;

use super::talk::{Client, run, server, until_it_says};
use crate::routes::routes_file;
use crate::support::calls::save;

const ROUTES: &str = r#"
[[route]]
path = "/mine/*"
access = "bearer"
[[route]]
path = "/talk/{name}/*"
class = "Talk"
name = "{name}"
access = "public"
"#;

pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

/// The text of a reference to an object of the class, and of one that is good until then.
pub(crate) async fn until(
    running: &Running,
    class: &str,
    name: &str,
    until_ms: u64,
) -> (String, String) {
    let all: namespace::Client =
        capstead_client::restore(&running.namespaces()[class]).await.unwrap();
    let text = save(&crate::support::calls::by_name(&all, name), "").await;
    let parsed = TextReference::parse(&text).unwrap();
    let narrow = parsed.reference().narrow(&Caveats::not_after(until_ms)).unwrap();
    let narrow = parsed.expose_text_of(&narrow).unwrap();
    (text, narrow)
}

async fn open(running: &Running, text: &str) -> Client {
    let bearer = format!("Bearer {text}");
    Client::open_at(running, "/mine/", &[("authorization", &bearer)]).await.unwrap().0
}

/// They end when that does, on every host, whether the object sleeps or not; others stay.
#[test]
fn a_socket_ends_with_the_time_of_its_reference() {
    for (hosts, warm) in [(1, 20), (2, 20), (4, 60_000)] {
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let file = routes_file(&folder, ROUTES);
            let server = server(&folder.path().join("data"), hosts, |_| {});
            let server = server.warm(Duration::from_millis(warm)).routes_file(file);
            let running = server.start().await.unwrap();
            let end = now_ms() + 1500;
            let mut open_now = Vec::new();
            for name in ["a", "b", "c", "d"] {
                let (forever, short) = until(&running, "Talk", name, end).await;
                let mut sockets = [open(&running, &forever).await, open(&running, &short).await];
                for socket in &mut sockets {
                    assert_eq!(socket.ask("hello").await, "hello");
                }
                open_now.push((name, sockets));
            }
            assert!(now_ms() < end, "the machine is too slow for this test");
            for (name, [mut stays, mut ends]) in open_now {
                let (code, reason) = ends.closed().await;
                assert_eq!(code, 1008, "{hosts} hosts: {reason}");
                assert!(reason.contains("the time of the reference"), "{reason}");
                assert!(now_ms() > end, "{hosts} hosts");
                until_it_says(&running, &format!("{name}/open"), json!(1)).await;
                assert_eq!(stays.ask("still here").await, "still here");
                if warm > 1000 {
                    let ends = json!([format!("1008 {reason}")]);
                    until_it_says(&running, &format!("{name}/ends"), ends).await;
                }
            }
            running.until(async {}).await.unwrap();
        });
    }
}

/// A socket that is closed before takes its timer with it, and its end is told once.
#[test]
fn a_socket_that_is_closed_before_its_end_is_told_once() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let file = routes_file(&folder, ROUTES);
        let server = server(&folder.path().join("data"), 1, |_| {}).routes_file(file);
        let running = server.start().await.unwrap();
        let end = now_ms() + 1000;
        let (_, short) = until(&running, "Talk", "a", end).await;
        let mut client = open(&running, &short).await;
        client.0.close(None).await.unwrap();
        assert_eq!(client.closed().await.0, 1005);
        while now_ms() < end + 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        until_it_says(&running, "a/ends", json!(["1005 "])).await;
        running.until(async {}).await.unwrap();
    });
}
