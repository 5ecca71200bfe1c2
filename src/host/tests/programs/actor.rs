//! Those that take part in a program: the class of its objects, what these make, and callbacks.
//!
//! An actor does what a [`Step`] says, and reports to the ledger what it starts, receives and
//! answers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use capnp::capability::{FromClientHook, Promise};
use capnp::private::capability::RequestHook;
use capnp::traits::HasTypeId;

use super::kj;
use super::ledger::{self, Awaiting, CLIENT, CallId, Sent};
use super::plan::{How, Kind};
use crate::error::Result;
use crate::host::engine::gated::Gated;
use crate::host::{Context, Object};
use crate::membrane;
pub(super) use crate::schema::actor_capnp::{Answer, Ending, actor, step};

/// Under which an object stores how often it wrote.
pub(super) const KEY: &[u8] = b"n";

/// The task of an actor; see the schema. The capabilities go beside it.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each stands for itself, as in the schema")]
pub(super) struct Step {
    pub(super) writes: u8,
    pub(super) calls: u8,
    pub(super) polls: u8,
    pub(super) awaits: bool,
    pub(super) early: bool,
    pub(super) keep: bool,
    pub(super) use_kept: bool,
    pub(super) streams: bool,
    pub(super) passes_gift: bool,
    pub(super) tails: bool,
    pub(super) kibibytes: u32,
    pub(super) caps: u32,
    pub(super) answer: Answer,
    pub(super) ending: Ending,
    pub(super) next: Option<Box<Step>>,
}

impl Step {
    pub(super) fn read(from: step::Reader<'_>) -> Result<Self> {
        let next = from.has_next().then(|| Self::read(from.get_next()?)).transpose()?;
        Ok(Self {
            writes: from.get_writes(),
            calls: from.get_calls(),
            polls: from.get_polls(),
            awaits: from.get_awaits(),
            early: from.get_early(),
            keep: from.get_keep(),
            use_kept: from.get_use_kept(),
            streams: from.get_streams(),
            passes_gift: from.get_passes_gift(),
            tails: from.get_tails(),
            kibibytes: from.get_kibibytes(),
            caps: from.get_caps(),
            answer: from.get_answer()?,
            ending: from.get_ending()?,
            next: next.map(Box::new),
        })
    }

    /// Tells whether what it returns can't be sent: the call alone fails.
    fn is_too_much(&self) -> bool {
        let caps = self.caps + u32::from(self.answer != Answer::Nothing);
        self.kibibytes >= 8 << 10 || caps > 64
    }

    fn write(&self, mut to: step::Builder<'_>) {
        to.set_writes(self.writes);
        to.set_calls(self.calls);
        to.set_polls(self.polls);
        to.set_awaits(self.awaits);
        to.set_early(self.early);
        to.set_keep(self.keep);
        to.set_use_kept(self.use_kept);
        to.set_streams(self.streams);
        to.set_passes_gift(self.passes_gift);
        to.set_tails(self.tails);
        to.set_kibibytes(self.kibibytes);
        to.set_caps(self.caps);
        to.set_answer(self.answer);
        to.set_ending(self.ending);
        if let Some(next) = &self.next {
            next.write(to.init_next());
        }
    }
}

/// A capability as one holder has it.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) cap: actor::Client,
    pub(super) stub: u32,
}

impl Held {
    pub(super) fn new(cap: actor::Client) -> Self {
        Self { cap, stub: ledger::new_stub() }
    }

    /// The capability that a promise became: capnp-rpc can't put capabilities into a call on one
    /// that became something of the caller's own vat.
    fn followed(&self) -> actor::Client {
        let mut hook = self.cap.as_client_hook().add_ref();
        while let Some(resolved) = hook.get_resolved() {
            hook = resolved;
        }
        actor::Client::new(hook)
    }
}

/// The news that a call brings: none if it was a streaming one.
pub(super) type Outcome = Promise<Option<(Sent, Option<actor::Client>)>, capnp::Error>;

/// A call that was made.
pub(super) struct Made {
    pub(super) call: CallId,
    pub(super) outcome: Outcome,
    /// The capability that will be returned; none if it was a streaming call.
    pub(super) promised: Option<actor::Client>,
}

/// The things that go with a step.
#[derive(Clone, Default)]
pub(super) struct Gifts {
    pub(super) on: Option<actor::Client>,
    pub(super) gift: Option<actor::Client>,
}

/// Asks for a step; the call is made when this returns.
pub(super) fn ask(held: &Held, sent: Sent, step: &Step, gifts: &Gifts) -> Made {
    let call = ledger::makes_call(held.stub);
    let mut request = held.followed().act_request();
    fill(request.get(), call, sent, step, gifts);
    let asked = request.send();
    let promised = Some(asked.pipeline.get_cap());
    let outcome = Promise::from_future(async move {
        let reply = asked.promise.await?;
        let reply = reply.get()?;
        let sent = Sent { sender: reply.get_sender(), wrote: reply.get_wrote() };
        let cap = reply.has_cap().then(|| reply.get_cap()).transpose()?;
        Ok(Some((sent, cap)))
    });
    Made { call, outcome, promised }
}

/// As `ask`, by the streaming method.
pub(super) fn stream(held: &Held, sent: Sent, step: &Step, gifts: &Gifts) -> Made {
    let call = ledger::makes_call(held.stub);
    let mut request = held.followed().stream_request();
    fill(request.get(), call, sent, step, gifts);
    let asked = request.send();
    let outcome = Promise::from_future(async move { asked.await.map(|()| None) });
    Made { call, outcome, promised: None }
}

fn fill(mut to: step::Builder<'_>, call: CallId, sent: Sent, step: &Step, gifts: &Gifts) {
    to.set_stub(call.stub);
    to.set_sequence(call.sequence);
    to.set_sender(sent.sender);
    to.set_wrote(sent.wrote);
    if let Some(on) = &gifts.on {
        to.set_on(on.clone());
    }
    if let Some(gift) = &gifts.gift {
        to.set_gift(gift.clone());
    }
    step.write(to);
}

/// Checks that a capability has a gate around it as it should.
pub(super) fn check_gate(cap: &actor::Client, expected: bool, with: &str) {
    let gated = membrane::find::<Gated>(cap.as_client_hook()).is_some();
    if gated != expected {
        ledger::problem(format!("{with} had a capability with a gate: {gated}"));
    }
}

pub(in crate::host::tests) struct Actor {
    /// The object that it is or belongs to.
    number: u32,
    /// None if it is a client's.
    ctx: Option<Context>,
    client: Kind,
    wrote: Cell<u32>,
    kept: RefCell<Option<Held>>,
}

impl Object for Actor {
    const CLASS: &'static str = "Actor";
    type Client = actor::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        let name = ctx.name().and_then(|name| name.parse().ok());
        let number = name.ok_or_else(|| crate::error::failed("actors are numbered"))?;
        let stored = ctx.storage().get(KEY)?;
        let wrote = stored.map_or(0, |stored| u32::from_be_bytes(stored.try_into().unwrap()));
        Ok(Self {
            number,
            ctx: Some(ctx),
            client: Kind::Rust,
            wrote: Cell::new(wrote),
            kept: RefCell::default(),
        })
    }
}

impl Actor {
    /// A client's callback.
    pub(super) fn callback(client: Kind) -> actor::Client {
        let (wrote, kept) = (Cell::default(), RefCell::default());
        Rc::new(Self { number: CLIENT, ctx: None, client, wrote, kept }).of_client()
    }

    fn of_client(self: Rc<Self>) -> actor::Client {
        match self.client {
            Kind::Rust => capstead_client::capability(self),
            // KJ begins a method in the order of the calls too.
            Kind::Kj => membrane::serve(self),
        }
    }

    /// A capability that an object gets has its gate around it, and one that leaves an object has
    /// not.
    fn receives(&self, cap: &actor::Client, with: &str) {
        check_gate(cap, self.ctx.is_some(), with);
    }

    fn sent(&self) -> Sent {
        Sent { sender: self.number, wrote: self.wrote.get() }
    }

    fn put(&self) -> Result<()> {
        let Some(ctx) = &self.ctx else { return Ok(()) };
        let wrote = self.wrote.get() + 1;
        ctx.storage().put(KEY, wrote.to_be_bytes())?;
        self.wrote.set(wrote);
        Ok(())
    }

    /// Does the first half of a step, up to where it would wait.
    fn begin(self: &Rc<Self>, asked: step::Reader<'_>, how: How) -> Result<Begun> {
        let may_tail = kj::tail_is_possible() && how == How::Act;
        let call = CallId { stub: asked.get_stub(), sequence: asked.get_sequence() };
        let sent = Sent { sender: asked.get_sender(), wrote: asked.get_wrote() };
        ledger::starts(call, sent, self.number);
        let step = Step::read(asked)?;
        let on = asked.has_on().then(|| asked.get_on()).transpose()?;
        let gift = asked.has_gift().then(|| asked.get_gift()).transpose()?;
        for cap in on.iter().chain(&gift) {
            self.receives(cap, "a call");
        }
        (0..step.writes).try_for_each(|_| self.put())?;
        let kept = self.kept.borrow().clone().filter(|_| step.use_kept);
        if let Some(gift) = gift.clone().filter(|_| step.keep) {
            // Capabilities that were kept may call us when they are dropped.
            drop(self.kept.replace(Some(Held::new(gift))));
        }
        let target = kept.or_else(|| on.map(Held::new));
        if let Some(tail) = target.as_ref().filter(|_| may_tail && self.tails(&step)) {
            self.tail(call, tail, &step, gift.clone());
            return Ok(Begun { call, step, gift, made: Vec::new(), is_over: true });
        }
        let made =
            target.map_or(Ok(Vec::new()), |target| self.call(&target, &step, gift.clone()))?;
        Ok(Begun { call, step, gift, made, is_over: false })
    }

    /// Tells whether a step ends by the first call that it makes.
    fn tails(&self, step: &Step) -> bool {
        let is_possible = self.client == Kind::Kj;
        let answers =
            |next: &Step| step.answer == Answer::Nothing || next.answer != Answer::Nothing;
        is_possible && step.tails && step.calls > 0 && step.next.as_deref().is_some_and(answers)
    }

    fn tail(
        self: &Rc<Self>,
        call: CallId,
        target: &Held,
        step: &Step,
        gift: Option<actor::Client>,
    ) {
        let Some(next) = &step.next else { return };
        let gifts = self.gifts(step, gift);
        let tail = ledger::makes_call(target.stub);
        ledger::tails(call, tail);
        let hook = target.cap.as_client_hook().add_ref();
        let mut request = kj::Call::new(hook, actor::Client::TYPE_ID, 0);
        fill(RequestHook::get(&mut request).init_as(), tail, self.sent(), next, &gifts);
        kj::tail(request);
    }

    fn gifts(self: &Rc<Self>, step: &Step, gift: Option<actor::Client>) -> Gifts {
        let on = gift.or_else(|| step.passes_gift.then(|| self.child()));
        Gifts { on: on.clone(), gift: on.filter(|_| step.passes_gift) }
    }

    fn call(
        self: &Rc<Self>,
        target: &Held,
        step: &Step,
        gift: Option<actor::Client>,
    ) -> Result<Vec<Made>> {
        let Some(next) = &step.next else { return Ok(Vec::new()) };
        let gifts = self.gifts(step, gift);
        let mut made = Vec::new();
        for number in 0..step.calls {
            if number > 0 && step.writes > 0 {
                self.put()?;
            }
            let call = if step.streams { stream } else { ask };
            let call = call(target, self.sent(), next, &gifts);
            if let Some(cap) = &call.promised {
                self.receives(cap, "a promise");
            }
            made.push(call);
        }
        Ok(made)
    }

    /// The answer that a step says, or a child where that can't be had.
    fn answer(self: &Rc<Self>, begun: &Begun) -> Option<actor::Client> {
        let answer = match begun.step.answer {
            Answer::Nothing => return None,
            Answer::Child => None,
            Answer::Gift => begun.gift.clone(),
            Answer::Itself => self.ctx.as_ref().map(Context::this),
            Answer::Promised => begun.made.first().and_then(|made| made.promised.clone()),
            Answer::Kept => self.kept.borrow().as_ref().map(|kept| kept.cap.clone()),
        };
        Some(answer.unwrap_or_else(|| self.child()))
    }

    fn child(self: &Rc<Self>) -> actor::Client {
        match &self.ctx {
            Some(ctx) => ctx.capability(self.clone()),
            None => self.clone().of_client(),
        }
    }

    /// Does the second half of a step.
    async fn wait(&self, step: &Step, made: Vec<Made>) {
        for _ in 0..step.polls {
            tokio::task::yield_now().await;
        }
        // A call of an exclusive object may wait, on another host, for that object, for half a
        // minute.
        if !step.awaits || ledger::is_exclusive(self.number) {
            return;
        }
        for Made { call, outcome, .. } in made {
            let _awaiting = Awaiting::new(call);
            let outcome = outcome.await.map(|known| {
                known.map(|(sent, cap)| {
                    if let Some(cap) = &cap {
                        self.receives(cap, "a reply");
                    }
                    sent
                })
            });
            ledger::ends(call, &outcome);
        }
    }

    fn finish(&self, call: CallId, step: &Step) -> Result<()> {
        ledger::answers(call, self.sent());
        match (step.ending, &self.ctx) {
            (Ending::Blank, _) => {
                ledger::says_nothing();
                Err(crate::error::failed(String::new()))
            }
            (Ending::Return, _) => Ok(()),
            (Ending::Panic, Some(_)) => {
                ledger::breaks(self.number);
                // Without the message on stderr that every panic prints.
                std::panic::resume_unwind(Box::new(ledger::ASKED));
            }
            (Ending::Abort, Some(ctx)) => {
                ledger::breaks(self.number);
                Err(ctx.abort("it was asked to"))
            }
            _ => {
                let mut error = ledger::asked_for(self.sent());
                error.extra.extend(std::iter::repeat_n('x', step.kibibytes as usize * 1024));
                Err(error)
            }
        }
    }
}

/// A step that did what it does before it waits.
struct Begun {
    call: CallId,
    step: Step,
    gift: Option<actor::Client>,
    made: Vec<Made>,
    /// It ended by a tail call.
    is_over: bool,
}

impl actor::Server for Actor {
    async fn act(
        self: Rc<Self>,
        params: actor::ActParams,
        mut results: actor::ActResults,
    ) -> Result<()> {
        let mut begun = self.begin(params.get()?, How::Act)?;
        if begun.is_over {
            return Ok(());
        }
        if let Some(cap) = self.answer(&begun) {
            results.get().set_cap(cap);
            if begun.step.early {
                ledger::answers(begun.call, self.sent());
                results.set_pipeline()?;
            }
        }
        let made = std::mem::take(&mut begun.made);
        self.wait(&begun.step, made).await;
        let sent = self.sent();
        results.get().set_sender(sent.sender);
        results.get().set_wrote(sent.wrote);
        if begun.step.kibibytes > 0 && begun.step.ending == Ending::Return {
            results.get().init_bulk(begun.step.kibibytes * 1024);
        }
        if begun.step.caps > 0 {
            let mut caps = results.get().init_caps(begun.step.caps);
            (0..begun.step.caps).for_each(|at| caps.set(at, self.child().into_client_hook()));
        }
        if begun.step.ending == Ending::Return && begun.step.is_too_much() {
            ledger::is_too_much(begun.call, self.number);
        }
        self.finish(begun.call, &begun.step)
    }

    async fn stream(self: Rc<Self>, params: actor::StreamParams) -> Result<()> {
        let begun = self.begin(params.get()?, How::Stream)?;
        self.wait(&begun.step, begun.made).await;
        self.finish(begun.call, &begun.step)
    }
}
