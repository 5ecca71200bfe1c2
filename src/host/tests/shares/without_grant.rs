//! All that is kept for those who have no grant, or one that such a holder had made, has one share.

use std::time::Duration;

use super::super::grants::{all_trials, by_name, labelled, restore, revoke, save};
use super::super::references::{host, join};
use super::super::trial::{World, call_write, run, run_within, settle};
use super::{X, assert_counted, id_of, noted, share_of, x};
use crate::error::Reason;
use crate::host::base::right::WITHOUT_GRANT;
use crate::host::engine::shares::Share;
use crate::limits::SHARE_IDS_MAX;

/// Objects give such capabilities of themselves away, and HTTP makes references of them.
#[test]
fn those_who_save_without_a_grant_leave_room_to_all_others() {
    run(async {
        let world = World::with_quotas(64_000, None);
        let agent = join(&world).await;
        let object = world.object(X);
        call_write(&object, 1).promise.await.unwrap();
        let all = all_trials(&agent).await;
        let by_root = by_name(&all, X);
        let one = save(&by_root, &labelled("one")).await.unwrap();
        let one = restore(&agent, &one).await.unwrap();
        let refused = loop {
            if let Err(refused) = save(&object, &labelled("theirs")).await {
                break refused;
            }
        };
        assert_eq!(Reason::of(&refused), Some(Reason::OverQuota), "{refused}");
        let full = share_of(&world, WITHOUT_GRANT);
        assert!(full.bytes >= 16_000 && full.bytes < 17_000, "{full:?}");
        save(&one, &labelled("below")).await.expect("a grant has a share of its own");
        save(&by_root, &labelled("other")).await.expect("the root is the operator's");
        call_write(&object, 2).promise.await.expect("the quota isn't used up");
        revoke(&object, "theirs").await.unwrap();
        assert!(share_of(&world, WITHOUT_GRANT).bytes < full.bytes);
        save(&object, &labelled("again")).await.unwrap();
        assert_counted(&world, x()).await;
    });
}

/// Otherwise each grant that such a holder has made would have a share of its own.
#[test]
fn grants_below_those_that_were_saved_without_a_grant_have_no_room_of_their_own() {
    run(async {
        let world = World::with_quotas(64_000, None);
        let agent = join(&world).await;
        let object = world.object(X);
        call_write(&object, 1).promise.await.unwrap();
        let all = all_trials(&agent).await;
        let by_root = by_name(&all, X);
        let theirs = restore(&agent, &save(&object, &labelled("theirs")).await.unwrap()).await;
        let theirs = theirs.unwrap();
        let below = restore(&agent, &save(&theirs, &labelled("below")).await.unwrap()).await;
        let below = below.unwrap();
        let mut count = 0;
        let refused = loop {
            let from = if count % 2 == 0 { &theirs } else { &below };
            match save(from, &labelled("more")).await {
                Ok(_) => count += 1,
                Err(refused) => break refused,
            }
        };
        assert_eq!(Reason::of(&refused), Some(Reason::OverQuota), "{refused}");
        assert!(count > 20, "{count}");
        let full = share_of(&world, WITHOUT_GRANT);
        assert_eq!(full.grants, count + 2);
        assert!(full.bytes >= 16_000 && full.bytes < 17_000, "{full:?}");
        save(&object, &labelled("fresh")).await.expect_err("a fresh one changes nothing");
        save(&by_root, &labelled("other")).await.expect("the root is the operator's");
        // All of them go with the first.
        revoke(&object, "theirs").await.unwrap();
        while share_of(&world, WITHOUT_GRANT) != Share::default() {
            settle().await;
        }
        save(&object, &labelled("again")).await.unwrap();
        assert_counted(&world, x()).await;
    });
}

#[test]
fn those_who_call_without_a_grant_leave_ids_to_all_others() {
    run_within(Duration::from_mins(2), async {
        let (world, agent) = host().await;
        let object = world.object(X);
        let all = all_trials(&agent).await;
        let by_root = by_name(&all, X);
        let theirs = restore(&agent, &save(&object, &labelled("theirs")).await.unwrap()).await;
        let theirs = theirs.unwrap();
        let most = u64::from(SHARE_IDS_MAX);
        for n in 0..most {
            noted(if n % 4 == 0 { &theirs } else { &object }, n).await.unwrap();
        }
        for of in [&object, &world.object(X), &theirs] {
            let refused = noted(of, most).await.unwrap_err();
            assert_eq!(Reason::of(&refused), Some(Reason::TooManyRequestIds), "{refused}");
        }
        assert_eq!(share_of(&world, WITHOUT_GRANT).ids, SHARE_IDS_MAX);
        assert_eq!(share_of(&world, id_of(&object, "theirs").await).ids, SHARE_IDS_MAX / 4);
        noted(&by_root, most).await.expect("there is room for holders of grants");
        noted(&object, 1).await.expect("what is kept is told");
        assert_counted(&world, x()).await;
    });
}
