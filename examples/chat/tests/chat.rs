//! The chat as its clients have it: scripted people over real sockets, and a server that is killed.

mod people;

use std::time::Duration;

use people::{Person, Server, ask, run};
use serde_json::{Value, json};
use tokio::time::Instant;

/// A room keeps all that it knows of its people with their sockets.
#[test]
fn a_room_that_slept_knows_who_is_there() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        for hosts in ["1", "2"] {
            let naps = ["--warm", "20ms", "--metrics", "127.0.0.1:0", "--hosts", hosts];
            let server = Server::start(&folder.path().join(hosts), &naps);
            let mut ada = Person::enter(&server, "lobby", "ada", 1).await;
            let mut bob = Person::enter(&server, "lobby", "bob", 2).await;
            assert_eq!(ada.next().await, json!({ "joined": "bob" }));
            people::until_all_sleep(&server).await;
            ada.say("are you there?").await;
            for person in [&mut ada, &mut bob] {
                let said = person.next().await;
                assert_eq!(
                    (&said["name"], &said["message"]),
                    (&json!("ada"), &json!("are you there?"))
                );
            }
            people::until_all_sleep(&server).await;
            let mut late = Person::connect(&server, "lobby", 3).await.expect("it is open");
            late.send(&json!({ "name": "late" })).await;
            assert_eq!(late.next().await, json!({ "joined": "ada" }));
            assert_eq!(late.next().await, json!({ "joined": "bob" }));
            assert_eq!(ada.next().await, json!({ "joined": "late" }));
            people::until_all_sleep(&server).await;
            drop(bob);
            assert_eq!(ada.next().await, json!({ "quit": "bob" }));
        }
    });
}

/// Everybody talks at once, and all hear the same.
#[test]
fn fifty_people_hear_all_messages_in_one_order() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let server = Server::start(&folder.path().join("data"), &[]);
        let mut people = Vec::new();
        for number in 0..50 {
            people.push(Person::enter(&server, "lobby", &format!("p{number}"), number).await);
        }
        for round in 0..10 {
            for person in &mut people {
                let message = format!("{} in round {round}", person.name);
                person.say(&message).await;
            }
        }
        let mut first: Vec<Value> = Vec::new();
        for person in &mut people {
            let heard = person.hear(500).await;
            if first.is_empty() {
                first.clone_from(&heard);
            }
            assert_eq!(heard, first, "{}", person.name);
        }
        let times: Vec<u64> =
            first.iter().map(|said| said["timestamp"].as_u64().unwrap()).collect();
        assert!(times.is_sorted_by(|one, next| one < next), "timestamps only rise");
        // Each one's own messages are in the order in which they said them.
        for number in 0..50 {
            let name = format!("p{number}");
            let said: Vec<_> = first.iter().filter(|said| said["name"] == *name).collect();
            let expected: Vec<_> =
                (0..10).map(|round| format!("{name} in round {round}")).collect();
            assert!(said.iter().map(|said| said["message"].as_str().unwrap()).eq(expected));
        }
    });
}

/// Nobody ever sees the older ones; a room that only grew would fill its quota.
#[test]
fn a_room_keeps_the_last_messages_and_few_more() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        let mut said = 0;
        for part in [150, 130, 170] {
            let mut server = Server::start(&data, &[]);
            let mut people = Vec::new();
            for number in 0..10 {
                people.push(Person::enter(&server, "lobby", &format!("p{number}"), number).await);
            }
            for number in 0..part {
                let person = &mut people[number % 10];
                person.say(&format!("message {said}")).await;
                person.hear_own(&format!("message {said}")).await;
                said += 1;
            }
            people::make(&server, "public/lobby").await;
            server.kill();
        }
        people::export(&data, "ChatRoom");
        let archive = std::fs::read(data.with_extension("ChatRoom")).expect("it was exported");
        let archive = String::from_utf8_lossy(&archive);
        let kept: Vec<bool> =
            (0..said).map(|n| archive.contains(&format!("\"message {n}\""))).collect();
        let oldest = kept.iter().position(|is_kept| *is_kept).expect("some are kept");
        assert!(kept[oldest..].iter().all(|is_kept| *is_kept), "without a gap");
        let kept = said - oldest;
        assert!((100..200).contains(&kept), "{kept} of {said} are kept");
    });
}

#[test]
fn a_newcomer_sees_who_is_there_and_the_last_hundred() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        for hosts in ["1", "2"] {
            let data = data.with_extension(hosts);
            let mut server = Server::start(&data, &["--hosts", hosts]);
            let mut people = Vec::new();
            for number in 0..12 {
                people.push(Person::enter(&server, "lobby", &format!("p{number}"), number).await);
            }
            for number in 0..120 {
                let person = &mut people[number % 12];
                person.say(&number.to_string()).await;
                person.hear_own(&number.to_string()).await;
            }
            let expected: Vec<String> = (20..120).map(|number| number.to_string()).collect();
            let mut late = Person::connect(&server, "lobby", 99).await.expect("it is open");
            late.send(&json!({ "name": "late" })).await;
            for number in 0..12 {
                assert_eq!(late.next().await, json!({ "joined": format!("p{number}") }));
            }
            let backlog = late.hear(100).await;
            assert!(backlog.iter().map(|said| said["message"].as_str().unwrap()).eq(&expected));
            assert_eq!(late.next().await, json!({ "joined": "late" }));
            assert_eq!(late.next().await, json!({ "ready": true }));
            let newest = backlog[99]["timestamp"].as_u64().unwrap();

            // Messages are told before they are durable; this is told when they are, too.
            people::make(&server, "public/lobby").await;
            server.kill();
            let server = Server::start(&data, &["--hosts", hosts]);
            let mut again = Person::connect(&server, "lobby", 99).await.expect("it is open");
            again.send(&json!({ "name": "again" })).await;
            let after = again.hear(100).await;
            assert_eq!(after, backlog);
            assert_eq!(again.next().await, json!({ "joined": "again" }));
            assert_eq!(again.next().await, json!({ "ready": true }));
            again.name = "again".to_owned();
            again.say("on we go").await;
            let said = again.hear_own("on we go").await;
            assert!(said["timestamp"].as_u64().unwrap() > newest, "across a restart, too");
        }
    });
}

#[test]
fn whoever_leaves_is_missed() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let server = Server::start(&folder.path().join("data"), &[]);
        let mut stays = Person::enter(&server, "lobby", "stays", 1).await;
        let leaves = Person::enter(&server, "lobby", "leaves", 2).await;
        assert_eq!(stays.next().await, json!({ "joined": "leaves" }));
        drop(leaves);
        assert_eq!(stays.next().await, json!({ "quit": "leaves" }));
        // Rooms don't hear each other.
        let mut elsewhere = Person::enter(&server, "attic", "elsewhere", 3).await;
        elsewhere.say("nobody here?").await;
        elsewhere.hear_own("nobody here?").await;
        stays.say("quiet").await;
        stays.hear_own("quiet").await;
    });
}

#[test]
fn what_breaks_the_rules_is_an_error_for_that_person_alone() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let server = Server::start(&folder.path().join("data"), &[]);
        let mut good = Person::enter(&server, "lobby", "good", 1).await;
        let mut bad = Person::enter(&server, "lobby", "bad", 2).await;
        assert_eq!(good.next().await, json!({ "joined": "bad" }));
        bad.say(&"x".repeat(257)).await;
        assert_eq!(bad.next().await, json!({ "error": "Message too long." }));
        bad.send(&json!({ "message": vec![0; 10_000] })).await;
        assert_eq!(bad.next().await, json!({ "error": "Message too long." }), "it isn't even read");
        bad.send_text("{\"message\": ").await;
        assert_eq!(bad.next().await, json!({ "error": "That was no JSON." }));
        bad.send(&json!({ "name": "twice" })).await;
        assert_eq!(bad.next().await, json!({ "error": "There is no message in it." }));
        // Numbers and booleans are what JavaScript makes of them.
        for (said, text) in [
            (json!(42), "42"),
            (json!(-0.5), "-0.5"),
            (json!(1e21), "1e+21"),
            (json!(true), "true"),
        ] {
            bad.send(&json!({ "message": said })).await;
            bad.hear_own(text).await;
            assert_eq!(good.next().await["message"], text);
        }
        let longest = "ü".repeat(256);
        bad.say(&longest).await;
        bad.hear_own(&longest).await;
        assert_eq!(good.next().await["message"], longest);
        let mut long = Person::connect(&server, "lobby", 3).await.expect("it is open");
        long.send(&json!({ "name": "n".repeat(33) })).await;
        assert_eq!(long.next().await, json!({ "error": "Name too long." }));
        assert_eq!(long.closed().await, 1009);
        let mut nobody = Person::connect(&server, "lobby", 4).await.expect("it is open");
        nobody.send(&json!({})).await;
        assert_eq!(good.next().await, json!({ "joined": "anonymous" }));
        for (name, said) in [(json!(0), "anonymous"), (json!(false), "anonymous"), (json!(7), "7")]
        {
            let mut person = Person::connect(&server, "lobby", 6).await.expect("it is open");
            person.send(&json!({ "name": name })).await;
            assert_eq!(good.next().await, json!({ "joined": said }));
            drop(person);
            assert_eq!(good.next().await, json!({ "quit": said }));
        }
        let name = "n".repeat(32);
        assert!(Person::connect(&server, &name, 5).await.is_ok());
        assert_eq!(Person::connect(&server, &format!("{name}n"), 5).await.err(), Some(404));
        assert_eq!(ask(&server, "GET", "/api/room/lobby/nothing", 5).await.0, 404);
        assert_eq!(ask(&server, "GET", "/api/room", 5).await.0, 405);
        // Without a socket there is nothing to see.
        assert_eq!(ask(&server, "GET", "/api/room/lobby/websocket", 5).await.0, 426);
        // The way by class and name is closed.
        assert_eq!(ask(&server, "GET", "/chatroom/front/page", 5).await.0, 404);
    });
}

/// One address has one pace, in whichever rooms it talks, and on however many sockets: neither a
/// new one nor one that waited lets it say more.
#[test]
fn whoever_talks_too_fast_is_told_so_in_all_rooms() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        let mut server = Server::start(&data, &["--hosts", "2"]);
        let begun = Instant::now();
        // Each entering counts as one message.
        let (mut told, mut refused) = (0, 0);
        let mut people = Vec::new();
        for room in ["a", "b", "c", "d", "e"] {
            people.push(Person::enter(&server, room, "fast", 7).await);
            told += 1;
        }
        let mut late: Vec<Person> = Vec::new();
        for room in ["a", "b", "c", "f", "g"] {
            late.push(Person::connect(&server, room, 7).await.expect("it is open"));
        }
        for round in 0..8 {
            for person in &mut people {
                match person.is_told(&format!("round {round}")).await {
                    true => told += 1,
                    false => refused += 1,
                }
            }
        }
        // Those that have said nothing yet, and one that comes back, have no more than the others.
        for _ in 0..5 {
            late.push(Person::connect(&server, "h", 7).await.expect("it is open"));
        }
        for person in &mut late {
            person.send(&json!({ "name": "late" })).await;
            match person.next().await {
                said if said["error"].is_string() => refused += 1,
                _ => told += 1,
            }
        }
        let most = 20 + begun.elapsed().as_secs() + 1;
        assert!((20..=most).contains(&told), "{told} were told, and at most {most} may be");
        assert!(refused >= 5, "{refused} were refused");
        let mut other = Person::enter(&server, "a", "slow", 8).await;
        other.say("no hurry").await;
        other.hear_own("no hurry").await;
        drop((people, late, other));
        server.kill();
        let said = people::export(&data, "ChatLimiter");
        assert!(said.contains("there are no such objects"), "it stores nothing: {said}");
    });
}

/// Anybody may have all addresses of a network of 64 bits.
#[test]
fn the_addresses_of_one_network_are_one() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let server = Server::start(&folder.path().join("data"), &["--http-proxy", "127.0.0.0/8"]);
        let begun = Instant::now();
        let mut told = 0;
        for number in 1..=40 {
            let from = format!("2001:db8::{number:x}");
            let mut person = Person::connect_from(&server, "a", &from).await.expect("it is open");
            person.send(&json!({ "name": "many" })).await;
            told += u64::from(person.next().await["error"].is_null());
        }
        let most = 20 + begun.elapsed().as_secs() + 1;
        assert!((20..=most).contains(&told), "{told} were told, and at most {most} may be");
        let mut other =
            Person::connect_from(&server, "b", "2001:db8:0:1::1").await.expect("it is open");
        other.send(&json!({ "name": "other" })).await;
        assert_eq!(other.next().await, json!({ "joined": "other" }));
    });
}

/// The room asks for the pace first, and the answers are no reason to mix up what was said.
#[test]
fn messages_that_come_at_once_keep_their_order() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let server = Server::start(&folder.path().join("data"), &["--hosts", "2"]);
        for room in ["a", "b", "c", "d"] {
            let mut ada = Person::enter(&server, room, "ada", room.as_bytes()[0]).await;
            for number in 0..15 {
                ada.say(&number.to_string()).await;
            }
            let heard = ada.hear(15).await;
            let heard = heard.iter().map(|said| said["message"].as_str().unwrap().to_owned());
            assert!(heard.eq((0..15).map(|number| number.to_string())));
        }
    });
}

#[test]
fn a_private_room_is_for_those_who_have_its_id() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        let mut server = Server::start(&data, &["--hosts", "2"]);
        let (status, id) = ask(&server, "POST", "/api/room", 1).await;
        assert_eq!((status, id.len()), (200, 64));
        assert!(id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{id}");
        assert_ne!(ask(&server, "POST", "/api/room", 1).await.1, id);
        let mut one = Person::enter(&server, &id, "one", 1).await;
        one.say("a secret").await;
        one.hear_own("a secret").await;
        let unknown = format!("{}{}", &id[..63], if id.ends_with('0') { '1' } else { '0' });
        for _ in 0..3 {
            assert_eq!(Person::connect(&server, &unknown, 2).await.err(), Some(404));
        }
        server.kill();
        let said = people::export(&data, "ChatRoom");
        assert!(said.starts_with("exported 2 objects"), "those that were made: {said}");
        let server = Server::start(&data, &["--hosts", "2"]);
        assert_eq!(Person::connect(&server, &unknown, 2).await.err(), Some(404), "nor was it made");
        let mut again = Person::enter(&server, &id, "again", 1).await;
        again.say("still ours").await;
        again.hear_own("still ours").await;
        drop(again);
        let mut server = server;
        let log = server.stop(Duration::from_secs(20));
        // Neither in the log, of which it writes all there is, nor in what is stored.
        assert!(log.contains("INFO") && !log.contains(&id), "the log has the id");
        let found = people::files(&data).into_iter().find(|file| {
            let bytes = std::fs::read(file).unwrap_or_default();
            bytes.windows(64).any(|window| window == id.as_bytes())
        });
        assert_eq!(found, None, "a file has the id");
    });
}

#[test]
fn the_page_is_served_and_tells_nobody_where_it_was_read() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let server = Server::start(&folder.path().join("data"), &[]);
        let (status, page) = ask(&server, "GET", "/chat", 1).await;
        assert_eq!(status, 200);
        assert!(page.contains("<!doctype html>") && page.contains("WebSocket"), "{page}");
        let head = people::head(&server, "/chat", 1).await;
        assert!(head.contains("referrer-policy: no-referrer"), "{head}");
        assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    });
}
