//! Challenges that are asked for and never answered, by those who have the text of a reference that
//! is bound to a holder.

use std::io::Write;
use std::net::TcpStream;

use capnp::traits::HasTypeId;
use capstead::counter_capnp::counter;
use capstead_client::restorer_capnp::restorer;
use capstead_client::sturdyref::SigningKey;
use capstead_client::{Connection, Terms};

use super::fortress::withstands;
use super::strangers::allow_connections;
use crate::support::calls::{by_name, connect, increment, run};
use crate::support::raw::{self, Raw, bootstrap};
use crate::support::{DEADLINE, Served, eventually};

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// The text of a reference that takes the proof of [`key`].
fn bound(served: &Served) -> String {
    run(async {
        let (_connection, counters) = connect(served).await;
        let terms = Terms::new("bound").holder(key().verifying_key()).unwrap();
        capstead_client::share(&by_name(&counters, "bound"), terms).await.unwrap()
    })
}

/// The holder is served as ever.
fn assert_holder_is_served(served: &Served, text: &str) {
    run(async {
        let connection = Connection::dial(&served.announced.capnp).await.unwrap();
        let restored = connection.restore_with::<counter::Client>(text, &[key()]).await.unwrap();
        increment(&restored).await.unwrap();
    });
}

fn challenge(question: u32, text: &str) -> Raw {
    let mut message = Raw::new_default();
    let params = raw::call(&mut message, question, (0, None), (restorer::Client::TYPE_ID, 2));
    params.get_content().init_as::<restorer::challenge_params::Builder>().set_sturdy_ref(text);
    message
}

/// A stranger that reads every answer and keeps every capability.
fn stranger(served: &Served) -> TcpStream {
    let mut stream = raw::dial(served);
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    raw::send(&mut stream, &[bootstrap()]);
    let mut answers = stream.try_clone().unwrap();
    std::thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
    stream
}

#[test]
fn challenges_that_are_kept_open() {
    const STRANGERS: usize = 24;
    let limits = ["--limit", "stranger-time=1h", "--limit", "export-bytes=1MiB"];
    withstands(&limits, |served| {
        let text = bound(served);
        let before = served.resident_bytes();
        let mut strangers: Vec<_> = (0..STRANGERS).map(|_| stranger(served)).collect();
        let mut asked = 0;
        while !strangers.is_empty() {
            let part: Vec<u8> = (0..64)
                .flat_map(|_| {
                    asked += 1;
                    raw::serialized(&challenge(asked, &text))
                })
                .collect();
            strangers.retain_mut(|stranger| stranger.write_all(&part).is_ok());
        }
        assert!(asked > 500, "{asked} were too few for the bound");
        eventually("their end", || {
            (served.bites("export-bytes") >= STRANGERS as u64).then_some(())
        });
        let grown = served.resident_bytes().saturating_sub(before);
        assert!(grown < 128 << 20, "{} MiB", grown >> 20);
        assert_holder_is_served(served, &text);
    });
}

/// A challenge shows no reference that is the stranger's to use, so their time goes on.
#[test]
fn challenges_on_many_connections() {
    const STRANGERS: usize = 500;
    allow_connections();
    withstands(&["--limit", "stranger-time=4s"], |served| {
        let text = bound(served);
        let before = served.resident_bytes();
        let part: Vec<u8> =
            (1..=64).flat_map(|number| raw::serialized(&challenge(number, &text))).collect();
        let mut strangers: Vec<_> = (0..STRANGERS).map(|_| stranger(served)).collect();
        // The first may have had their time by now.
        strangers.retain_mut(|stranger| stranger.write_all(&part).is_ok());
        assert!(strangers.len() > STRANGERS / 2);
        eventually("their end", || {
            (served.bites("stranger-time") >= STRANGERS as u64).then_some(())
        });
        let grown = served.resident_bytes().saturating_sub(before);
        eprintln!("{} challenges took {} MiB", strangers.len() * 64, grown >> 20);
        assert!(grown < 300 << 20, "{} MiB", grown >> 20);
        assert_holder_is_served(served, &text);
    });
}

/// The bound of what all connections hold together counts what an open challenge takes.
#[test]
fn an_open_challenge_counts_for_what_it_takes() {
    const CHALLENGES: u32 = 10_000;
    let limits = ["--limit", "stranger-time=1h", "--limit", "export-bytes=1GiB"];
    withstands(&limits, |served| {
        let text = bound(served);
        let mut stream = raw::dial(served);
        raw::send(&mut stream, &[bootstrap()]);
        raw::wait_for_answer(&mut stream, 0);
        let counted = || served.metric("connections_bytes");
        let (before, counted_before) = (served.resident_bytes(), counted());
        let mut answers = stream.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for number in 1..=CHALLENGES {
                    raw::send(&mut stream, &[challenge(number, &text)]);
                }
            });
            for _ in 0..CHALLENGES {
                assert_eq!(raw::next_answer(&mut answers).1, None);
            }
        });
        let taken = served.resident_bytes().saturating_sub(before) / u64::from(CHALLENGES);
        let counted = (counted() - counted_before) / u64::from(CHALLENGES);
        eprintln!("an open challenge takes {taken} bytes, and counts {counted}");
        assert!(counted * 4 > taken * 3, "it takes {taken} bytes, and counts {counted}");
    });
}
