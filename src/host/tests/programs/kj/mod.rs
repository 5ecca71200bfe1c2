//! A peer that speaks as KJ's RPC system in C++ does, made by hand: one side of a connection to a
//! server.
//!
//! It knows promises, resolves them, reflects calls on those that lead back to the server, ends
//! methods by tail calls, and embargoes capabilities that come home. An error over which KJ would
//! end the connection is a broken rule: the server is told nothing that an honest peer in C++ can't
//! take.

mod hook;
mod receive;
mod request;
mod table;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::{Rc, Weak};

use capnp::Error;
use capnp::any_pointer;
use capnp::capability::{Promise, Response};
use capnp::message::{Builder, HeapAllocator, Reader};
use capnp::private::capability::{ClientHook, PipelineHook, PipelineOp};
use capnp::serialize::{self, OwnedSegments};
use capnp::traits::ImbueMut;
use capnp_rpc::rpc_capnp::{cap_descriptor, exception, message, payload, promised_answer, return_};
use futures::channel::mpsc;

use self::hook::{Answered, Asked, End, Import, Next, Own, Question, Tail, Target, end, wrap};
use self::table::{Counted, Table};

pub(super) use self::hook::{Later, forget};
pub(super) use self::request::{Call, tail, tail_is_possible};

type Incoming = Reader<OwnedSegments>;
type Outgoing = Builder<HeapAllocator>;
type Caps = Vec<Option<Box<dyn ClientHook>>>;

/// Largest message that it sends, in bytes, and the most capabilities in one: what every peer
/// takes.
const MESSAGE_BYTES_MAX: usize = 8 << 20;
const CAPABILITIES_MAX: usize = 64;

/// One side of a connection.
pub(super) struct Peer {
    out: mpsc::UnboundedSender<Vec<u8>>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    questions: Table<Asking>,
    answers: HashMap<u32, Answer>,
    exports: Table<Counted<Export>>,
    exported: HashMap<usize, u32>,
    imports: HashMap<u32, Weak<Import>>,
    embargoes: Table<Box<dyn FnOnce()>>,
    /// Why the connection is over.
    over: Option<Error>,
}

#[expect(clippy::struct_excessive_bools, reason = "each stands for itself")]
struct Asking {
    asked: Weak<Asked>,
    awaits: bool,
    is_tail: bool,
    is_finished: bool,
    needs_finish: bool,
    params: Vec<u32>,
}

#[derive(Default)]
struct Answer {
    pipeline: Option<Box<dyn PipelineHook>>,
    results: Vec<u32>,
    /// The tail call that answers it, until its end.
    tail: Option<Rc<Asked>>,
    is_returned: bool,
    is_finished: bool,
}

struct Export {
    hook: Next,
    is_promise: bool,
}

pub(super) fn params(message: &mut Outgoing) -> payload::Builder<'_> {
    let root = message.get_root::<message::Builder>().unwrap();
    let Ok(message::Call(Ok(call))) = root.which() else { unreachable!("it is a call") };
    call.get_params().unwrap()
}

fn made(write: impl FnOnce(message::Builder)) -> Outgoing {
    let mut message = Builder::new_default();
    write(message.init_root());
    message
}

fn put_path(mut to: promised_answer::Builder, question: u32, path: &[PipelineOp]) {
    to.set_question_id(question);
    let mut steps = to.init_transform(path.len() as u32);
    for (at, step) in (0..).zip(path) {
        match step {
            PipelineOp::Noop => steps.reborrow().get(at).set_noop(()),
            PipelineOp::GetPointerField(field) => {
                steps.reborrow().get(at).set_get_pointer_field(*field);
            }
        }
    }
}

fn path(from: promised_answer::Reader) -> capnp::Result<Vec<PipelineOp>> {
    let steps = from.get_transform()?.iter().map(|step| {
        Ok(match step.which()? {
            promised_answer::op::Noop(()) => PipelineOp::Noop,
            promised_answer::op::GetPointerField(field) => PipelineOp::GetPointerField(field),
        })
    });
    steps.collect()
}

thread_local! {
    static SEEN: RefCell<BTreeMap<&'static str, u64>> = RefCell::default();
}

/// Notes that a part of the protocol was used.
fn note(what: &'static str) {
    SEEN.with_borrow_mut(|seen| *seen.entry(what).or_default() += 1);
}

/// The number of times that each part of the protocol was used that only such a peer uses, since
/// this was asked.
pub(super) fn seen() -> BTreeMap<&'static str, u64> {
    SEEN.take()
}

/// A mistake of the other side over which KJ ends a connection.
type Refused<T> = Result<T, String>;

/// The messages that go out.
impl Peer {
    fn send(&self, message: &Outgoing) {
        // Its writer learns of the end otherwise.
        let _ = self.out.unbounded_send(serialize::write_message_to_words(message));
    }

    /// Makes the call of a message. Its results are to answer that call of the other side, if any.
    fn ask(
        self: &Rc<Self>,
        to: &Target,
        message: &mut Outgoing,
        caps: &Caps,
        answers: Option<u32>,
    ) -> Result<Rc<Asked>, Error> {
        if let Some(over) = &self.state.borrow().over {
            return Err(over.clone());
        }
        check(message, caps.len())?;
        let mut exports = Vec::new();
        self.describe(caps, params(message), &mut exports);
        let asked = Rc::new(Asked::default());
        let asking = Asking {
            asked: Rc::downgrade(&asked),
            awaits: true,
            is_tail: answers.is_some(),
            is_finished: false,
            needs_finish: true,
            params: exports,
        };
        let id = self.state.borrow_mut().questions.insert(asking);
        asked.question.replace(Some(Rc::new(Question { peer: self.clone(), id })));
        let root = message.get_root::<message::Builder>().unwrap();
        let Ok(message::Call(Ok(mut call))) = root.which() else { unreachable!("it is a call") };
        call.set_question_id(id);
        to.put(call.reborrow().init_target());
        match answers {
            Some(_) => call.get_send_results_to().set_yourself(()),
            None => call.get_send_results_to().set_caller(()),
        }
        self.send(message);
        Ok(asked)
    }

    /// Answers a call of the other side by one that this side makes there.
    fn reflect(self: &Rc<Self>, answer: u32, to: &Target, message: &mut Outgoing, caps: &Caps) {
        let asked = match self.ask(to, message, caps, Some(answer)) {
            Ok(asked) => asked,
            Err(error) => return self.answer(answer, Err(error)),
        };
        let question = asked.question.borrow().clone().expect("it was just asked");
        note("calls reflected");
        self.send(&made(|message| {
            let mut returned = message.init_return();
            returned.set_answer_id(answer);
            returned.set_release_param_caps(false);
            returned.set_take_from_other_question(question.id);
        }));
        let mut state = self.state.borrow_mut();
        let Some(answering) = state.answers.get_mut(&answer) else { return };
        answering.is_returned = true;
        answering.pipeline = Some(Box::new(Tail(question)));
        answering.tail = Some(asked);
        let over = answering.is_finished.then(|| state.answers.remove(&answer));
        drop(state);
        drop(over);
    }

    fn answer(self: &Rc<Self>, id: u32, outcome: Result<Rc<Response<any_pointer::Owned>>, Error>) {
        let mut state = self.state.borrow_mut();
        let Some(answer) = state.answers.get_mut(&id) else { return };
        answer.is_returned = true;
        if answer.is_finished {
            let over = state.answers.remove(&id);
            drop(state);
            self.send(&returned(id, |mut answer| answer.set_canceled(())));
            return drop(over);
        }
        drop(state);
        let mut exports = Vec::new();
        let outcome = outcome.and_then(|response| {
            let (mut message, mut caps) =
                (returned(id, |answer| _ = answer.init_results()), Caps::new());
            let mut content = results(&mut message).get_content();
            content.imbue_mut(&mut caps);
            content.set_as(response.get()?)?;
            check(&message, caps.len())?;
            self.describe(&caps, results(&mut message), &mut exports);
            Ok(message)
        });
        let message = outcome.unwrap_or_else(|error| {
            returned(id, |answer| put_error(answer.init_exception(), &error))
        });
        self.send(&message);
        if let Some(answer) = self.state.borrow_mut().answers.get_mut(&id) {
            answer.results = exports;
        }
    }

    fn describe(self: &Rc<Self>, caps: &Caps, payload: payload::Builder, exports: &mut Vec<u32>) {
        let mut table = payload.init_cap_table(caps.len() as u32);
        for (at, cap) in (0..).zip(caps) {
            let to = table.reborrow().get(at);
            exports.extend(cap.as_ref().and_then(|cap| self.describe_one(cap, to)));
        }
    }

    fn describe_one(self: &Rc<Self>, cap: &Next, mut to: cap_descriptor::Builder) -> Option<u32> {
        let (hook, is_promise) = match end(cap) {
            End::Remote(peer, target) if Rc::ptr_eq(&peer, self) => {
                match target {
                    Target::Import(import) => to.set_receiver_hosted(import.id),
                    Target::Answer(question, path) => {
                        put_path(to.init_receiver_answer(), question.id, &path);
                    }
                }
                return None;
            }
            End::Remote(_, Target::Import(import)) => (wrap(Own::Import(import)), false),
            // Another connection's, and a promise there.
            End::Remote(..) => (cap.clone(), true),
            End::Unknown(_, hook) => (hook, true),
            End::Here(hook) => (hook, false),
        };
        let (id, is_promise) = self.export(hook, is_promise);
        if is_promise {
            note("promises given");
            to.set_sender_promise(id);
        } else {
            to.set_sender_hosted(id);
        }
        Some(id)
    }

    fn export(self: &Rc<Self>, hook: Next, is_promise: bool) -> (u32, bool) {
        let mut state = self.state.borrow_mut();
        let address = hook.get_ptr();
        if let Some(id) = state.exported.get(&address).copied() {
            let export = state.exports.get_mut(id).expect("it is exported");
            export.references += 1;
            return (id, export.thing.is_promise);
        }
        let next = is_promise.then(|| hook.when_more_resolved()).flatten();
        let is_promise = next.is_some();
        let export = Export { hook, is_promise };
        let id = state.exports.insert(Counted { thing: export, references: 1 });
        state.exported.insert(address, id);
        if let Some(next) = next {
            // Ends with the promise, or the connection.
            tokio::task::spawn_local(self.clone().resolve(id, address, next));
        }
        (id, is_promise)
    }

    /// Says what a promise became, unless that is a promise which nobody else was told of.
    async fn resolve(self: Rc<Self>, id: u32, mut address: usize, mut next: Promise<Next, Error>) {
        loop {
            let known = next.await;
            let mut state = self.state.borrow_mut();
            if state.exported.get(&address) != Some(&id) {
                return;
            }
            state.exported.remove(&address);
            let here = match &known {
                Ok(hook) => match end(hook) {
                    End::Unknown(_, hook) => Some(hook),
                    _ => None,
                },
                Err(_) => None,
            };
            let export = state.exports.get_mut(id).expect("it is exported");
            if let Some(hook) = here {
                let before = std::mem::replace(&mut export.thing.hook, hook.clone());
                let is_new = !state.exported.contains_key(&hook.get_ptr());
                if let Some(more) = hook.when_more_resolved().filter(|_| is_new) {
                    address = hook.get_ptr();
                    state.exported.insert(address, id);
                    drop(state);
                    drop(before);
                    next = more;
                    continue;
                }
            } else if let Ok(hook) = &known {
                export.thing.hook = hook.clone();
            }
            if let Some(export) = state.exports.get_mut(id) {
                export.thing.is_promise = false;
            }
            drop(state);
            return self.say_resolved(id, &known);
        }
    }

    fn say_resolved(self: &Rc<Self>, id: u32, known: &Result<Next, Error>) {
        self.send(&made(|message| {
            let mut resolve = message.init_resolve();
            resolve.set_promise_id(id);
            note(if known.is_ok() { "promises resolved" } else { "promises broken" });
            match known {
                Ok(hook) => _ = self.describe_one(hook, resolve.init_cap()),
                Err(error) => put_error(resolve.init_exception(), error),
            }
        }));
    }

    /// Sends what comes back behind all calls on that answer.
    pub(super) fn disembargo(&self, question: u32, path: &[PipelineOp], back: Box<dyn FnOnce()>) {
        let mut state = self.state.borrow_mut();
        if state.over.is_some() {
            drop(state);
            return back();
        }
        let embargo = state.embargoes.insert(back);
        note("calls embargoed");
        drop(state);
        self.send(&made(|message| {
            let mut disembargo = message.init_disembargo();
            put_path(disembargo.reborrow().init_target().init_promised_answer(), question, path);
            disembargo.get_context().set_sender_loopback(embargo);
        }));
    }

    fn finish(&self, id: u32) {
        let mut state = self.state.borrow_mut();
        let Some(asking) = state.questions.get_mut(id) else { return };
        asking.is_finished = true;
        let (awaits, needs_finish) = (asking.awaits, asking.needs_finish);
        let over = (!awaits).then(|| state.questions.remove(id));
        drop(state);
        if awaits {
            note("calls given up");
        }
        if needs_finish {
            self.send(&made(|message| {
                let mut finish = message.init_finish();
                finish.set_question_id(id);
                finish.set_release_result_caps(awaits);
            }));
        }
        drop(over);
    }

    fn lets_go(&self, id: u32, count: u32) {
        let mut state = self.state.borrow_mut();
        if state.imports.get(&id).is_some_and(|import| import.strong_count() == 0) {
            state.imports.remove(&id);
        }
        drop(state);
        self.send(&made(|message| {
            let mut release = message.init_release();
            release.set_id(id);
            release.set_reference_count(count);
        }));
    }
}

fn check(message: &Outgoing, caps: usize) -> Result<(), Error> {
    if message.size_in_words() * 8 + (64 << 10) > MESSAGE_BYTES_MAX {
        Err(Error::failed("too-large: the peer can't send it".into()))
    } else if caps > CAPABILITIES_MAX {
        Err(Error::failed("too-many-capabilities: the peer can't send them".into()))
    } else {
        Ok(())
    }
}

fn returned(id: u32, write: impl FnOnce(return_::Builder)) -> Outgoing {
    made(|message| {
        let mut answer = message.init_return();
        answer.set_answer_id(id);
        answer.set_release_param_caps(false);
        write(answer);
    })
}

fn results(message: &mut Outgoing) -> payload::Builder<'_> {
    let root = message.get_root::<message::Builder>().unwrap();
    let Ok(message::Return(Ok(answer))) = root.which() else { unreachable!("it is a Return") };
    let Ok(return_::Results(Ok(payload))) = answer.which() else { unreachable!("it has results") };
    payload
}

fn put_error(mut to: exception::Builder, error: &Error) {
    let end = error.extra.floor_char_boundary(MESSAGE_BYTES_MAX - (64 << 10));
    to.set_reason(&error.extra[..end]);
    to.set_type(match error.kind {
        capnp::ErrorKind::Overloaded => exception::Type::Overloaded,
        capnp::ErrorKind::Disconnected => exception::Type::Disconnected,
        capnp::ErrorKind::Unimplemented => exception::Type::Unimplemented,
        _ => exception::Type::Failed,
    });
}
