//! WebSockets of objects: what comes and goes, in which order, and how sockets end. The limits of
//! clients are in `limits`.

mod cases;
pub(crate) mod expiry;
mod foreign;
mod kept;
mod limits;
mod sleep;
mod talk;
mod under_way;

use futures::SinkExt;
use serde_json::json;
use talk::{Client, GOOD, get, object, run, shake, start, until_it_says, with_limits, with_server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message as Frame};

#[test]
fn messages_go_both_ways_in_order_whichever_host_has_the_object() {
    for hosts in [1, 2, 4] {
        with_server(hosts, async |running| {
            for object in 0..8 {
                let mut client = Client::open(running, &format!("n{object}"), "/").await;
                for number in 0..300 {
                    client.send(&number.to_string()).await;
                }
                for number in 0..300 {
                    assert_eq!(client.text().await, number.to_string(), "{hosts} hosts");
                }
                client.0.close(None).await.unwrap();
                assert_eq!(client.closed().await.0, 1005);
            }
        });
    }
}

#[test]
fn text_and_data_come_as_they_went_small_and_large() {
    with_server(2, async |running| {
        let mut client = Client::open(running, "x", "/").await;
        for bytes in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
            let data: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
            client.0.send(Frame::binary(data.clone())).await.unwrap();
            let came = client.next().await.unwrap().unwrap();
            assert!(came == Frame::binary(data), "{bytes} bytes");
            let text = "ü".repeat(bytes / 2);
            assert_eq!(client.ask(&text).await, text);
        }
    });
}

#[test]
fn a_message_in_fragments_is_one() {
    use tokio_tungstenite::tungstenite::protocol::frame::Frame as Raw;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
    with_server(1, async |running| {
        let mut client = Client::open(running, "x", "/").await;
        let parts = [("one ", Data::Text, false), ("two ", Data::Continue, false)];
        for (text, code, is_last) in parts.into_iter().chain([("three", Data::Continue, true)]) {
            let frame = Raw::message(text, OpCode::Data(code), is_last);
            client.0.send(Frame::Frame(frame)).await.unwrap();
            // Control frames may stand between the parts.
            client.0.send(Frame::Ping("now".into())).await.unwrap();
        }
        assert_eq!(client.text().await, "one two three");
    });
}

#[test]
fn an_object_holds_many_sockets_and_finds_them_by_tag() {
    with_server(1, async |running| {
        let mut red =
            [Client::open(running, "x", "/red").await, Client::open(running, "x", "/red").await];
        let mut blue = Client::open(running, "x", "/blue").await;
        red[0].send("tag /red to the red").await;
        red[0].send("all to everybody").await;
        for client in &mut red {
            assert_eq!(client.text().await, "to the red");
            assert_eq!(client.text().await, "to everybody");
        }
        assert_eq!(blue.text().await, "to everybody");
        assert_eq!(get(running, "x/open").await, 3);
        // Others have their own.
        assert_eq!(get(running, "y/open").await, 0);
    });
}

/// Other objects, and clients of Cap'n Proto, push by a call.
#[test]
fn a_call_pushes_to_sockets() {
    for hosts in [1, 2] {
        with_server(hosts, async |running| {
            for name in ["a", "b", "c", "d"] {
                let mut client = Client::open(running, name, "/").await;
                let object = object(running, name).await;
                for number in 1..=50 {
                    let mut push = object.increment_request();
                    push.get().set_by(number);
                    push.send().promise.await.unwrap();
                }
                for number in 1..=50 {
                    assert_eq!(client.text().await, number.to_string());
                }
            }
        });
    }
}

#[test]
fn what_is_sent_at_the_start_comes_first() {
    with_server(2, async |running| {
        for name in ["a", "b", "c"] {
            let mut client = Client::open(running, name, "/greeted").await;
            assert_eq!(client.next().await.unwrap().unwrap(), Frame::binary("hello"));
            assert_eq!(client.ask("and then").await, "and then");
        }
    });
}

/// The number is told when it is durable, so a server that starts again doesn't know less.
#[test]
fn what_a_message_caused_is_told_when_it_is_durable() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        for round in 0..2 {
            let running = start(&data, 1, |_| {}).await;
            let mut client = Client::open(&running, "x", "/").await;
            for number in 1..=20 {
                assert_eq!(client.ask("count").await, (round * 20 + number).to_string());
            }
            running.until(async {}).await.unwrap();
        }
    });
}

#[test]
fn close_codes_go_both_ways() {
    with_server(2, async |running| {
        let mut ends = Vec::new();
        for (code, reason) in [(1000, ""), (1000, "done"), (3000, "as agreed"), (4999, "ours")] {
            let mut client = Client::open(running, "x", "/").await;
            let frame = CloseFrame { code: code.into(), reason: reason.into() };
            client.send("before").await;
            client.0.close(Some(frame)).await.unwrap();
            assert_eq!(client.text().await, "before");
            assert_eq!(client.closed().await.0, code, "it is answered");
            ends.push(format!("{code} {reason}"));
            until_it_says(running, "x/ends", json!(ends)).await;
        }
        for (code, reason) in [(1000, "bye"), (1008, "policy"), (4001, "ours")] {
            let mut client = Client::open(running, "y", "/").await;
            client.send(&format!("close {code} {reason}")).await;
            assert_eq!(client.closed().await, (code, reason.to_owned()));
        }
        until_it_says(running, "y/ends", json!(["1000 bye", "1008 policy", "4001 ours"])).await;
        let mut client = Client::open(running, "z", "/").await;
        client.0.close(None).await.unwrap();
        assert_eq!(client.closed().await.0, 1005);
        until_it_says(running, "z/ends", json!(["1005 "])).await;
        assert_eq!(get(running, "z/open").await, 0);
    });
}

#[test]
fn a_client_that_is_gone_is_told_to_the_object() {
    for hosts in [1, 2] {
        with_server(hosts, async |running| {
            for name in ["a", "b", "c"] {
                let mut client = Client::open(running, name, "/").await;
                assert_eq!(client.ask("here").await, "here");
                drop(client);
                until_it_says(running, &format!("{name}/ends"), json!(["1006 "])).await;
            }
        });
    }
}

#[test]
fn a_handler_that_fails_closes_its_socket_and_no_other() {
    with_server(2, async |running| {
        let mut other = Client::open(running, "x", "/").await;
        let mut client = Client::open(running, "x", "/").await;
        client.send("fail").await;
        assert_eq!(client.closed().await, (1011, "as you wish".to_owned()));
        assert_eq!(other.ask("still here").await, "still here");
    });
}

#[test]
fn a_server_that_ends_says_so() {
    for hosts in [1, 2] {
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let running = start(&folder.path().join("data"), hosts, |_| {}).await;
            let mut clients = Vec::new();
            for name in ["a", "b", "c"] {
                let mut client = Client::open(&running, name, "/").await;
                assert_eq!(client.ask("here").await, "here");
                clients.push(client);
            }
            let all = async {
                for client in &mut clients {
                    let (code, reason) = client.closed().await;
                    assert_eq!((code, &*reason), (1001, "the server is going away"));
                }
            };
            let (ended, ()) = tokio::join!(running.until(async {}), all);
            ended.unwrap();
        });
    }
}

#[test]
fn a_handshake_that_is_refused_has_the_objects_response() {
    with_server(2, async |running| {
        for name in ["a", "b", "c"] {
            let (_stream, answer) = shake(running, &format!("/talk/{name}/refused"), GOOD).await;
            assert_eq!((answer.status, &*answer.body), (403, &b"not you"[..]));
        }
        let refused = Client::open_with(running, "x", "/refused", &[]).await.err();
        let Some(Error::Http(answer)) = refused else { panic!("{refused:?}") };
        assert_eq!(answer.status(), 403);
        // One that asks for no socket gets none.
        let mut stream = tokio::net::TcpStream::connect(running.http().unwrap()).await.unwrap();
        let plain = b"GET /talk/x/ HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let answer = crate::support::exchange::exchange(&mut stream, plain).await;
        assert_eq!(answer.status, 426);
        assert!(answer.says(b"sec-websocket-version: 13\r\n"));
        let (_stream, answer) = shake(running, "/nobody/x/", GOOD).await;
        assert_eq!(answer.status, 404);
    });
}

#[test]
fn a_handshake_that_is_none_is_refused() {
    with_server(1, async |running| {
        let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        for (headers, status) in [
            (key.to_owned(), 426),
            (format!("sec-websocket-version: 12\r\n{key}"), 426),
            ("sec-websocket-version: 13\r\n".to_owned(), 400),
            (format!("{GOOD}{key}"), 400),
            (format!("{GOOD}content-length: 3\r\n\r\nabc"), 400),
        ] {
            let (_stream, answer) = shake(running, "/talk/x/", &headers).await;
            assert_eq!(answer.status, status, "{headers}");
        }
        assert_eq!(get(running, "x/open").await, 0);
        let (_stream, answer) = shake(running, "/talk/x/", GOOD).await;
        assert_eq!(answer.status, 101);
        assert!(answer.says(b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        let protocols = [("sec-websocket-protocol", "first, second")];
        let (_client, answer) =
            Client::open_with(running, "x", "/protocol", &protocols).await.unwrap();
        assert_eq!(answer.headers()["sec-websocket-protocol"], "second");
        // Its case counts.
        let headers = format!("{GOOD}sec-websocket-protocol: first, SECOND\r\n");
        assert_eq!(shake(running, "/talk/x/protocol", &headers).await.1.status, 500);
        // A protocol that wasn't offered is the class's mistake, and so are too many tags and
        // too large an attachment.
        for path in ["/talk/x/protocol", "/talk/x/large", "/talk/x/tagged"] {
            let (_stream, answer) = shake(running, path, GOOD).await;
            assert_eq!(answer.status, 500, "{path}");
        }
    });
}

/// Browsers let every page open sockets, and read what comes.
#[test]
fn a_page_of_another_origin_gets_no_socket() {
    with_server(1, async |running| {
        let here = running.http().unwrap();
        for (origin, status) in [
            ("https://evil.example".to_owned(), 403),
            ("null".to_owned(), 403),
            (format!("http://{here}"), 101),
        ] {
            let headers = format!("{GOOD}origin: {origin}\r\n");
            let mut stream = tokio::net::TcpStream::connect(here).await.unwrap();
            let request = format!(
                "GET /talk/x/ HTTP/1.1\r\nhost: {here}\r\nconnection: upgrade\r\nupgrade: websocket\r\n{headers}\r\n"
            );
            let answer = crate::support::exchange::exchange(&mut stream, request.as_bytes()).await;
            assert_eq!(answer.status, status, "{origin}");
        }
    });
}

#[test]
fn an_object_knows_the_address_of_its_client_whatever_that_says() {
    with_server(1, async |running| {
        assert_eq!(get(running, "x/peer").await, "127.0.0.1");
        let mut stream = tokio::net::TcpStream::connect(running.http().unwrap()).await.unwrap();
        let lie = b"GET /talk/x/peer HTTP/1.1\r\nhost: localhost\r\ncapstead-peer: 9.9.9.9\r\n\r\n";
        let answer = crate::support::exchange::exchange(&mut stream, lie).await;
        assert_eq!(&*answer.body, b"\"127.0.0.1\"");
    });
}

/// A frame with a mask of zeros, which leaves the bytes as they are.
pub(super) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ ..126 => frame.push(0x80 | short as u8),
        long => {
            frame.push(0x80 | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

#[test]
fn bad_frames_close_their_socket_with_the_code_for_it() {
    with_limits(
        2,
        |limits| limits.socket_message_bytes = 1000,
        async |running| {
            let mut other = Client::open(running, "x", "/").await;
            for (what, bytes, code) in [
                ("text that isn't UTF-8", frame(0x81, b"\xff\xfe"), 1007),
                ("a message over the limit", frame(0x82, &[0; 1001]), 1009),
                (
                    "fragments over the limit",
                    [frame(0x02, &[0; 600]), frame(0x80, &[0; 600])].concat(),
                    1009,
                ),
                (
                    "a frame of ten gigabytes",
                    vec![0x82, 0xff, 0, 0, 0, 2, 0x54, 0x0b, 0xe4, 0, 0, 0, 0, 0],
                    1009,
                ),
                ("a frame without a mask", vec![0x81, 1, b'x'], 1002),
                ("a reserved bit", frame(0xc1, b"x"), 1002),
                ("a code of no frame", frame(0x83, b"x"), 1002),
                ("a ping in fragments", frame(0x09, b"x"), 1002),
                ("a ping that is too long", frame(0x89, &[0; 126]), 1002),
                ("a part of nothing", frame(0x80, b"x"), 1002),
            ] {
                let (mut stream, answer) = shake(running, "/talk/x/", GOOD).await;
                assert_eq!(answer.status, 101);
                stream.write_all(&bytes).await.unwrap();
                let mut came = Vec::new();
                stream.read_to_end(&mut came).await.unwrap();
                assert_eq!(came.first(), Some(&0x88), "{what}: a close frame comes");
                assert_eq!(u16::from_be_bytes([came[2], came[3]]), code, "{what}");
            }
            assert_eq!(other.ask("unmoved").await, "unmoved");
            until_it_says(running, "x/open", json!(1)).await;
        },
    );
}
