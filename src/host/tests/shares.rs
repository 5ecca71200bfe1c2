//! Nobody who has a reference uses up an object's request ids, its grants or its quota for all
//! others.

mod ids;
mod without_grant;

use std::time::Duration;

use capnp::ErrorKind;
use capstead_client::once;
use capstead_client::sturdyref::GrantId;

use super::grants::{
    Terms, all_trials, by_name, labelled, listed, namespace, restore, revoke, save,
};
use super::once::Steps;
use super::references::{host, join};
use super::storage::turn;
use super::trial::{RETENTION, World, call_note, call_write, run, run_within, settle, trial};
use crate::error::{Reason, Result};
use crate::host::Object;
use crate::host::authority::calls::grant_id;
use crate::host::base::watched_clock::WATCHED;
use crate::host::engine::once::{IdSelection, Stage, clear_requests, requests};
use crate::host::engine::shares::{Share, share};
use crate::id::{ObjectId, Pool};
use crate::limits::{SHARE_GRANTS_MAX, SHARE_IDS_MAX};
use crate::storage::Reads;
use crate::storage::{Account, Space};

const X: &str = "x";

fn x() -> ObjectId {
    ObjectId::named(Pool::default(), "Trial", X)
}

fn id(n: u64) -> Vec<u8> {
    [n.to_be_bytes(), [7; 8]].concat()
}

async fn noted(to: &trial::Client, n: u64) -> Result<u64> {
    Ok(call_note(&once(to, &id(n)), n).promise.await?.get()?.get_n())
}

async fn id_of(of: &trial::Client, label: &str) -> GrantId {
    let listed = listed(of).await.unwrap();
    let (_, id) = listed.iter().find(|(found, _)| found == label).expect("it is listed");
    grant_id(id).unwrap()
}

fn share_of(world: &World, grant: GrantId) -> Share {
    share(&world.vat.turns.store(), x(), grant).unwrap()
}

/// The count that goes along with the writes is that of what is there.
async fn assert_counted(world: &World, object: ObjectId) {
    world.vat.flush().await.unwrap();
    let (_, usage) = world.vat.turns.store().identity(object).unwrap();
    assert_eq!(usage, world.disk.count(object).unwrap());
}

#[test]
fn a_call_that_never_ends_keeps_no_other_id_from_being_forgotten() {
    run(async {
        let world = World::new();
        let object = world.object_of(Steps::CLASS, X);
        let never = call_write(&once(&object, &id(u64::MAX)), 1);
        settle().await;
        let steps = ObjectId::named(Pool::default(), Steps::CLASS, X);
        for n in 0..100 {
            world.now.set(n * 2 * RETENTION.as_millis() as u64);
            noted(&object, n).await.unwrap();
            let kept = requests(&world.vat, steps, None).unwrap();
            assert!(kept.len() <= 3, "{} are kept", kept.len());
            assert_eq!(kept[0].stage, Stage::Runs);
        }
        drop(never);
        assert_counted(&world, steps).await;
    });
}

#[test]
fn a_grant_with_those_made_from_it_keeps_so_many_ids_and_others_go_on() {
    run_within(Duration::from_mins(2), async {
        let (world, agent) = host().await;
        let all = all_trials(&agent).await;
        let object = by_name(&all, X);
        let one = save(&object, &labelled("one")).await.unwrap();
        let one = restore(&agent, &one).await.unwrap();
        let below = save(&one, &labelled("below")).await.unwrap();
        let below = restore(&agent, &below).await.unwrap();
        for n in 0..SHARE_IDS_MAX.into() {
            noted(if n % 2 == 0 { &one } else { &below }, n).await.unwrap();
        }
        let most = u64::from(SHARE_IDS_MAX);
        for of in [&one, &below] {
            let refused = noted(of, most).await.unwrap_err();
            assert_eq!(refused.kind, ErrorKind::Overloaded);
            assert!(refused.extra.contains("for this grant"), "{refused}");
        }
        noted(&one, 1).await.expect("what is kept is told");
        noted(&object, most).await.expect("the root has a share of its own");
        let other = save(&object, &labelled("other")).await.unwrap();
        noted(&restore(&agent, &other).await.unwrap(), most + 1).await.unwrap();
        let (one_id, below_id) = (id_of(&object, "one").await, id_of(&object, "below").await);
        assert_eq!(share_of(&world, one_id).ids, SHARE_IDS_MAX);
        assert_eq!(share_of(&world, below_id).ids, SHARE_IDS_MAX / 2);
        assert_counted(&world, x()).await;

        // The operator forgets those of one grant.
        let cleared = clear_requests(&world.vat, x(), &IdSelection::Of(below_id)).await.unwrap();
        assert_eq!((cleared.gone, cleared.running), (most / 2, 0));
        assert_eq!(share_of(&world, below_id), Share::default());
        assert_counted(&world, x()).await;
        noted(&below, most + 2).await.unwrap();
        // Time does the same for all.
        for n in most + 3..most + most / 2 + 2 {
            noted(&one, n).await.unwrap();
        }
        noted(&one, 3 * most).await.unwrap_err();
        world.now.set(2 * RETENTION.as_millis() as u64);
        for n in 0..10 {
            noted(&below, 3 * most + n).await.unwrap();
        }
        let cleared = clear_requests(&world.vat, x(), &IdSelection::All).await.unwrap();
        assert!(cleared.gone > 0 && requests(&world.vat, x(), None).unwrap().is_empty());
        assert_eq!((share_of(&world, one_id).ids, share_of(&world, below_id).ids), (0, 0));
        assert_counted(&world, x()).await;
    });
}

/// The gateway calls by the root for every client that reaches its port.
#[test]
fn those_who_call_by_the_root_leave_ids_to_all_others() {
    run_within(Duration::from_mins(2), async {
        let (world, agent) = host().await;
        let all = all_trials(&agent).await;
        let object = by_name(&all, X);
        let one = save(&object, &labelled("one")).await.unwrap();
        let one = restore(&agent, &one).await.unwrap();
        noted(&one, 0).await.unwrap();
        let most = u64::from(SHARE_IDS_MAX);
        for n in 1..=most {
            noted(&object, n).await.unwrap();
        }
        let refused = noted(&object, most + 1).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Overloaded);
        assert_eq!(Reason::of(&refused), Some(Reason::TooManyRequestIds), "{refused}");
        noted(&one, most + 1).await.expect("there is room for holders of grants");
        let root = requests(&world.vat, x(), Some(0)).unwrap()[0].lineage[0];
        assert_eq!(share_of(&world, root).ids, SHARE_IDS_MAX);
        assert_eq!(share_of(&world, id_of(&object, "one").await).ids, 2);
        clear_requests(&world.vat, x(), &IdSelection::Of(root)).await.unwrap();
        assert_eq!(share_of(&world, root), Share::default());
        noted(&object, most + 1).await.expect("it is kept since the grant's call");
        noted(&object, most + 2).await.unwrap();
        assert_counted(&world, x()).await;
    });
}

#[test]
fn a_grant_has_so_many_below_it_and_others_go_on() {
    run_within(Duration::from_mins(2), async {
        let (world, agent) = host().await;
        let all = all_trials(&agent).await;
        let object = by_name(&all, X);
        call_write(&object, 1).promise.await.unwrap();
        let one = save(&object, &labelled("one")).await.unwrap();
        let one = restore(&agent, &one).await.unwrap();
        let text = save(&one, &labelled("below")).await.unwrap();
        let below = restore(&agent, &text).await.unwrap();
        let below_id = id_of(&object, "below").await;
        for _ in 1..SHARE_GRANTS_MAX {
            save(&below, &labelled("")).await.unwrap();
        }
        for of in [&one, &below] {
            let refused = save(of, &labelled("more")).await;
            // `below` isn't below itself.
            match refused {
                Err(error) => assert!(error.extra.starts_with("too-many-grants:"), "{error}"),
                Ok(_) => panic!("one more was made"),
            }
        }
        save(&object, &labelled("other")).await.expect("the root has no share");
        assert_counted(&world, x()).await;

        let one_id = id_of(&object, "one").await;
        revoke(&one, "below").await.unwrap();
        while share_of(&world, one_id).grants > 0 {
            settle().await;
        }
        assert_eq!(share_of(&world, below_id), Share::default());
        assert_eq!(share_of(&world, one_id), Share::default());
        save(&one, &labelled("again")).await.unwrap();
        assert_eq!(share_of(&world, one_id).grants, 1);
        assert_counted(&world, x()).await;
    });
}

/// Also those that others may survive.
#[test]
fn a_revoked_grant_takes_no_share() {
    run(async {
        let (world, agent) = host().await;
        let object = world.object(X);
        call_write(&object, 1).promise.await.unwrap();
        let terms = |label| Terms { label, allow_independent: true, ..Terms::default() };
        let one = save(&object, &terms("one")).await.unwrap();
        let one = restore(&agent, &one).await.unwrap();
        let one_id = id_of(&object, "one").await;
        let child = save(&one, &terms("child")).await.unwrap();
        let child = restore(&agent, &child).await.unwrap();
        save(&child, &Terms { independent: true, ..labelled("survivor") }).await.unwrap();
        assert_eq!(share_of(&world, one_id).grants, 2);
        revoke(&one, "child").await.unwrap();
        settle().await;
        assert_eq!(share_of(&world, one_id).grants, 1, "one survives it");
        assert_eq!(listed(&one).await.unwrap().len(), 1, "and is known to come from here");
        revoke(&one, "survivor").await.unwrap();
        settle().await;
        assert_eq!(share_of(&world, one_id), Share::default());
        assert_eq!(listed(&object).await.unwrap().len(), 1);
        assert_counted(&world, x()).await;
    });
}

#[test]
fn ids_and_grants_count_in_the_quota() {
    run(async {
        let world = World::with_quotas(8_000, None);
        let agent = join(&world).await;
        let object = world.object(X);
        let all = all_trials(&agent).await;
        let by_root = by_name(&all, X);
        let mut holders = vec![object.clone(), by_root.clone()];
        for label in ["one", "two", "three"] {
            let text = save(&by_root, &labelled(label)).await.unwrap();
            holders.push(restore(&agent, &text).await.unwrap());
        }
        let mut count = 0;
        for holder in &holders {
            let refused = loop {
                match noted(holder, count).await {
                    Ok(_) => count += 1,
                    Err(error) => break error,
                }
            };
            assert!(refused.extra.starts_with("over-quota:"), "{refused}");
        }
        assert!((40..100).contains(&count), "{count} ids");
        turn(&world.instance(X), |storage| {
            let refused = storage.put("a", vec![0; 200]).unwrap_err().extra;
            assert!(refused.contains("over-quota:"), "{refused}");
        });
        noted(&object, 0).await.expect("what is kept is told");
        assert_counted(&world, x()).await;

        // The class has what its objects have.
        let (_, usage) = world.vat.turns.store().identity(x()).unwrap();
        let again = world.restart_with_quotas(u64::MAX, Some(usage.total()));
        let refused =
            call_write(&again.object("y"), 1).promise.await.err().expect("the class is full");
        assert!(refused.extra.contains("over-quota:"), "{refused}");
        clear_requests(&again.vat, x(), &IdSelection::All).await.unwrap();
        call_write(&again.object("y"), 1).promise.await.expect("there is room again");
        assert_counted(&again, x()).await;
    });
}

/// Versions that counted neither ids nor grants left no number: they are counted with the next one.
#[test]
fn what_was_kept_before_it_counted_is_counted_once() {
    run(async {
        let (world, agent) = host().await;
        let object = world.object(X);
        call_write(&object, 1).promise.await.unwrap();
        {
            let mut store = world.vat.turns.store_mut();
            store.begin(Account::system(x()));
            for n in 0..600_u64 {
                store
                    .put_record(x(), Space::Requests, &[&[0][..], &id(n)].concat(), b"record")
                    .unwrap();
                store.put_record(x(), Space::Grants, &id(n), b"record").unwrap();
            }
            store.submit_turn();
        }
        world.vat.turns.committable().notify_one();
        world.vat.flush().await.unwrap();
        let usage = || world.vat.turns.store().identity(x()).unwrap().1;
        assert_eq!((usage().requests, usage().grants), (0, 0));
        save(&object, &labelled("new")).await.unwrap();
        drop(agent);
        assert!(usage().grants > 600 * 20 && usage().requests == 600 * 23);
        assert_counted(&world, x()).await;
    });
}

/// Lets time pass that nobody waits for.
pub(super) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Those whose time is over go when room is wanted, unless the clock may be ahead for a moment.
#[test]
fn grants_whose_time_is_over_make_room() {
    // Hours pass within it.
    run_within(Duration::from_hours(9), async {
        let world = World::with_quotas(64_000, None);
        let agent = join(&world).await;
        let object = world.object(X);
        call_write(&object, 1).promise.await.unwrap();
        let one = save(&object, &labelled("one")).await.unwrap();
        let one = restore(&agent, &one).await.unwrap();
        let one_id = id_of(&object, "one").await;
        let short = Terms { not_after: Some(1_000_000), ..labelled("short") };
        while save(&one, &short).await.is_ok() {}
        let full = share_of(&world, one_id);
        assert!(full.grants > 50, "{full:?}");

        let sweeps = &world.vat.live_grants.sweeps;
        let clock_shows = |ms| {
            world.now.set(ms);
            sweeps.clock_shows(ms);
        };
        clock_shows(900_000);
        // For a moment it is years ahead.
        pass(WATCHED).await;
        clock_shows(u64::MAX / 2);
        let long = Terms { not_after: Some(u64::MAX), ..labelled("long") };
        save(&one, &long).await.unwrap_err();
        settle().await;
        assert_eq!(share_of(&world, one_id).grants, full.grants);

        clock_shows(1_000_001);
        pass(WATCHED + Duration::from_secs(1)).await;
        clock_shows(1_000_002);
        save(&one, &long).await.unwrap_err();
        while share_of(&world, one_id) != Share::default() {
            settle().await;
        }
        save(&one, &long).await.unwrap();
        assert_counted(&world, x()).await;
    });
}

/// A clock that is ahead for a moment makes a grant of the namespace look over, and takes nothing
/// from the objects that were reached by it.
#[test]
fn what_depends_on_a_grant_of_a_namespace_survives_a_clock_that_is_ahead() {
    run(async {
        let (world, agent) = host().await;
        let all = all_trials(&agent).await;
        let short = Terms { not_after: Some(1_000_000), ..labelled("short") };
        let some = namespace(&agent, &save(&all, &short).await.unwrap()).await.unwrap();
        let object = by_name(&some, X);
        call_write(&object, 1).promise.await.unwrap();
        let kept = save(&object, &labelled("kept")).await.unwrap();
        let owner = by_name(&all, X);
        save(&owner, &labelled("other")).await.unwrap();
        drop((object, some));
        world.now.set(2_000_000);
        revoke(&owner, "other").await.unwrap();
        settle().await;
        world.now.set(2_000);
        restore(&agent, &kept).await.expect("nothing was destroyed");
    });
}
