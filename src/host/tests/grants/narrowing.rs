//! Narrowed capabilities: less than what they were made from, in methods and in time, and never
//! more.

use capnp::ErrorKind;
use capnp::capability::FromClientHook;
use capstead_client::sturdyref::{Caveats, Method, TextReference};

use super::super::references::host;
use super::super::trial::{call_later, call_note, call_write, log, over, read, run, settle, trial};
use super::{
    BY_NAME, NAMESPACE, NOTE, READ, TRIAL, Terms, all_trials, as_facet, assert_revoked, attenuate,
    by_name, labelled, labels, listed, namespace, restore, revoke, save,
};

/// Of an attenuated object there is nothing but the methods that were left.
#[test]
fn an_attenuated_facet_answers_its_methods_and_nothing_else() {
    for hops in 0..2 {
        run(async move {
            let (world, agent) = host().await;
            let owner = over(world.object("x"), hops);
            let only_read =
                Terms { methods: Some(&[Method::new(TRIAL, READ)]), ..Terms::default() };
            let narrow = attenuate(&owner, &only_read);
            assert_eq!(read(&narrow).await.unwrap(), 0);
            let refused = call_note(&narrow, 1).promise.await.err().unwrap();
            let unknown = narrow
                .client
                .new_call::<capnp::any_pointer::Owned, capnp::any_pointer::Owned>(TRIAL, 99, None);
            let unknown = unknown.send().promise.await.err().unwrap();
            assert_eq!(refused.kind, ErrorKind::Unimplemented);
            let not_there = |method| crate::error::no_such_method(Method::new(TRIAL, method)).extra;
            assert!(refused.extra.ends_with(&not_there(NOTE)), "{refused}");
            assert!(unknown.extra.ends_with(&not_there(99)), "as if it were not there: {unknown}");
            // Nothing widens it again.
            let all = Terms {
                methods: Some(&[Method::new(TRIAL, NOTE), Method::new(TRIAL, READ)]),
                ..Terms::default()
            };
            for wide in [attenuate(&narrow, &all), attenuate(&narrow, &Terms::default())] {
                assert!(call_note(&wide, 1).promise.await.is_err());
                read(&wide).await.unwrap();
            }
            let none = attenuate(&narrow, &Terms { methods: Some(&[]), ..Terms::default() });
            assert!(read(&none).await.is_err());
            save(&owner, &labelled("somebody's")).await.unwrap();
            assert_eq!(listed(&narrow).await.err().unwrap().kind, ErrorKind::Unimplemented);
            let saved = save(&narrow, &all).await.unwrap();
            let saved = restore(&agent, &saved).await.unwrap();
            assert!(call_note(&saved, 1).promise.await.is_err());
            read(&saved).await.unwrap();
            assert_eq!(listed(&saved).await.err().unwrap().kind, ErrorKind::Unimplemented);
            let later =
                attenuate(&owner, &Terms { not_after: Some(u64::MAX - 1), ..Terms::default() });
            assert_eq!(
                labels(&later).await,
                Vec::<String>::new(),
                "it has no grant, and not everything"
            );
            let mut once = as_facet(&narrow).once_request();
            once.get().set_id(&[1; 16]);
            let once: trial::Client = once.send().pipeline.get_facet().as_cap().cast_to();
            assert!(call_note(&once, 1).promise.await.is_err());
            assert_eq!(log(), [] as [u64; 0]);
        });
    }
}

/// The time of a caveat ends the live capability as well as the reference.
#[test]
fn a_capability_ends_in_its_time() {
    run(async {
        let (world, agent) = host().await;
        world.now.set(1_000);
        let owner = world.object("x");
        let short = Terms { not_after: Some(2_000), ..Terms::default() };
        let text = save(&owner, &short).await.unwrap();
        let lives = [
            attenuate(&owner, &short),
            restore(&agent, &text).await.unwrap(),
            attenuate(
                &restore(&agent, &text).await.unwrap(),
                &Terms { not_after: Some(9_000), ..Terms::default() },
            ),
        ];
        let saved =
            save(&lives[1], &Terms { not_after: Some(9_000), ..Terms::default() }).await.unwrap();
        world.now.set(2_000);
        for live in &lives {
            read(live).await.unwrap();
        }
        restore(&agent, &saved).await.unwrap();
        world.now.set(2_001);
        for live in &lives {
            let over = read(live).await.err().unwrap();
            assert!(over.extra.contains("expired:"), "{over}");
        }
        for text in [&text, &saved] {
            let refused = restore(&agent, text).await.err().unwrap();
            assert_eq!(refused.extra, "the reference was refused");
        }
        read(&owner).await.unwrap();
    });
}

/// Objects that are reached through a namespace depend on the namespace's grant, however it was
/// saved.
#[test]
fn a_namespace_is_narrowed_and_revoked_with_all_that_came_through_it() {
    run(async {
        let (world, agent) = host().await;
        world.now.set(1_000);
        let all = all_trials(&agent).await;
        let one = save(
            &all,
            &Terms { methods: Some(&[Method::new(NAMESPACE, BY_NAME)]), ..labelled("guest") },
        )
        .await
        .unwrap();
        let guest = namespace(&agent, &one).await.unwrap();
        let object = by_name(&guest, "x");
        call_write(&object, 3).promise.await.unwrap();
        let created = guest.create_request().send().promise.await.err().unwrap();
        assert_eq!(created.kind, ErrorKind::Unimplemented);
        let saved = save(&object, &labelled("through the guest")).await.unwrap();
        let restored = restore(&agent, &saved).await.unwrap();
        assert_eq!(read(&restored).await.unwrap(), 3);
        assert_eq!(labels(&all).await, ["guest"]);
        assert_eq!(
            labels(&by_name(&all, "x")).await,
            ["through the guest"],
            "made from what is made from the root"
        );

        let short = attenuate(&guest, &Terms { not_after: Some(2_000), ..Terms::default() });
        let shortly = by_name(&short, "x");
        let saved_shortly = save(&shortly, &Terms::default()).await.unwrap();
        world.now.set(2_001);
        assert!(read(&shortly).await.err().unwrap().extra.contains("expired:"));
        assert!(restore(&agent, &saved_shortly).await.is_err());

        let under_way = [&object, &restored].map(|live| call_later(live, u64::MAX, None).promise);
        settle().await;
        revoke(&all, "guest").await.unwrap();
        for call in under_way {
            assert_revoked(call.await);
        }
        assert_eq!(log(), [3], "the handlers still run");
        for cut in [&object, &restored] {
            assert_revoked(read(cut).await);
        }
        assert_revoked(read(&by_name(&guest, "x")).await);
        assert_revoked(restore(&agent, &saved).await);
        assert_revoked(namespace(&agent, &one).await);
        assert_eq!(read(&by_name(&all, "x")).await.unwrap(), 3);
    });
}

/// A chain of random narrowings, by asking, by saving and offline, allows what each of them allows.
#[test]
fn no_chain_of_narrowings_allows_what_an_earlier_one_refused() {
    use proptest::test_runner::{Config, TestRunner};

    let step = (0..3u8, proptest::option::of(0..8u8), proptest::option::of(1_000..1_010u64));
    let chains = (proptest::collection::vec(step, 1..6), 995..1_015u64);
    let mut runner =
        TestRunner::new(Config { cases: 96, failure_persistence: None, ..Config::default() });
    runner
        .run(&chains, |(steps, now)| {
            run(async move {
                let (world, agent) = host().await;
                let mut live = world.object("x");
                let (mut methods, mut last) = (7u8, u64::MAX);
                for (how, set, not_after) in steps {
                    // Bits for note, write and read.
                    let allowed: Vec<_> = (0..3)
                        .filter(|bit| set.is_some_and(|set| set & (1 << bit) != 0))
                        .map(|bit| Method::new(TRIAL, bit))
                        .collect();
                    let terms =
                        Terms { methods: set.map(|_| &allowed[..]), not_after, ..Terms::default() };
                    methods &= set.unwrap_or(7);
                    last = last.min(not_after.unwrap_or(u64::MAX));
                    live = match how {
                        0 => attenuate(&live, &terms),
                        1 => restore(&agent, &save(&live, &terms).await.unwrap()).await.unwrap(),
                        _ => {
                            let text = save(&live, &Terms::default()).await.unwrap();
                            let mut caveats = Caveats::none();
                            if let Some(last) = not_after {
                                caveats = caveats.with_not_after(last);
                            }
                            if set.is_some() {
                                caveats = caveats.with_methods(allowed.iter().copied()).unwrap();
                            }
                            let parsed = TextReference::parse(&text).unwrap();
                            let narrow = parsed.reference().narrow(&caveats).unwrap();
                            restore(&agent, &narrow.expose_text("127.0.0.1:1").unwrap())
                                .await
                                .unwrap()
                        }
                    };
                }
                world.now.set(now);
                let answers = [
                    call_note(&live, 1).promise.await.is_ok(),
                    call_write(&live, 1).promise.await.is_ok(),
                    read(&live).await.is_ok(),
                ];
                for (bit, answers) in answers.into_iter().enumerate() {
                    assert_eq!(answers, now <= last && methods & (1 << bit) != 0, "method {bit}");
                }
            });
            Ok(())
        })
        .unwrap();
}

/// A set with methods of objects restricts these too, and not the namespace alone.
#[test]
fn methods_of_objects_are_restricted_through_their_namespace() {
    run(async {
        let (_world, agent) = host().await;
        let all = all_trials(&agent).await;
        let methods = [Method::new(NAMESPACE, BY_NAME), Method::new(TRIAL, READ)];
        let narrow = attenuate(&all, &Terms { methods: Some(&methods), ..Terms::default() });
        let object = by_name(&narrow, "x");
        read(&object).await.unwrap();
        assert_eq!(
            call_note(&object, 1).promise.await.err().unwrap().kind,
            ErrorKind::Unimplemented
        );
    });
}
