//! Texts that are expensive to check, and capabilities that are expensive to keep.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use capnp::traits::HasTypeId;
use capstead_client::facet_capnp::facet;
use capstead_client::restorer_capnp::restorer;
use std::io::Write;

use super::fortress::withstands;
use super::strangers::allow_connections;
use crate::support::raw::{self, COUNTER, Raw, bootstrap, by_name, restore};
use crate::support::{DEADLINE, eventually};

/// Maximum number of holder keys in one reference.
const KEYS: u16 = 180;

/// The offset of the caveats in a reference, after version, cluster, key, target and grant.
const CAVEATS_AT: usize = 1 + 32 + 8 + 1 + 16 + 16;

/// A text with the cluster and key of a genuine one, but without a valid signature. `number` makes
/// each text different.
fn forged(genuine: &str, number: u32) -> String {
    let (address, encoded) = genuine.split_once('#').unwrap();
    let genuine = URL_SAFE_NO_PAD.decode(encoded).unwrap();
    let mut bytes = genuine[..CAVEATS_AT].to_vec();
    bytes.extend([1, 0x83]);
    bytes.extend((KEYS * 32).to_be_bytes());
    for key in 0..KEYS {
        bytes.extend([&[9][..], &key.to_be_bytes(), &number.to_be_bytes(), &[7; 25]].concat());
    }
    bytes.extend([7; 32]); // the next key
    // A signature of something else, so that the check has to compute it.
    bytes.extend(&genuine[CAVEATS_AT + 1 + 32..][..64]);
    bytes.extend([0, 1]);
    bytes.extend([7; 32]); // the proof
    format!("{address}#{}", URL_SAFE_NO_PAD.encode(bytes))
}

fn restore_as(question: u32, text: &str) -> Raw {
    let mut message = Raw::new_default();
    let params = raw::call(&mut message, question, (0, None), (restorer::Client::TYPE_ID, 0));
    params.get_content().init_as::<restorer::restore_params::Builder>().set_sturdy_ref(text);
    message
}

#[test]
fn texts_full_of_keys() {
    const TEXTS: u32 = 10_000;
    withstands(&[], |served| {
        let mut stream = raw::dial(served);
        raw::send(&mut stream, &[bootstrap()]);
        let mut answers = stream.try_clone().unwrap();
        let before = served.processor_secs();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for number in 1..=TEXTS {
                    let text = forged(served.counters(), number);
                    raw::send(&mut stream, &[restore_as(number, &text)]);
                }
            });
            raw::wait_for_answer(&mut answers, 0);
            for _ in 0..TEXTS {
                let (_, error) = raw::next_answer(&mut answers);
                assert!(error.unwrap().contains("refused"));
            }
        });
        let took = served.processor_secs() - before;
        // This includes the honest client's calls. Without optimisation it is some 0.8 s.
        assert!(took < 2.0, "{TEXTS} texts took {took:.2} s of the processor");
    });
}

/// Each has as many open calls as a stranger may: they wait for each other, and nobody waits for
/// all of them.
#[test]
fn texts_on_hundreds_of_connections() {
    const CONNECTIONS: usize = 300;
    const CALLS: u32 = 16;
    const ROUNDS: u32 = 6;
    allow_connections();
    withstands(&["--limit", "stranger-time=1h"], |served| {
        let mut strangers: Vec<_> = (0..CONNECTIONS).map(|_| raw::dial(served)).collect();
        for stranger in &mut strangers {
            raw::send(stranger, &[bootstrap()]);
            raw::wait_for_answer(stranger, 0);
        }
        for round in 0..ROUNDS {
            // Two thirds take a signature; the others are of another cluster, or are no text.
            let texts = (1..=CALLS).map(|n| match n % 6 {
                0 => "no text".to_owned(),
                1 => of_another_cluster(served.counters()),
                _ => altered(served.counters()),
            });
            let questions = round * CALLS + 1..;
            let restores = questions.zip(texts).map(|(question, text)| restore_as(question, &text));
            let bytes: Vec<u8> = restores.flat_map(|restore| raw::serialized(&restore)).collect();
            for stranger in &mut strangers {
                stranger.write_all(&bytes).unwrap();
            }
            for stranger in &mut strangers {
                for _ in 0..CALLS {
                    let (_, error) = raw::next_answer(stranger);
                    assert!(error.unwrap().contains("refused"));
                }
            }
        }
    });
}

/// The text with the byte at `at` of its reference changed.
fn with_other_byte(genuine: &str, at: usize) -> String {
    let (address, encoded) = genuine.split_once('#').unwrap();
    let mut bytes = URL_SAFE_NO_PAD.decode(encoded).unwrap();
    bytes[at] ^= 1;
    format!("{address}#{}", URL_SAFE_NO_PAD.encode(bytes))
}

fn of_another_cluster(genuine: &str) -> String {
    with_other_byte(genuine, 1)
}

/// A text whose first signature is wrong, since it names another grant.
fn altered(genuine: &str) -> String {
    with_other_byte(genuine, CAVEATS_AT - 1)
}

/// Facets with long lists of methods, each made by a call.
#[test]
fn facets_with_long_lists() {
    withstands(&[], |served| {
        let before = served.resident_bytes();
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut stream = raw::dial(served);
            raw::send(&mut stream, &[bootstrap(), restore(served.counters()), by_name("x")]);
            assert_eq!(raw::wait_for_answer(&mut stream, COUNTER), None);
            stream.set_write_timeout(Some(DEADLINE)).unwrap();
            let mut drain = stream.try_clone().unwrap();
            // Answers are read and ignored.
            let reader = std::thread::spawn(move || {
                let _ = std::io::copy(&mut drain, &mut std::io::sink());
            });
            for question in 0..30_000 {
                let message = raw::serialized(&attenuate(COUNTER + 1 + question));
                if stream.write_all(&message).is_err() {
                    break;
                }
            }
            held.push((stream, reader));
        }
        eventually("their end", || (served.bites("export-bytes") >= 2).then_some(()));
        let taken = served.resident_bytes().saturating_sub(before);
        assert!(taken < 200 << 20, "{} MiB", taken >> 20);
        for (stream, reader) in held {
            drop(stream.shutdown(std::net::Shutdown::Both));
            reader.join().unwrap();
        }
    });
}

fn attenuate(question: u32) -> Raw {
    let mut message = Raw::new_default();
    let on = (COUNTER, Some(0));
    let params = raw::call(&mut message, question, on, (facet::Client::TYPE_ID, 2));
    let params = params.get_content().init_as::<facet::attenuate_params::Builder>();
    let mut methods = params.init_caveats().init_methods(1);
    let mut of_interface = methods.reborrow().get(0);
    of_interface.set_interface(u64::from(question));
    let mut ordinals = of_interface.init_ordinals(256);
    for ordinal in 0..256 {
        ordinals.set(u32::from(ordinal), ordinal);
    }
    message
}
