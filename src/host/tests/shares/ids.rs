//! The bounds of request ids, of an object and of each share, when ids are cleared or over.

use std::time::Duration;

use capnp::ErrorKind;
use capstead_client::once;

use super::super::grants::{all_trials, by_name, labelled, restore, revoke, save};
use super::super::references::join;
use super::super::trial::{RETENTION, World, call_note, log, run, run_within, settle, trial};
use super::{X, assert_counted, id, id_of, noted, share_of, x};
use crate::error::{Reason, Result};
use crate::host::engine::once::{IdSelection, clear_requests, requests};
use crate::limits::{REQUEST_IDS_MAX, SHARE_IDS_MAX};

/// The holders of five shares: without a grant, by the root, and by three grants.
async fn holders(world: &World, texts: &mut Vec<String>) -> Vec<trial::Client> {
    let agent = join(world).await;
    let by_root = by_name(&all_trials(&agent).await, X);
    if texts.is_empty() {
        for label in ["one", "two", "three"] {
            texts.push(save(&by_root, &labelled(label)).await.unwrap());
        }
    }
    let mut holders = vec![world.object(X), by_root];
    for text in texts {
        holders.push(restore(&agent, text).await.unwrap());
    }
    holders
}

fn assert_full(noted: Result<u64>) {
    let refused = noted.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Overloaded);
    assert_eq!(Reason::of(&refused), Some(Reason::TooManyRequestIds));
    assert!(refused.extra.contains("the object keeps 65536"), "{refused}");
}

#[test]
fn an_object_keeps_so_many_ids_and_refuses_more() {
    run_within(Duration::from_mins(4), async {
        let (world, mut texts) = (World::new(), Vec::new());
        let callers = holders(&world, &mut texts).await;
        let restart = || world.restart_with_quotas(u64::MAX, None);
        for n in 0..REQUEST_IDS_MAX {
            world.now.set(u64::from(n > 0));
            let call = call_note(&once(&callers[n as usize % 4], &id(n)), n);
            if n % 1_000 == 0 || n + 1 == REQUEST_IDS_MAX {
                call.promise.await.unwrap();
            }
        }
        let count = log().len();
        let later = restart();
        for callers in [callers, holders(&later, &mut texts).await] {
            assert_full(noted(&callers[4], REQUEST_IDS_MAX).await);
            assert_eq!(noted(&callers[4], 9).await.unwrap(), 9);
            call_note(&callers[4], 1).promise.await.expect("it has no id");
        }
        assert_eq!(log().len(), count + 2);

        // The first one is over, and makes room for one.
        let again = restart();
        again.now.set(RETENTION.as_millis() as u64);
        let callers = holders(&again, &mut texts).await;
        noted(&callers[4], REQUEST_IDS_MAX).await.unwrap();
        assert_full(noted(&callers[4], REQUEST_IDS_MAX + 1).await);

        // The operator makes room by clearing ids that are neither the first nor the last.
        let two = id_of(&callers[1], "two").await;
        let cleared = clear_requests(&again.vat, x(), &IdSelection::Of(two)).await.unwrap();
        assert_eq!((cleared.gone, cleared.running), (u64::from(SHARE_IDS_MAX), 0));
        noted(&callers[4], REQUEST_IDS_MAX + 1).await.expect("there is room at once");
        noted(&callers[3], 3).await.expect("it counts as a new call");
        assert_counted(&again, x()).await;
        let next = restart();
        let callers = holders(&next, &mut texts).await;
        for n in 0..u64::from(SHARE_IDS_MAX) - 2 {
            let caller = &callers[if n % 2 == 0 { 3 } else { 4 }];
            noted(caller, 2 * REQUEST_IDS_MAX + n).await.unwrap();
        }
        assert_full(noted(&callers[4], 4 * REQUEST_IDS_MAX).await);
    });
}

/// Those of others that are over make no room for a grant that has used up its own.
#[test]
fn a_grant_keeps_to_its_ids_while_those_of_others_are_forgotten() {
    run_within(Duration::from_mins(2), async {
        let world = World::new();
        let callers = holders(&world, &mut Vec::new()).await;
        let (others, one) = (&callers[1], &callers[2]);
        for n in 0..2_000 {
            noted(others, n).await.unwrap();
        }
        world.now.set(1);
        let most = u64::from(SHARE_IDS_MAX);
        for n in 0..most {
            noted(one, 10_000 + n).await.unwrap();
        }
        let one_id = id_of(others, "one").await;
        world.now.set(RETENTION.as_millis() as u64);
        for n in 0..3 {
            let refused = noted(one, 100_000 + n).await.unwrap_err();
            assert_eq!(Reason::of(&refused), Some(Reason::TooManyRequestIds), "{refused}");
            assert_eq!(share_of(&world, one_id).ids, SHARE_IDS_MAX);
        }
        let left = requests(&world.vat, x(), None).unwrap();
        assert!(left[0].number >= 2_000, "those of others were over");
        world.now.set(RETENTION.as_millis() as u64 + 1);
        noted(one, 100_000).await.expect("its own are over");
        assert!(share_of(&world, one_id).ids < SHARE_IDS_MAX);
        assert_counted(&world, x()).await;
    });
}

/// Replies whose time is over would otherwise keep a share, or a quota, full for ever.
#[test]
fn ids_that_are_over_make_room_in_a_quota() {
    run(async {
        let world = World::with_quotas(8_000, None);
        let callers = holders(&world, &mut Vec::new()).await;
        for (first, caller) in [(0, &callers[2]), (1_000, &callers[3])] {
            let mut n = first;
            let refused = loop {
                match noted(caller, n).await {
                    Ok(_) => n += 1,
                    Err(refused) => break refused,
                }
            };
            assert_eq!(Reason::of(&refused), Some(Reason::OverQuota), "{refused}");
            assert!(n > first + 5);
        }
        world.now.set(RETENTION.as_millis() as u64);
        noted(&callers[2], 500).await.unwrap();
        noted(&callers[3], 1_500).await.unwrap();
        assert_counted(&world, x()).await;
    });
}

/// Those that began by a clock that was ahead are noticed also by a call that finds no room.
#[test]
fn a_clock_that_was_ahead_keeps_no_share_full_for_longer() {
    run(async {
        let world = World::with_quotas(8_000, None);
        let retention = RETENTION.as_millis() as u64;
        let callers = holders(&world, &mut Vec::new()).await;
        world.now.set(1_000 * retention);
        let mut n = 0;
        while noted(&callers[2], n).await.is_ok() {
            n += 1;
        }
        world.now.set(retention);
        noted(&callers[2], n).await.unwrap_err();
        world.now.set(2 * retention);
        noted(&callers[2], n).await.expect("they are over since they were noticed");
    });
}

/// The replies of calls by the root stay counted while grants come and go below it.
#[test]
fn a_grant_that_is_deleted_takes_nothing_off_the_share_of_its_root() {
    run(async {
        let world = World::new();
        let callers = holders(&world, &mut Vec::new()).await;
        for n in 0..10 {
            noted(&callers[1], n).await.unwrap();
        }
        let root = requests(&world.vat, x(), None).unwrap()[0].lineage[0];
        let full = share_of(&world, root);
        assert!(full.ids == 10 && full.bytes > 500 && full.grants == 0, "{full:?}");
        for label in ["one", "two", "three"] {
            revoke(&callers[1], label).await.unwrap();
        }
        settle().await;
        assert_eq!(share_of(&world, root), full);
    });
}
