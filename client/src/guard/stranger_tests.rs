//! Peers that haven't shown a reference yet, and the memory that connections may hold together.

use super::raw::{Raw, Write, bootstrap, bytes_of, call, finish, settle};
use super::*;
use crate::sturdyref::{
    Caveats, ClusterId, GrantId, KeyId, NextSecret, Payload, SigningKey, Sturdyref, Target,
    TargetId,
};
use ed25519_dalek::Signer;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// A text so long that its call is a large message for a stranger.
fn long() -> &'static str {
    Box::leak("x".repeat(70 << 10).into_boxed_str())
}

fn limits() -> Limits {
    Limits::default()
}

/// As for all others, "locate" succeeds for a peer that shows something valid.
fn served() -> [Write; 2] {
    [bootstrap(0), call(1, "good", vec![])]
}

#[tokio::test(flavor = "local")]
async fn a_large_message_of_a_stranger_is_refused_before_it_costs_memory() {
    let mut raw = Raw::of_stranger(limits(), Budget::default());
    let large = bytes_of(&[bootstrap(0), call(1, long(), vec![])]);
    // The announced size is enough.
    raw.near.write_all(&large[..200]).await.unwrap();
    let bites = raw.bites.clone();
    let reason = raw.aborted().await;
    assert!(reason.contains("the limit is 65536 before a reference was shown"), "{reason}");
    assert_eq!(bites.get(Limit::StrangerMessageBytes), 1);
}

#[tokio::test(flavor = "local")]
async fn whoever_was_served_once_may_do_as_others_may() {
    let mut raw = Raw::of_stranger(limits(), Budget::default());
    raw.send(&served()).await;
    raw.near.write_all(&bytes_of(&[call(2, long(), vec![])])).await.unwrap();
    settle().await;
    assert_eq!(raw.begun(), 2);
}

/// These need nothing but the text of a reference, which may be stolen, or revoked.
#[tokio::test(flavor = "local", start_paused = true)]
async fn whoever_only_has_the_text_of_a_holders_reference_remains_a_stranger() {
    let bound = bound();
    for asks in ["challenge", bound] {
        let mut raw = Raw::of_stranger(limits(), Budget::default());
        raw.send(&[bootstrap(0), call(1, asks, vec![]), call(2, asks, vec![])]).await;
        assert_eq!(raw.begun(), 2, "they are answered: {asks}");
        let bites = raw.bites.clone();
        assert_eq!(raw.aborted().await, "no reference was shown in 10s");
        assert_eq!(bites.get(Limit::StrangerTime), 1);
    }
    // A reference in force does.
    let mut raw = Raw::of_stranger(limits(), Budget::default());
    raw.send(&[bootstrap(0), call(1, bound, vec![]), call(2, "restore", vec![])]).await;
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert!(!raw.server.is_closed());
}

/// The text of a reference that takes a holder's proof.
fn bound() -> &'static str {
    let key = |seed| SigningKey::from_bytes(&[seed; 32]);
    let next = NextSecret::from_seed([4; 32]);
    let payload = Payload {
        cluster: ClusterId::of(&key(1).verifying_key()),
        key: KeyId::of(&key(2).verifying_key()),
        target: Target::Object(TargetId::from_bytes([7; 16])),
        grant: GrantId::from_bytes([8; 16]),
        caveats: Caveats::none().with_holder(key(3).verifying_key()).unwrap(),
        next: next.public(),
    };
    let signature = key(2).sign(&payload.signed_bytes()).to_bytes();
    let reference = Sturdyref::assemble(&payload, &signature, &next);
    Box::leak(reference.expose_text("127.0.0.1:1").unwrap().as_str().into())
}

/// A caller that pipelines on a reference can't know yet that it is valid.
#[tokio::test(flavor = "local")]
async fn a_large_message_waits_while_the_reference_is_looked_at() {
    for (shown, begun) in [("open", 2), ("never", 1)] {
        let mut raw = Raw::of_stranger(limits(), Budget::default());
        raw.send(&[bootstrap(0), call(1, shown, vec![]), call(2, long(), vec![])]).await;
        assert_eq!((raw.begun(), raw.server.is_closed()), (1, false));
        assert!(raw.guard.borrow().wire.held() < 64 << 10, "the rest isn't read");
        raw.allowed.add_permits(10);
        settle().await;
        assert_eq!((raw.begun(), raw.server.is_closed()), (begun, false), "{shown}");
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_stranger_has_ten_seconds_and_whoever_was_served_has_time() {
    let mut raw = Raw::of_stranger(limits(), Budget::default());
    raw.send(&[bootstrap(0), call(1, "never", vec![])]).await;
    let began = tokio::time::Instant::now();
    let bites = raw.bites.clone();
    assert_eq!(raw.aborted().await, "no reference was shown in 10s");
    // One more second, in which the peer can read the reason.
    assert_eq!((bites.get(Limit::StrangerTime), began.elapsed().as_secs()), (1, 11));

    let mut raw = Raw::of_stranger(limits(), Budget::default());
    raw.send(&served()).await;
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert!(!raw.server.is_closed());
}

#[tokio::test(flavor = "local")]
async fn few_calls_of_a_stranger_are_open_at_once() {
    let mut raw = Raw::of_stranger(limits(), Budget::default());
    let calls = (1..=40).map(|question| call(question, "never", vec![]));
    raw.send(&std::iter::once(bootstrap(0)).chain(calls).collect::<Vec<_>>()).await;
    assert_eq!(raw.begun(), 16);
    assert_eq!(raw.bites.get(Limit::StrangerCalls), 1);
}

/// A byte now and then doesn't keep a connection open.
#[tokio::test(flavor = "local", start_paused = true)]
async fn a_message_that_drips_is_cut_and_one_that_flows_is_not() {
    for (bytes, is_cut) in [(30 << 10, true), (50 << 10, false)] {
        let mut raw = Raw::new(limits());
        raw.send(&[bootstrap(0)]).await;
        let huge: &'static str = Box::leak("x".repeat(1 << 20).into_boxed_str());
        let whole = bytes_of(&[call(1, huge, vec![])]);
        for part in whole.chunks(bytes).take(10) {
            let _ = raw.near.write_all(part).await;
            tokio::time::sleep(Duration::from_secs(9)).await;
        }
        assert_eq!(raw.server.is_closed(), is_cut, "{bytes} bytes in 9 s");
        assert_eq!(raw.bites.get(Limit::SlowReader), u64::from(is_cut));
    }
}

#[tokio::test(flavor = "local")]
async fn what_is_held_counts_with_the_calls_that_brought_it() {
    let limits = Limits { export_bytes: 2000, ..limits() };
    let restore = |question| call(question, "restore", vec![]);
    let mut raw = Raw::new(limits);
    raw.send(&[bootstrap(0)]).await;
    for question in 1..100 {
        raw.send(&[restore(question), finish(question, true)]).await;
    }
    assert!(!raw.server.is_closed(), "nothing of it is held");
    for question in 100..200 {
        // Releases only the answer, or only the capability in it.
        let _ = raw.near.write_all(&bytes_of(&[restore(question), finish(question, false)])).await;
        settle().await;
        if raw.server.is_closed() {
            break;
        }
    }
    assert_eq!(raw.bites.get(Limit::ExportBytes), 1);
    assert_eq!(raw.aborted().await, "what the peer holds takes too much memory");
}

#[tokio::test(flavor = "local")]
async fn connections_hold_no_more_together_than_they_may() {
    let limits = Limits { total_bytes: 1 << 20, stall: Duration::MAX, ..limits() };
    let budget = Budget::default();
    let begun: &'static str = Box::leak("x".repeat(900 << 10).into_boxed_str());
    let message = bytes_of(&[call(1, begun, vec![])]);
    let mut greedy = Vec::new();
    for _ in 0..8 {
        let mut raw = Raw::with_room(limits, 2 << 20);
        raw.counts_in(&budget);
        raw.send(&[bootstrap(0)]).await;
        let _ = raw.near.write_all(&message[..message.len() - 8]).await;
        settle().await;
        greedy.push(raw);
    }
    assert!(budget.bytes() <= limits.total_bytes, "{}", budget.bytes());
    assert!(greedy.iter().any(|raw| raw.bites.get(Limit::TotalBytes) == 1));
    // Small calls still work.
    let mut honest = Raw::with_room(limits, 2 << 20);
    honest.counts_in(&budget);
    honest.send(&[bootstrap(0), call(1, "small", vec![])]).await;
    assert_eq!((honest.begun(), honest.server.is_closed()), (1, false));
    drop((greedy, honest));
    settle().await;
    assert_eq!(budget.bytes(), 0);
}

/// A client that waits for an answer from a hanging server would wait without end.
#[tokio::test(flavor = "local", start_paused = true)]
async fn a_peer_that_owes_answers_is_not_silent_for_long() {
    let (near, _far) = tokio::io::duplex(64 << 10);
    let limits = Limits { silence: Duration::from_mins(1), ..Limits::of_trusted() };
    let began = tokio::time::Instant::now();
    let near =
        crate::Connection::new(near, capnp_rpc::rpc_twoparty_capnp::Side::Client, None, limits);
    let asked = near.unwrap().locate("anything").await.unwrap_err();
    assert!(asked.extra.contains("sent nothing for 60s"), "{asked}");
    assert_eq!(began.elapsed().as_secs(), 60);
}
