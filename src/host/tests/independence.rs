//! Grants that survive those that they were made from: only where their granter said so; and
//! whatever was made below a grant is known to its holder, wherever the grants between are.

use capnp::Error;
use capnp::capability::FromClientHook;
use capstead_client::sturdyref::{Caveats, GrantId, Method, TargetId, TextReference};

use super::grants::{
    NAMESPACE, Terms, attenuate, by_name, labelled, labels, namespace, restore, revoke, root, save,
};
use super::references::{host, join};
use super::trial::{World, read, run};
use crate::host::authority::records::{self, object_id};
use crate::host::base::right::GrantRef;
use crate::id::{ObjectId, Pool};
use crate::sturdyref::{Grant, Parent, root_grant};

fn root_text() -> String {
    root("Trial").expose_text("127.0.0.1:1").unwrap()
}

fn narrow(text: &str, caveats: &Caveats) -> String {
    let parsed = TextReference::parse(text).unwrap();
    parsed.reference().narrow(caveats).unwrap().expose_text("127.0.0.1:1").unwrap()
}

async fn assert_dependent(of: &impl FromClientHook) {
    for wants in [
        Terms { independent: true, ..Terms::default() },
        Terms { allow_independent: true, ..Terms::default() },
        Terms { independent: true, allow_independent: true, ..Terms::default() },
    ] {
        let refused = save(of, &wants).await.expect_err("nobody said that it may");
        assert!(refused.extra.contains("not-allowed:"), "{refused}");
    }
    save(of, &Terms::default()).await.expect("a dependent one is made");
}

/// Nobody said so of the first grant of a namespace.
#[test]
fn nothing_that_is_made_from_a_root_survives_it() {
    run(async {
        let (_world, agent) = host().await;
        let methods = Caveats::none().with_methods([Method::new(NAMESPACE, 0)]).unwrap();
        for text in [root_text(), narrow(&root_text(), &methods)] {
            let all = namespace(&agent, &text).await.unwrap();
            assert_dependent(&all).await;
            assert_dependent(&by_name(&all, "x")).await;
        }
    });
}

/// A root that an earlier version wrote allowed it unasked.
#[test]
fn an_old_root_allows_none_from_the_next_start_on() {
    run(async {
        let (world, _agent) = host().await;
        let (id, grant) = (ObjectId::namespace(Pool::default(), "Trial"), root_grant("Trial"));
        let old = Grant { allows_independent: true, ..Grant::root(7) };
        records::write(&world.vat, id, [(&grant, Some(old.encode()))]).unwrap();
        world.vat.close().unwrap();
        let next = World::over_disk(world.disk.clone());
        let agent = join(&next).await;
        assert_dependent(&namespace(&agent, &root_text()).await.unwrap()).await;
        assert_eq!(
            records::get(&next.vat, GrantRef::new(id, grant)).unwrap().unwrap().created_ms,
            7
        );
    });
}

/// A caveat takes independence away where it was allowed, live, saved and offline, and nothing
/// brings it back.
#[test]
fn a_caveat_withholds_independence() {
    run(async {
        let (world, agent) = host().await;
        let allows = Terms { allow_independent: true, ..labelled("allows") };
        let text = save(&world.object("x"), &allows).await.unwrap();
        let live = restore(&agent, &text).await.unwrap();
        let free = Terms { independent: true, ..labelled("free") };
        let free = save(&live, &free).await.unwrap();

        let withheld = Terms { dependent: true, ..Terms::default() };
        let narrow_live = attenuate(&live, &withheld);
        let saved = save(&live, &Terms { allow_independent: true, ..withheld.clone() }).await;
        let offline = narrow(&text, &Caveats::none().dependent());
        let offline = restore(&agent, &offline).await.unwrap();
        let saved = restore(&agent, &saved.unwrap()).await.unwrap();
        for narrow in [&narrow_live, &saved, &offline] {
            assert_dependent(narrow).await;
            assert_dependent(&attenuate(narrow, &Terms::default())).await;
            let again = save(narrow, &Terms::default()).await.unwrap();
            assert_dependent(&restore(&agent, &again).await.unwrap()).await;
        }
        revoke(&world.object("x"), "allows").await.unwrap();
        assert!(restore(&agent, &text).await.is_err());
        read(&restore(&agent, &free).await.unwrap()).await.expect("it was made to survive");
    });
}

/// A grant of an object says all grants of the namespace that it came from, which may be elsewhere.
#[test]
fn what_is_made_below_a_namespaces_grant_is_known_without_its_records() {
    run(async {
        let (world, agent) = host().await;
        let all = namespace(&agent, &root_text()).await.unwrap();
        let child = save(&all, &labelled("child")).await.unwrap();
        let child = namespace(&agent, &child).await.unwrap();
        save(&by_name(&child, "x"), &labelled("two below")).await.unwrap();
        assert_eq!(labels(&by_name(&all, "x")).await, ["two below"]);

        let x = ObjectId::named(Pool::default(), "Trial", "x");
        let (_, grant) = records::list_behind(&world.vat, x, None, 9).unwrap().remove(0);
        assert_eq!(grant.before, [root_grant("Trial")]);
        // As it is on a host that has neither of them.
        let elsewhere = TargetId::from_bytes([3; 16]);
        let parent = Parent::OfNamespace(elsewhere, GrantId::from_bytes([4; 16]));
        let grant = Grant { parent, ..grant };
        let made_from = |target, id| {
            let from = GrantRef::new(object_id(target), id);
            records::was_made_from(&world.vat, x, &grant, from)
        };
        assert!(made_from(elsewhere, GrantId::from_bytes([4; 16])).unwrap());
        assert!(made_from(elsewhere, root_grant("Trial")).unwrap());
        assert!(!made_from(elsewhere, root_grant("Other")).unwrap());
    });
}

/// A host that is asked about a grant says which ones came before, also those that it survives.
#[test]
fn a_host_tells_another_one_what_a_grant_was_made_from() {
    run(async {
        let (world, agent) = host().await;
        let id = ObjectId::namespace(Pool::default(), "Trial");
        let grants = [1, 2, 3].map(|n| GrantId::from_bytes([n; 16]));
        let first = Grant { allows_independent: true, ..Grant::root(1) };
        let second = Grant { parent: Parent::Own(grants[0]), independent: true, ..first.clone() };
        let third = Grant { parent: Parent::Own(grants[1]), ..Grant::root(1) };
        let records = [first.encode(), second.encode(), third.encode()].map(Some);
        records::write(&world.vat, id, grants.iter().zip(records)).unwrap();
        let told = told(&agent, id, grants[2]).await.unwrap();
        let ids = |ids: &[GrantId]| ids.iter().map(|id| id.as_bytes().to_vec()).collect::<Vec<_>>();
        let before = [ids(&[grants[0]]), ids(&[grants[1], grants[0]])];
        assert_eq!(told, before, "those that it depends on, each with all before it");
    });
}

async fn told(
    agent: &std::rc::Rc<crate::host::Agent>,
    target: ObjectId,
    grant: GrantId,
) -> Result<Vec<Vec<Vec<u8>>>, Error> {
    let mut request = agent.client().in_force_request();
    request.get().set_target(target.as_bytes());
    request.get().set_grant(grant.as_bytes());
    let reply = request.send().promise.await?;
    let chain = reply.get()?.get_chain()?.iter();
    chain.map(|one| one.get_before()?.iter().map(|id| Ok(id?.to_vec())).collect()).collect()
}
