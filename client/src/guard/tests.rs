//! Raw messages against a guard: going over a limit is refused with its reason and counted, and
//! everything within the limits passes.

use super::raw::{
    Cap, DEADLINE, Desk, Raw, bites, bootstrap, bytes_of, call, call_on, finish, hosted, passes,
    release, resolve, settle, write,
};
use super::*;
use crate::connection::Connection;
use crate::restorer_capnp::restorer;
use capnp::capability::FromClientHook;
use capnp::message::Builder;
use capnp_rpc::rpc_twoparty_capnp::Side;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

#[tokio::test(flavor = "local")]
async fn limits_of_one_message_bite_with_a_reason_and_not_below() {
    let limits = Limits::default();
    let path = |steps| {
        let answer = Cap::Answer { question: 0, steps };
        [bootstrap(0), call_on(Err(answer), 1, "never", vec![]), call(2, "never", vec![answer])]
    };
    passes(limits, path(32).into()).await;
    let reason = "a path of 33 steps into an answer is refused";
    let [first, target, cap] = path(33);
    bites(limits, vec![first, target], Limit::Nesting, reason).await;
    bites(limits, vec![bootstrap(0), cap], Limit::Nesting, reason).await;

    let of = |count| vec![bootstrap(0), call(1, "never", hosted(0..count))];
    passes(limits, of(64)).await;
    let reason = "65 capabilities in one message; the limit is 64";
    bites(limits, of(65), Limit::Capabilities, reason).await;

    let small = Limits { message_bytes: 200, ..limits };
    passes(small, vec![bootstrap(0), call(1, "short", vec![])]).await;
    let reason = "bytes is refused; the limit is 200";
    bites(small, of(10), Limit::MessageBytes, reason).await;
}

#[tokio::test(flavor = "local")]
async fn limits_of_what_is_held_bite_with_a_reason_and_not_below() {
    let limits = Limits { imports: 3, exports: 4, answers: 5, ..Limits::default() };
    passes(limits, vec![bootstrap(0), call(1, "never", hosted(0..3))]).await;
    let many = vec![bootstrap(0), call(1, "never", hosted(0..2)), call(2, "never", hosted(1..4))];
    bites(limits, many, Limit::Imports, "too many capabilities of the peer are held").await;

    // The bootstrap capability is the fourth.
    let restores = |count| {
        let calls = (1..=count).map(|question| call(question, "restore", vec![]));
        std::iter::once(bootstrap(0)).chain(calls).collect::<Vec<_>>()
    };
    let mut raw = passes(limits, restores(3)).await;
    assert_eq!(raw.guard.borrow().counts().exports, 4);
    raw.send(&[finish(1, true), finish(2, false), release(2, 1)]).await;
    raw.send(&[call(1, "restore", vec![]), call(2, "restore", vec![])]).await;
    assert_eq!(raw.guard.borrow().counts().exports, 4);
    bites(limits, restores(4), Limit::Exports, "the peer holds too many capabilities").await;

    // Calls that were answered and not finished count.
    let limits = Limits { exports: 100, ..limits };
    passes(limits, restores(4)).await;
    bites(limits, restores(5), Limit::Answers, "too many calls were not finished").await;
    let bootstraps = (0..6).map(bootstrap).collect();
    bites(limits, bootstraps, Limit::Answers, "too many calls were not finished").await;
}

/// No honest peer sends these messages, because nothing here answers them or gave a reason for
/// them.
#[tokio::test(flavor = "local")]
async fn kinds_that_are_not_in_use_end_the_connection() {
    let disembargo = |message: message::Builder| {
        let mut disembargo = message.init_disembargo();
        disembargo.reborrow().init_target().set_imported_cap(0);
        disembargo.init_context().set_provide(1);
    };
    let to_third_party = |mut message: message::Builder| {
        call(1, "never", vec![])(message.reborrow());
        let Ok(message::Call(Ok(call))) = message.which() else { panic!("it is a call") };
        call.init_send_results_to().init_third_party();
    };
    for kind in [
        write(|message| {
            message.init_provide();
        }),
        write(|message| {
            message.init_accept();
        }),
        write(|message| {
            message.init_join();
        }),
        write(|message| {
            message.init_obsolete_save();
        }),
        write(|message| {
            message.init_obsolete_delete();
        }),
        write(disembargo),
        write(to_third_party),
        write(|message| {
            message.init_unimplemented();
        }),
        call(1, "never", vec![Cap::ThirdParty]),
        resolve(1, Cap::ThirdParty),
    ] {
        let messages = vec![bootstrap(0), kind];
        bites(Limits::default(), messages, Limit::UnknownKind, "of a kind that is not in use")
            .await;
    }
}

#[tokio::test(flavor = "local")]
async fn capabilities_that_were_never_given_end_the_connection() {
    let disembargo = |message: message::Builder| {
        let mut disembargo = message.init_disembargo();
        disembargo.reborrow().init_target().set_imported_cap(7);
        disembargo.init_context().set_sender_loopback(1);
    };
    let (named, released) = ("was named that the peer doesn't hold", "doesn't hold");
    for (message, reason) in [
        (call_on(Ok(7), 1, "x", vec![]), named),
        (call(1, "x", vec![Cap::Ours(7)]), named),
        (write(disembargo), named),
        (release(7, 1), released),
        (release(0, 2), released),
        (write(|message| message.init_return().set_answer_id(3)), "was answered that is not open"),
    ] {
        let messages = vec![bootstrap(0), message];
        bites(Limits::default(), messages, Limit::UnknownCapability, reason).await;
    }
}

/// A call may have ended when a call pipelined on it arrives. Only the pipelined call fails.
#[tokio::test(flavor = "local")]
async fn calls_that_are_over_may_still_be_named() {
    let late = Cap::Answer { question: 1, steps: 0 };
    let messages = vec![
        bootstrap(0),
        call(1, "at once", vec![]),
        call_on(Err(late), 2, "x", vec![]),
        call(3, "x", vec![late]),
        finish(1, true),
        finish(1, true),
    ];
    let raw = passes(Limits::default(), messages).await;
    assert_eq!(raw.guard.borrow().counts().answers, 2, "the bootstrap, and the one that failed");
}

#[tokio::test(flavor = "local")]
async fn what_cannot_be_read_ends_the_connection_with_a_reason() {
    let mut raw = Raw::new(Limits::default());
    // A pointer to far outside the message.
    let bytes = [0, 0, 0, 0, 1, 0, 0, 0, 0xfc, 0xff, 0, 0, 1, 0, 1, 0];
    raw.near.write_all(&bytes).await.unwrap();
    assert!(raw.aborted().await.starts_with("a message can't be read: "));
}

#[tokio::test(flavor = "local")]
async fn calls_over_a_soft_limit_wait_for_answers_and_keep_their_order() {
    let by_number = Limits { calls: 2, ..Limits::default() };
    let by_bytes = Limits { call_bytes: 300, ..Limits::default() };
    for (limits, limit, at_once) in [(by_number, Limit::Calls, 2), (by_bytes, Limit::CallBytes, 3)]
    {
        let mut raw = Raw::new(limits);
        let texts = ["open 1", "open 2", "open 3", "open 4", "open 5", "last"];
        let calls = (1..).zip(texts).map(|(question, text)| call(question, text, vec![]));
        let first = [bootstrap(0)];
        raw.send(&first.into_iter().chain(calls).collect::<Vec<_>>()).await;
        assert_eq!(raw.begun(), at_once, "{limit:?}");
        assert_eq!(raw.bites.get(limit), 1, "it bit once for all that wait");
        for answered in 1..=5 {
            raw.allowed.add_permits(1);
            settle().await;
            assert_eq!(raw.begun(), (at_once + answered).min(6), "{limit:?}");
        }
        assert_eq!(raw.desk.begun.borrow().as_slice(), texts);
        assert!(!raw.server.is_closed());
    }
}

/// The number of a waiting call may be reused, and its `Finish` comes long before it begins.
#[tokio::test(flavor = "local")]
async fn what_is_finished_while_it_waits_runs_and_gives_its_number_back() {
    let mut raw = Raw::new(Limits { calls: 1, ..Limits::default() });
    raw.send(&[bootstrap(0), call(1, "open 1", vec![]), call(2, "open 2", vec![])]).await;
    raw.send(&[finish(2, true), call(3, "open 3", vec![]), finish(1, true)]).await;
    assert_eq!(raw.begun(), 1);
    raw.allowed.add_permits(1);
    settle().await;
    // The first call is answered, its `Finish` still waits, and its number is no longer in use.
    assert_eq!(raw.begun(), 2);
    raw.allowed.add_permits(2);
    settle().await;
    raw.send(&[call(1, "open 4", vec![]), call(2, "open 5", vec![])]).await;
    raw.allowed.add_permits(2);
    settle().await;
    let begun = raw.desk.begun.borrow().clone();
    assert_eq!(begun, ["open 1", "open 2", "open 3", "open 4", "open 5"]);
    assert!(!raw.server.is_closed());
    let counts = raw.guard.borrow().counts();
    assert_eq!((counts.answers, counts.held), (1, 0));
}

/// The queue is bounded: once it is full nothing is read until a call is answered.
#[tokio::test(flavor = "local")]
async fn a_full_queue_stops_the_sender_until_answers_leave() {
    let mut raw = Raw::new(Limits { calls: 1, queued_bytes: 100_000, ..Limits::default() });
    let flood = (1..10_000).map(|question| call(question, "open", vec![]));
    let flood = bytes_of(&std::iter::once(bootstrap(0)).chain(flood).collect::<Vec<_>>());
    let mut sent = 0;
    let mut send = async |raw: &mut Raw| {
        while sent < flood.len() {
            let some = &flood[sent..flood.len().min(sent + 1000)];
            tokio::select! {
                biased;
                count = raw.near.write(some) => sent += count.unwrap(),
                () = settle() => break,
            }
        }
        sent
    };
    let stopped = send(&mut raw).await;
    assert!(stopped < 250_000, "{stopped} bytes of {} went out", flood.len());
    assert_eq!(raw.bites.get(Limit::QueuedBytes), 1);
    assert_eq!(raw.begun(), 1);
    raw.allowed.add_permits(10_000);
    while send(&mut raw).await < flood.len() {}
    settle().await;
    assert_eq!(raw.begun(), 9999);
}

#[tokio::test(flavor = "local")]
async fn a_peer_that_reads_nothing_gets_no_more_calls_through() {
    let limits = Limits { unread_bytes: 3 << 20, ..Limits::default() };
    let mut raw = Raw::new(limits);
    for question in 1..100 {
        let first = (question == 1).then(|| bootstrap(0));
        let messages = first.into_iter().chain([call(question, "big", vec![])]);
        raw.send(&messages.collect::<Vec<_>>()).await;
    }
    assert_eq!(raw.begun(), 4, "each makes 1 MiB");
    assert_eq!(raw.bites.get(Limit::UnreadBytes), 1);
    // 2. Sending continues when the peer reads.
    let mut answers = vec![0; 1 << 20];
    while raw.begun() < 99 {
        assert!(raw.near.read(&mut answers).await.unwrap() > 0);
        settle().await;
    }
}

#[tokio::test(flavor = "local")]
async fn unread_answers_over_the_hard_limit_end_the_connection() {
    let limits = Limits { unsent_bytes: 3 << 20, ..Limits::default() };
    let calls = (1..=5).map(|question| call(question, "big", vec![]));
    let messages = std::iter::once(bootstrap(0)).chain(calls).collect();
    bites(limits, messages, Limit::UnsentBytes, "the peer doesn't read what is sent").await;
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_peer_that_reads_nothing_for_a_while_is_cut() {
    let messages = vec![bootstrap(0), call(1, "big", vec![])];
    let mut raw = Raw::new(Limits::default());
    raw.send(&messages).await;
    // Reading 4 KiB a second is enough.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert!(!raw.server.is_closed());
        raw.near.read_exact(&mut vec![0; 41 << 10]).await.unwrap();
    }
    let read = tokio::time::Instant::now();
    // Reading a little isn't.
    tokio::time::sleep(Duration::from_secs(5)).await;
    raw.near.read_exact(&mut [0; 64]).await.unwrap();
    let closed = raw.server.closed().await;
    assert_eq!(closed.extra, "the peer read too little for 10s");
    // The peer has one more second to read the reason.
    assert_eq!(read.elapsed().as_secs(), 11);
    assert_eq!(raw.bites.get(Limit::SlowReader), 1);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_connection_with_nothing_on_it_is_cut_and_no_other() {
    let limits = Limits::default();
    let reason = "the connection was idle for 60s";
    bites(limits, vec![], Limit::Idle, reason).await;
    let all_done = vec![bootstrap(0), finish(0, true)];
    bites(limits, all_done, Limit::Idle, reason).await;
    // Peers that hold something, or have an open call, stay connected.
    let holds = vec![bootstrap(0), finish(0, false)];
    let calls = vec![bootstrap(0), call(1, "never", vec![]), finish(0, true)];
    for messages in [holds, calls] {
        let raw = passes(limits, messages).await;
        tokio::time::sleep(Duration::from_hours(1)).await;
        assert!(!raw.server.is_closed());
        assert_eq!(raw.bites.get(Limit::Idle), 0);
    }
}

/// The rest of an announced message must come in time.
#[tokio::test(flavor = "local", start_paused = true)]
async fn a_message_that_stops_midway_is_cut() {
    let whole = bytes_of(&[bootstrap(0), call(1, "never", vec![])]);
    for stops in [1, 7, 30, whole.len() - 1] {
        let mut raw = Raw::new(Limits::default());
        raw.near.write_all(&whole[..stops]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert!(!raw.server.is_closed());
        let bites = raw.bites.clone();
        assert_eq!(raw.aborted().await, "the peer sent too little of a message for 10s");
        assert_eq!(bites.get(Limit::SlowReader), 1);
    }
}

/// Messages made at the same time are sent before the limit is checked.
#[tokio::test(flavor = "local")]
async fn a_burst_over_the_limit_passes_if_it_goes_out() {
    let limits = Limits { unsent_bytes: 3 << 20, ..Limits::default() };
    let mut raw = Raw::with_room(limits, 8 << 20);
    raw.send(&[bootstrap(0)]).await;
    let mut big = Builder::new_default();
    let mut padding = big.init_root::<message::Builder>().init_return().init_results();
    padding.reborrow().get_content().initn_as::<capnp::data::Builder>(1 << 20);
    for (count, is_cut) in [(5, false), (13, true)] {
        for _ in 0..count {
            raw.guard.borrow_mut().send(&mut big);
        }
        settle().await;
        assert_eq!(raw.bites.get(Limit::UnsentBytes), u64::from(is_cut));
    }
}

/// Without a limit for slow readers, other limits on waiting still apply.
#[tokio::test(flavor = "local", start_paused = true)]
async fn a_peer_that_may_read_late_is_cut_for_calls_that_wait_too_long() {
    let limits = Limits { calls: 1, slow_reader: Duration::MAX, ..Limits::default() };
    let messages = ["big", "never", "late"].into_iter().zip(1..);
    let messages = messages.map(|(text, question)| call(question, text, vec![]));
    let mut raw = Raw::new(limits);
    raw.send(&std::iter::once(bootstrap(0)).chain(messages).collect::<Vec<_>>()).await;
    let closed = raw.server.closed().await;
    assert_eq!(closed.extra, "calls wait, and none of those before was answered in 30s");
    assert_eq!(raw.bites.get(Limit::Stall), 1);
}

/// The peer reads everything and answers nothing.
#[tokio::test(flavor = "local", start_paused = true)]
async fn calls_of_ours_without_an_answer_bite_also_when_they_were_given_up() {
    let (_far, near) = duplex(64 << 10);
    let bites = Arc::<Bites>::default();
    let limits = Limits { questions: 4, ..Limits::default() };
    let near = Rc::new(RefCell::new(GuardState::new(near, limits, bites.clone())));
    let client = Connection::over(near.clone(), Side::Client, None).unwrap();
    let desk: restorer::Client = client.bootstrap();
    let waits = desk.locate_request().send();
    drop(desk.locate_request().send());
    drop(desk.locate_request().send());
    settle().await;
    assert_eq!((near.borrow().counts().questions, client.is_closed()), (4, false));
    drop(desk.locate_request().send());
    let waits = tokio::time::timeout(DEADLINE, waits.promise).await.expect("it fails");
    let error = waits.map(drop).unwrap_err();
    assert_eq!(error.kind, capnp::ErrorKind::Disconnected);
    assert_eq!(error.extra, "the peer leaves too many calls without an answer");
    assert_eq!(bites.get(Limit::Questions), 1);
}

/// The callback of an endless call makes reading continue, up to a bound.
#[tokio::test(flavor = "local", start_paused = true)]
async fn what_waits_behind_a_call_of_ours_is_bounded() {
    let limits = Limits { calls: 1, queued_bytes: 20_000, ..Limits::default() };
    let mut raw = Raw::new(limits);
    raw.send(&[bootstrap(0), call(1, "open", vec![])]).await;
    let ask = write(|message| message.init_bootstrap().set_question_id(7));
    let mut asked = Builder::new_default();
    ask(asked.init_root());
    let flood: Vec<_> = (2..60).map(|question| call(question, "x", vec![])).collect();
    raw.send(&flood).await;
    assert_eq!(raw.bites.get(Limit::QueuedBytes), 1, "it pauses");
    // A call of ours goes out, so a received message may be its answer.
    raw.guard.borrow_mut().send(&mut asked);
    let bites = raw.bites.clone();
    let flood: Vec<_> = (60..400).map(|question| call(question, "x", vec![])).collect();
    let flood = bytes_of(&flood);
    let sent = tokio::time::timeout(DEADLINE, raw.near.write_all(&flood)).await;
    sent.expect("it is read").unwrap();
    assert_eq!(raw.aborted().await, "too much waits while the peer has calls to answer");
    assert_eq!(bites.get(Limit::QueuedBytes), 2);
}

/// Other implementations send `failed`; callers see a lost connection all the same.
#[tokio::test(flavor = "local")]
async fn an_abort_of_any_kind_is_a_lost_connection() {
    let (mut far, near) = duplex(64 << 10);
    let client = Connection::new(near, Side::Client, None, Limits::of_dialler()).unwrap();
    let waits = client.bootstrap::<restorer::Client>().locate_request().send();
    let abort = write(|message| {
        let mut abort = message.init_abort();
        abort.set_type(capnp_rpc::rpc_capnp::exception::Type::Failed);
        abort.set_reason("tired");
    });
    far.write_all(&bytes_of(&[abort])).await.unwrap();
    let error = waits.promise.await.map(drop).unwrap_err();
    assert_eq!((error.kind, error.extra.as_str()), (capnp::ErrorKind::Disconnected, "tired"));
    assert_eq!(client.closed().await.kind, capnp::ErrorKind::Disconnected);
}

/// After capabilities went to and fro, each side's tables match the other's.
#[tokio::test(flavor = "local")]
async fn tables_of_both_ends_agree_and_are_empty_at_the_end() {
    let (near, far) = duplex(64 << 10);
    let near = Rc::new(RefCell::new(GuardState::new(near, Limits::default(), Arc::default())));
    let far = Rc::new(RefCell::new(GuardState::new(far, Limits::default(), Arc::default())));
    let desk: restorer::Client = capnp_rpc::new_client(Desk::default());
    let server = Connection::over(far.clone(), Side::Server, Some(desk.client)).unwrap();
    let client = Connection::over(near.clone(), Side::Client, None).unwrap();
    let desk: restorer::Client = client.bootstrap();
    let mut kept = Vec::new();
    for round in 0..300 {
        let restored = desk.restore_request().send();
        let cap = restorer::Client::new(restored.pipeline.get_cap().as_cap());
        match round % 3 {
            // Dropped before the answer comes, so its content is not used.
            0 => drop(cap),
            1 => drop(restored.promise.await.unwrap()),
            _ => {
                restored.promise.await.unwrap();
                kept.push(cap);
            }
        }
    }
    for _ in 0..10 {
        drop(desk.restore_request().send());
    }
    settle().await;
    let (ours, theirs) = (near.borrow().counts(), far.borrow().counts());
    assert_eq!((theirs.exports, ours.imports), (kept.len(), kept.len()));
    drop(kept);
    settle().await;
    // The client holds the bootstrap capability as the answer to a call that it doesn't finish.
    assert_eq!(near.borrow().counts(), TableCounts::default());
    assert_eq!(far.borrow().counts(), TableCounts { answers: 1, ..TableCounts::default() });
    drop(desk);
    assert!(!server.is_closed());
}
