//! Grants as classes see them: what a class was given it may give away, and nothing else.

use capnp::capability::Client;
use capstead_client::sturdyref::{Caveats, Method};
use futures::FutureExt;

use super::super::references::host;
use super::super::trial::{Trial, call_later, call_note, call_write, read, run, settle, trial};
use super::{
    NOTE, READ, TRIAL, Terms, all_trials, assert_revoked, attenuate, listed, namespace, restore,
    save,
};
use crate::error::failed;
use crate::host::Context;
use crate::host::authority::records;
use crate::host::base::right::GrantRef;
use crate::host::engine::gated::Gated;
use crate::host::engine::run::{TurnCause, turn};
use crate::host::state::instance::Instance;
use crate::host::state::slot::ObjectSpec;
use crate::id::{ObjectId, Pool};
use crate::schema::facet_capnp::{facet, persistent};

/// A capability that an object made itself ends with it.
#[test]
fn what_an_object_made_itself_has_no_grants() {
    run(async {
        let (world, _agent) = host().await;
        let child = world.object("x").child_request().send().promise.await.unwrap();
        let child = child.get().unwrap().get_cap().unwrap();
        let refused = save(&child, &Terms::default()).await.err().unwrap();
        assert!(refused.extra.contains("not-a-reference:"), "{refused}");
        assert!(listed(&child).await.is_err());
        let narrow = attenuate(
            &child,
            &Terms { methods: Some(&[Method::new(TRIAL, NOTE)]), ..Terms::default() },
        );
        call_note(&narrow, 5).promise.await.unwrap();
        assert!(read(&narrow).await.is_err());
    });
}

/// A class has what it was given, and no name or id leads it to anything else.
#[test]
fn a_class_reaches_nothing_that_it_was_not_given() {
    run(async {
        let (world, _agent) = host().await;
        call_write(&world.object("x"), 1).promise.await.unwrap();
        let class = world.vat.objects.class("Steps").unwrap();
        let id = ObjectId::named(Pool::default(), "Steps", "x");
        let spec = ObjectSpec { id, class, name: Some("x".into()) };
        let ctx = Context::new(Instance::new(&world.vat, spec).unwrap());
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
        let all = all_trials(&agent).await;
        let instance = world.instance("x");
        let gated = Client::new(Gated::wrap(&instance, all.client.hook.add_ref()));
        let request = persistent::Client { client: gated.clone() }.save_request();
        let saving = turn(&instance, &TurnCause::default(), || request.send().promise);
        let text = saving.ok().expect("the turn ends well").await.unwrap();
        let text = text.get().unwrap().get_sturdy_ref().unwrap().to_string().unwrap();
        namespace(&agent, &text).await.unwrap();
        let id = ObjectId::namespace(Pool::default(), "Trial");
        let (grant, _) = records::list_behind(&world.vat, id, None, 9)
            .unwrap()
            .into_iter()
            .find(|(_, grant)| grant.label.is_empty())
            .unwrap();
        let mut request = facet::Client { client: gated }.revoke_request();
        request.get().set_grant(grant.as_bytes());
        let revoking = turn(&instance, &TurnCause::default(), || request.send().promise);
        revoking.ok().expect("the turn ends well").await.unwrap();
        assert_revoked(namespace(&agent, &text).await);
    });
}

/// A class gives away what it decides, and takes it back.
#[test]
fn a_class_grants_and_revokes_within_its_turn() {
    run(async {
        let (world, agent) = host().await;
        let instance = world.instance("x");
        let ctx = Context::new(instance.clone());
        let reading = Caveats::none().with_methods([Method::new(TRIAL, READ)]).unwrap();
        let terms = capstead_client::Terms::new("readers").caveats(&reading).allow_independent();
        let granted =
            turn(&instance, &TurnCause::default(), || ctx.grant(terms)).ok().unwrap().unwrap();
        assert!(!format!("{granted:?}").contains(&granted.text), "the text is a secret");
        world.vat.flush().await.unwrap();
        let reader = restore(&agent, &granted.text).await.unwrap();
        read(&reader).await.unwrap();
        assert!(call_note(&reader, 1).promise.await.is_err());
        turn(&instance, &TurnCause::default(), || ctx.revoke(granted.id)).ok().unwrap().unwrap();
        assert_revoked(read(&reader).await);
        assert_revoked(restore(&agent, &granted.text).await);
        assert!(ctx.grant(capstead_client::Terms::new("nobody")).is_err(), "outside of a turn");
    });
}

/// The end of a turn that took a grant back, and has no effect.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Undone {
    Panics,
    Aborts,
    Transaction,
}

/// Callers hear of a revocation only if there was one.
#[test]
fn a_turn_without_effect_takes_nothing_back() {
    for undone in [Undone::Panics, Undone::Aborts, Undone::Transaction] {
        run(async move {
            let (world, agent) = host().await;
            call_write(&world.object("x"), 1).promise.await.unwrap();
            let id = ObjectId::named(Pool::default(), "Trial", "x");
            let instance = world.vat.objects.instance_of(id).unwrap();
            let ctx = Context::new(instance.clone());
            let grant = || ctx.grant(capstead_client::Terms::new("reader"));
            let granted = turn(&instance, &TurnCause::default(), grant).ok().unwrap().unwrap();
            world.vat.flush().await.unwrap();
            let reader = restore(&agent, &granted.text).await.unwrap();
            let under_way = call_later(&reader, u64::MAX, None).promise;
            settle().await;
            let ended = turn(&instance, &TurnCause::default(), || match undone {
                Undone::Panics => {
                    ctx.revoke(granted.id).unwrap();
                    panic!("after it took the grant back");
                }
                Undone::Aborts => {
                    ctx.revoke(granted.id).unwrap();
                    drop(ctx.abort("after it took the grant back"));
                }
                Undone::Transaction => {
                    let taken = ctx.storage().transaction(|| {
                        ctx.revoke(granted.id)?;
                        Err::<(), _>(failed("it is undone"))
                    });
                    assert!(taken.is_err());
                }
            });
            assert_eq!(ended.is_ok(), undone == Undone::Transaction);
            world.vat.flush().await.unwrap();
            settle().await;
            match (undone, under_way.now_or_never()) {
                (Undone::Transaction, heard) => assert!(heard.is_none(), "it still runs"),
                (_, heard) => {
                    let heard = heard.expect("its object ended").err().unwrap();
                    assert_eq!(heard.kind, capnp::ErrorKind::Disconnected, "{heard}");
                    assert!(!heard.extra.contains("revoked:"), "{heard}");
                    assert!(heard.extra.contains("Trial"), "{heard}");
                }
            }
            let reader = restore(&agent, &granted.text).await.expect("it is in force");
            assert_eq!(read(&reader).await.unwrap(), 1);
            assert_eq!(world.metrics.grants_revoked_total.get(), 0);
            // Another turn takes it back.
            let instance = world.vat.objects.instance_of(id).unwrap();
            let ctx = Context::new(instance.clone());
            let revoke = || {
                ctx.revoke(granted.id)?;
                let live = world.vat.live_grants.get(GrantRef::new(id, granted.id));
                assert!(live.is_none(), "the turn itself sees it");
                Ok::<_, capnp::Error>(())
            };
            turn(&instance, &TurnCause::default(), revoke).ok().unwrap().unwrap();
            assert_revoked(read(&reader).await);
            assert_eq!(world.metrics.grants_revoked_total.get(), 1);
        });
    }
}
