//! Grants: made, listed, narrowed, revoked; and that nobody gets more than they were given.

mod classes;
mod holders;
mod last_use;
mod narrowing;
mod revoking;

use std::rc::Rc;
use std::time::Duration;

use capnp::Error;
use capnp::capability::{Client, FromClientHook};
use capstead_client::sturdyref::{Method, Sturdyref, TextReference};

use super::references::{host, join, keys};
use super::shares::pass;
use super::trial::{World, call_write, read, run, run_within, settle, trial};
use crate::host::Agent;
use crate::host::authority::calls::grant_id;
use crate::host::authority::giving;
use crate::host::base::watched_clock::WATCHED;
use crate::id::{ObjectId, Pool};
use crate::limits::OVER_GRANTS_KEPT_MS;
use crate::schema::facet_capnp::{facet, persistent};
use crate::schema::restorer_capnp::namespace;
use crate::sturdyref::root_grant;

pub(super) const NOTE: u16 = 0;
pub(super) const READ: u16 = 2;
pub(super) const TRIAL: u64 = <trial::Client as capnp::traits::HasTypeId>::TYPE_ID;
pub(super) const NAMESPACE: u64 = <namespace::Client as capnp::traits::HasTypeId>::TYPE_ID;
pub(super) const BY_NAME: u16 = 0;

/// The wishes of a `save`.
#[derive(Clone, Default)]
pub(super) struct Terms<'a> {
    pub(super) label: &'a str,
    pub(super) methods: Option<&'a [Method]>,
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
    for (at, method) in (0..).zip(methods) {
        let mut one = list.reborrow().get(at);
        one.set_interface(method.interface);
        one.init_ordinals(1).set(0, method.ordinal);
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

pub(super) async fn namespace(agent: &Rc<Agent>, text: &str) -> Result<namespace::Client, Error> {
    let reference = TextReference::parse(text)?;
    agent.restore_bytes(reference.reference().expose_bytes()).await.map(namespace::Client::new)
}

/// The namespace of trials, by its root.
pub(super) async fn all_trials(agent: &Rc<Agent>) -> namespace::Client {
    let text = root("Trial").expose_text("127.0.0.1:1").unwrap();
    namespace(agent, &text).await.unwrap()
}

pub(super) fn by_name(of: &namespace::Client, name: &str) -> trial::Client {
    let mut request = of.by_name_request();
    request.get().set_key(name);
    request.send().pipeline.get_object().as_cap().cast_to()
}

pub(super) fn root(class: &str) -> Sturdyref {
    let id = ObjectId::namespace(Pool::default(), class);
    let target = capstead_client::sturdyref::Target::Namespace(
        capstead_client::sturdyref::TargetId::from_bytes(*id.as_bytes()),
    );
    keys().current().root_reference(target, root_grant(class))
}

/// A saved reference is restored, also in the next process, and its grant says who has it.
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

/// More than is allowed isn't made.
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
        let methods: Vec<_> = (0..257).map(|ordinal| Method::new(TRIAL, ordinal)).collect();
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

/// A clock that is ahead for a moment destroys nothing: a revocation sweeps what has been over for
/// long, by a clock that has shown so for an hour.
#[test]
fn a_grant_that_is_over_is_kept_for_a_while() {
    // Hours pass within it.
    run_within(Duration::from_hours(9), async {
        let (world, agent) = host().await;
        let object = world.object("x");
        call_write(&object, 7).promise.await.unwrap();
        let year = Terms { label: "a year", not_after: Some(1_000_000), ..Terms::default() };
        let text = save(&object, &year).await.unwrap();
        let (soon, long) = (2_000_000, 1_000_001 + OVER_GRANTS_KEPT_MS);
        for (ahead, is_watched, is_kept) in
            [(soon, false, true), (long, false, true), (soon, true, true), (long, true, false)]
        {
            save(&object, &labelled("other")).await.unwrap();
            world.now.set(ahead);
            for time in [Duration::from_mins(1), WATCHED + Duration::from_secs(1)] {
                if is_watched {
                    pass(time).await;
                    world.vat.live_grants.sweeps.clock_shows(ahead);
                }
            }
            assert!(restore(&agent, &text).await.is_err());
            revoke(&object, "other").await.unwrap();
            settle().await;
            world.now.set(2_000);
            let restored = restore(&agent, &text).await;
            assert_eq!(restored.is_ok(), is_kept, "{ahead}, watched: {is_watched}");
        }
    });
}

/// Answers about grants and objects are durable: a kill doesn't take them back.
#[test]
fn answers_about_grants_and_objects_wait_for_the_disk() {
    run(async {
        let (world, agent) = host().await;
        let object = world.object("x");
        call_write(&object, 7).promise.await.unwrap();
        let text = save(&object, &labelled("Eve")).await.unwrap();
        let all = all_trials(&agent).await;
        settle().await;
        let held = world.disk.hold();
        let eve = listed(&object).await.unwrap()[0].1.clone();
        let (vat, id) = (world.vat.clone(), ObjectId::named(Pool::default(), "Trial", "x"));
        let eve = grant_id(&eve).unwrap();
        let mut revoked = Box::pin(async move { giving::revoke(&vat, id, eve).await });
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
