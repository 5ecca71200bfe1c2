//! References that depend on a grant of another host, whose answer may be out of date when it
//! comes.

use std::cell::Cell;
use std::rc::Rc;

use capnp::ErrorKind;
use capnp::capability::FromClientHook;
use capstead_client::sturdyref::{Caveats, GrantId, NextSecret, Target, TargetId};

use super::grants::assert_revoked;
use super::references::keys;
use super::trial::{World, call_write, read, run, settle, trial};
use crate::error::Result;
use crate::host::authority::records;
use crate::host::base::right::GrantRef;
use crate::host::state::cluster::Cluster;
use crate::host::state::vat::Vat;
use crate::host::{Agent, ListenerHint};
use crate::id::{ObjectId, Pool};
use crate::membrane;
use crate::schema::cluster_capnp::{router, supervisor};
use crate::sturdyref::{Grant, Parent, root_grant};

/// One more than are remembered.
const CUTS: u32 = 16_385;
/// A host asks as often as this before it gives up.
const ASKED_MAX: usize = 8;

/// The cluster of one host, in which another one has the namespace of trials.
struct Elsewhere {
    vat: Rc<Vat>,
    /// So many of the next answers come after more cuts than are remembered.
    outdated: Cell<usize>,
    /// Grants that this host is told to cut before the next answer comes.
    cut_first: Cell<Option<GrantRef>>,
    asked: Cell<usize>,
}

impl supervisor::Server for Elsewhere {
    async fn join(
        self: Rc<Self>,
        _: supervisor::JoinParams,
        mut results: supervisor::JoinResults,
    ) -> Result<()> {
        let other = namespace().home_shard().0;
        let shards = [(0, other - 1), (other + 1, u16::MAX)];
        let mut ranges = results.get().init_shards(2);
        for (at, (first, last)) in (0..).zip(shards) {
            ranges.reborrow().get(at).set_first(first);
            ranges.reborrow().get(at).set_last(last);
        }
        results.get().set_router(membrane::serve(self));
        Ok(())
    }
}

impl router::Server for Elsewhere {
    /// Every grant is in force there.
    async fn in_force(
        self: Rc<Self>,
        params: router::InForceParams,
        mut results: router::InForceResults,
    ) -> Result<()> {
        self.asked.set(self.asked.get() + 1);
        if let Some(cut) = self.cut_first.take() {
            self.vat.live_grants.cut(cut);
        }
        if self.outdated.get() > 0 {
            self.outdated.set(self.outdated.get() - 1);
            for n in 0..CUTS {
                self.vat.live_grants.cut(GrantRef::new(namespace(), id(n.into())));
            }
        }
        let mut chain = results.get().init_chain(1);
        chain.reborrow().get(0).set_grant(params.get()?.get_grant()?);
        Ok(())
    }

    async fn cut(self: Rc<Self>, _: router::CutParams, _: router::CutResults) -> Result<()> {
        Ok(())
    }
}

fn namespace() -> ObjectId {
    ObjectId::namespace(Pool::default(), "Trial")
}

fn object() -> ObjectId {
    ObjectId::named(Pool::default(), "Trial", "x")
}

fn id(number: u128) -> GrantId {
    GrantId::from_bytes(number.to_be_bytes())
}

fn grant_of_object() -> GrantId {
    id(u128::MAX)
}

/// The host of an object with one grant, which depends on the root of the namespace.
async fn host(world: &World) -> (Rc<Agent>, Rc<Elsewhere>) {
    let (outdated, cut_first, asked) = (Cell::new(0), Cell::new(None), Cell::new(0));
    let elsewhere = Rc::new(Elsewhere { vat: world.vat.clone(), outdated, cut_first, asked });
    let agent = Agent::new(world.vat.clone(), keys());
    let supervisor: supervisor::Client = membrane::serve(elsewhere.clone());
    let hint = ListenerHint { address: "127.0.0.1:4000".to_owned(), tls: false };
    agent.join(&supervisor, 0, hint.address.clone(), hint).await.unwrap();
    call_write(&world.object("x"), 7).promise.await.unwrap();
    let of = TargetId::from_bytes(*namespace().as_bytes());
    let parent = Parent::OfNamespace(of, root_grant("Trial"));
    let record = Grant { parent, ..Grant::root(0) }.encode();
    records::write(&world.vat, object(), [(&grant_of_object(), Some(record))]).unwrap();
    (agent, elsewhere)
}

async fn restore(agent: &Rc<Agent>) -> Result<trial::Client> {
    let target = Target::Object(TargetId::from_bytes(*object().as_bytes()));
    let next = NextSecret::from_seed([9; 32]);
    let reference = keys().current().mint(target, grant_of_object(), Caveats::none(), &next);
    agent.restore_bytes(reference.expose_bytes()).await.map(trial::Client::new)
}

/// The host used to say `revoked:`, which is final, of a good reference when so many other grants
/// were cut meanwhile that it couldn't tell.
#[test]
fn a_good_reference_is_not_called_revoked_because_others_are() {
    run(async {
        let world = World::new();
        let (agent, elsewhere) = host(&world).await;
        for outdated in [0, 1, ASKED_MAX - 1] {
            elsewhere.outdated.set(outdated);
            elsewhere.asked.set(0);
            assert_eq!(read(&restore(&agent).await.unwrap()).await.unwrap(), 7);
            assert_eq!(elsewhere.asked.get(), outdated + 1, "once more for each late answer");
        }
        elsewhere.outdated.set(usize::MAX);
        elsewhere.asked.set(0);
        let refused = restore(&agent).await.err().expect("no answer can be believed");
        assert_eq!(refused.kind, ErrorKind::Overloaded, "{refused}");
        assert!(refused.extra.contains("try again later"), "{refused}");
        assert_eq!(elsewhere.asked.get(), ASKED_MAX);
        elsewhere.outdated.set(0);
        restore(&agent).await.expect("it is as good as before");
        elsewhere.cut_first.set(Some(GrantRef::new(namespace(), root_grant("Trial"))));
        assert_revoked(restore(&agent).await);
    });
}

/// Such an answer made a sweep remove good grants for ever.
#[test]
fn a_sweep_removes_no_good_grant_because_others_are_cut() {
    run(async {
        for (outdated, asked) in [(1, 2), (usize::MAX, ASKED_MAX)] {
            // Of its own, since an object isn't swept twice in a short time.
            let world = World::new();
            let (agent, elsewhere) = host(&world).await;
            elsewhere.outdated.set(outdated);
            agent.sweep_dead_grants(object());
            settle().await;
            assert_eq!(elsewhere.asked.get(), asked);
            elsewhere.outdated.set(0);
            restore(&agent).await.expect("the grant is there");
        }
    });
}
