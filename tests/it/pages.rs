//! The pages of the bundled server, and the sockets behind them, in a process of its own.

use futures::StreamExt;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::http::{get, post};
use crate::support::{DEADLINE, Served, scratch, serve, serve_with};

fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::LocalRuntime::new().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(DEADLINE, work).await })
        .expect("it ends in time");
}

async fn open(served: &Served, path: &str) -> WebSocketStream<TcpStream> {
    let address = &served.announced.http;
    let stream = TcpStream::connect(address).await.unwrap();
    tokio_tungstenite::client_async(format!("ws://{address}{path}"), stream).await.unwrap().0
}

async fn text(window: &mut WebSocketStream<TcpStream>) -> String {
    match window.next().await {
        Some(Ok(Message::Text(text))) => text.to_string(),
        other => panic!("a text was to come, and not {other:?}"),
    }
}

#[test]
fn the_index_leads_to_pages_that_are_there() {
    let (_folder, data) = scratch();
    let served = serve(&data);
    let before = served.metric("commits_total");
    let index = get(&served.announced.http, "/");
    assert_eq!(index.status, 200);
    assert_eq!(index.header("content-type"), Some("text/html; charset=utf-8"));
    let links: Vec<&str> =
        index.body.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(links, ["/chat", "/editor", "/counter/visits/page"]);
    for link in links {
        let page = get(&served.announced.http, link);
        assert_eq!((page.status, page.header("content-type")), (200, index.header("content-type")));
        assert!(page.header("content-security-policy").is_some(), "{link}");
    }
    assert_eq!(served.metric("commits_total"), before, "to look makes nothing");
}

/// One call of a limiter would keep its address silent for a second.
#[test]
fn nothing_of_the_chat_is_called_in_json() {
    let (_folder, data) = scratch();
    let served = serve(&data);
    for path in ["ChatLimiter/127.0.0.1/spend", "ChatRoom/public%2Flobby/tell"] {
        let answer = post(&served.announced.http, &format!("/json/{path}"));
        assert_eq!(answer.status, 404, "{path}: {}", answer.body);
        assert!(answer.body.contains("There is no class"), "{path}: {}", answer.body);
    }
    assert_eq!(served.stop().0, Some(0));
}

#[test]
fn a_counters_windows_follow_it_whoever_counts() {
    for hosts in ["1", "2", "4"] {
        let (_folder, data) = scratch();
        let served = serve_with(&data, &["--hosts", hosts]);
        run(async {
            for name in ["a", "b", "c"] {
                let live = format!("/counter/{name}/live");
                let mut windows = Vec::new();
                for _ in 0..3 {
                    let mut window = open(&served, &live).await;
                    assert_eq!(text(&mut window).await, "0");
                    windows.push(window);
                }
                for value in 1..=20 {
                    let path = format!("/counter/{name}/increment");
                    assert_eq!(post(&served.announced.http, &path).body, value.to_string());
                }
                for window in &mut windows {
                    for value in 1..=20 {
                        assert_eq!(text(window).await, value.to_string(), "{hosts} hosts");
                    }
                }
                let mut late = open(&served, &live).await;
                assert_eq!(text(&mut late).await, "20");
            }
        });
        assert_eq!(served.stop().0, Some(0));
    }
}

#[test]
fn a_server_that_is_told_to_end_closes_sockets_with_1001() {
    let (_folder, data) = scratch();
    let served = serve(&data);
    run(async {
        let mut window = open(&served, "/counter/x/live").await;
        assert_eq!(text(&mut window).await, "0");
        assert_eq!(served.metric("http_sockets"), 1);
        served.signal("TERM");
        match window.next().await {
            Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), 1001),
            other => panic!("a close frame was to come, and not {other:?}"),
        }
        // The answer to it goes out as the library is read on.
        assert!(window.next().await.is_none());
    });
    assert_eq!(served.wait().0, Some(0));
}
