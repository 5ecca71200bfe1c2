//! Bodies that stream: between a client, the gateway and a class, in both directions at once, with
//! as much memory for a large one as for a small one, and never taken for whole when they are not.
#![allow(clippy::disallowed_methods, reason = "pauses are what is tested")]

mod class;
mod ends;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use self::class::{Client, get, hosts, limits, metric, server, until, with_servers};
use crate::support::{DEADLINE, Process, Served, copies, own, scratch};

const CHUNKED: &str = "transfer-encoding: chunked";

/// Each part goes to the class and comes back before the next one is sent.
#[test]
fn both_bodies_go_on_at_once_whichever_host_has_the_object() {
    with_servers(
        &hosts(),
        |server| server,
        async |running| {
            for object in ["a", "b", "c", "d"] {
                let mut client = Client::open(running).await;
                client.begin("POST", &format!("/streams/{object}/echo"), &[CHUNKED]).await;
                assert_eq!(client.head().await.0, 200);
                for number in 0..20 {
                    let part = format!("{number} {object}").repeat(1 + number * 100).into_bytes();
                    client.send_chunk(&part).await;
                    let mut came = Vec::new();
                    while came.len() < part.len() {
                        came.extend(client.chunk().await.unwrap());
                    }
                    assert!(came == part, "part {number}");
                }
                client.send_chunk(b"").await;
                assert_eq!(client.chunk().await.unwrap(), b"");
                // The connection is good for another request.
                client.begin("GET", &format!("/streams/{object}/moved"), &[]).await;
                assert_eq!(client.head().await.0, 200);
            }
        },
    );
}

#[test]
fn a_server_for_large_bodies() {
    let Some(data) = own::data() else { return };
    let hosts = std::env::var("CAPSTEAD_TEST_HOSTS").map_or(1, |hosts| hosts.parse().unwrap());
    own::serve(server(data).hosts(hosts));
}

/// The size of bodies that must not take as much memory.
const LARGE: usize = 100 << 20;

#[test]
fn a_hundred_megabytes_up_and_down_take_little_memory() {
    let (_folder, data) = scratch();
    let name = "http_streams::a_server_for_large_bodies";
    let served = Served::ready(Process::start(own::program(name, &data)));
    let before = served.resident_bytes();
    let mut most = 0;
    let mut look = |served: &Served| most = most.max(served.resident_bytes());

    let mut stream = std::net::TcpStream::connect(&served.announced.http).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = format!(
        "PUT /streams/x/read HTTP/1.1\r\nhost: localhost\r\ncontent-length: {LARGE}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let part = vec![b'x'; 1 << 20];
    for _ in 0..LARGE >> 20 {
        stream.write_all(&part).unwrap();
        look(&served);
    }
    let mut answer = [0; 4096];
    let read = stream.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(answer.ends_with(&LARGE.to_string()), "{answer}");

    let asked = format!(
        "GET /streams/x/write?bytes={LARGE}&said={LARGE} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(asked.as_bytes()).unwrap();
    let (mut came, mut part) = (0, vec![0; 1 << 20]);
    loop {
        match stream.read(&mut part).unwrap() {
            0 => break,
            more => came += more,
        }
        look(&served);
    }
    assert!((LARGE..LARGE + 500).contains(&came), "{came}");
    let grown = most.saturating_sub(before);
    assert!(grown < copies() * (40 << 20), "{} MiB", grown >> 20);
}

/// More than lies in the buffers of two sockets.
const STALLED: usize = 40 << 20;

#[test]
fn a_class_waits_for_a_client_that_reads_slowly() {
    with_servers(
        &[1, 2],
        |server| server,
        async |running| {
            let mut client = Client::open(running).await;
            client.begin("GET", &format!("/streams/x/write?bytes={LARGE}"), &[]).await;
            assert_eq!(client.head().await.0, 200);
            // It fills the system's buffers and then the gateway's.
            while metric(running, "http_body_bytes").await < 192 << 10 {}
            let mut written = 0;
            loop {
                let now = until(running, "/streams/x/moved", |_| true).await.parse().unwrap();
                if now == written {
                    break;
                }
                written = now;
            }
            assert!(written < STALLED, "{written}");
            assert!(metric(running, "http_body_bytes").await <= 512 << 10);
            let mut came = 0;
            loop {
                match client.chunk().await.expect("it is not cut off").len() {
                    0 => break,
                    more => came += more,
                }
            }
            assert_eq!(came, LARGE);
        },
    );
}

#[test]
fn a_client_waits_for_a_class_that_does_not_read() {
    with_servers(
        &[1, 2],
        |server| server,
        async |running| {
            let mut client = Client::open(running).await;
            let line = format!("content-length: {LARGE}");
            client.begin("PUT", "/streams/x/hold", &[&line]).await;
            let (mut sent, part) = (0, vec![b'x'; 64 << 10]);
            let some = |sent: usize| part.len().min(LARGE - sent);
            // A second is long for one that reads.
            while let Ok(more) =
                tokio::time::timeout(Duration::from_secs(1), client.send_some(&part[..some(sent)]))
                    .await
            {
                sent += more;
                assert!(sent < STALLED, "{sent}");
            }
            assert!(metric(running, "http_body_bytes").await <= 512 << 10);
            // Other calls of the object go on meanwhile.
            assert_eq!(get(running, "/streams/x/go").await.0, 200);
            while sent < LARGE {
                sent += client.send_some(&part[..some(sent)]).await;
            }
            assert_eq!(client.head().await.0, 200);
            let total = LARGE.to_string();
            assert_eq!(client.bytes(total.len()).await.unwrap(), total.as_bytes());
        },
    );
}

#[test]
fn a_response_that_breaks_off_is_not_taken_for_whole() {
    with_servers(
        &hosts(),
        |server| server,
        async |running| {
            for object in ["a", "b", "c", "d"] {
                let mut chunked = Client::open(running).await;
                chunked.begin("GET", &format!("/streams/{object}/cut"), &[]).await;
                assert_eq!(chunked.head().await.0, 200);
                assert_eq!(chunked.chunk().await.unwrap(), b"one");
                let mut sized = Client::open(running).await;
                sized.begin("GET", &format!("/streams/{object}/cut?said=100000"), &[]).await;
                let (status, head) = sized.head().await;
                assert!(status == 200 && head.contains("content-length: 100000"), "{head}");
                assert_eq!(sized.bytes(3).await.unwrap(), b"one");
                get(running, &format!("/streams/{object}/go")).await;
                assert_eq!(chunked.chunk().await, None, "no last chunk");
                assert_eq!(sized.bytes(1).await, None, "closed");
            }
        },
    );
}

#[test]
fn another_number_of_bytes_than_was_announced_is_not_taken_for_whole() {
    with_servers(
        &hosts(),
        |server| server,
        async |running| {
            for object in ["a", "b", "c", "d"] {
                for (bytes, said) in [(50_000, 60_000), (60_000, 50_000), (5, 10), (10, 5)] {
                    let path = format!("/streams/{object}/write?bytes={bytes}&said={said}");
                    let (status, why) = get(running, &path).await;
                    assert!(status == 500 && why.contains("than the response announced"), "{why}");
                }
                for (bytes, said) in [(200_000, 300_000), (300_000, 200_000)] {
                    let path = format!("/streams/{object}/write?bytes={bytes}&said={said}");
                    let mut client = Client::open(running).await;
                    client.begin("GET", &path, &[]).await;
                    match client.head().await.0 {
                        200 => assert_eq!(client.bytes(said).await, None),
                        // It was all over before anything left.
                        status => assert_eq!(status, 500),
                    }
                }
            }
        },
    );
}

#[test]
fn a_client_that_goes_ends_what_the_class_reads_and_writes() {
    with_servers(
        &hosts(),
        |server| server,
        async |running| {
            for object in ["a", "b", "c", "d"] {
                let path = |path: &str| format!("/streams/{object}/{path}");
                let mut up = Client::open(running).await;
                up.begin("PUT", &path("read"), &["content-length: 1000000"]).await;
                up.send(&vec![b'x'; 200_000]).await;
                until(running, &path("moved"), |moved| moved == "200000").await;
                drop(up);
                until(running, &path("error"), |error| error.contains("of the request broke off"))
                    .await;

                let mut down = Client::open(running).await;
                down.begin("GET", &path(&format!("write?bytes={LARGE}")), &[]).await;
                assert_eq!(down.head().await.0, 200);
                drop(down);
                until(running, &path("error"), |error| error.contains("nobody reads the response"))
                    .await;
            }
            while metric(running, "http_body_bytes").await > 0 {}
        },
    );
}

/// The pauses are longer than an object has for an answer.
#[test]
fn events_come_when_they_happen_however_long_that_takes() {
    let patient = limits(Duration::from_secs(1));
    with_servers(
        &hosts(),
        |server| server.http_limits(patient),
        async |running| {
            let mut client = Client::open(running).await;
            client.begin("GET", "/streams/x/events", &[]).await;
            assert_eq!(client.head().await.0, 200);
            for event in ["one", "two"] {
                tokio::time::sleep(Duration::from_millis(1500)).await;
                get(running, &format!("/streams/x/emit?text={event}")).await;
                let came = client.chunk().await.unwrap();
                assert_eq!(came, format!("data: {event}\n\n").as_bytes());
            }
            drop(client);
            // Its place is free without an event that would find out, and the next one tells the
            // object.
            while metric(running, "http_connections").await > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            until(running, "/streams/x/emit?text=three", |listeners| listeners == "0").await;
        },
    );
}

/// It is larger than a message between hosts may be.
#[test]
fn a_whole_response_may_be_large_whichever_host_has_the_object() {
    with_servers(
        &hosts(),
        |server| server,
        async |running| {
            for object in ["a", "b", "c", "d"] {
                let (status, body) =
                    get(running, &format!("/streams/{object}/large?bytes={}", 20 << 20)).await;
                assert_eq!((status, body.len()), (200, 20 << 20));
            }
        },
    );
}

/// Nothing is written meanwhile that would find out. A client that only says no more might still
/// read: it counts as gone when nothing was sent for the time of a pause.
#[test]
fn a_class_hears_of_a_client_that_goes_without_writing() {
    let patient = limits(Duration::from_millis(500));
    with_servers(
        &hosts(),
        |server| server.http_limits(patient),
        async |running| {
            for object in ["a", "b", "c", "d"] {
                let path = |path: &str| format!("/streams/{object}/{path}");
                let mut clients = Vec::new();
                for name in ["first", "second"] {
                    let mut client = Client::open(running).await;
                    client.begin("GET", &path(&format!("watched?text={name}")), &[]).await;
                    assert_eq!(client.head().await.0, 200);
                    assert_eq!(client.chunk().await.unwrap(), b"begun");
                    clients.push(client);
                }
                assert_eq!(get(running, &path("error")).await.1, r#""""#);
                for name in ["second", "first"] {
                    clients.pop();
                    let is_gone = format!(r#""{name} is gone""#);
                    until(running, &path("error"), |error| error == is_gone).await;
                }
            }
        },
    );
}

#[test]
fn an_object_that_does_not_answer_in_time_is_a_504_and_its_call_goes_on() {
    let patient = limits(Duration::from_secs(1));
    with_servers(
        &hosts(),
        |server| server.http_limits(patient),
        async |running| {
            let (status, why) = get(running, "/streams/x/never").await;
            assert_eq!((status, &*why), (504, "The object did not answer in time.\n"));
            // Nor does one that takes no more of the request's body, or all of it and says nothing.
            let mut client = Client::open(running).await;
            client.begin("PUT", "/streams/x/hold", &["content-length: 9000000"]).await;
            client.send(&vec![b'x'; 100_000]).await;
            assert_eq!(client.head().await.0, 408, "the client says nothing either");
            let mut client = Client::open(running).await;
            client.begin("PUT", "/streams/x/never", &["content-length: 90000"]).await;
            client.send(&vec![b'x'; 90_000]).await;
            assert_eq!(client.head().await.0, 504);
            get(running, "/streams/x/go").await;
            until(running, "/streams/x/moved", |moved| moved == "77").await;
        },
    );
}

#[test]
fn a_part_leaves_when_what_was_stored_before_it_is_durable() {
    const DELAY: Duration = Duration::from_millis(500);
    let slow = |server: capstead::Server| server.commit_delay(DELAY);
    with_servers(&hosts(), slow, async |running| {
        let mut client = Client::open(running).await;
        client.begin("GET", "/streams/x/store", &[]).await;
        assert_eq!(client.head().await.0, 200);
        assert_eq!(client.chunk().await.unwrap(), b"begun");
        let begun = Instant::now();
        assert_eq!(client.chunk().await.unwrap(), b"stored");
        assert!(begun.elapsed() > DELAY / 2, "{:?}", begun.elapsed());
        assert_eq!(client.chunk().await.unwrap(), b"");
    });
}

#[test]
fn a_client_that_waits_is_told_to_send_when_the_class_reads() {
    let expects =
        |bytes: usize| [format!("content-length: {bytes}"), "expect: 100-continue".into()];
    with_servers(
        &hosts(),
        |server| server,
        async |running| {
            for (path, bytes, expected) in [
                ("read", 200_000, 100),
                ("moved", 200_000, 200),
                ("whole", 2_000_000, 413),
                ("read", 9, 100),
            ] {
                let mut client = Client::open(running).await;
                let lines = expects(bytes);
                let path = format!("/streams/{bytes}/{path}");
                client.begin("PUT", &path, &lines.each_ref().map(|line| &**line)).await;
                assert_eq!(client.head().await.0, expected, "{path}");
                if expected == 100 {
                    client.send(&vec![b'x'; bytes]).await;
                    assert_eq!(client.head().await.0, 200, "{path}");
                }
            }
        },
    );
}

#[test]
fn a_body_that_is_taken_whole_has_at_most_a_megabyte() {
    with_servers(
        &hosts(),
        |server| server,
        async |running| {
            for object in ["a", "b", "c", "d"] {
                for (class, bytes, expected) in [
                    ("streams", 1 << 20, 200),
                    ("streams", (1 << 20) + 1, 413),
                    ("alone", 1 << 20, 200),
                    ("alone", (1 << 20) + 1, 413),
                ] {
                    let path = format!("/{class}/{object}/whole");
                    let mut client = Client::open(running).await;
                    client.begin("PUT", &path, &[CHUNKED]).await;
                    for _ in 0..bytes >> 16 {
                        client.send_chunk(&vec![b'x'; 1 << 16]).await;
                    }
                    if bytes % (1 << 16) > 0 {
                        client.send_chunk(&vec![b'x'; bytes % (1 << 16)]).await;
                    }
                    client.send_chunk(b"").await;
                    assert_eq!(client.head().await.0, expected, "{path} {bytes}");
                }
            }
        },
    );
}

#[test]
fn a_head_has_no_body_and_nothing_runs_for_it() {
    with_servers(
        &[1],
        |server| server,
        async |running| {
            let mut client = Client::open(running).await;
            client.begin("HEAD", "/streams/x/write?bytes=100000&said=100000", &[]).await;
            let (status, head) = client.head().await;
            assert!(status == 200 && head.contains("content-length: 100000"), "{head}");
            client.begin("GET", "/streams/x/moved", &[]).await;
            assert_eq!(client.head().await.0, 200);
            assert_eq!(client.bytes(1).await.unwrap(), b"0");
        },
    );
}
