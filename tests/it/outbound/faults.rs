//! Servers that stall, lie or break off, callers that leave, and limits.

use std::time::Duration;

use super::class::{ask, bind, dial, get, hosts, run, served, until, with_server};
use super::peer::{Peer, Then};
use crate::support::free_address;
use tokio::io::AsyncWriteExt;

/// Far more than anything takes, and far less than a default limit.
const IDLE: Duration = Duration::from_millis(700);

/// The error of a call to a server that answers so.
async fn said(bytes: &'static [u8], then: Then) -> String {
    let peer = Peer::raw(bytes, then).await;
    let mut said = String::new();
    let limit = |limits: &mut capstead::OutboundLimits| limits.idle = IDLE;
    with_server((1, &[&peer.origin]), limit, async |running, _| {
        bind(running, "caller/a", &peer.origin).await;
        said = get(running, "caller/a/x").await;
        assert_eq!(peer.seen.borrow().len(), 1, "nothing is sent twice");
        peer.left().await;
    })
    .await;
    said
}

#[test]
fn after_a_fault_the_outcome_is_unknown_and_nothing_is_repeated() {
    run(async {
        let cases: [(&[u8], Then, &str); 8] = [
            (b"", Then::Stall, "nothing moved for 700ms"),
            (b"HTTP/1.1 200 OK\r\nx: ", Then::Stall, "nothing moved for 700ms"),
            (b"", Then::Close, "connection closed"),
            (b"", Then::Reset, "connection"),
            (b"SSH-2.0-OpenSSH_9.0\r\n\r\n", Then::Close, "invalid HTTP version"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", Then::Close, "content-length"),
            (b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", Then::Stall, "a protocol that it wasn't asked for"),
            (b"HTTP/1.1 700 What\r\ncontent-length: 0\r\n\r\n", Then::Close, "it answered 700"),
        ];
        for (bytes, then, why) in cases {
            let said = said(bytes, then).await;
            assert!(said.starts_with("Failed: unknown: http://127.0.0.1:"), "{said}");
            assert!(said.contains("may have done what was asked: "), "{said}");
            assert!(said.contains(why), "{said}: {why}");
        }
    });
}

#[test]
fn a_server_that_is_not_reached_has_not_heard_it() {
    run(async {
        let origin = format!("http://{}", free_address());
        served(1, &[&origin, "http://name.invalid"], async |running| {
            for origin in [&*origin, "http://name.invalid"] {
                bind(running, "caller/a", origin).await;
                let said = get(running, "caller/a/x").await;
                let wanted = format!("Overloaded: nothing was sent to {origin}, try again later: ");
                assert!(said.starts_with(&wanted), "{said}");
            }
        })
        .await;
    });
}

/// Of a response that breaks off, nobody takes the part for the whole.
#[test]
fn a_response_that_breaks_off_is_cut_off() {
    run(async {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome";
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nsome\r\n";
        for hosts in hosts() {
            for (bytes, then) in
                [(&head[..], Then::Close), (&chunked[..], Then::Close), (chunked, Then::Stall)]
            {
                let peer = Peer::raw(bytes, then).await;
                let limit = |limits: &mut capstead::OutboundLimits| limits.idle = IDLE;
                with_server((hosts, &[&peer.origin]), limit, async |running, _| {
                    bind(running, "caller/a", &peer.origin).await;
                    let mut stream = dial(running).await;
                    let asked =
                        b"GET /caller/a/x HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
                    stream.write_all(asked).await.unwrap();
                    let mut came = Vec::new();
                    // It may also be reset.
                    let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut came).await;
                    let came = String::from_utf8_lossy(&came);
                    assert!(!came.ends_with("0\r\n\r\n"), "{came}");
                    let said = until(running, "caller/a/error", |said| !said.is_empty()).await;
                    assert!(said.starts_with("Failed: unknown: "), "{said}");
                    peer.left().await;
                })
                .await;
            }
        }
    });
}

#[test]
fn a_body_has_its_limit() {
    run(async {
        let peer = Peer::good().await;
        let chunked =
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n14\r\n01234567890123456789\r\n0\r\n\r\n";
        let raw = Peer::raw(chunked, Then::Close).await;
        let limit = |limits: &mut capstead::OutboundLimits| limits.body_bytes = 10;
        with_server((1, &[&peer.origin, &raw.origin]), limit, async |running, _| {
            bind(running, "caller/a", &peer.origin).await;
            let said = get(running, "caller/a/large").await;
            assert!(said.contains("its response has more than 10 bytes"), "{said}");
            let request = "POST /caller/a/x HTTP/1.1\r\nhost: localhost\r\nask-content-length: 11\r\n\
                           content-length: 11\r\n\r\nhello world";
            let mut stream = dial(running).await;
            let answer =
                crate::support::exchange::exchange(&mut stream, request.as_bytes()).await;
            let said = String::from_utf8(answer.body).unwrap();
            assert_eq!(said, "Failed: the body of a request has at most 10 bytes here");
            bind(running, "caller/a", &raw.origin).await;
            let mut stream = dial(running).await;
            let asked = b"GET /caller/a/x HTTP/1.1\r\nhost: localhost\r\n\r\n";
            stream.write_all(asked).await.unwrap();
            let wanted = format!("Failed: unknown: {}", raw.origin);
 let is_it = |said: &str| said.starts_with(&wanted) && said.contains("more than 10 bytes");
 until(running, "caller/a/error", is_it).await;
        })
        .await;
    });
}

#[test]
fn no_more_connections_are_open_than_may_be() {
    run(async {
        let peer = Peer::good().await;
        let limit = |limits: &mut capstead::OutboundLimits| limits.connections = 1;
        with_server((2, &[&peer.origin]), limit, async |running, _| {
            bind(running, "caller/a", &peer.origin).await;
            bind(running, "caller/b", &peer.origin).await;
            let first = async { get(running, "caller/a/give-up").await };
            let second = async {
                peer.asked().await;
                let said = get(running, "caller/b/x").await;
                assert!(said.starts_with("Overloaded: too many requests"), "{said}");
            };
            assert_eq!(futures::future::join(first, second).await.0, "true");
            until(running, "caller/b/x", |said| said.starts_with("GET /x")).await;
        })
        .await;
    });
}

/// Long before any limit, and without a word from the server.
#[test]
fn a_call_that_is_given_up_ends() {
    run(async {
        let peer = Peer::good().await;
        for hosts in hosts() {
            served(hosts, &[&peer.origin], async |running| {
                for name in ["caller/a", "caller/b", "alone/c"] {
                    bind(running, name, &peer.origin).await;
                    assert_eq!(get(running, &format!("{name}/give-up")).await, "true");
                    peer.left().await;
                    let panicked = ask(running, &format!("{name}/give-up?text=panic")).await;
                    assert_eq!(panicked.status, 502);
                    peer.left().await;
                }
            })
            .await;
        }
    });
}
