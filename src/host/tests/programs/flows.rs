//! Capabilities flow at random between objects and clients, and always look as they should.
//!
//! Objects check what they get in every program: it has their gate around it, so that what they
//! send through it leaves in order behind their writes; and what clients get has none. Here is the
//! other half: what comes back to where it came from is what had left, unless it left as a promise.
//! That keeps its path.

use capnp::capability::FromClientHook;

use super::actor::{Actor, Answer, Gifts, Held, Step, actor, ask};
use super::ledger::{self, CLIENT, Sent};
use super::links::{Host, Link, object_id};
use super::plan::{Dice, Kind};
use super::table::NOTHING;
use crate::host::state::facet::Facet;
use crate::host::tests::trial::run;
use crate::membrane;

const OBJECTS: u32 = 3;
const FLOWS: u64 = 60;
const STEPS: u64 = 40;

/// Objects of one vat, and a client behind some connections, or none.
struct Flow {
    dice: Dice,
    host: Host,
    link: Link,
    objects: Vec<Held>,
    /// The capabilities of the client, each with the address of what it is: a facet, or something
    /// of the client's.
    caps: Vec<(actor::Client, usize)>,
}

/// The identity of a capability, for its exporter.
fn identity(cap: &actor::Client) -> usize {
    let mut hook = cap.as_client_hook().add_ref();
    while let Some(resolved) = hook.get_resolved() {
        hook = resolved;
    }
    hook.get_ptr()
}

impl Flow {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let host = Host::new();
        let places = (0..OBJECTS).map(|number| (host.world.disk.clone(), object_id(number)));
        ledger::begin(places);
        let link = Link::new(&host, dice.below(3) as usize);
        let open = |object| {
            let stub = ledger::new_stub();
            let mut request = link.door.open_request();
            request.get().set_object(object);
            request.get().set_stub(stub);
            Held { cap: request.send().pipeline.get_cap(), stub }
        };
        let objects = (0..OBJECTS).map(open).collect();
        let callbacks = (0..2).map(|_| Actor::callback(Kind::Rust));
        let caps = callbacks.map(|cap| (cap.clone(), identity(&cap))).collect();
        Self { dice, host, link, objects, caps }
    }

    /// Passes a capability through one or two objects, which may keep it meanwhile, and looks at
    /// what comes back.
    async fn pass(&mut self) {
        let at = self.dice.below(self.caps.len() as u64) as usize;
        let (cap, expected) = self.caps[at].clone();
        let stores = Step { keep: true, writes: 1, ..NOTHING };
        let kept = Step { answer: Answer::Kept, polls: 2, ..NOTHING };
        let may_give = Step { answer: Answer::Gift, writes: 1, polls: 2, ..NOTHING };
        let passes = Step {
            answer: Answer::Promised,
            calls: 1,
            passes_gift: true,
            next: Some(Box::new(may_give.clone())),
            ..NOTHING
        };
        let way = self.dice.below(3);
        let back = match way {
            0 => self.ask(&may_give, Some(cap)).await,
            1 => self.ask(&passes, Some(cap)).await,
            _ => {
                let object = self.object();
                self.ask_of(&object, &stores, Some(cap)).await;
                self.ask_of(&object, &kept, None).await
            }
        };
        let back = back.expect("it was asked for");
        // However it came, calls reach what had left.
        self.ask_of(&Held::new(back.clone()), &NOTHING, None).await;
        if way == 1 {
            return;
        }
        let (found, hops) = (self.identity_of(&back).await, self.link.hops());
        assert_eq!(found, expected, "what comes back over {hops} hops is what had left");
        self.caps[at].0 = back;
    }

    /// An object makes a capability.
    async fn make(&mut self) {
        let makes = Step { answer: Answer::Child, ..NOTHING };
        let made = self.ask(&makes, None).await.expect("it was asked for");
        let identity = self.identity_of(&made).await;
        self.caps.push((made, identity));
    }

    fn object(&mut self) -> Held {
        self.objects[self.dice.below(OBJECTS.into()) as usize].clone()
    }

    async fn ask(&mut self, step: &Step, gift: Option<actor::Client>) -> Option<actor::Client> {
        let object = self.object();
        self.ask_of(&object, step, gift).await
    }

    async fn ask_of(
        &mut self,
        object: &Held,
        step: &Step,
        gift: Option<actor::Client>,
    ) -> Option<actor::Client> {
        let on = Some(self.object().cap);
        let client = Sent { sender: CLIENT, wrote: 0 };
        let mut outcome = ask(object, client, step, &Gifts { on, gift }).outcome;
        loop {
            self.host.commit();
            let next = futures::future::select(outcome, Box::pin(tokio::task::yield_now()));
            match next.await {
                futures::future::Either::Left((known, _)) => break known.unwrap().unwrap().1,
                futures::future::Either::Right(((), waiting)) => outcome = waiting,
            }
        }
    }

    /// The facet that the vat finds in a capability, or the capability of the client's own.
    async fn identity_of(&self, cap: &actor::Client) -> usize {
        let mut request = self.link.door.look_request();
        request.get().set_cap(cap.clone());
        match request.send().promise.await.unwrap().get().unwrap().get_facet() {
            0 => identity(cap),
            facet => facet as usize,
        }
    }
}

/// The address of the facet that a capability is, when its vat gets it; 0 if it is none.
pub(super) fn facet_in(cap: &actor::Client) -> u64 {
    let facet = membrane::find::<Facet>(cap.as_client_hook());
    facet.map_or(0, |facet| std::rc::Rc::as_ptr(&facet).addr() as u64)
}

#[test]
fn what_comes_back_is_what_had_left() {
    for seed in 0..FLOWS {
        run(async move {
            let mut flow = Flow::new(seed);
            for _ in 0..STEPS {
                match flow.dice.below(5) {
                    0 => flow.make().await,
                    _ => flow.pass().await,
                }
            }
            let verdict = ledger::end();
            assert!(verdict.problems.is_empty(), "seed {seed}: {:?}", verdict.problems);
            flow.link.end().await;
        });
    }
}
