//! Grants: made, listed, narrowed, revoked; and that nobody gets more than he was given.

use std::rc::Rc;
use std::time::Duration;

use capnp::capability::{Client, FromClientHook};
use capnp::{Error, ErrorKind};
use capstead_client::sturdyref::{Caveats, GrantId, Sturdyref, TextReference};
use ed25519_dalek::SigningKey;

use super::references::{host, join, keys};
use super::trial::{
    Trial, World, call_later, call_note, call_write, log, over, read, run, settle, trial,
};
use crate::host::gated::Gated;
use crate::host::granting::grant_id;
use crate::host::instance::Instance;
use crate::host::right::{Gives, Grants};
use crate::host::run::{Cause, turn};
use crate::host::slot::Birth;
use crate::host::{Agent, Context};
use crate::id::{ObjectId, Pool};
use crate::limits::OVER_GRANTS_KEPT_MS;
use crate::schema::facet_capnp::{facet, persistent};
use crate::schema::restorer_capnp::{namespace, restoration, restorer};
use crate::sturdyref::{Parent, root_grant};

pub(super) const NOTE: u16 = 0;
pub(super) const READ: u16 = 2;
pub(super) const TRIAL: u64 = <trial::Client as capnp::traits::HasTypeId>::TYPE_ID;
pub(super) const NAMESPACE: u64 = <namespace::Client as capnp::traits::HasTypeId>::TYPE_ID;
pub(super) const BY_NAME: u16 = 0;

/// What is asked for with `save`.
#[derive(Clone, Default)]
pub(super) struct Terms<'a> {
    pub(super) label: &'a str,
    pub(super) methods: Option<&'a [(u64, u16)]>,
    pub(super) not_after: Option<u64>,
    pub(super) holder: Option<[u8; 32]>,
    pub(super) independent: bool,
    pub(super) allow_independent: bool,
    pub(super) dependent: bool,
}

pub(super) fn set_caveats(
    mut to: crate::schema::facet_capnp::caveats::Builder<'_>,
    terms: &Terms<'_>,
) {
    if let Some(last) = terms.not_after {
        to.set_not_after(last);
    }
    to.set_dependent(terms.dependent);
    if let Some(holder) = terms.holder {
        to.reborrow().init_holders(1).set(0, &holder);
    }
    let Some(methods) = terms.methods else { return };
    let mut list = to.init_methods(methods.len() as u32);
    for (at, (interface, ordinal)) in (0..).zip(methods) {
        let mut one = list.reborrow().get(at);
        one.set_interface(*interface);
        one.init_ordinals(1).set(0, *ordinal);
    }
}

pub(super) async fn save(of: &impl FromClientHook, terms: &Terms<'_>) -> Result<String, Error> {
    let mut request =
        persistent::Client { client: Client::new(of.as_client_hook().add_ref()) }.save_request();
    let mut seal_for = request.get().init_seal_for();
    seal_for.set_label(terms.label);
    seal_for.set_independent(terms.independent);
    seal_for.set_allow_independent(terms.allow_independent);
    set_caveats(seal_for.init_caveats(), terms);
    Ok(request.send().promise.await?.get()?.get_sturdy_ref()?.to_string()?)
}

pub(super) fn attenuate<C: FromClientHook>(cap: &C, terms: &Terms<'_>) -> C {
    let mut request = as_facet(cap).attenuate_request();
    set_caveats(request.get().init_caveats(), terms);
    request.send().pipeline.get_facet().as_cap().cast_to()
}

pub(super) fn as_facet(cap: &impl FromClientHook) -> facet::Client {
    facet::Client { client: Client::new(cap.as_client_hook().add_ref()) }
}

pub(super) async fn restore(agent: &Rc<Agent>, text: &str) -> Result<trial::Client, Error> {
    let reference = TextReference::parse(text)?;
    agent.restore_bytes(reference.reference().expose_bytes()).await.map(trial::Client::new)
}

/// The labels and ids that somebody sees.
pub(super) async fn listed(cap: &impl FromClientHook) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let (mut all, mut after) = (Vec::new(), Vec::new());
    loop {
        let mut request = as_facet(cap).grants_request();
        request.get().set_after(&after);
        let reply = request.send().promise.await?;
        for grant in reply.get()?.get_grants()? {
            all.push((grant.get_label()?.to_string()?, grant.get_id()?.to_vec()));
        }
        after = reply.get()?.get_next()?.to_vec();
        if after.is_empty() {
            all.sort();
            return Ok(all);
        }
    }
}

pub(super) async fn labels(cap: &impl FromClientHook) -> Vec<String> {
    listed(cap).await.unwrap().into_iter().map(|(label, _)| label).collect()
}

pub(super) async fn revoke(cap: &impl FromClientHook, label: &str) -> Result<(), Error> {
    let listed = listed(cap).await?;
    let (_, id) = listed.iter().find(|(found, _)| found == label).expect("it is listed");
    let mut request = as_facet(cap).revoke_request();
    request.get().set_grant(id);
    request.send().promise.await.map(drop)
}

pub(super) fn assert_revoked<T>(outcome: Result<T, Error>) {
    let error = outcome.err().expect("it was revoked");
    assert!(error.extra.contains("revoked:"), "{error}");
}

pub(super) fn labelled(label: &str) -> Terms<'_> {
    Terms { label, ..Terms::default() }
}

/// What is saved is restored, also in the next process, and its grant says who has it.
#[test]
fn a_saved_reference_survives_the_process() {
    run(async {
        let (world, agent) = host().await;
        let object = world.object("x");
        call_write(&object, 7).promise.await.unwrap();
        let text = save(&object, &labelled("for Ada")).await.unwrap();
        assert!(text.starts_with("capstead://127.0.0.1:4000/#"));
        assert_eq!(read(&restore(&agent, &text).await.unwrap()).await.unwrap(), 7);
        assert_eq!(labels(&object).await, ["for Ada"]);
        world.vat.close().unwrap();

        let next = World::over_disk(world.disk.clone());
        let agent = join(&next).await;
        assert_eq!(read(&restore(&agent, &text).await.unwrap()).await.unwrap(), 7);
        assert_eq!(labels(&next.object("x")).await, ["for Ada"]);
    });
}

/// An object exists from its first grant on, and no grant is told of before it is durable.
#[test]
fn a_reference_is_given_out_when_its_grant_is_durable() {
    run(async {
        let (world, agent) = host().await;
        let held = world.disk.hold();
        let object = world.object("x");
        let saving =
            tokio::task::spawn_local(async move { save(&object, &Terms::default()).await });
        settle().await;
        assert!(!saving.is_finished(), "the grant is not durable yet");
        drop(held);
        let text = saving.await.unwrap().unwrap();
        assert_eq!(read(&restore(&agent, &text).await.unwrap()).await.unwrap(), 0);
    });
}

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
            let narrow =
                attenuate(&leaf, &Terms { methods: Some(&[(TRIAL, READ)]), ..Terms::default() });
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
            // What others survived is still known, as revoked.
            assert_eq!(labels(&owner).await, ["first", "free", "other"]);
            assert!(revoke(&owner, "first").await.is_err());
            revoke(&owner, "free").await.expect("its maker's maker still has a say");
            assert_revoked(restore(&agent, &free).await);
            for _ in 0..3 {
                settle().await;
            }
            let object = ObjectId::named(Pool::default(), "Trial", "x");
            assert_eq!(
                world.vat.grants_behind(object, None, 10).unwrap().len(),
                2,
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
        let (grant, _) = world.vat.grants_behind(id, None, 1).unwrap().remove(0);
        world.vat.revoke(id, grant).await.unwrap();
        assert_revoked(waiting.await);
        assert_eq!(log(), [] as [u64; 0], "the object is still busy");
        own.await.unwrap();
        later.await.unwrap();
        assert_eq!(log(), [1000, 2]);
    });
}

/// Of an attenuated object there is nothing but the methods that were left.
#[test]
fn an_attenuated_facet_answers_its_methods_and_nothing_else() {
    for hops in 0..2 {
        run(async move {
            let (world, agent) = host().await;
            let owner = over(world.object("x"), hops);
            let only_read = Terms { methods: Some(&[(TRIAL, READ)]), ..Terms::default() };
            let narrow = attenuate(&owner, &only_read);
            assert_eq!(read(&narrow).await.unwrap(), 0);
            let refused = call_note(&narrow, 1).promise.await.err().unwrap();
            let unknown = narrow
                .client
                .new_call::<capnp::any_pointer::Owned, capnp::any_pointer::Owned>(TRIAL, 99, None);
            let unknown = unknown.send().promise.await.err().unwrap();
            assert_eq!(refused.kind, ErrorKind::Unimplemented);
            let not_there = |method| crate::error::no_such_method(TRIAL, method).extra;
            assert!(refused.extra.ends_with(&not_there(NOTE)), "{refused}");
            assert!(unknown.extra.ends_with(&not_there(99)), "as if it were not there: {unknown}");
            // Nothing widens it again.
            let all = Terms { methods: Some(&[(TRIAL, NOTE), (TRIAL, READ)]), ..Terms::default() };
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

/// What isn't allowed isn't made.
#[test]
fn a_grant_that_would_be_too_much_is_refused() {
    run(async {
        let (world, agent) = host().await;
        let owner = world.object("x");
        let text = save(&owner, &labelled("dependent")).await.unwrap();
        let live = restore(&agent, &text).await.unwrap();
        for wants in [
            Terms { independent: true, ..labelled("a") },
            Terms { allow_independent: true, ..labelled("b") },
        ] {
            let refused = save(&live, &wants).await.err().unwrap();
            assert!(refused.extra.contains("not-allowed:"), "{refused}");
        }
        let long = "x".repeat(257);
        assert!(save(&owner, &labelled(&long)).await.err().unwrap().extra.contains("256 bytes"));
        let weak = Terms { holder: Some([0; 32]), ..Terms::default() };
        assert!(save(&owner, &weak).await.is_err());
        let methods: Vec<_> = (0..257).map(|ordinal| (TRIAL, ordinal)).collect();
        let many = Terms { methods: Some(&methods), ..Terms::default() };
        assert!(save(&owner, &many).await.err().unwrap().extra.contains("too-many-methods:"));
        assert_eq!(labels(&owner).await, ["dependent"]);

        let mut live = live;
        for depth in 1..16 {
            let text = save(&live, &labelled("deep"))
                .await
                .unwrap_or_else(|error| panic!("{depth}: {error}"));
            live = restore(&agent, &text).await.unwrap();
        }
        assert!(save(&live, &labelled("deeper")).await.err().unwrap().extra.contains("too-deep:"));
    });
}

/// Whoever holds a reference has no say over the grants of others.
#[test]
fn a_holder_lists_and_revokes_what_was_made_from_his_own_grant() {
    run(async {
        let (world, agent) = host().await;
        let owner = world.object("x");
        let one = restore(&agent, &save(&owner, &labelled("one")).await.unwrap()).await.unwrap();
        let two = restore(&agent, &save(&owner, &labelled("two")).await.unwrap()).await.unwrap();
        save(&one, &labelled("from one")).await.unwrap();
        assert_eq!(labels(&one).await, ["from one"]);
        assert_eq!(labels(&two).await, Vec::<String>::new());
        let ids = listed(&owner).await.unwrap();
        for (label, id) in &ids {
            let mut request = as_facet(&two).revoke_request();
            request.get().set_grant(id);
            let refused = request.send().promise.await.err().unwrap();
            assert!(refused.extra.contains("no-such-grant:"), "{label}: {refused}");
        }
        assert_eq!(listed(&owner).await.unwrap(), ids);
        revoke(&one, "from one").await.unwrap();
        assert_eq!(labels(&owner).await, ["one", "two"]);
    });
}

/// What an object made itself ends with it.
#[test]
fn what_an_object_made_itself_has_no_grants() {
    run(async {
        let (world, _agent) = host().await;
        let child = world.object("x").child_request().send().promise.await.unwrap();
        let child = child.get().unwrap().get_cap().unwrap();
        let refused = save(&child, &Terms::default()).await.err().unwrap();
        assert!(refused.extra.contains("not-a-reference:"), "{refused}");
        assert!(listed(&child).await.is_err());
        let narrow =
            attenuate(&child, &Terms { methods: Some(&[(TRIAL, NOTE)]), ..Terms::default() });
        call_note(&narrow, 5).promise.await.unwrap();
        assert!(read(&narrow).await.is_err());
    });
}

pub(super) async fn namespace(agent: &Rc<Agent>, text: &str) -> Result<namespace::Client, Error> {
    let reference = TextReference::parse(text)?;
    agent.restore_bytes(reference.reference().expose_bytes()).await.map(namespace::Client::new)
}

pub(super) fn by_name(of: &namespace::Client, key: &str) -> trial::Client {
    let mut request = of.by_name_request();
    request.get().set_key(key);
    request.send().pipeline.get_object().as_cap().cast_to()
}

pub(super) fn root(class: &str) -> Sturdyref {
    let id = ObjectId::namespace(Pool::default(), class);
    let target = capstead_client::sturdyref::Target::Namespace(
        capstead_client::sturdyref::TargetId::from_bytes(*id.as_bytes()),
    );
    keys().current().root_reference(target, root_grant(class))
}

/// What is reached through a namespace depends on the namespace's grant, however it was saved.
#[test]
fn a_namespace_is_narrowed_and_revoked_with_all_that_came_through_it() {
    run(async {
        let (world, agent) = host().await;
        world.now.set(1_000);
        let root_text = root("Trial").expose_text("127.0.0.1:1").unwrap();
        let all = namespace(&agent, &root_text).await.unwrap();
        let one =
            save(&all, &Terms { methods: Some(&[(NAMESPACE, BY_NAME)]), ..labelled("guest") })
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

/// A root that was revoked stays so when the host starts again.
#[test]
fn a_revoked_root_is_not_made_again() {
    run(async {
        let (world, agent) = host().await;
        let text = root("Trial").expose_text("127.0.0.1:1").unwrap();
        namespace(&agent, &text).await.unwrap();
        let id = ObjectId::namespace(Pool::default(), "Trial");
        world.vat.revoke(id, root_grant("Trial")).await.unwrap();
        assert!(world.vat.revoke(id, root_grant("Trial")).await.is_err());
        assert_revoked(namespace(&agent, &text).await);
        world.vat.close().unwrap();
        let next = World::over_disk(world.disk.clone());
        let agent = join(&next).await;
        assert_revoked(namespace(&agent, &text).await);
        let (_, other) = next.vat.grants_behind(id, None, 9).unwrap().remove(0);
        assert!(other.is_revoked && other.label == "root");
    });
}

async fn challenge(
    door: &restorer::Client,
    text: &str,
) -> Result<([u8; 32], restoration::Client), Error> {
    let mut request = door.challenge_request();
    request.get().set_sturdy_ref(text);
    let reply = request.send().promise.await?;
    let reply = reply.get()?;
    Ok((reply.get_challenge()?.try_into().unwrap(), reply.get_restoration()?))
}

async fn finish(of: &restoration::Client, signatures: &[[u8; 64]]) -> Result<trial::Client, Error> {
    let mut request = of.finish_request();
    let mut list = request.get().init_signatures(signatures.len() as u32);
    for (at, signature) in (0..).zip(signatures) {
        list.set(at, signature);
    }
    request.send().promise.await?.get()?.get_cap().get_as_capability()
}

/// A stolen reference is of no use without the holder's key, and a proof is good once, here.
#[test]
fn a_reference_that_is_bound_to_a_holder_takes_his_proof() {
    run(async {
        let (world, agent) = host().await;
        let key = SigningKey::from_bytes(&[4; 32]);
        let bound = Terms { holder: Some(key.verifying_key().to_bytes()), ..Terms::default() };
        let text = save(&world.object("x"), &bound).await.unwrap();
        let refused = "the reference was refused";
        assert_eq!(restore(&agent, &text).await.err().unwrap().extra, refused);

        let door = agent.restorer();
        let reference = TextReference::parse(&text).unwrap();
        let prove =
            |challenge| reference.reference().prove(challenge, std::slice::from_ref(&key)).unwrap();
        let (fresh, restoration) = challenge(&door, &text).await.unwrap();
        let other = SigningKey::from_bytes(&[5; 32]);
        let forged = ed25519_dalek::Signer::sign(&other, &fresh).to_bytes();
        for wrong in [vec![], vec![forged], vec![prove(&fresh)[0], prove(&fresh)[0]]] {
            let (_, restoration) = challenge(&door, &text).await.unwrap();
            assert_eq!(finish(&restoration, &wrong).await.err().unwrap().extra, refused);
            let again = finish(&restoration, &prove(&fresh)).await.err().unwrap();
            assert!(again.extra.contains("ask for another one"), "{again}");
        }
        let (_, elsewhere) = challenge(&door, &text).await.unwrap();
        let replayed = finish(&elsewhere, &prove(&fresh)).await.err().unwrap();
        assert_eq!(replayed.extra, refused, "a proof for another challenge");

        let live = finish(&restoration, &prove(&fresh)).await.unwrap();
        read(&live).await.unwrap();
        assert!(
            finish(&restoration, &prove(&fresh)).await.is_err(),
            "a challenge is for one proof"
        );
        let saved = save(&live, &Terms::default()).await.unwrap();
        assert_eq!(restore(&agent, &saved).await.err().unwrap().extra, refused, "still bound");

        let (late, restoration) = challenge(&door, &text).await.unwrap();
        world.now.set(world.now.get() + 30_001);
        assert!(finish(&restoration, &prove(&late)).await.is_err());

        // To who proves that he is the holder, a revoked reference is called so; to others it is refused.
        let id = ObjectId::named(Pool::default(), "Trial", "x");
        let grants = world.vat.grants_behind(id, None, 9).unwrap();
        let (first, _) = grants.iter().find(|(_, grant)| grant.parent == Parent::None).unwrap();
        world.vat.revoke(id, *first).await.unwrap();
        assert_eq!(restore(&agent, &text).await.err().unwrap().extra, refused);
        let (fresh, restoration) = challenge(&door, &text).await.unwrap();
        assert_revoked(finish(&restoration, &prove(&fresh)).await);
    });
}

/// The last use of a grant is known, and not written for each.
#[test]
fn the_last_restore_is_written_down_now_and_then() {
    run(async {
        let (world, agent) = host().await;
        let owner = world.object("x");
        world.now.set(5_000);
        let text = save(&owner, &Terms::default()).await.unwrap();
        let id = ObjectId::named(Pool::default(), "Trial", "x");
        let last = |vat: &crate::host::Vat| {
            vat.grants_behind(id, None, 9).unwrap().remove(0).1.restored_ms
        };
        assert_eq!(last(&world.vat), 0);
        let before = world.vat.store.borrow().last_sealed();
        for now in [6_000, 7_000, 8_000] {
            world.now.set(now);
            restore(&agent, &text).await.unwrap();
            assert_eq!(last(&world.vat), now);
        }
        assert_eq!(world.vat.store.borrow().last_sealed(), before, "nothing was written yet");
        world.vat.close().unwrap();
        let next = World::over_disk(world.disk.clone());
        assert_eq!(last(&next.vat), 8_000);
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
                        .map(|bit| (TRIAL, bit))
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

/// Grants of ids that nobody made are refused like those that were revoked.
#[test]
fn nothing_can_be_revoked_twice_or_by_a_wrong_id() {
    run(async {
        let (world, _agent) = host().await;
        let owner = world.object("x");
        save(&owner, &labelled("one")).await.unwrap();
        let id = ObjectId::named(Pool::default(), "Trial", "x");
        assert!(world.vat.revoke(id, GrantId::from_bytes([9; 16])).await.is_err());
        for wrong in [&[][..], &[1; 15], &[1; 16], &[1; 17]] {
            let mut request = as_facet(&owner).revoke_request();
            request.get().set_grant(wrong);
            assert!(request.send().promise.await.is_err());
        }
        revoke(&owner, "one").await.unwrap();
        assert_eq!(labels(&owner).await, Vec::<String>::new());
    });
}

/// A class has what it was given, and no name or id leads it to anything else.
#[test]
fn a_class_reaches_nothing_that_it_was_not_given() {
    run(async {
        let (world, _agent) = host().await;
        call_write(&world.object("x"), 1).promise.await.unwrap();
        let class = world.vat.class("Steps").unwrap();
        let id = ObjectId::named(Pool::default(), "Steps", "x");
        let birth = Birth { id, class, key: Some("x".into()) };
        let ctx = Context::new(Instance::new(&world.vat, birth).unwrap());
        for binding in ["trials", "Trial", "Steps", "x", ""] {
            let refused = ctx.namespace::<Trial>(binding).err().unwrap();
            assert!(refused.extra.contains("unbound:"), "{refused}");
        }
        assert!(ctx.create::<Trial>().err().unwrap().extra.contains("unbound:"));
        for key in ["x", "trials", "Trial"] {
            assert!(ctx.storage().get_ref::<trial::Client>(key).unwrap().is_none());
        }
    });
}

/// An object may make and revoke grants of a namespace that it was given, in the middle of a turn.
#[test]
fn an_object_uses_a_namespace_within_its_turn() {
    run(async {
        let (world, agent) = host().await;
        let root_text = root("Trial").expose_text("127.0.0.1:1").unwrap();
        let all = namespace(&agent, &root_text).await.unwrap();
        let instance = world.instance("x");
        let gated = Client::new(Gated::wrap(&instance, all.client.hook.add_ref()));
        let request = persistent::Client { client: gated.clone() }.save_request();
        let saving = turn(&instance, &Cause::default(), || request.send().promise);
        let text = saving.ok().expect("the turn ends well").await.unwrap();
        let text = text.get().unwrap().get_sturdy_ref().unwrap().to_string().unwrap();
        namespace(&agent, &text).await.unwrap();
        let id = ObjectId::namespace(Pool::default(), "Trial");
        let (grant, _) = world
            .vat
            .grants_behind(id, None, 9)
            .unwrap()
            .into_iter()
            .find(|(_, grant)| grant.label.is_empty())
            .unwrap();
        let mut request = facet::Client { client: gated }.revoke_request();
        request.get().set_grant(grant.as_bytes());
        let revoking = turn(&instance, &Cause::default(), || request.send().promise);
        revoking.ok().expect("the turn ends well").await.unwrap();
        assert_revoked(namespace(&agent, &text).await);
    });
}

/// Who uses a grant first has it looked up, and everybody then uses the same one: so all are cut.
#[test]
fn a_grant_that_is_found_twice_is_one() {
    let grants = Rc::new(Grants::default());
    let of = (ObjectId::namespace(Pool::default(), "Trial"), root_grant("Trial"));
    let gives = || Gives { independent: true, ..Gives::default() };
    let found = [grants.add(of, None, gives()), grants.add(of, None, gives())];
    let child = (of.0, GrantId::from_bytes([1; 16]));
    let child = grants.add(child, Some(found[0].clone()), gives());
    let before = grants.moment();
    assert!(grants.cut(of));
    assert!(found.iter().all(|live| live.is_cut()) && child.is_cut());
    assert!(grants.get(of).is_none() && grants.was_cut_since(of, before));
    assert!(!grants.was_cut_since(of, grants.moment()), "whoever asks now is believed");
    let again = grants.add(of, None, gives());
    drop(found);
    assert!(
        grants.get(of).is_some_and(|live| Rc::ptr_eq(&live, &again)),
        "the old ones don't take it away"
    );
}

/// A long list comes in parts, of which some are empty for who sees little of it.
#[test]
fn a_long_list_of_grants_is_whole() {
    run(async {
        let (world, agent) = host().await;
        let owner = world.object("x");
        let text = save(&owner, &labelled("guest")).await.unwrap();
        let guest = restore(&agent, &text).await.unwrap();
        for n in 0..200 {
            save(&owner, &labelled(&format!("{n}"))).await.unwrap();
        }
        let mine = ["a", "b", "c"];
        for label in mine {
            save(&guest, &labelled(label)).await.unwrap();
        }
        assert_eq!(labels(&owner).await.len(), 204);
        assert_eq!(labels(&guest).await, mine);
        revoke(&owner, "guest").await.unwrap();
        assert_eq!(labels(&owner).await.len(), 200);
    });
}

/// The last use reaches the disk by itself, and once for many restores.
#[test]
fn the_last_use_is_written_down_from_time_to_time() {
    run(async {
        let (world, agent) = host().await;
        let owner = world.object("x");
        let text = save(&owner, &Terms::default()).await.unwrap();
        world.now.set(9_000);
        for _ in 0..50 {
            restore(&agent, &text).await.unwrap();
        }
        let before = world.vat.store.borrow().last_sealed().0;
        world.vat.note_restores(Duration::from_millis(20));
        let id = ObjectId::named(Pool::default(), "Trial", "x");
        loop {
            world.vat.flush().await.unwrap();
            let (grant, _) = world.vat.grants_behind(id, None, 1).unwrap().remove(0);
            if world.vat.grant((id, grant)).unwrap().unwrap().restored_ms == 9_000 {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(world.vat.store.borrow().last_sealed().0, before + 1);
    });
}

/// A class gives away what it decides, and takes it back.
#[test]
fn a_class_grants_and_revokes_within_its_turn() {
    run(async {
        let (world, agent) = host().await;
        let instance = world.instance("x");
        let ctx = Context::new(instance.clone());
        let reading = Caveats::none().with_methods([(TRIAL, READ)]).unwrap();
        let terms = crate::host::Terms::new("readers").caveats(&reading).allow_independent();
        let granted =
            turn(&instance, &Cause::default(), || ctx.grant(terms)).ok().unwrap().unwrap();
        assert!(!format!("{granted:?}").contains(&granted.text), "the text is a secret");
        world.vat.flush().await.unwrap();
        let reader = restore(&agent, &granted.text).await.unwrap();
        read(&reader).await.unwrap();
        assert!(call_note(&reader, 1).promise.await.is_err());
        turn(&instance, &Cause::default(), || ctx.revoke(granted.id)).ok().unwrap().unwrap();
        assert_revoked(read(&reader).await);
        assert_revoked(restore(&agent, &granted.text).await);
        assert!(ctx.grant(crate::host::Terms::new("nobody")).is_err(), "outside of a turn");
    });
}

/// What waits for the disk when the grant is revoked doesn't leave any more.
#[test]
fn an_answer_that_waits_for_the_disk_is_cut() {
    run(async {
        let (world, agent) = host().await;
        let text = save(&world.object("x"), &labelled("guest")).await.unwrap();
        let guest = restore(&agent, &text).await.unwrap();
        let id = ObjectId::named(Pool::default(), "Trial", "x");
        let (grant, _) = world.vat.grants_behind(id, None, 1).unwrap().remove(0);
        let held = world.disk.hold();
        let writing = call_write(&guest, 7).promise;
        settle().await;
        world.vat.cut(id, &[grant]);
        drop(held);
        assert_revoked(writing.await);
    });
}

/// A set with methods of objects restricts these too, and not the namespace alone.
#[test]
fn methods_of_objects_are_restricted_through_their_namespace() {
    run(async {
        let (_world, agent) = host().await;
        let root_text = root("Trial").expose_text("127.0.0.1:1").unwrap();
        let all = namespace(&agent, &root_text).await.unwrap();
        let methods = [(NAMESPACE, BY_NAME), (TRIAL, READ)];
        let narrow = attenuate(&all, &Terms { methods: Some(&methods), ..Terms::default() });
        let object = by_name(&narrow, "x");
        read(&object).await.unwrap();
        assert_eq!(
            call_note(&object, 1).promise.await.err().unwrap().kind,
            ErrorKind::Unimplemented
        );
    });
}

/// What was asked before so many cuts that not all are remembered isn't believed.
#[test]
fn a_cut_that_is_forgotten_counts_for_those_who_asked_before() {
    let grants = Rc::new(Grants::default());
    let namespace = ObjectId::namespace(Pool::default(), "Trial");
    let of = |n: u16| {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&n.to_be_bytes());
        (namespace, GrantId::from_bytes(id))
    };
    let before = grants.moment();
    for n in 0..1024 {
        grants.cut(of(n));
    }
    assert!(grants.was_cut_since(of(0), before) && !grants.was_cut_since(of(1024), before));
    grants.cut(of(1025));
    assert!(grants.was_cut_since(of(0), before) && grants.was_cut_since(of(1024), before));
}

/// A clock that is ahead for a moment destroys nothing: a revocation sweeps what has been over for long.
#[test]
fn a_grant_that_is_over_is_kept_for_a_while() {
    run(async {
        let (world, agent) = host().await;
        let object = world.object("x");
        call_write(&object, 7).promise.await.unwrap();
        let year = Terms { label: "a year", not_after: Some(1_000_000), ..Terms::default() };
        let text = save(&object, &year).await.unwrap();
        for (ahead, is_kept) in [(2_000_000, true), (1_000_001 + OVER_GRANTS_KEPT_MS, false)] {
            save(&object, &labelled("other")).await.unwrap();
            world.now.set(ahead);
            assert!(restore(&agent, &text).await.is_err());
            revoke(&object, "other").await.unwrap();
            settle().await;
            world.now.set(2_000);
            assert_eq!(restore(&agent, &text).await.is_ok(), is_kept, "{ahead}");
        }
    });
}

/// What is told of grants and objects is durable: a kill doesn't take it back.
#[test]
fn answers_about_grants_and_objects_wait_for_the_disk() {
    run(async {
        let (world, agent) = host().await;
        let object = world.object("x");
        call_write(&object, 7).promise.await.unwrap();
        let text = save(&object, &labelled("Eve")).await.unwrap();
        let all = namespace(&agent, &root("Trial").expose_text("127.0.0.1:1").unwrap()).await;
        let all = all.unwrap();
        settle().await;
        let held = world.disk.hold();
        let eve = listed(&object).await.unwrap()[0].1.clone();
        let (vat, id) = (world.vat.clone(), ObjectId::named(Pool::default(), "Trial", "x"));
        let eve = grant_id(&eve).unwrap();
        let mut revoked = Box::pin(async move { vat.revoke(id, eve).await });
        let mut restored = Box::pin(restore(&agent, &text));
        let written = call_write(&by_name(&all, "new"), 1).promise;
        let terms = labelled("new");
        let mut saved = Box::pin(save(&all, &terms));
        assert!(is_pending(&mut revoked) && is_pending(&mut saved));
        settle().await;
        let mut try_get = all.try_get_request();
        try_get.get().set_key("new");
        let mut tried = Box::pin(try_get.send().promise);
        let mut of_object = Box::pin(listed(&object));
        let mut of_namespace = Box::pin(listed(&all));
        let cited = world.object("new");
        let mut cite = as_facet(&cited).cite_request();
        cite.get().set_owner(&[7; 32]);
        let mut cited = Box::pin(cite.send().promise);
        for _ in 0..3 {
            settle().await;
            assert!(is_pending(&mut restored), "revoked:");
            assert!(is_pending(&mut tried), "tryGet");
            assert!(is_pending(&mut of_object), "an object's grants");
            assert!(is_pending(&mut of_namespace), "a namespace's grants");
            assert!(is_pending(&mut cited), "cite");
        }
        drop(held);
        written.await.unwrap();
        revoked.await.unwrap();
        saved.await.unwrap();
        assert_revoked(restored.await);
        assert!(tried.await.unwrap().get().unwrap().has_object());
        assert!(of_object.await.unwrap().is_empty());
        assert!(of_namespace.await.unwrap().iter().any(|(label, _)| label == "new"));
        cited.await.unwrap();
    });
}

fn is_pending<T>(future: &mut (impl Future<Output = T> + Unpin)) -> bool {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    std::pin::Pin::new(future).poll(&mut cx).is_pending()
}
