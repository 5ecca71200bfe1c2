//! WebSockets that objects open to the outside.

use std::time::Duration;

use super::class::{ask, bind, get, hosts, run, served, until, with_server};
use super::peer::{Peer, Then};

#[test]
fn messages_go_both_ways_until_either_side_closes() {
    run(async {
        let peer = Peer::echo().await;
        for hosts in hosts() {
            served(hosts, &[&peer.origin], async |running| {
                for name in ["caller/a", "caller/b", "alone/c", "caller/d"] {
                    bind(running, name, &peer.origin).await;
                    let answer = ask(running, &format!("{name}/open")).await;
                    let said = String::from_utf8(answer.body).unwrap();
                    assert!(said.contains(r#""sec-websocket-protocol": "two""#), "{said}");
                    for text in ["one", "two", "data", "three"] {
                        let said = get(running, &format!("{name}/say?text={text}")).await;
                        assert_eq!(said, "1");
                    }
                    let heard = format!("{name}/heard");
                    let all = r#"["one","two","100000 bytes","three"]"#;
                    until(running, &heard, |said| said == all).await;
                    get(running, &format!("{name}/say?text=close")).await;
                    until(running, &heard, |said| said.contains("closed 4000 bye")).await;
                    peer.left().await;
                    assert_eq!(get(running, &format!("{name}/say?text=x")).await, "0");

                    ask(running, &format!("{name}/open")).await;
                    get(running, &format!("{name}/shut?text=enough")).await;
                    until(running, &heard, |said| said.contains("closed 3000 enough")).await;
                    peer.left().await;

                    ask(running, &format!("{name}/open")).await;
                    get(running, &format!("{name}/say?text=drop")).await;
                    until(running, &heard, |said| said.contains("closed 1006")).await;
                    peer.left().await;
                }
            })
            .await;
        }
    });
}

#[test]
fn a_server_that_accepts_no_socket_says_so() {
    run(async {
        let plain = Peer::good().await;
        let wrong = Peer::raw(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
              sec-websocket-accept: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            Then::Stall,
        )
        .await;
        served(2, &[&plain.origin, &wrong.origin], async |running| {
            bind(running, "caller/a", &plain.origin).await;
            let said = get(running, "caller/a/open").await;
            assert_eq!(said, "Failed: the other side answered 200 OK, and opened no WebSocket");
            bind(running, "caller/a", &wrong.origin).await;
            let said = get(running, "caller/a/open").await;
            assert!(said.contains("a protocol that it wasn't asked for"), "{said}");
            wrong.left().await;
            assert_eq!(get(running, "caller/a/say?text=x").await, "0");
        })
        .await;
    });
}

/// One that answers no ping is lost; one that does stays, however little it says.
#[test]
fn a_server_that_says_nothing_is_asked_and_then_lost() {
    run(async {
        let (live, dead) = (Peer::echo().await, Peer::dead_socket().await);
        let limit =
            |limits: &mut capstead::OutboundLimits| limits.idle = Duration::from_millis(400);
        with_server((1, &[&live.origin, &dead.origin]), limit, async |running, _| {
            for (name, origin) in [("caller/a", &live.origin), ("caller/b", &dead.origin)] {
                bind(running, name, origin).await;
                ask(running, &format!("{name}/open")).await;
            }
            until(running, "caller/b/heard", |said| said.contains("closed 1006")).await;
            dead.left().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(get(running, "caller/a/say?text=there").await, "1");
            until(running, "caller/a/heard", |said| said == r#"["there"]"#).await;
        })
        .await;
    });
}

#[test]
fn a_revoked_grant_ends_the_socket() {
    run(async {
        let peer = Peer::echo().await;
        served(2, &[&peer.origin], async |running| {
            for name in ["a", "b", "c"] {
                let whole = super::fill_by_grant(running, &peer, name).await;
                ask(running, &format!("caller/{name}/open")).await;
                assert_eq!(get(running, &format!("caller/{name}/say?text=x")).await, "1");
                crate::support::calls::revoke(&whole, name).await;
                let heard = format!("caller/{name}/heard");
                until(running, &heard, |said| said.contains("closed ")).await;
                peer.left().await;
            }
        })
        .await;
    });
}

/// Pongs that the server outside doesn't read wait up to a bound, and those beyond it are left out.
/// The socket goes on.
#[test]
fn a_server_that_pings_and_reads_nothing_takes_a_bounded_place() {
    const FLOOD: usize = 64 << 20;
    run(async {
        let peer = Peer::pinging(FLOOD).await;
        with_server(
            (1, &[&peer.origin]),
            |_| {},
            async |running, _| {
                bind(running, "caller/a", &peer.origin).await;
                ask(running, "caller/a/open").await;
                get(running, "caller/a/say?text=flood").await;
                until(running, "caller/a/heard", |said| said.contains("flooded")).await;
                get(running, "caller/a/say?text=after").await;
                let heard = async |is: &dyn Fn(&str) -> bool| {
                    until(running, "caller/a/heard", |said| is(said)).await;
                    get(running, "caller/a/heard").await
                };
                let said = heard(&|said| said.contains("of pongs")).await;
                let mib = said.split('"').find_map(|text| text.strip_suffix(" MiB of pongs"));
                let mib: usize = mib.expect("it was counted").parse().unwrap();
                // Beside the object's own place, two sockets of the system hold some.
                assert!(mib < FLOOD >> 21, "{said}");
            },
        )
        .await;
    });
}
