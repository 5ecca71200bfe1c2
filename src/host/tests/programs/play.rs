//! Plays one program: does what it says, watches the promises, and ends everything at the end.
//!
//! Nothing here waits for time to pass: a program that stands still for [`PATIENCE`] rounds of all
//! tasks, with every disk released, hangs.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use capnp::capability::FromClientHook;
use futures::FutureExt;

use super::actor::{self, Actor, Gifts, Held, Made, Step};
use super::kj;
use super::ledger::{self, Awaiting, CLIENT, Sent};
use super::links::{Homes, Host, Link, disk, object_id};
use super::plan::{Applied, Fate, How, Kind, Op, Plan};
use crate::host::engine::rest;
use crate::storage::testing::model::Fault;

/// Rounds after which a caller that still waits will always wait.
const PATIENCE: usize = 30_000;

/// Rounds in which something would happen if there were anything to happen.
const QUIET: usize = 50;

const CLIENT_SENT: Sent = Sent { sender: CLIENT, wrote: 0 };

type Slots = Rc<RefCell<Vec<Option<Held>>>>;

struct Play<'a> {
    plan: &'a Plan,
    hosts: Vec<Host>,
    /// By client and vat.
    links: Vec<Vec<Link>>,
    /// Between vats, by who dialled and who accepted.
    between: Vec<Vec<Option<Link>>>,
    /// Connections that lead nowhere any more, and whose handles the clients still have.
    ended: Vec<Link>,
    slots: Slots,
    later: Vec<(Made, Option<usize>)>,
    /// The promises of clients by their slots, to be resolved.
    promises: HashMap<usize, Rc<kj::Later>>,
}

/// Plays `plan`, and leaves what is to be said about it in the ledger.
pub(super) async fn play(plan: &Plan) {
    let vats = 1 + plan.objects.iter().max().unwrap();
    let homes = Homes { vats: plan.objects.clone(), exclusive: plan.exclusive.clone() };
    let homes = Rc::new(homes);
    let hosts: Vec<Host> = (0..vats).map(|vat| Host::of_many(vat, homes.clone())).collect();
    let places = 0..plan.objects.len();
    ledger::begin(
        places.map(|number| (disk(&hosts, &plan.objects, number), object_id(number as u32))),
    );
    let exclusive = plan.exclusive.iter().enumerate().filter(|(_, is)| **is);
    exclusive.for_each(|(number, _)| ledger::exclusive(number));
    kj::forget();
    let links = plan.clients.iter().zip(&plan.hops).map(|(client, hops)| {
        let links = hosts.iter().zip(hops).map(|(host, hops)| Link::of(*client, host, *hops));
        links.collect()
    });
    let links = links.collect();
    let callback = |client: &Kind| Some(Held::new(Actor::callback(*client)));
    let slots = Rc::new(RefCell::new(plan.clients.iter().map(callback).collect()));
    let (later, ended) = (Vec::new(), Vec::new());
    let between = (0..vats).map(|_| (0..vats).map(|_| None).collect()).collect();
    let mut play =
        Play { plan, hosts, links, between, ended, slots, later, promises: HashMap::new() };
    for (from, to) in pairs(vats) {
        play.join(from, to);
    }
    for op in &plan.ops {
        play.act(op).await;
        play.commit().await;
    }
    play.end().await;
}

/// All pairs of different vats.
fn pairs(vats: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..vats).flat_map(move |from| (0..vats).map(move |to| (from, to))).filter(|(a, b)| a != b)
}

impl Play<'_> {
    async fn act(&mut self, op: &Op) {
        match op {
            Op::Skip { slots } => self.slots.borrow_mut().extend((0..*slots).map(|_| None)),
            Op::Open { client, object, through } => self.open(*client, *object, *through),
            Op::Call { slot, step, on, gift, how, fate } => {
                let held = self.held(*slot);
                let gifts = Gifts { on: self.cap(*on), gift: self.cap(*gift) };
                self.call(held, step, &gifts, *how, *fate);
            }
            Op::Promise => {
                let promise = kj::Later::unknown();
                let cap = actor::actor::Client::new(promise.hook());
                let mut slots = self.slots.borrow_mut();
                self.promises.insert(slots.len(), promise);
                slots.push(Some(Held::new(cap)));
            }
            Op::Resolve { slot, to } => {
                let to = self.cap(*to).map(FromClientHook::into_client_hook);
                if let Some(promise) = self.promises.remove(slot) {
                    promise.resolve(to.ok_or_else(|| ledger::asked_for(CLIENT_SENT)));
                }
            }
            Op::LetGo { slot } => drop(self.slots.borrow_mut()[*slot].take()),
            Op::Yield { times } => self.run(usize::from(*times)).await,
            Op::Await => self.await_later(),
            Op::Hold { vat } => self.hosts[*vat].prompt = false,
            Op::Release { vat } => self.hosts[*vat].prompt = true,
            Op::Fail { vat, applied } => self.hosts[*vat].world.disk.fail_next(match applied {
                Applied::No => Fault::Failed,
                Applied::Yes => Fault::FailedApplied,
            }),
            Op::Kill { vat, keep } => self.kill(*vat, *keep).await,
            Op::Rest { object } => {
                let vat = &self.hosts[self.plan.objects[*object]].world.vat;
                rest::rest_now(vat, object_id(*object as u32));
            }
            Op::Cut { client, vat, at } => self.cut(*client, *vat, *at).await,
            Op::Part { from, to } => self.part(*from, *to).await,
        }
    }

    /// The end of every round: disks that aren't held write, and hosts whose disk failed end.
    async fn commit(&mut self) {
        for vat in 0..self.hosts.len() {
            self.hosts[vat].commit();
            if self.hosts[vat].has_failed() {
                self.kill(vat, 0).await;
            }
        }
    }

    async fn run(&mut self, rounds: usize) {
        for _ in 0..rounds {
            tokio::task::yield_now().await;
            self.commit().await;
        }
    }

    fn held(&self, slot: usize) -> Option<Held> {
        self.slots.borrow()[slot].clone()
    }

    fn cap(&self, slot: Option<usize>) -> Option<actor::actor::Client> {
        slot.and_then(|slot| self.held(slot)).map(|held| held.cap)
    }

    fn open(&mut self, client: usize, object: usize, through: usize) {
        let stub = ledger::new_stub();
        let mut request = self.links[client][through].door.open_request();
        request.get().set_object(object as u32);
        request.get().set_stub(stub);
        let cap = request.send().pipeline.get_cap();
        self.slots.borrow_mut().push(Some(Held { cap, stub }));
    }

    fn call(&mut self, held: Option<Held>, step: &Step, gifts: &Gifts, how: How, fate: Fate) {
        let answers = how == How::Act && step.answer != actor::Answer::Nothing;
        let Some(held) = held else {
            return self.slots.borrow_mut().extend((0..2 * usize::from(answers)).map(|_| None));
        };
        let ask = if how == How::Act { actor::ask } else { actor::stream };
        let made = ask(&held, CLIENT_SENT, step, gifts);
        let becomes = answers.then(|| {
            let stub = ledger::promised_stub(Some(made.call));
            let promised = made.promised.clone().map(|cap| Held { cap, stub });
            let mut slots = self.slots.borrow_mut();
            slots.extend([promised, None]);
            slots.len() - 1
        });
        match fate {
            Fate::Awaited => self.watch(made, becomes),
            Fate::AwaitedLater => self.later.push((made, becomes)),
            Fate::Dropped => drop(made),
            Fate::DroppedAfterAPoll => self.poll_once(made, becomes),
        }
    }

    fn poll_once(&self, mut made: Made, becomes: Option<usize>) {
        let polled = made.outcome.poll_unpin(&mut Context::from_waker(Waker::noop()));
        match polled {
            Poll::Pending => {} // and dropped
            Poll::Ready(outcome) => {
                let outcome = std::future::ready(outcome);
                self.watch(
                    Made { outcome: capnp::capability::Promise::from_future(outcome), ..made },
                    becomes,
                );
            }
        }
    }

    /// Awaits a call in a task of its own, which says what came and when.
    fn watch(&self, made: Made, becomes: Option<usize>) {
        let slots = self.slots.clone();
        let awaiting = Awaiting::new(made.call);
        // Ends with the call, for which `end` waits.
        tokio::task::spawn_local(async move {
            let (sent, cap) = match made.outcome.await {
                Ok(Some((sent, cap))) => (Ok(Some(sent)), cap),
                Ok(None) => (Ok(None), None),
                Err(error) => (Err(error), None),
            };
            ledger::ends(made.call, &sent);
            if let Some(cap) = &cap {
                actor::check_gate(cap, false, "a client's reply");
            }
            if let (Some(slot), Some(cap)) = (becomes, cap) {
                slots.borrow_mut()[slot] = Some(Held::new(cap));
            }
            drop(awaiting);
        });
    }

    fn await_later(&mut self) {
        while let Some((made, becomes)) = self.later.pop() {
            self.watch(made, becomes);
        }
    }

    async fn cut(&mut self, client: usize, vat: usize, at: usize) {
        ledger::may_lose();
        self.links[client][vat].cut(at).await;
        self.connect(client, vat);
    }

    fn connect(&mut self, client: usize, vat: usize) {
        let kind = self.plan.clients[client];
        let link = Link::of(kind, &self.hosts[vat], self.plan.hops[client][vat]);
        self.ended.push(std::mem::replace(&mut self.links[client][vat], link));
    }

    /// The connection from one vat to another ends, and another one begins.
    async fn part(&mut self, from: usize, to: usize) {
        ledger::may_lose();
        if let Some(link) = &self.between[from][to] {
            link.end().await;
        }
        self.join(from, to);
    }

    fn join(&mut self, from: usize, to: usize) {
        let link = Link::between(&self.hosts[from], &self.hosts[to]);
        self.ended.extend(self.between[from][to].replace(link));
    }

    async fn kill(&mut self, vat: usize, keep: u64) {
        ledger::may_lose();
        for client in &self.links {
            client[vat].end().await;
        }
        let joined = || pairs(self.hosts.len()).filter(|(from, to)| vat == *from || vat == *to);
        let between = joined().filter_map(|(from, to)| self.between[from][to].as_ref());
        for link in between.chain(&self.ended) {
            link.end().await;
        }
        let joined: Vec<_> = joined().collect();
        self.hosts[vat].restart(keep);
        let objects = self.plan.objects.iter().enumerate();
        for (number, _) in objects.filter(|(_, at)| **at == vat) {
            ledger::breaks(number as u32);
            ledger::moves_to(number as u32, &self.hosts[vat].world.disk);
        }
        for client in 0..self.links.len() {
            self.connect(client, vat);
        }
        for (from, to) in joined {
            self.join(from, to);
        }
    }

    /// Runs until nothing has happened for a while, or somebody waits for ever.
    async fn come_to_rest(&mut self) {
        let (mut quiet, mut activity) = (0, 0);
        for _ in 0..PATIENCE {
            self.run(1).await;
            let now = ledger::activity();
            quiet = if now == activity { quiet + 1 } else { 0 };
            activity = now;
            if quiet > QUIET && ledger::awaited().is_empty() {
                return;
            }
        }
    }

    async fn end(mut self) {
        self.await_later();
        for (_, promise) in self.promises.drain() {
            promise.resolve(Err(ledger::asked_for(CLIENT_SENT)));
        }
        self.hosts.iter_mut().for_each(|host| host.prompt = true);
        self.come_to_rest().await;
        let left = ledger::awaited();
        if !left.is_empty() {
            ledger::problem(format!("never ended: {left:?} (true: it started)"));
        }
        ledger::may_break();
        self.slots.borrow_mut().clear();
        let between = self.between.iter().flatten().flatten();
        for link in self.links.iter().flatten().chain(between).chain(&self.ended) {
            link.end().await;
        }
        self.run(20).await;
        for mut host in self.hosts.drain(..) {
            host.restart(0);
        }
    }
}
