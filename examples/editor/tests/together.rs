//! Several who write at once, come late, and go on after a crash.

mod support;

use std::time::Duration;

use support::{Client, Data, Random, run};
use tokio::time::Instant;
use yrs::StateVector;
use yrs::sync::{Message, SyncMessage};

/// Ten keys a second each.
const KEY: Duration = Duration::from_millis(100);

#[test]
fn two_who_write_at_once_have_one_text() {
    run(async {
        let data = Data::new();
        let server = data.serve();
        let mut ada = Client::join(&server, "a").await;
        let mut bob = Client::join(&server, "a").await;
        ada.insert(0, "one ").await;
        bob.insert(0, "two ").await;
        for client in [&mut ada, &mut bob] {
            client.until(|client| client.len() == 8).await;
        }
        assert_eq!(ada.text(), bob.text());
        assert_eq!(server.text("a").await, ada.text());
        assert_eq!(server.text("b").await, "", "every document is its own");
    });
}

#[test]
fn whoever_comes_late_has_the_document_and_what_comes_then() {
    run(async {
        let data = Data::new();
        let server = data.serve();
        let mut ada = Client::join(&server, "a").await;
        // Changes that aren't durable yet are part of it.
        for at in 0..200 {
            ada.insert(at, "x").await;
        }
        let mut bob = Client::join(&server, "a").await;
        bob.until(|bob| bob.len() == 200).await;
        ada.insert(200, "ü and more").await;
        bob.until(|bob| bob.text().ends_with("xü and more")).await;
    });
}

/// A document sleeps while it is open, and those who have it open go on.
#[test]
fn a_document_that_slept_goes_on_for_all() {
    run(async {
        let data = Data::new();
        let server = data.serve_with(&["--warm", "20ms", "--metrics", "127.0.0.1:0"]);
        let mut ada = Client::join(&server, "a").await;
        let mut bob = Client::join(&server, "a").await;
        ada.insert(0, "one ").await;
        bob.until(|bob| bob.text() == "one ").await;
        server.until_all_sleep().await;
        bob.insert(4, "two ").await;
        ada.until(|ada| ada.text() == "one two ").await;
        server.until_all_sleep().await;
        // A change that the server never got comes when it says what it knows.
        let _missed = ada.insert_here(8, "three");
        bob.insert(0, "0 ").await;
        for client in [&mut ada, &mut bob] {
            client.until(|client| client.text() == "0 one two three").await;
        }
        assert_eq!(server.text("a").await, "0 one two three");
    });
}

/// As the client does: it sends what it writes, before it knows what the server lacks of earlier
/// changes.
#[test]
fn a_change_that_comes_before_what_it_follows_is_kept() {
    run(async {
        let data = Data::new();
        let server = data.serve();
        let mut ada = Client::join(&server, "a").await;
        let missing = ada.insert_here(0, "first ");
        ada.insert(6, "second").await;
        // Once it is told, it is durable, though nobody can read it yet.
        ada.until(|ada| ada.changes > 0).await;
        server.kill();
        let server = data.serve();
        let mut bob = Client::join(&server, "a").await;
        assert_eq!(bob.text(), "");
        bob.send(missing).await;
        bob.until(|bob| bob.text() == "first second").await;
        assert_eq!(server.text("a").await, "first second");
    });
}

/// Types ten keys a second at random places, and reads what others type, until all is there.
async fn typist(mut client: Client, number: u32, keys: u32, all: u32) -> (String, Duration) {
    let mut random = Random(u64::from(number) + 1);
    let mut next = tokio::time::interval(KEY);
    let (mut typed, mut slowest, mut sent) = (0, Duration::ZERO, Instant::now());
    while typed < keys || client.len() < all {
        tokio::select! {
            _ = next.tick(), if typed < keys => {
                if client.acknowledged() == typed {
                    sent = Instant::now();
                }
                let key = char::from(b'a' + (number % 26) as u8);
                client.insert(random.below(client.len()), &key.to_string()).await;
                typed += 1;
            }
            _ = client.take() => {
                if typed > 0 && client.acknowledged() == typed {
                    slowest = slowest.max(sent.elapsed());
                }
            }
        }
    }
    (client.text(), slowest)
}

#[test]
fn a_hundred_who_type_ten_keys_a_second_converge() {
    const USERS: u32 = 100;
    const KEYS: u32 = 30;
    run(async {
        let data = Data::new();
        let server = data.serve();
        let mut users = Vec::new();
        for number in 0..USERS {
            let client = Client::join(&server, "busy").await;
            users.push(tokio::task::spawn_local(typist(client, number, KEYS, USERS * KEYS)));
        }
        let started = Instant::now();
        let mut slowest = Duration::ZERO;
        let mut texts = Vec::new();
        for user in users {
            let (text, slow) = user.await.expect("they type to the end");
            slowest = slowest.max(slow);
            texts.push(text);
        }
        let (took, cpu) = (started.elapsed(), server.cpu());
        println!(
            "{USERS} users × {KEYS} keys: {took:?}, of the server's processor {cpu:?}, the \
             slowest echo {slowest:?}"
        );
        let expected = server.text("busy").await;
        assert_eq!(expected.len() as u32, USERS * KEYS);
        assert!(texts.iter().all(|text| *text == expected), "they all have one text");
    });
}

/// All that the server told anybody is there after a kill; the rest its writer has, and brings when
/// they come again.
#[test]
fn nothing_that_was_told_is_lost_by_a_kill() {
    run(async {
        let data = Data::new();
        let mut docs = Vec::new();
        for round in 0..4 {
            let server = data.serve();
            let mut clients = Vec::new();
            for number in 0..5 {
                clients.push(match docs.get(number) {
                    Some(doc) => Client::join_with(&server, "a", Clone::clone(doc)).await,
                    None => Client::join(&server, "a").await,
                });
            }
            // Killed while changes are under way at every place.
            for key in 0..40 + 7 * round {
                for client in &mut clients {
                    client.insert(client.len() / 2, "k").await;
                    if key % 3 == 0 {
                        client.take().await;
                    }
                }
            }
            server.kill();
            let server = data.serve();
            let mut late = Client::join(&server, "a").await;
            let kept = late.state();
            for client in &clients {
                for (id, clock) in client.told().iter() {
                    assert!(kept.get(id) >= *clock, "round {round}: told up to {clock}: {kept:?}");
                }
            }
            assert!(clients.iter().any(|client| client.acknowledged() > 0));
            let all = clients.iter().map(|client| (client.id(), client.state().get(&client.id())));
            let all: Vec<_> = all.collect();
            docs = clients.into_iter().map(|client| client.doc).collect();
            let mut again = Vec::new();
            for doc in &docs {
                again.push(Client::join_with(&server, "a", Clone::clone(doc)).await);
            }
            late.until(|late| all.iter().all(|(id, clock)| late.state().get(id) >= *clock)).await;
            server.kill();
        }
    });
}

/// The whole document, too, is sent when all of it is durable: the disk is slow here.
#[test]
fn a_document_is_shown_when_it_is_durable() {
    run(async {
        let data = Data::new();
        let server = data.serve_with(&["--commit-delay", "300"]);
        let mut ada = Client::join(&server, "a").await;
        ada.insert(0, "first").await;
        // Waits for the next batch when the document is asked for.
        ada.insert(5, "second").await;
        let nothing = StateVector::default();
        ada.send(Message::Sync(SyncMessage::SyncStep1(nothing))).await;
        while !matches!(ada.take().await, Message::Sync(SyncMessage::SyncStep2(_))) {}
        server.kill();
        assert_eq!(ada.acknowledged(), 11);
        assert_eq!(data.serve().text("a").await, "firstsecond");
    });
}

/// More is written than an object may store here, and deleted: without compaction there would be no
/// room.
#[test]
fn compaction_keeps_the_document_and_makes_room() {
    run(async {
        let data = Data::new();
        let server = data.serve_with(&["--object-quota", "Editor=1MiB"]);
        let mut ada = Client::join(&server, "a").await;
        let mut bob = Client::join(&server, "a").await;
        let part = "abcdefgh".repeat(8 << 10);
        let mut slowest = Duration::ZERO;
        for round in 0..80 {
            let before = Instant::now();
            ada.insert(0, &part).await;
            ada.remove(4, ada.len() - 8).await;
            let state = ada.state();
            ada.until(|ada| ada.acknowledged() >= state.get(&ada.id())).await;
            slowest = slowest.max(before.elapsed());
            if round % 20 == 19 {
                bob.insert(2, "-").await;
                let own = bob.state().get(&bob.id());
                ada.until(|ada| ada.told().get(&bob.id()) >= own).await;
            }
        }
        println!("the slowest of 80 changes of 64 KiB: {slowest:?}");
        let state = ada.state();
        bob.until(|bob| bob.state() >= state).await;
        // Deletions of the last batch are no part of the state vector.
        let text = server.text("a").await;
        bob.until(|bob| bob.text() == text).await;
        ada.until(|ada| ada.text() == text).await;
        server.kill();
        assert_eq!(data.serve().text("a").await, text);
    });
}
