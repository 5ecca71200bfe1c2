//! Sockets outlive the instances of their object: its sleep, its panics and its aborts.

use std::time::Duration;

use capstead::Running;
use serde_json::json;
use tokio::net::TcpStream;

use super::talk::{Client, get, object, run, server, until_it_says};
use crate::support::exchange::exchange;

/// Runs `work` with a server whose objects sleep soon.
fn with_naps(hosts: u16, work: impl AsyncFnOnce(&Running)) {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let server = server(&folder.path().join("data"), hosts, |_| {});
        let running = server.warm(Duration::from_millis(5)).start().await.unwrap();
        work(&running).await;
        running.until(async {}).await.unwrap();
    });
}

/// The metric of that name, which wakes nobody.
pub(super) async fn metric(running: &Running, name: &str) -> u64 {
    let mut stream = TcpStream::connect(running.metrics().unwrap()).await.unwrap();
    let page = exchange(&mut stream, b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let page = String::from_utf8(page.body).unwrap();
    let start = format!("capstead_{name} ");
    page.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
}

async fn all_sleep(running: &Running) {
    while metric(running, "objects_awake").await > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[test]
fn silent_sockets_keep_no_object_awake_and_a_message_wakes_it_with_all_of_them() {
    for hosts in [1, 2, 4] {
        with_naps(hosts, async |running| {
            for name in ["a", "b", "c", "d"] {
                let mut clients = Vec::new();
                for tag in ["/red", "/blue", "/red"] {
                    let mut client = Client::open(running, name, tag).await;
                    let attach = format!("attach number {}", clients.len());
                    assert_eq!(client.ask(&attach).await, "attached");
                    clients.push(client);
                }
                all_sleep(running).await;
                let all = "/red: number 0, /blue: number 1, /red: number 2";
                assert_eq!(clients[1].ask("found").await, all, "{hosts} hosts");
                all_sleep(running).await;
                clients[2].send("tag /red to the red").await;
                assert_eq!(clients[0].text().await, "to the red");
                assert_eq!(clients[2].text().await, "to the red");
                all_sleep(running).await;
                let pushed = object(running, name).await.increment_request().send().promise;
                pushed.await.unwrap();
                for client in &mut clients {
                    assert_eq!(client.text().await, "1");
                }
                // The end of a socket is told to an object that slept.
                all_sleep(running).await;
                drop(clients.remove(0));
                until_it_says(running, &format!("{name}/open"), json!(2)).await;
                all_sleep(running).await;
                clients[1].0.close(None).await.unwrap();
                assert_eq!(clients[1].closed().await.0, 1005);
                until_it_says(running, &format!("{name}/open"), json!(1)).await;
                assert_eq!(clients[0].ask("still here").await, "still here");
            }
        });
    }
}

/// A thousand, and none of them costs an instance.
#[test]
fn a_thousand_sockets_sleep() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let server = server(&folder.path().join("data"), 2, |limits| {
            (limits.connections, limits.connections_per_peer) = (2_000, 2_000);
        });
        let running = server.warm(Duration::from_millis(5)).start().await.unwrap();
        let mut clients = Vec::new();
        for number in 0..1_000 {
            clients.push(Client::open(&running, &format!("n{}", number % 10), "/").await);
        }
        all_sleep(&running).await;
        for client in clients.iter_mut().take(10) {
            client.send("all of you").await;
        }
        for client in &mut clients {
            assert_eq!(client.text().await, "of you");
        }
        running.until(async {}).await.unwrap();
    });
}

/// Bursts with pauses of about the warm time, so that messages come while the object falls asleep
/// and while it wakes.
#[test]
fn messages_keep_their_order_across_sleep_and_wake() {
    for (hosts, class) in [(1, "talk"), (2, "talk"), (4, "talk"), (1, "alone"), (2, "alone")] {
        with_naps(hosts, async |running| {
            let mut clients = Vec::new();
            for name in ["a", "b", "c", "d"] {
                let path = format!("/{class}/{name}/");
                clients.push(Client::open_at(running, &path, &[]).await.unwrap().0);
            }
            for burst in 0..100_u64 {
                for client in &mut clients {
                    for number in 0..3 {
                        client.send(&format!("{burst} {number}")).await;
                    }
                }
                tokio::time::sleep(Duration::from_micros(4_000 + burst % 10 * 500)).await;
            }
            for client in &mut clients {
                for burst in 0..100 {
                    for number in 0..3 {
                        assert_eq!(
                            client.text().await,
                            format!("{burst} {number}"),
                            "{hosts} hosts"
                        );
                    }
                }
            }
            assert!(metric(running, "wakes_total").await > 20, "they slept between");
        });
    }
}

/// The handler's own socket is closed, since nobody can say what became of its message.
#[test]
fn a_panic_or_abort_keeps_nothing_of_its_turn_and_ends_no_other_socket() {
    for hosts in [1, 2, 4] {
        with_naps(hosts, async |running| {
            for name in ["a", "b", "c"] {
                let mut others = Vec::new();
                for _ in 0..5 {
                    others.push(Client::open(running, name, "/tag").await);
                }
                for word in ["panic", "abort", "nap and panic"] {
                    let mut client = Client::open(running, name, "/tag").await;
                    client.send(word).await;
                    assert_eq!(client.closed().await.0, 1011, "{word}");
                    for other in &mut others {
                        assert_eq!(other.ask("still here").await, "still here", "{word}");
                    }
                    until_it_says(running, &format!("{name}/open"), json!(5)).await;
                }
                assert_eq!(
                    others[0].ask("count").await,
                    "1",
                    "the turn that panicked left nothing"
                );
                for by in [1, 2] {
                    let object = object(running, name).await;
                    let mut ends = object.decrement_request();
                    ends.get().set_by(by);
                    ends.send().promise.await.err().unwrap();
                    others[1].send("all fresh").await;
                    for other in &mut others {
                        assert_eq!(other.text().await, "fresh", "by {by}");
                    }
                }
            }
        });
    }
}

/// Messages of others that are under way have an unknown outcome: their sockets close too.
#[test]
fn a_message_that_was_lost_closes_its_socket() {
    for hosts in [1, 2] {
        with_naps(hosts, async |running| {
            let mut waits = Client::open(running, "x", "/").await;
            let mut idle = Client::open(running, "x", "/").await;
            waits.send("wait for ever").await;
            until_it_says(running, "x/underway", json!(1)).await;
            let object = object(running, "x").await;
            object.decrement_request().send().promise.await.err().unwrap();
            assert_eq!(waits.closed().await.0, 1011);
            assert_eq!(idle.ask("still here").await, "still here");
        });
    }
}

/// An object that handles one message at a time panics while messages wait: those of other sockets
/// are the first of the next instance, and those behind the lost one never begin.
#[test]
fn messages_that_had_not_begun_go_to_the_next_instance() {
    for hosts in [1, 2, 4] {
        with_naps(hosts, async |running| {
            for name in ["a", "b", "c"] {
                let path = format!("/alone/{name}/");
                let mut bad = Client::open_at(running, &path, &[]).await.unwrap().0;
                let mut good = Client::open_at(running, &path, &[]).await.unwrap().0;
                assert_eq!(good.ask("here").await, "here");
                bad.send("nap and panic").await;
                bad.send("count").await;
                for number in 0..5 {
                    good.send(&format!("{number}")).await;
                }
                good.send("count").await;
                assert_eq!(bad.closed().await.0, 1011);
                for number in 0..5 {
                    assert_eq!(good.text().await, number.to_string(), "{hosts} hosts");
                }
                assert_eq!(good.text().await, "1", "the message behind the lost one never began");
            }
        });
    }
}

#[test]
fn an_automatic_reply_wakes_nobody() {
    for hosts in [1, 2, 4] {
        with_naps(hosts, async |running| {
            for name in ["a", "b", "c"] {
                let mut client = Client::open(running, name, "/").await;
                let mut other = Client::open(running, name, "/").await;
                assert_eq!(client.ask("auto ping pong").await, "set");
                assert_eq!(client.ask("replied").await, "false");
                all_sleep(running).await;
                let wakes = metric(running, "wakes_total").await;
                for _ in 0..10 {
                    assert_eq!(client.ask("ping").await, "pong");
                }
                assert_eq!(metric(running, "wakes_total").await, wakes, "{hosts} hosts");
                assert_eq!(client.ask("pinging").await, "pinging", "it is another text");
                assert_eq!(client.ask("replied").await, "true");
                assert_eq!(other.ask("replied").await, "false");
                assert_eq!(other.ask("manual").await, "set");
                assert_eq!(client.ask("ping").await, "ping");
            }
        });
    }
}

/// Sockets take half of the memory of awake objects at most, which is free after them.
#[test]
fn sockets_take_no_more_memory_than_a_host_has_for_objects() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let server = server(&folder.path().join("data"), 1, |_| {}).awake_bytes(2 << 20);
        let running = server.warm(Duration::from_millis(5)).start().await.unwrap();
        for round in 0..3 {
            let mut clients = Vec::new();
            while let Ok((client, _)) = Client::open_with(&running, "x", "/heavy", &[]).await {
                clients.push(client);
                assert!(clients.len() < 100, "a MiB is no more than 64 times 16 KiB");
            }
            assert!(clients.len() > 50, "round {round}: {}", clients.len());
            assert_eq!(clients[0].ask("still here").await, "still here");
            drop(clients);
            while Client::open_with(&running, "x", "/heavy", &[]).await.is_err() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            until_it_says(&running, "x/open", json!(0)).await;
        }
        running.until(async {}).await.unwrap();
    });
}

/// The handler is the object, whose class is found when it wakes.
#[test]
fn an_object_finds_no_sockets_of_another() {
    with_naps(2, async |running| {
        let _client = Client::open(running, "x", "/").await;
        let mut other = Client::open(running, "y", "/").await;
        all_sleep(running).await;
        assert_eq!(other.ask("found").await, "/: ");
        assert_eq!(get(running, "x/open").await, 1);
    });
}
