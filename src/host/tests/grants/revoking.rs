//! Revoked grants: all that depends on them is cut, under way or at rest, and nothing else.

use std::cell::Cell;
use std::rc::Rc;

use capstead_client::sturdyref::{GrantId, Method};

use super::super::references::{host, join};
use super::super::trial::{World, call_later, call_note, call_write, log, over, read, run, settle};
use super::{
    READ, TRIAL, Terms, all_trials, as_facet, assert_revoked, attenuate, by_name, labelled, labels,
    namespace, restore, revoke, root, save,
};
use crate::host::authority::giving;
use crate::host::authority::records;
use crate::host::base::right::{GrantRef, LiveGrants, MayGive, SinceThen};
use crate::host::engine::cut;
use crate::id::{ObjectId, Pool};
use crate::sturdyref::root_grant;

/// Revoking ends what was made from the grant: references, capabilities, and calls under way.
#[test]
fn a_revoked_grant_is_cut_with_all_that_depends_on_it() {
    for hops in 0..2 {
        run(async move {
            let (world, agent) = host().await;
            let (owner, x) = (world.object("x"), world.object("x"));
            let first = save(&owner, &Terms { allow_independent: true, ..labelled("first") }).await;
            let first = first.unwrap();
            let live = over(restore(&agent, &first).await.unwrap(), hops);
            let second = save(&live, &labelled("second")).await.unwrap();
            let third = restore(&agent, &second).await.unwrap();
            let third = save(&third, &labelled("third")).await.unwrap();
            let free = Terms { independent: true, ..labelled("free") };
            let free = save(&live, &free).await.unwrap();
            let other = save(&owner, &labelled("other")).await.unwrap();
            let leaf = over(restore(&agent, &third).await.unwrap(), hops);
            let narrow = attenuate(
                &leaf,
                &Terms { methods: Some(&[Method::new(TRIAL, READ)]), ..Terms::default() },
            );
            assert_eq!(read(&narrow).await.unwrap(), 0);
            assert_eq!(labels(&owner).await, ["first", "free", "other", "second", "third"]);
            assert_eq!(labels(&live).await, ["free", "second", "third"]);
            assert_eq!(labels(&leaf).await, Vec::<String>::new());

            let before = log().len();
            let long = u64::MAX;
            let under_way = [&live, &leaf].map(|live| call_later(live, long, None).promise);
            settle().await;
            revoke(&owner, "first").await.unwrap();
            assert_eq!(log()[before..], [] as [u64; 0], "the handlers still run");
            for call in under_way {
                assert_revoked(call.await);
            }
            assert_eq!(log()[before..], [] as [u64; 0], "nobody waited for the handlers");
            for cut in [&live, &leaf, &narrow] {
                assert_revoked(read(cut).await);
            }
            for text in [&first, &second, &third] {
                assert_revoked(restore(&agent, text).await);
            }
            for text in [&free, &other] {
                read(&restore(&agent, text).await.unwrap()).await.unwrap();
            }
            read(&x).await.unwrap();
            // One that others survived is gone, and these still say that they come from here.
            assert_eq!(labels(&owner).await, ["free", "other"]);
            revoke(&owner, "free").await.expect("its maker's maker still has a say");
            assert_revoked(restore(&agent, &free).await);
            for _ in 0..3 {
                settle().await;
            }
            let object = ObjectId::named(Pool::default(), "Trial", "x");
            assert_eq!(
                records::list_behind(&world.vat, object, None, 10).unwrap().len(),
                1,
                "dead ones are swept"
            );
        });
    }
}

/// Calls that wait for an exclusive object are cut too, and the object goes on in its order.
#[test]
fn waiting_calls_are_cut_and_exclusive_objects_stay_so() {
    run(async {
        let (world, agent) = host().await;
        let owner = world.exclusive("x");
        let text = save(&owner, &labelled("guest")).await.unwrap();
        let guest = restore(&agent, &text).await.unwrap();
        let own = call_later(&owner, 300_000, None).promise;
        let waiting = call_note(&guest, 1).promise;
        let later = call_note(&owner, 2).promise;
        settle().await;
        let id = ObjectId::named(Pool::default(), "Exclusive", "x");
        let (grant, _) = records::list_behind(&world.vat, id, None, 1).unwrap().remove(0);
        giving::revoke(&world.vat, id, grant).await.unwrap();
        assert_revoked(waiting.await);
        assert_eq!(log(), [] as [u64; 0], "the object is still busy");
        own.await.unwrap();
        later.await.unwrap();
        assert_eq!(log(), [1000, 2]);
    });
}

/// A root that was revoked stays so when the host starts again.
#[test]
fn a_revoked_root_is_not_made_again() {
    run(async {
        let (world, agent) = host().await;
        let text = root("Trial").expose_text("127.0.0.1:1").unwrap();
        namespace(&agent, &text).await.unwrap();
        let id = ObjectId::namespace(Pool::default(), "Trial");
        giving::revoke(&world.vat, id, root_grant("Trial")).await.unwrap();
        assert!(giving::revoke(&world.vat, id, root_grant("Trial")).await.is_err());
        assert_revoked(namespace(&agent, &text).await);
        world.vat.close().unwrap();
        let next = World::over_disk(world.disk.clone());
        let agent = join(&next).await;
        assert_revoked(namespace(&agent, &text).await);
        let (_, other) = records::list_behind(&next.vat, id, None, 9).unwrap().remove(0);
        assert!(other.is_revoked && other.label == "root");
    });
}

/// Grants of ids that nobody made are refused like those that were revoked.
#[test]
fn nothing_can_be_revoked_twice_or_by_a_wrong_id() {
    run(async {
        let (world, _agent) = host().await;
        let owner = world.object("x");
        save(&owner, &labelled("one")).await.unwrap();
        let id = ObjectId::named(Pool::default(), "Trial", "x");
        assert!(giving::revoke(&world.vat, id, GrantId::from_bytes([9; 16])).await.is_err());
        for wrong in [&[][..], &[1; 15], &[1; 16], &[1; 17]] {
            let mut request = as_facet(&owner).revoke_request();
            request.get().set_grant(wrong);
            assert!(request.send().promise.await.is_err());
        }
        revoke(&owner, "one").await.unwrap();
        assert_eq!(labels(&owner).await, Vec::<String>::new());
    });
}

/// The first use of a grant looks it up, and everybody then uses the same one: so all are cut.
#[test]
fn a_grant_that_is_found_twice_is_one() {
    let grants = Rc::new(LiveGrants::default());
    let of = GrantRef::new(ObjectId::namespace(Pool::default(), "Trial"), root_grant("Trial"));
    let may_give = || MayGive { independent: true, ..MayGive::default() };
    let found = [grants.add(of, None, may_give()), grants.add(of, None, may_give())];
    let child = GrantRef::new(of.target, GrantId::from_bytes([1; 16]));
    let child = grants.add(child, Some(found[0].clone()), may_give());
    let before = grants.moment();
    assert!(grants.cut(of));
    assert!(found.iter().all(|live| live.is_cut()) && child.is_cut());
    assert!(grants.get(of).is_none() && grants.since(before, of) == SinceThen::Cut);
    let since = grants.since(grants.moment(), of);
    assert_eq!(since, SinceThen::Uncut, "an answer from now on is believed");
    let again = grants.add(of, None, may_give());
    drop(found);
    assert!(
        grants.get(of).is_some_and(|live| Rc::ptr_eq(&live, &again)),
        "the old ones don't take it away"
    );
}

/// However many grants of a namespace are cut at once, one walk in steps ends what was made from
/// them.
#[test]
fn cuts_of_a_namespace_hold_up_nobody() {
    run(async {
        let (world, agent) = host().await;
        let all = all_trials(&agent).await;
        let held: Vec<_> = (0..5000).map(|n| by_name(&all, &n.to_string())).collect();
        read(&held[4999]).await.unwrap();
        let target = ObjectId::namespace(Pool::default(), "Trial");
        let turns = Rc::new(Cell::new(0));
        let theirs = turns.clone();
        let other = tokio::task::spawn_local(async move {
            loop {
                theirs.set(theirs.get() + 1);
                tokio::task::yield_now().await;
            }
        });
        for n in 0..1000_u16 {
            let mut id = [7; 16];
            id[..2].copy_from_slice(&n.to_be_bytes());
            let grant = GrantId::from_bytes(id);
            let live =
                world.vat.live_grants.add(GrantRef::new(target, grant), None, MayGive::default());
            cut::cut(&world.vat, target, &[grant]);
            assert!(live.is_cut(), "at once");
        }
        world.vat.cut_walks.caught_up().await;
        let turns = turns.get();
        // One walk over 5,000 objects has five steps of 1,024 at most.
        assert!((5..50).contains(&turns), "{turns} turns of another task");
        other.abort();
    });
}

/// An answer that waits for the disk when the grant is revoked doesn't leave any more.
#[test]
fn an_answer_that_waits_for_the_disk_is_cut() {
    run(async {
        let (world, agent) = host().await;
        let text = save(&world.object("x"), &labelled("guest")).await.unwrap();
        let guest = restore(&agent, &text).await.unwrap();
        let id = ObjectId::named(Pool::default(), "Trial", "x");
        let (grant, _) = records::list_behind(&world.vat, id, None, 1).unwrap().remove(0);
        let held = world.disk.hold();
        let writing = call_write(&guest, 7).promise;
        settle().await;
        cut::cut(&world.vat, id, &[grant]);
        drop(held);
        assert_revoked(writing.await);
    });
}

/// An answer to what was asked before so many cuts that not all are remembered isn't believed.
#[test]
fn a_cut_that_is_forgotten_counts_for_those_who_asked_before() {
    let grants = Rc::new(LiveGrants::default());
    let namespace = ObjectId::namespace(Pool::default(), "Trial");
    let of = |n: u16| {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&n.to_be_bytes());
        GrantRef::new(namespace, GrantId::from_bytes(id))
    };
    let before = grants.moment();
    let since = |n| grants.since(before, of(n));
    for n in 0..16_384 {
        grants.cut(of(n));
    }
    assert_eq!((since(0), since(16_384)), (SinceThen::Cut, SinceThen::Uncut));
    grants.cut(of(16_385));
    assert_eq!((since(0), since(16_384)), (SinceThen::Forgotten, SinceThen::Forgotten));
}
