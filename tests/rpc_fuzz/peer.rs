//! A model of one side of a connection: the calls that the peer made, and the capabilities that it
//! gave and received, so that most of its messages could come from an honest peer.
//!
//! It makes messages and learns from the server's. It has no socket, and doesn't judge the messages
//! that it receives.

mod giving;
mod learning;

use std::collections::BTreeMap;

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use capnp::text;
use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::{call, message, payload};
use capstead::http::http_service;
use capstead_client::http_capnp::{byte_stream, web_socket};

use super::messages::{Message, disembargo, finish, fresh, path, release, root};
use super::server::URLS;
use super::support::random::Random;
use super::support::raw;

/// The number of calls with which a conversation begins; the last one's answer is the object.
pub(crate) const BEGINNING: u32 = 3;
pub(crate) const OBJECT: u32 = raw::COUNTER;

/// The number of objects that are called.
pub(crate) const OBJECTS: u64 = 4;

/// The largest number of the peer's unanswered calls, so that it reaches no soft limit.
const OPEN: usize = 300;

/// A number of calls and capabilities that no conversation uses.
pub(crate) const UNUSED: u32 = 60_000;

/// A call of the peer.
pub(crate) struct Asked {
    pub(crate) id: u32,
    /// Set if it was finished before its answer came; with the capabilities in the answer, or
    /// without.
    finished: Option<bool>,
}

pub(crate) struct Peer {
    pub(crate) random: Random,
    next_question: u32,
    /// Calls without an answer.
    pub(crate) open: Vec<Asked>,
    /// Answered calls that are not finished, with the capabilities in their answers.
    pub(crate) answered: BTreeMap<u32, Vec<u32>>,
    free_questions: Vec<u32>,
    /// Capabilities that were given away; promises are the unresolved ones.
    pub(crate) hosted: Vec<u32>,
    pub(crate) promises: Vec<u32>,
    /// The number of references to each that the server holds.
    given: BTreeMap<u32, u32>,
    next_export: u32,
    free_exports: Vec<u32>,
    /// The capabilities that the peer received: an entry for each reference.
    pub(crate) imports: Vec<u32>,
    /// Unanswered calls of the server.
    pub(crate) theirs: Vec<u32>,
    /// Calls of the peer whose results answer calls of the server, with these.
    reflected: Vec<(u32, u32)>,
    embargoes: Vec<u32>,
    /// The hook from which capability pointers are made.
    cap: Box<dyn ClientHook>,
    pub(crate) seen: Seen,
}

/// The messages that came from the server.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) returns: u64,
    pub(crate) calls: u64,
    pub(crate) resolves: u64,
    pub(crate) reflected: u64,
    pub(crate) disembargoes: u64,
    pub(crate) abort: Option<String>,
    /// The number of failed calls, by the reason.
    pub(crate) errors: BTreeMap<String, u64>,
}

impl Peer {
    pub(crate) fn new(random: Random) -> Self {
        let nobody = capnp_rpc::new_broken_cap(capnp::Error::failed("nobody".into()));
        Self {
            random,
            next_question: BEGINNING,
            open: Vec::new(),
            answered: BTreeMap::new(),
            free_questions: Vec::new(),
            hosted: Vec::new(),
            promises: Vec::new(),
            given: BTreeMap::new(),
            next_export: 0,
            free_exports: Vec::new(),
            imports: Vec::new(),
            theirs: Vec::new(),
            reflected: Vec::new(),
            embargoes: Vec::new(),
            cap: nobody.hook,
            seen: Seen::default(),
        }
    }

    /// The beginning of every conversation.
    pub(crate) fn begin(&mut self, reference: &str) -> Vec<Message> {
        self.open.extend((0..BEGINNING).map(|id| Asked { id, finished: None }));
        let name = format!("object {}", self.random.below(OBJECTS));
        vec![raw::bootstrap(), raw::restore(reference), raw::by_name(&name)]
    }

    /// A call whose answer shows that all messages before it were processed; returns it and its
    /// number.
    pub(crate) fn sync(&mut self) -> (Message, u32) {
        let (mut message, id) = (fresh(), self.question());
        root(&mut message).init_bootstrap().set_question_id(id);
        (message, id)
    }

    /// A message that an honest peer might send next.
    pub(crate) fn plausible(&mut self) -> Message {
        let busy = self.open.len() >= OPEN;
        match self.random.below(100) {
            0..36 if !busy => self.request(),
            36..42 if !busy => self.call_import(),
            42..50 if !busy => self.call_answer(),
            50..56 if !busy && !self.theirs.is_empty() && !self.imports.is_empty() => {
                self.reflect()
            }
            56..62 if !self.reflected.is_empty() => self.take_from(),
            50..74 if !self.theirs.is_empty() => self.answer(),
            74..82 => self.resolve(),
            82..86 if !self.imports.is_empty() => self.release(),
            86..90 if !self.embargoes.is_empty() => self.end_embargo(),
            90..92 => self.finish_unknown(),
            _ => self.finish(),
        }
    }

    fn question(&mut self) -> u32 {
        let id = self.free_questions.pop().unwrap_or_else(|| {
            self.next_question += 1;
            self.next_question - 1
        });
        self.open.push(Asked { id, finished: None });
        id
    }

    /// A number for a new capability of the peer.
    pub(crate) fn export(&mut self) -> u32 {
        self.free_exports.pop().unwrap_or_else(|| {
            self.next_export += 1;
            self.next_export - 1
        })
    }

    fn request(&mut self) -> Message {
        let mut message = fresh();
        let mut call = self.call(&mut message, <http_service::Client as HasTypeId>::TYPE_ID, 1);
        let mut target = call.reborrow().init_target().init_promised_answer();
        target.set_question_id(OBJECT);
        path(target, 1);
        self.params(call);
        message
    }

    fn call_import(&mut self) -> Message {
        let Some(id) = pick(&mut self.random, &self.imports) else { return self.request() };
        let mut message = fresh();
        let (interface, method) = self.method();
        let mut call = self.call(&mut message, interface, method);
        call.reborrow().init_target().set_imported_cap(id);
        self.params(call);
        message
    }

    fn call_answer(&mut self) -> Message {
        let mut message = fresh();
        let (interface, method) = self.method();
        let mut call = self.call(&mut message, interface, method);
        let (on, steps) = (self.any_question(), self.random.below(3) as u32);
        let mut target = call.reborrow().init_target().init_promised_answer();
        target.set_question_id(on);
        path(target, steps);
        self.params(call);
        message
    }

    fn call<'a>(
        &mut self,
        message: &'a mut Message,
        interface: u64,
        method: u16,
    ) -> call::Builder<'a> {
        let mut call = root(message).init_call();
        call.set_question_id(self.question());
        call.set_interface_id(interface);
        call.set_method_id(method);
        call.reborrow().get_send_results_to().set_caller(());
        call
    }

    fn method(&mut self) -> (u64, u16) {
        let interfaces = [
            <byte_stream::Client as HasTypeId>::TYPE_ID,
            <http_service::Client as HasTypeId>::TYPE_ID,
            <http_service::client_request_context::Client as HasTypeId>::TYPE_ID,
            <web_socket::Client as HasTypeId>::TYPE_ID,
            7,
        ];
        let interface = self.random.below(interfaces.len() as u64) as usize;
        (interfaces[interface], self.random.below(3) as u16)
    }

    /// Parameters of a request, for every method: most methods read them as another structure.
    fn params(&mut self, call: call::Builder) {
        let mut payload = call.init_params();
        let mut caps = self.caps(payload.reborrow());
        let url = URLS[self.random.below(URLS.len() as u64) as usize];
        let mut content = payload.reborrow().get_content();
        content.imbue_mut(&mut caps);
        let mut params = content.init_as::<http_service::request_params::Builder>();
        params.reborrow().init_request().set_url(url);
        params.set_context(FromClientHook::new(self.cap.clone()));
    }

    /// Answers a call of the server.
    fn answer(&mut self) -> Message {
        let at = self.random.below(self.theirs.len() as u64) as usize;
        let id = self.theirs.swap_remove(at);
        self.answer_to(id)
    }

    /// Resolves a call of the server's to a call on an object of the server's.
    fn reflect(&mut self) -> Message {
        let at = self.random.below(self.theirs.len() as u64) as usize;
        let theirs = self.theirs.swap_remove(at);
        let mut message = self.call_import();
        let root = message.get_root::<message::Builder>().expect("it was made");
        if let Ok(message::Call(Ok(call))) = root.which() {
            self.reflected.push((call.reborrow_as_reader().get_question_id(), theirs));
            call.init_send_results_to().set_yourself(());
        }
        message
    }

    fn take_from(&mut self) -> Message {
        let (from, theirs) = self.reflected.remove(0);
        let mut message = fresh();
        let mut answer = root(&mut message).init_return();
        answer.set_answer_id(theirs);
        answer.set_take_from_other_question(from);
        message
    }

    fn is_reflected(&self, id: u32) -> bool {
        self.reflected.iter().any(|(from, _)| *from == id)
    }

    pub(crate) fn answer_to(&mut self, id: u32) -> Message {
        let mut message = fresh();
        let mut answer = root(&mut message).init_return();
        answer.set_answer_id(id);
        answer.set_release_param_caps(false);
        answer.set_no_finish_needed(self.random.below(16) == 0);
        match self.random.below(8) {
            0 => answer.init_exception().set_reason("none"),
            1 => drop(answer.init_results()),
            _ => self.results(answer.init_results()),
        }
        message
    }

    fn results(&mut self, mut payload: payload::Builder) {
        let mut caps = self.caps(payload.reborrow());
        let kind = self.random.below(16);
        let mut content = payload.reborrow().get_content();
        content.imbue_mut(&mut caps);
        match kind {
            0 => content.set_as_capability(self.cap.clone()),
            1 => content.initn_as::<text::Builder>(5).push_str("words"),
            _ => {
                let mut results = content.init_as::<http_service::request_results::Builder>();
                results.set_request_body(FromClientHook::new(self.cap.clone()));
            }
        }
    }

    /// A call of the peer, usually an open or an answered one.
    pub(crate) fn any_question(&mut self) -> u32 {
        match self.random.below(12) {
            0 => UNUSED,
            1..4 => OBJECT,
            4..8 if !self.open.is_empty() => {
                self.open[self.random.below(self.open.len() as u64) as usize].id
            }
            _ => self.any_answered().unwrap_or(OBJECT),
        }
    }

    fn any_answered(&mut self) -> Option<u32> {
        let from = self.random.below(u64::from(self.next_question)) as u32;
        self.answered.range(from..).next().map(|(id, _)| *id)
    }

    fn resolve(&mut self) -> Message {
        if self.promises.is_empty() {
            return self.request();
        }
        let at = self.random.below(self.promises.len() as u64) as usize;
        let id = self.promises.swap_remove(at);
        let mut message = fresh();
        let mut resolve = root(&mut message).init_resolve();
        resolve.set_promise_id(id);
        if self.random.below(8) == 0 {
            resolve.init_exception().set_reason("broken");
        } else {
            self.live_capability(resolve.init_cap());
        }
        self.hosted.push(id);
        message
    }

    fn release(&mut self) -> Message {
        let at = self.random.below(self.imports.len() as u64) as usize;
        release(self.imports.swap_remove(at), 1)
    }

    fn end_embargo(&mut self) -> Message {
        let id = self.embargoes.remove(0);
        disembargo(OBJECT, |mut context| context.set_receiver_loopback(id))
    }

    fn finish_unknown(&mut self) -> Message {
        finish(UNUSED, self.random.below(2) == 0)
    }

    /// Finishes a call, whether or not it has an answer.
    fn finish(&mut self) -> Message {
        let releases = self.random.below(2) == 0;
        if self.random.below(3) == 0 {
            let from = self.random.below(self.open.len().max(1) as u64) as usize;
            let reflected: Vec<_> = self.reflected.iter().map(|(from, _)| *from).collect();
            let mut open = self.open.iter_mut().skip(from);
            if let Some(asked) = open.find(|asked| {
                asked.id > OBJECT && asked.finished.is_none() && !reflected.contains(&asked.id)
            }) {
                asked.finished = Some(releases);
                return finish(asked.id, releases);
            }
        }
        let answered = self.any_answered();
        let Some(id) = answered.filter(|id| *id > OBJECT && !self.is_reflected(*id)) else {
            return self.finish_unknown();
        };
        let caps = self.answered.remove(&id).unwrap_or_default();
        if releases {
            self.forget_imports(&caps);
        }
        self.free_questions.push(id);
        finish(id, releases)
    }

    /// Removes the references that came with an answer; other references to the same capability may
    /// remain.
    fn forget_imports(&mut self, caps: &[u32]) {
        for cap in caps {
            if let Some(at) = self.imports.iter().position(|id| id == cap) {
                self.imports.swap_remove(at);
            }
        }
    }
}

pub(crate) fn pick(random: &mut Random, from: &[u32]) -> Option<u32> {
    (!from.is_empty()).then(|| from[random.below(from.len() as u64) as usize])
}
