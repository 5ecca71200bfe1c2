//! Calls that cross from one host to another are answered before the server ends.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use futures::future::join_all;
use support::calls::{by_name, connect, increment, run};
use support::{scratch, serve_with};

// The counters are spread over two hosts; all calls come in by the first one's listener.
#[test]
fn calls_under_way_on_another_host_are_answered_when_the_server_is_asked_to_end() {
    let (_folder, data) = scratch();
    let served = serve_with(&data, &["--hosts", "2", "--commit-delay", "300"]);
    let before = served.metric("calls_total");
    run(async {
        let (_connection, counters) = connect(&served).await;
        let objects: Vec<_> = (0..20).map(|n| by_name(&counters, &n.to_string())).collect();
        let answers = tokio::task::spawn_local(join_all(objects.iter().map(increment)));
        while served.metric("calls_total") < before + 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        served.signal("TERM");
        for answer in answers.await.unwrap() {
            assert_eq!(answer.unwrap(), 1);
        }
    });
    let (code, _, stderr) = served.wait();
    assert_eq!(code, Some(0), "{stderr}");
}
