//! The things that a peer's side holds: imports, promised results, and promises that it resolves
//! itself.
//!
//! A promised result sends its calls to the peer's answer until that is there. If it turns out to
//! be something of this side, a `Disembargo` goes after those calls, and later ones wait until it
//! is back. A promise of this side keeps its calls until it is resolved.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};

use capnp::capability::{Promise, RemotePromise, Request, Response};
use capnp::private::capability::{
    ClientHook, ParamsHook, PipelineHook, PipelineOp, ResponseHook, ResultsHook,
};
use capnp::traits::Imbue;
use capnp::{Error, MessageSize, any_pointer};
use capnp_rpc::rpc_capnp::{message, message_target, return_};
use futures::channel::oneshot;

use super::request::Call;
use super::{Caps, Incoming, Peer, put_path};

pub(super) type Path = Vec<PipelineOp>;
pub(in super::super) type Next = Box<dyn ClientHook>;

/// A capability of the other side.
pub(super) struct Import {
    pub(super) peer: Rc<Peer>,
    pub(super) id: u32,
    pub(super) count: Cell<u32>,
}

impl Drop for Import {
    fn drop(&mut self) {
        self.peer.lets_go(self.id, self.count.get());
    }
}

/// A call of this side that isn't finished.
pub(super) struct Question {
    pub(super) peer: Rc<Peer>,
    pub(super) id: u32,
}

impl Drop for Question {
    fn drop(&mut self) {
        self.peer.finish(self.id);
    }
}

/// The results of a call of this side.
pub(super) struct Answered {
    pub(super) message: Incoming,
    pub(super) caps: Caps,
    /// It is finished when nobody has them any more.
    pub(super) _question: Option<Rc<Question>>,
}

impl Answered {
    pub(super) fn content(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        let message::Return(answer) = self.message.get_root::<message::Reader>()?.which()? else {
            return Err(Error::failed("it is a Return".into()));
        };
        let return_::Results(results) = answer?.which()? else {
            return Err(Error::failed("it has results".into()));
        };
        let mut content = results?.get_content();
        content.imbue(&self.caps);
        Ok(content)
    }
}

/// The outcome of a call; none of one whose results went elsewhere.
pub(super) type Outcome = Result<Option<Rc<Answered>>, Error>;

/// A call of this side and the caller that waits for it.
#[derive(Default)]
pub(super) struct Asked {
    /// While there is no outcome.
    pub(super) question: RefCell<Option<Rc<Question>>>,
    outcome: RefCell<Option<Outcome>>,
    promised: RefCell<Vec<(Weak<Later>, Path)>>,
    waiting: RefCell<Vec<oneshot::Sender<()>>>,
}

impl Asked {
    /// Promised results learn of it before the caller.
    pub(super) fn settle(&self, outcome: Outcome) {
        let question = self.question.take();
        for (later, path) in self.promised.take() {
            if let (Some(later), Some(question)) = (later.upgrade(), &question) {
                later.learn(question, &path, &outcome);
            }
        }
        self.outcome.replace(Some(outcome));
        self.waiting.take().into_iter().for_each(|waiting| _ = waiting.send(()));
    }

    async fn settled(self: Rc<Self>) -> Outcome {
        if self.outcome.borrow().is_none() {
            let (sender, receiver) = oneshot::channel();
            self.waiting.borrow_mut().push(sender);
            let _ = receiver.await;
        }
        let outcome = self.outcome.borrow().clone();
        outcome.unwrap_or_else(|| Err(Error::disconnected("the peer is gone".into())))
    }

    pub(super) fn remote(self: Rc<Self>) -> RemotePromise<any_pointer::Owned> {
        let results = Rc::new(Results { asked: self.clone(), used: RefCell::default() });
        let pipeline = any_pointer::Pipeline::new(Box::new(Promised(results)));
        let promise = Promise::from_future(async move {
            let answered = self.settled().await?;
            let none = || Error::failed("a call without results was awaited".into());
            Ok(Response::new(Box::new(Given(answered.ok_or_else(none)?))))
        });
        RemotePromise { promise, pipeline }
    }
}

struct Given(Rc<Answered>);

impl ResponseHook for Given {
    fn get(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        self.0.content()
    }
}

/// The results that a call will return. Each path in them is one capability, from its first use on:
/// what is called later must not overtake what was called before.
struct Results {
    asked: Rc<Asked>,
    used: RefCell<Vec<(Path, Rc<Later>)>>,
}

struct Promised(Rc<Results>);

/// The part of a path that was used.
pub(super) fn used(of: &[(Path, Rc<Later>)], path: &[PipelineOp]) -> Option<Next> {
    let field = |step: &PipelineOp| match step {
        PipelineOp::Noop => None,
        PipelineOp::GetPointerField(field) => Some(*field),
    };
    let same = |before: &Path| before.iter().filter_map(field).eq(path.iter().filter_map(field));
    of.iter().find(|(before, _)| same(before)).map(|(_, later)| later.hook())
}

impl PipelineHook for Promised {
    fn add_ref(&self) -> Box<dyn PipelineHook> {
        Box::new(Self(self.0.clone()))
    }

    fn get_pipelined_cap(&self, path: &[PipelineOp]) -> Next {
        let Results { asked, used: before } = &*self.0;
        if let Some(used) = used(&before.borrow(), path) {
            return used;
        }
        if let Some(outcome) = &*asked.outcome.borrow() {
            return found(outcome, path);
        }
        let path: Path = path.into();
        let to = To::Answer { asked: asked.clone(), path: path.clone(), called: false };
        let later = Later::new(to);
        asked.promised.borrow_mut().push((Rc::downgrade(&later), path.clone()));
        before.borrow_mut().push((path, later.clone()));
        later.hook()
    }
}

fn found(outcome: &Outcome, path: &[PipelineOp]) -> Next {
    let content = match outcome {
        Ok(Some(answered)) => answered.content().and_then(|found| found.get_pipelined_cap(path)),
        Ok(None) => Err(Error::failed("the results went elsewhere".into())),
        Err(error) => Err(error.clone()),
    };
    content.unwrap_or_else(|error| capnp_rpc::new_broken_cap(error).hook)
}

/// A result of a tail call: it never comes to this side.
pub(super) struct Piped {
    pub(super) question: Rc<Question>,
    path: Path,
}

/// The results of a tail call.
pub(super) struct Tail(pub(super) Rc<Question>);

impl PipelineHook for Tail {
    fn add_ref(&self) -> Box<dyn PipelineHook> {
        Box::new(Self(self.0.clone()))
    }

    fn get_pipelined_cap(&self, path: &[PipelineOp]) -> Next {
        let piped = Piped { question: self.0.clone(), path: path.into() };
        wrap(Own::Piped(Rc::new(piped)))
    }
}

type Waiting = Box<dyn FnOnce(Next)>;

enum To {
    Answer { asked: Rc<Asked>, path: Path, called: bool },
    Unknown(VecDeque<Waiting>),
    Known(Next),
}

/// A promise.
pub(in super::super) struct Later {
    to: RefCell<To>,
    waiting: RefCell<Vec<oneshot::Sender<Result<Next, Error>>>>,
}

impl Later {
    fn new(to: To) -> Rc<Self> {
        Rc::new(Self { to: RefCell::new(to), waiting: RefCell::default() })
    }

    /// One that this side resolves.
    pub(in super::super) fn unknown() -> Rc<Self> {
        Self::new(To::Unknown(VecDeque::new()))
    }

    pub(in super::super) fn hook(self: &Rc<Self>) -> Next {
        wrap(Own::Later(self.clone()))
    }

    /// Calls that waited go before all later ones.
    pub(in super::super) fn resolve(&self, to: Result<Next, Error>) {
        let hook = match &to {
            Ok(hook) => hook.clone(),
            Err(error) => capnp_rpc::new_broken_cap(error.clone()).hook,
        };
        while let Some(call) = self.next() {
            call(hook.clone());
        }
        drop(self.to.replace(To::Known(hook)));
        for waiting in self.waiting.take() {
            let _ = waiting.send(to.clone());
        }
    }

    fn next(&self) -> Option<Waiting> {
        match &mut *self.to.borrow_mut() {
            To::Unknown(calls) => calls.pop_front(),
            _ => None,
        }
    }

    pub(super) fn push(&self, call: Waiting) {
        match &mut *self.to.borrow_mut() {
            To::Unknown(calls) => calls.push_back(call),
            _ => unreachable!("it was unknown"),
        }
    }

    /// The answer is there that this is a part of.
    fn learn(&self, question: &Rc<Question>, path: &[PipelineOp], outcome: &Outcome) {
        let called = matches!(&*self.to.borrow(), To::Answer { called: true, .. });
        let known = found(outcome, path);
        let peer = &question.peer;
        let is_here = match end(&known) {
            End::Remote(of, _) => !Rc::ptr_eq(&of, peer),
            End::Unknown(..) | End::Here(_) => outcome.is_ok(),
        };
        if !(called && is_here) {
            return self.resolve(Ok(known));
        }
        // Earlier calls have to come back first.
        let embargoed = Self::unknown();
        self.resolve(Ok(embargoed.hook()));
        peer.disembargo(question.id, path, Box::new(move || embargoed.resolve(Ok(known))));
    }

    fn when_resolved(&self) -> Promise<Next, Error> {
        if let To::Known(known) = &*self.to.borrow() {
            return Promise::ok(known.clone());
        }
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().push(sender);
        Promise::from_future(async move {
            receiver.await.map_err(|_| Error::disconnected("nobody resolves it".into()))?
        })
    }
}

/// A capability that this file made.
#[derive(Clone)]
pub(super) enum Own {
    Import(Rc<Import>),
    Piped(Rc<Piped>),
    Later(Rc<Later>),
}

enum Known {
    Import(Weak<Import>),
    Piped(Weak<Piped>),
    Later(Weak<Later>),
}

thread_local! {
    static OWN: RefCell<HashMap<usize, Known>> = RefCell::default();
}

/// Its address is the brand of these hooks.
pub(super) static BRAND: u8 = 0;

pub(super) fn wrap(own: Own) -> Next {
    let known = match &own {
        Own::Import(import) => Known::Import(Rc::downgrade(import)),
        Own::Piped(piped) => Known::Piped(Rc::downgrade(piped)),
        Own::Later(later) => Known::Later(Rc::downgrade(later)),
    };
    let hook = Hook(own);
    OWN.with_borrow_mut(|owns| owns.insert(hook.get_ptr(), known));
    Box::new(hook)
}

/// Forgets the capabilities of earlier programs.
pub(in super::super) fn forget() {
    OWN.with_borrow_mut(HashMap::clear);
}

fn own(hook: &dyn ClientHook) -> Option<Own> {
    if hook.get_brand() != &raw const BRAND as usize {
        return None;
    }
    OWN.with_borrow(|owns| match owns.get(&hook.get_ptr())? {
        Known::Import(import) => import.upgrade().map(Own::Import),
        Known::Piped(piped) => piped.upgrade().map(Own::Piped),
        Known::Later(later) => later.upgrade().map(Own::Later),
    })
}

/// The target of a message to the other side.
pub(super) enum Target {
    Import(Rc<Import>),
    Answer(Rc<Question>, Path),
}

impl Target {
    /// Writes it into a message.
    pub(super) fn put(&self, mut to: message_target::Builder) {
        match self {
            Self::Import(import) => to.set_imported_cap(import.id),
            Self::Answer(question, path) => put_path(to.init_promised_answer(), question.id, path),
        }
    }
}

/// The end to which a capability leads, as far as that is known.
pub(super) enum End {
    Remote(Rc<Peer>, Target),
    Unknown(Rc<Later>, Next),
    Here(Next),
}

pub(super) fn end(hook: &Next) -> End {
    let mut hook = hook.clone();
    loop {
        let next = match own(&*hook) {
            Some(Own::Import(import)) => {
                return End::Remote(import.peer.clone(), Target::Import(import));
            }
            Some(Own::Piped(piped)) => {
                let target = Target::Answer(piped.question.clone(), piped.path.clone());
                return End::Remote(piped.question.peer.clone(), target);
            }
            Some(Own::Later(later)) => match &mut *later.to.borrow_mut() {
                To::Unknown(_) => return End::Unknown(later.clone(), hook),
                To::Known(next) => Some(next.clone()),
                To::Answer { asked, path, called } => {
                    *called = true;
                    let question = asked.question.borrow().clone().expect("it has no answer");
                    let peer = question.peer.clone();
                    return End::Remote(peer, Target::Answer(question, path.clone()));
                }
            },
            None => hook.get_resolved(),
        };
        match next {
            Some(next) => hook = next,
            None => return End::Here(hook),
        }
    }
}

struct Hook(Own);

impl ClientHook for Hook {
    fn add_ref(&self) -> Next {
        Box::new(Self(self.0.clone()))
    }

    fn new_call(
        &self,
        interface: u64,
        method: u16,
        _: Option<MessageSize>,
    ) -> Request<any_pointer::Owned, any_pointer::Owned> {
        Request::new(Box::new(Call::new(self.add_ref(), interface, method)))
    }

    fn call(
        &self,
        interface: u64,
        method: u16,
        params: Box<dyn ParamsHook>,
        mut results: Box<dyn ResultsHook>,
    ) -> Promise<(), Error> {
        let mut request = self.new_call(interface, method, None);
        let sent = params.get().and_then(|params| request.get().set_as(params));
        let sent = sent.map(|()| request.send());
        Promise::from_future(async move {
            let response = sent?.promise.await?;
            results.get()?.set_as(response.get()?)
        })
    }

    fn get_brand(&self) -> usize {
        &raw const BRAND as usize
    }

    fn get_ptr(&self) -> usize {
        match &self.0 {
            Own::Import(import) => Rc::as_ptr(import).addr(),
            Own::Piped(piped) => Rc::as_ptr(piped).addr(),
            Own::Later(later) => Rc::as_ptr(later).addr(),
        }
    }

    fn get_resolved(&self) -> Option<Next> {
        match &self.0 {
            Own::Later(later) => match &*later.to.borrow() {
                To::Known(known) => Some(known.clone()),
                _ => None,
            },
            _ => None,
        }
    }

    fn when_more_resolved(&self) -> Option<Promise<Next, Error>> {
        match &self.0 {
            Own::Later(later) => Some(later.when_resolved()),
            _ => None,
        }
    }

    fn when_resolved(&self) -> Promise<(), Error> {
        let Some(next) = self.when_more_resolved() else { return Promise::ok(()) };
        Promise::from_future(async move { next.await?.when_resolved().await })
    }
}
