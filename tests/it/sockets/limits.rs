//! The limits of what clients of WebSockets may take of a server: no client takes it from others.
#![allow(clippy::disallowed_methods, reason = "how long something takes is what is tested")]

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::sleep::metric;
use super::talk::{
    Client, GOOD, POURED_BYTES, get, shake, until_it_says, with_limits, with_server,
};
use futures::StreamExt;

/// Five hundred hear each of the messages, in one order.
#[test]
fn five_hundred_sockets_of_one_object_all_hear_all() {
    with_server(1, async |running| {
        let mut clients = Vec::new();
        for _ in 0..500 {
            clients.push(Client::open(running, "x", "/").await);
        }
        for number in 0..20 {
            clients[number * 20].send(&format!("all {number}")).await;
        }
        let mut first = Vec::new();
        for client in &mut clients {
            let mut heard = Vec::new();
            for _ in 0..20 {
                heard.push(client.text().await);
            }
            if first.is_empty() {
                first.clone_from(&heard);
            }
            assert_eq!(heard, first);
        }
        assert_eq!(get(running, "x/open").await, 500);
    });
}

/// A client that reads nothing, with another one beside it that gets all it asks for meanwhile.
#[test]
fn a_slow_reader_is_cut_at_its_limit_and_delays_nobody() {
    for hosts in [1, 2] {
        with_limits(
            hosts,
            |limits| limits.socket_unsent_bytes = 1 << 20,
            async |running| {
                let (mut slow, answer) = shake(running, "/talk/x/", GOOD).await;
                assert_eq!(answer.status, 101);
                let mut other = Client::open(running, "x", "/").await;
                // More than the system takes for it, and less than the test takes memory for.
                let mut rounds = 0;
                while get(running, "x/open").await == 2 {
                    let asked = Instant::now();
                    other.send(&format!("all {}", "x".repeat(100_000))).await;
                    assert_eq!(other.text().await.len(), 100_000);
                    assert!(
                        asked.elapsed() < Duration::from_secs(2),
                        "nobody waits for the slow one"
                    );
                    rounds += 1;
                    assert!(rounds < 1_000, "it is never cut");
                }
                assert_eq!(get(running, "x/ends").await, json!(["1006 "]));
                let mut read = vec![0; 1 << 20];
                while slow.read(&mut read).await.is_ok_and(|bytes| bytes > 0) {}
                assert_eq!(other.ask("still here").await, "still here");
            },
        );
    }
}

/// All that waits for those who read slowly counts together, with bodies.
#[test]
fn what_waits_for_all_clients_together_is_bounded() {
    let limit = |limits: &mut capstead::HttpLimits| {
        limits.socket_unsent_bytes = 64 << 20;
        limits.body_bytes = 2 << 20;
    };
    with_limits(1, limit, async |running| {
        let (mut slow, _) = shake(running, "/talk/x/", GOOD).await;
        let mut other = Client::open(running, "x", "/").await;
        let mut rounds = 0;
        while get(running, "x/open").await == 2 {
            other.send(&format!("all {}", "x".repeat(100_000))).await;
            assert_eq!(other.text().await.len(), 100_000);
            rounds += 1;
            assert!(rounds < 300, "it is never cut");
        }
        let mut read = vec![0; 1 << 20];
        while slow.read(&mut read).await.is_ok_and(|bytes| bytes > 0) {}
    });
}

#[test]
fn a_client_that_is_silent_is_pinged_and_one_that_does_not_answer_is_cut() {
    let limit = |limits: &mut capstead::HttpLimits| limits.socket_idle = Duration::from_millis(400);
    with_limits(1, limit, async |running| {
        let start = Instant::now();
        let (mut dead, _) = shake(running, "/talk/x/", GOOD).await;
        let mut alive = Client::open(running, "y", "/").await;
        // This one answers pings as long as it is read.
        let reads = async { while let Some(Ok(_)) = alive.0.next().await {} };
        let mut came = Vec::new();
        tokio::select! {
            () = reads => panic!("a client that answers is cut"),
            ended = dead.read_to_end(&mut came) => drop(ended),
        }
        assert!(start.elapsed() >= Duration::from_millis(400));
        assert_eq!(came[..2], [0x89, 0], "a ping, and then the end");
        until_it_says(running, "x/ends", json!(["1006 "])).await;
        assert_eq!(alive.ask("still here").await, "still here");
    });
}

/// An object that awaits what it sends is held up by the client, which isn't cut then.
#[test]
fn a_sender_that_waits_sends_no_faster_than_is_read() {
    for hosts in [1, 2] {
        with_server(hosts, async |running| {
            let mut client = Client::open(running, "x", "/").await;
            client.send("pour 500").await;
            // More than what the system takes for a reader, and far less than all.
            for _ in 0..200 {
                let sent = get(running, "x/underway").await;
                assert!(sent.as_u64().unwrap() < 250, "{sent} were sent and none is read");
            }
            for _ in 0..500 {
                assert_eq!(client.next().await.unwrap().unwrap().len(), POURED_BYTES);
            }
            until_it_says(running, "x/underway", json!(500)).await;
        });
    }
}

/// A client that says more than its object has time for.
#[test]
fn a_client_is_read_no_faster_than_its_object_works() {
    for hosts in [1, 2] {
        with_server(hosts, async |running| {
            for (name, bytes, most) in [("small", 10, 64), ("large", 10_000, 27)] {
                let mut client = Client::open(running, name, "/").await;
                let text = format!("wait {}", "x".repeat(bytes));
                let says = tokio::task::spawn_local(async move {
                    for _ in 0..2_000 {
                        client.send(&text).await;
                    }
                    client
                });
                until_it_says(running, &format!("{name}/underway"), json!(most)).await;
                for _ in 0..100 {
                    assert_eq!(get(running, &format!("{name}/underway")).await, most);
                }
                assert_eq!(get(running, &format!("{name}/go")).await, true);
                until_it_says(running, &format!("{name}/underway"), json!(2_000)).await;
                assert_eq!(says.await.unwrap().ask("done").await, "done");
            }
        });
    }
}

/// Clients go while nothing is read of them, since their object is behind: with many small
/// messages, or with a large one. They reset the connection, or close it with words behind that
/// nobody reads.
#[test]
fn a_client_that_goes_is_noticed_while_its_object_is_behind() {
    for hosts in [1, 2] {
        with_server(hosts, async |running| {
            for (name, bytes, count) in [("small", 1, 64), ("large", 300_000, 1)] {
                for resets in [true, false] {
                    let name = format!("{name}-{resets}");
                    let mut client = Client::open(running, &name, "/").await;
                    let text = format!("wait {}", "x".repeat(bytes));
                    for _ in 0..count {
                        client.send(&text).await;
                    }
                    until_it_says(running, &format!("{name}/underway"), json!(count)).await;
                    client.send("nobody reads this").await;
                    let stream = client.0.into_inner();
                    if resets {
                        stream.set_zero_linger().unwrap();
                    }
                    drop(stream);
                    let gone = Instant::now();
                    until_it_says(running, &format!("{name}/ends"), json!(["1006 "])).await;
                    assert!(gone.elapsed() < Duration::from_secs(5), "{:?}", gone.elapsed());
                    assert_eq!(metric(running, "http_sockets").await, 0, "{name}");
                }
            }
        });
    }
}

/// A client that only listens from now on isn't gone: what it said before comes to the object.
#[test]
fn a_client_that_only_listens_is_heard_to_its_end() {
    with_server(1, async |running| {
        let (mut client, _) = shake(running, "/talk/x/", GOOD).await;
        let text = b"wait x";
        let frame = [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0][..], text].concat();
        client.write_all(&frame.repeat(70)).await.unwrap();
        until_it_says(running, "x/underway", json!(64)).await;
        client.shutdown().await.unwrap();
        // It is pinged when its end was seen.
        let mut ping = [0; 2];
        client.read_exact(&mut ping).await.unwrap();
        assert_eq!(ping, [0x89, 0]);
        assert_eq!(get(running, "x/ends").await, json!([]));
        assert_eq!(get(running, "x/go").await, true);
        until_it_says(running, "x/underway", json!(70)).await;
        until_it_says(running, "x/ends", json!(["1006 "])).await;
    });
}

/// A message is in memory for as long as its object works on it, and counts as long.
#[test]
fn messages_that_objects_work_on_have_no_more_room_than_bodies() {
    let limit = |limits: &mut capstead::HttpLimits| limits.body_bytes = 2 << 20;
    with_limits(1, limit, async |running| {
        let large = format!("wait {}", "x".repeat(1_000_000));
        let mut clients = Vec::new();
        for name in ["a", "b", "c"] {
            let mut client = Client::open(running, name, "/").await;
            client.send(&large).await;
            until_it_says(running, &format!("{name}/underway"), json!(1)).await;
            clients.push(client);
        }
        let mut other = Client::open(running, "d", "/").await;
        other.send(&large).await;
        assert_eq!(other.closed().await.0, 1013, "there is no room for a fourth");
        for name in ["a", "b", "c"] {
            assert_eq!(get(running, &format!("{name}/go")).await, true);
        }
        for client in &mut clients {
            assert_eq!(client.ask("done").await, "done");
        }
        let mut again = Client::open(running, "a", "/").await;
        again.send(&large).await;
        assert_eq!(again.ask("done").await, "done");
    });
}

/// Each socket keeps the place of its connection.
#[test]
fn sockets_of_one_address_are_counted() {
    with_limits(
        1,
        |limits| limits.connections_per_peer = 5,
        async |running| {
            let mut clients = Vec::new();
            for _ in 0..5 {
                clients.push(Client::open(running, "x", "/").await);
            }
            assert!(Client::open_with(running, "x", "/", &[]).await.is_err(), "there are too many");
            drop(clients.pop());
            let again = loop {
                if let Ok((client, _)) = Client::open_with(running, "x", "/", &[]).await {
                    break client;
                }
            };
            drop(again);
        },
    );
}

/// A client that gets a close frame and doesn't answer it.
#[test]
fn nobody_waits_for_ever_for_the_answer_to_a_close_frame() {
    with_server(1, async |running| {
        let (mut silent, _) = shake(running, "/talk/x/", GOOD).await;
        let text = b"close 1000 bye";
        let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
        frame.extend(text);
        tokio::io::AsyncWriteExt::write_all(&mut silent, &frame).await.unwrap();
        let mut came = Vec::new();
        let start = Instant::now();
        silent.read_to_end(&mut came).await.unwrap();
        assert_eq!(&came[..4], [0x88, 5, 0x03, 0xe8], "close, with 1000");
        assert!(start.elapsed() < Duration::from_secs(20));
        until_it_says(running, "x/ends", json!(["1006 "])).await;
    });
}
