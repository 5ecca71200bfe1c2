//! Calls to the outside: which objects may make them, where to, and what goes both ways.
#![allow(clippy::disallowed_methods, reason = "pauses are what is tested")]

mod class;
mod faults;
mod peer;
mod secure;
mod sockets;

use capnp::capability::FromClientHook;
use capstead::Running;
use capstead::http::http_service;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::class::{ask, bind, dial, get, hosts, object, run, served, with_server};
use self::peer::Peer;
use crate::slot_capnp::slot;
use crate::support::calls::{revoke, save};
use crate::support::capstead;

/// Puts a service into the slot of an object.
async fn fill(object: &slot::Client, service: http_service::Client) {
    let mut fill = object.fill_request();
    fill.get().init_with().set_as_capability(service.into_client_hook());
    fill.send().promise.await.unwrap();
}

/// Puts a service into the slot of a caller, by a grant with its name. Gives the service by which
/// that can be revoked.
async fn fill_by_grant(running: &Running, peer: &Peer, name: &str) -> http_service::Client {
    let whole: http_service::Client = object(running, "Outbound", &peer.origin).await;
    let text = save(&whole, name).await;
    let service = capstead_client::restore(&text).await.unwrap();
    fill(&object(running, "Caller", name).await, service).await;
    whole
}

#[test]
fn an_object_calls_by_a_grant_of_the_operator_and_not_without_one() {
    run(async {
        let peer = Peer::good().await;
        for hosts in hosts() {
            with_server(
                (hosts, &[&peer.origin]),
                |_| {},
                async |running, data| {
                    let host = peer.origin.strip_prefix("http://").unwrap();
                    let outbound = format!("Outbound/{}", peer.origin);
                    let mut grant =
                        capstead(["grant", &outbound, "--label", "for the test", "--data"]);
                    grant.arg(data);
                    let granted = tokio::task::spawn_blocking(move || grant.output().unwrap());
                    let granted = granted.await.unwrap();
                    assert!(granted.status.success(), "{granted:?}");
                    let text = String::from_utf8(granted.stdout).unwrap();
                    let text = text.split_whitespace().find(|word| word.starts_with("capstead://"));
                    let service: http_service::Client =
                        capstead_client::restore(text.expect("it prints it")).await.unwrap();

                    for name in ["a", "b", "c", "d"] {
                        let without = get(running, &format!("caller/{name}/hello")).await;
                        assert!(without.contains("it has no service"), "{without}");
                        fill(&object(running, "Caller", name).await, service.clone()).await;
                        let answer =
                            ask(running, &format!("caller/{name}/x?y=z\nask-one: 1\r\n")).await;
                        assert_eq!(answer.status, 200);
                        let said = String::from_utf8(answer.body).unwrap();
                        assert_eq!(said, format!("GET /x?y=z {host} 0 connection,host,one"));
                    }
                },
            )
            .await;
        }
    });
}

#[test]
fn a_revoked_grant_ends_the_call_that_is_under_way_and_lets_no_other_begin() {
    run(async {
        let peer = Peer::good().await;
        served(2, &[&peer.origin], async |running| {
            for name in ["a", "b", "c"] {
                let whole = fill_by_grant(running, &peer, name).await;
                peer.seen.borrow_mut().clear();
                let path = format!("caller/{name}/never");
                let asking = get(running, &path);
                let revoking = async {
                    peer.asked().await;
                    revoke(&whole, name).await;
                };
                let (said, ()) = futures::future::join(asking, revoking).await;
                assert!(said.contains("revoked: ") && said.contains("under way"), "{said}");
                peer.left().await;
                let said = get(running, &format!("caller/{name}/x")).await;
                assert!(said.contains("revoked: "), "{said}");
                assert_eq!(*peer.seen.borrow(), ["GET /never"], "nothing more went out");
            }
        })
        .await;
    });
}

#[test]
fn no_origin_is_reached_that_the_operator_did_not_name() {
    run(async {
        let (peer, other) = (Peer::good().await, Peer::good().await);
        served(2, &[&peer.origin], async |running| {
            bind(running, "caller/a", &other.origin).await;
            let said = get(running, "caller/a/x").await;
            let wanted = format!(
                "Failed: no object may call {0}: the operator lets them by `--outbound {0}`",
                other.origin
            );
            assert_eq!(said, wanted);
            bind(running, "caller/a", "rubbish").await;
            let said = get(running, "caller/a/x").await;
            assert!(said.starts_with("Failed: \"rubbish\" is no origin"), "{said}");
            bind(running, "caller/a", &peer.origin).await;
            for url in [&*other.origin, "http://127.0.0.1/", "https://127.0.0.1:1/x"] {
                let said = get(running, &format!("caller/a/url?text={url}")).await;
                assert!(said.contains("is not of"), "{said}");
            }
            let said = get(running, &format!("caller/a/url?text={}/whole", peer.origin)).await;
            assert!(said.starts_with("GET /whole "), "{said}");
            let said = get(running, "caller/a/x\nask-host: example.com\r\n").await;
            assert!(said.contains("the header host belongs to the connection"), "{said}");
        })
        .await;
        assert!(other.seen.borrow().is_empty());
        assert_eq!(*peer.seen.borrow(), ["GET /whole"]);
    });
}

#[test]
fn a_reference_may_be_for_a_part_of_the_paths() {
    run(async {
        let peer = Peer::good().await;
        served(2, &[&peer.origin], async |running| {
            bind(running, "caller/a", &format!("{}/v1", peer.origin)).await;
            assert!(get(running, "caller/a/v1/x").await.starts_with("GET /v1/x "));
            // The gateway itself lets no dots through in a path.
            let url = |path: &str| format!("url?text={}/{path}", peer.origin);
            let (dots, encoded) = (url("v1/../v2"), url("v1/%252e%252e/v2"));
            for path in ["v2", "v10", &dots, &encoded] {
                let said = get(running, &format!("caller/a/{path}")).await;
                assert!(said.contains("/v1 and what is below it alone"), "{said}");
            }
        })
        .await;
        assert_eq!(*peer.seen.borrow(), ["GET /v1/x"]);
    });
}

/// Strangers at the gateway's port must not call what trusts this server.
#[test]
fn the_gateway_does_not_reach_it() {
    run(async {
        let peer = Peer::good().await;
        served(1, &[&peer.origin], async |running| {
            let name = peer.origin.replace(':', "%3A").replace('/', "%2F");
            assert_eq!(ask(running, "json/Outbound").await.status, 404);
            for path in ["outbound", "Outbound"] {
                let answer = ask(running, &format!("{path}/{name}/x")).await;
                assert_eq!(answer.status, 404, "{path}");
            }
            let request = format!(
                "POST /json/Outbound/{name}/request HTTP/1.1\r\nhost: localhost\r\n\
                 content-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
            );
            let mut stream = dial(running).await;
            let answer = crate::support::exchange::exchange(&mut stream, request.as_bytes()).await;
            assert_eq!(answer.status, 404);
        })
        .await;
        assert!(peer.seen.borrow().is_empty());
    });
}

/// Each part goes to the server and comes back before the next one is sent.
#[test]
fn both_bodies_go_on_at_once() {
    run(async {
        let peer = Peer::good().await;
        for hosts in hosts() {
            served(hosts, &[&peer.origin], async |running| {
                for name in ["caller/a", "caller/b", "alone/a", "alone/b"] {
                    bind(running, name, &peer.origin).await;
                    let mut stream = dial(running).await;
                    let head = format!(
                        "POST /{name}/echo HTTP/1.1\r\nhost: localhost\r\n\
                         transfer-encoding: chunked\r\n\r\n"
                    );
                    stream.write_all(head.as_bytes()).await.unwrap();
                    let mut came = Vec::new();
                    for number in 0..20 {
                        let part = format!("<{number}>").repeat(1 + number * 500);
                        let chunk = format!("{:x}\r\n{part}\r\n", part.len());
                        stream.write_all(chunk.as_bytes()).await.unwrap();
                        let end = format!("<{number}>");
                        let all = 1 + number * 500;
                        let count =
                            |came: &[u8]| String::from_utf8_lossy(came).matches(&end).count();
                        // A part may come in several chunks, with their sizes between.
                        while count(&came) < all.saturating_sub(30) || count(&came) == 0 {
                            assert_ne!(stream.read_buf(&mut came).await.unwrap(), 0);
                        }
                    }
                    stream.write_all(b"0\r\n\r\n").await.unwrap();
                    while !came.ends_with(b"\r\n0\r\n\r\n") {
                        assert_ne!(stream.read_buf(&mut came).await.unwrap(), 0);
                    }
                }
            })
            .await;
        }
    });
}

#[test]
fn a_whole_body_has_its_size() {
    run(async {
        let peer = Peer::good().await;
        served(2, &[&peer.origin], async |running| {
            for (name, method) in [("caller/a", "PUT"), ("alone/b", "POST"), ("caller/c", "PATCH")]
            {
                bind(running, name, &peer.origin).await;
                let request = format!(
                    "{method} /{name}/x HTTP/1.1\r\nhost: localhost\r\nask-content-length: 5\r\n\
                     content-length: 5\r\n\r\nhello"
                );
                let answer = crate::support::exchange::exchange(
                    &mut dial(running).await,
                    request.as_bytes(),
                )
                .await;
                let said = String::from_utf8(answer.body).unwrap();
                assert!(said.starts_with(&format!("{method} /x ")), "{said}");
                assert!(said.ends_with(" 5 connection,content-length,host"), "{said}");
            }
        })
        .await;
    });
}

#[test]
fn no_redirect_is_followed() {
    run(async {
        let peer = Peer::good().await;
        served(1, &[&peer.origin, "http://127.0.0.1:1"], async |running| {
            bind(running, "caller/a", &peer.origin).await;
            let answer = ask(running, "caller/a/moved").await;
            assert_eq!((answer.status, &*answer.body), (302, &b"elsewhere"[..]));
            assert!(answer.says(b"location: http://127.0.0.1:1/\r\n"));
        })
        .await;
        assert_eq!(*peer.seen.borrow(), ["GET /moved"]);
    });
}
