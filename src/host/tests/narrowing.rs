//! Narrowing never widens: chains of it against a model that asks each link by itself.

use std::rc::Rc;

use capnp::traits::HasTypeId;
use capstead_client::sturdyref::{Caveats, Method, TextReference};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::grants::{
    BY_NAME, NAMESPACE, NOTE, READ, TRIAL, Terms, all_trials, attenuate, by_name, namespace,
    restore, save,
};
use super::references::host;
use super::trial::{call_note, call_write, read, run, trial};
use crate::host::Agent;
use crate::schema::facet_capnp::facet;
use crate::schema::restorer_capnp::namespace;

const WRITE: u16 = 1;
const TRY_GET: u16 = 1;
const GRANTS: u16 = 3;
/// All that sets are made of.
const METHODS: [Method; 6] = [
    Method::new(NAMESPACE, BY_NAME),
    Method::new(NAMESPACE, TRY_GET),
    Method::new(facet::Client::TYPE_ID, GRANTS),
    Method::new(TRIAL, NOTE),
    Method::new(TRIAL, WRITE),
    Method::new(TRIAL, READ),
];

/// The three ways to narrow.
#[derive(Clone, Copy, Debug)]
enum How {
    Live,
    Saved,
    Offline,
}

/// One link of a chain: a set of methods, if it has one.
type Link = (How, Option<Vec<Method>>);

fn link() -> impl Strategy<Value = Link> {
    let how = prop_oneof![Just(How::Live), Just(How::Saved), Just(How::Offline)];
    // By name is seldom left out: without it there is no object to ask.
    let set = (btree_set(0..METHODS.len(), 0..5), prop::bool::weighted(0.9));
    let set = set.prop_map(|(mut set, by_name)| {
        if by_name {
            set.insert(0);
        }
        set.into_iter().map(|at| METHODS[at]).collect::<Vec<_>>()
    });
    (how, proptest::option::weighted(0.9, set))
}

/// The same reference with one link more, made by its holder alone.
fn narrow(text: &str, set: Option<&[Method]>) -> String {
    let mut caveats = Caveats::none();
    if let Some(set) = set {
        caveats = caveats.with_methods(set.iter().copied()).unwrap();
    }
    let narrow = TextReference::parse(text).unwrap().reference().narrow(&caveats).unwrap();
    narrow.expose_text("127.0.0.1:1").unwrap()
}

async fn narrow_namespace(
    agent: &Rc<Agent>,
    live: namespace::Client,
    (how, set): &Link,
) -> namespace::Client {
    let terms = Terms { methods: set.as_deref(), ..Terms::default() };
    let text = match how {
        How::Live => return attenuate(&live, &terms),
        How::Saved => save(&live, &terms).await.unwrap(),
        How::Offline => narrow(&save(&live, &Terms::default()).await.unwrap(), set.as_deref()),
    };
    namespace(agent, &text).await.unwrap()
}

async fn narrow_object(agent: &Rc<Agent>, live: trial::Client, (how, set): &Link) -> trial::Client {
    let terms = Terms { methods: set.as_deref(), ..Terms::default() };
    let text = match how {
        How::Live => return attenuate(&live, &terms),
        How::Saved => save(&live, &terms).await.unwrap(),
        How::Offline => narrow(&save(&live, &Terms::default()).await.unwrap(), set.as_deref()),
    };
    restore(agent, &text).await.unwrap()
}

/// The model: each set by itself, and those of a namespace restrict its objects if there is a
/// method in them that no namespace has.
fn allows(of_namespace: &[Link], of_object: &[Link], method: Method) -> bool {
    let sets =
        |links: &'_ [Link]| links.iter().filter_map(|(_, set)| set.clone()).collect::<Vec<_>>();
    let restricts = |set: &Vec<Method>| set.iter().any(|method| method.interface == TRIAL);
    let mut all = sets(of_namespace).into_iter().filter(restricts).chain(sets(of_object));
    all.all(|set| set.contains(&method))
}

async fn check(of_namespace: Vec<Link>, of_object: Vec<Link>) {
    let (_world, agent) = host().await;
    let mut all = all_trials(&agent).await;
    for link in &of_namespace {
        all = narrow_namespace(&agent, all, link).await;
    }
    let reaches = of_namespace.iter().all(|(_, set)| {
        set.as_ref().is_none_or(|set| set.contains(&Method::new(NAMESPACE, BY_NAME)))
    });
    let mut object = by_name(&all, "x");
    if !reaches {
        assert!(read(&object).await.is_err(), "no object without byName");
        return;
    }
    for link in &of_object {
        object = narrow_object(&agent, object, link).await;
    }
    let answers = [
        (NOTE, call_note(&object, 1).promise.await.is_ok()),
        (WRITE, call_write(&object, 1).promise.await.is_ok()),
        (READ, read(&object).await.is_ok()),
    ];
    for (method, answers) in answers {
        let allows = allows(&of_namespace, &of_object, Method::new(TRIAL, method));
        assert_eq!(answers, allows, "method {method} after {of_namespace:?}, {of_object:?}");
    }
    let listed = super::grants::listed(&object).await.is_ok();
    assert_eq!(listed, allows(&of_namespace, &of_object, METHODS[2]), "grants");
}

/// A chain of random narrowings of a namespace, and then of an object that is reached through it,
/// allows what each of them allows: live, saved and offline, in any order.
#[test]
fn no_chain_through_a_namespace_allows_what_an_earlier_link_refused() {
    let chains = (vec(link(), 0..4), vec(link(), 0..3));
    let config = Config { cases: 256, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&chains, |(of_namespace, of_object)| {
            run(check(of_namespace, of_object));
            Ok(())
        })
        .unwrap();
}

/// The shortest chains that once gave everything back.
#[test]
fn a_namespace_that_is_narrowed_again_gives_nothing_back() {
    let both = Some(vec![Method::new(NAMESPACE, BY_NAME), Method::new(TRIAL, READ)]);
    let other = Some(vec![Method::new(NAMESPACE, BY_NAME), Method::new(TRIAL, NOTE)]);
    let alone = Some(vec![Method::new(NAMESPACE, BY_NAME)]);
    for how in [How::Live, How::Saved, How::Offline] {
        for again in [&alone, &other] {
            for then in [How::Live, How::Saved, How::Offline] {
                run(check(vec![(how, both.clone()), (then, again.clone())], Vec::new()));
            }
        }
    }
}
