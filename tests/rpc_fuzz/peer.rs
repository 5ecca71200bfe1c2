//! One side of a connection as a model: what the peer asked, gave away and was given, so that most of
//! what it says is what an honest peer could say.
//!
//! It makes messages and learns from those that come back. It has no socket, and doesn't judge what it
//! is told.

use std::collections::BTreeMap;

use capnp::capability::FromClientHook;
use capnp::message::{Builder, HeapAllocator};
use capnp::private::capability::ClientHook;
use capnp::text;
use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::{
    call, cap_descriptor, disembargo, message, payload, promised_answer, resolve, return_,
};
use capstead::http::http_service;
use capstead_client::http_capnp::{byte_stream, web_socket};

use super::server::URLS;
use super::support::random::Random;
use super::support::raw;

pub(crate) type Message = Builder<HeapAllocator>;

/// The calls that a conversation begins with; the last one's answer is the object.
pub(crate) const BEGINNING: u32 = 3;
pub(crate) const OBJECT: u32 = raw::COUNTER;

/// Objects that are called.
pub(crate) const OBJECTS: u64 = 4;

/// Calls without an answer that the peer has at most, so that it comes to no soft limit.
const OPEN: usize = 300;

/// Numbers of calls, and of capabilities, that are out of use in any conversation.
pub(crate) const UNUSED: u32 = 60_000;

/// A call of the peer.
pub(crate) struct Asked {
    pub(crate) id: u32,
    /// It was finished before its answer came; with the capabilities in it, or without.
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
    /// Capabilities that were given away; promises are those that were not resolved.
    pub(crate) hosted: Vec<u32>,
    pub(crate) promises: Vec<u32>,
    /// How often each was given away and not given back.
    given: BTreeMap<u32, u32>,
    next_export: u32,
    free_exports: Vec<u32>,
    /// What was given to the peer: a number for each reference.
    pub(crate) imports: Vec<u32>,
    /// Calls of the server without an answer.
    pub(crate) theirs: Vec<u32>,
    /// Calls whose results are to answer one of the server's, and that one.
    reflected: Vec<(u32, u32)>,
    embargoes: Vec<u32>,
    /// What capability pointers are made from.
    cap: Box<dyn ClientHook>,
    pub(crate) seen: Seen,
}

/// What came from the server.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) returns: u64,
    pub(crate) calls: u64,
    pub(crate) resolves: u64,
    pub(crate) reflected: u64,
    pub(crate) disembargoes: u64,
    pub(crate) abort: Option<String>,
    /// Calls that failed, by the reason.
    pub(crate) errors: BTreeMap<String, u64>,
}

pub(crate) fn fresh() -> Message {
    Builder::new(HeapAllocator::new().first_segment_words(64))
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

    /// What every conversation begins with.
    pub(crate) fn begin(&mut self, reference: &str) -> Vec<Message> {
        self.open.extend((0..BEGINNING).map(|id| Asked { id, finished: None }));
        let name = format!("object {}", self.random.below(OBJECTS));
        vec![raw::bootstrap(), raw::restore(reference), raw::by_name(&name)]
    }

    /// A call whose answer shows that all before it was looked at: it, and its number.
    pub(crate) fn sync(&mut self) -> (Message, u32) {
        let (mut message, id) = (fresh(), self.question());
        root(&mut message).init_bootstrap().set_question_id(id);
        (message, id)
    }

    /// What an honest peer might say next.
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

    /// Parameters of a request, whatever is called: most methods read another structure there.
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

    /// A call of the server's turns out to be one on something of the server's.
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

    /// Gives some capabilities away, and says with how many in front of it the pointer to one is.
    /// Sometimes there is none in that place.
    fn caps(&mut self, payload: payload::Builder) -> Vec<Option<Box<dyn ClientHook>>> {
        let count = 1 + self.random.below(2) * self.random.below(3);
        let mut table = payload.init_cap_table(count as u32);
        for at in 0..count {
            self.capability(table.reborrow().get(at as u32));
        }
        let places = if self.random.below(20) == 0 { 100 } else { count };
        (0..self.random.below(places)).map(|_| None).collect()
    }

    /// A capability of either side.
    fn capability(&mut self, cap: cap_descriptor::Builder) {
        match self.random.below(16) {
            0 => {}
            9 => match pick(&mut self.random, &self.promises) {
                // A number that is known as that of a promise.
                Some(id) if self.random.below(60) == 0 => self.set_hosted(cap, id),
                _ => self.set_new_hosted(cap),
            },
            _ => self.live_capability(cap),
        }
    }

    fn live_capability(&mut self, mut cap: cap_descriptor::Builder) {
        match self.random.below(10) {
            0..3 => self.set_new_hosted(cap),
            3 => match pick(&mut self.random, &self.hosted) {
                Some(id) => self.set_hosted(cap, id),
                None => self.set_new_hosted(cap),
            },
            4 => match pick(&mut self.random, &self.promises) {
                Some(id) => self.set_promise(cap, id),
                None => self.set_new_hosted(cap),
            },
            5 => match pick(&mut self.random, &self.imports) {
                Some(id) => cap.set_receiver_hosted(id),
                None => self.set_new_hosted(cap),
            },
            6..8 => {
                let steps = self.random.below(2) as u32;
                let mut on = cap.init_receiver_answer();
                on.set_question_id(self.any_question());
                path(on, steps);
            }
            _ => {
                let id = self.export();
                self.promises.push(id);
                self.set_promise(cap, id);
            }
        }
    }

    fn set_new_hosted(&mut self, cap: cap_descriptor::Builder) {
        let id = self.export();
        self.hosted.push(id);
        self.set_hosted(cap, id);
    }

    fn set_hosted(&mut self, mut cap: cap_descriptor::Builder, id: u32) {
        *self.given.entry(id).or_default() += 1;
        cap.set_sender_hosted(id);
    }

    fn set_promise(&mut self, mut cap: cap_descriptor::Builder, id: u32) {
        *self.given.entry(id).or_default() += 1;
        cap.set_sender_promise(id);
    }

    /// A call of the peer, most often one that is open or answered.
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

    /// The references are gone that came with an answer; others to the same may be left.
    fn forget_imports(&mut self, caps: &[u32]) {
        for cap in caps {
            if let Some(at) = self.imports.iter().position(|id| id == cap) {
                self.imports.swap_remove(at);
            }
        }
    }

    /// Learns from a message of the server.
    pub(crate) fn learn(&mut self, message: message::Reader) -> capnp::Result<()> {
        match message.which()? {
            message::Return(answer) => self.learn_answer(answer?)?,
            message::Call(call) => {
                let call = call?;
                self.seen.calls += 1;
                self.theirs.push(call.get_question_id());
                self.import_all(call.get_params()?)?;
            }
            message::Resolve(resolve) => {
                self.seen.resolves += 1;
                if let resolve::Cap(cap) = resolve?.which()?
                    && let Some(id) = hosted_there(cap?)?
                {
                    self.imports.push(id);
                }
            }
            message::Release(release) => {
                let (id, count) = release.map(|it| (it.get_id(), it.get_reference_count()))?;
                self.learn_release(id, count);
            }
            message::Disembargo(embargo) => {
                self.seen.disembargoes += 1;
                if let disembargo::context::SenderLoopback(id) = embargo?.get_context().which()? {
                    self.embargoes.push(id);
                }
            }
            message::Abort(abort) => {
                self.seen.abort = Some(abort?.get_reason()?.to_string()?);
            }
            _ => {}
        }
        Ok(())
    }

    fn learn_release(&mut self, id: u32, count: u32) {
        let Some(given) = self.given.get_mut(&id) else { return };
        *given = given.saturating_sub(count);
        if *given == 0 {
            self.given.remove(&id);
            self.hosted.retain(|other| *other != id);
            self.promises.retain(|other| *other != id);
            self.free_exports.push(id);
        }
    }

    fn learn_answer(&mut self, answer: return_::Reader) -> capnp::Result<()> {
        self.seen.returns += 1;
        let id = answer.get_answer_id();
        let mut caps = Vec::new();
        match answer.which()? {
            return_::Results(results) => caps = self.import_all(results?)?,
            return_::ResultsSentElsewhere(()) => self.seen.reflected += 1,
            return_::Exception(error) => {
                let reason = error?.get_reason()?.to_string()?;
                *self.seen.errors.entry(reason).or_default() += 1;
            }
            _ => {}
        }
        let Some(at) = self.open.iter().position(|asked| asked.id == id) else { return Ok(()) };
        match self.open.swap_remove(at).finished {
            None => drop(self.answered.insert(id, caps)),
            Some(releases) => {
                if releases {
                    self.forget_imports(&caps);
                }
                self.free_questions.push(id);
            }
        }
        Ok(())
    }

    fn import_all(&mut self, payload: payload::Reader) -> capnp::Result<Vec<u32>> {
        let mut caps = Vec::new();
        for cap in payload.get_cap_table()? {
            caps.extend(hosted_there(cap)?);
        }
        self.imports.extend(&caps);
        Ok(caps)
    }
}

fn hosted_there(cap: cap_descriptor::Reader) -> capnp::Result<Option<u32>> {
    match cap.which()? {
        cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id) => Ok(Some(id)),
        _ => Ok(None),
    }
}

pub(crate) fn pick(random: &mut Random, from: &[u32]) -> Option<u32> {
    (!from.is_empty()).then(|| from[random.below(from.len() as u64) as usize])
}

pub(crate) fn root(message: &mut Message) -> message::Builder<'_> {
    message.init_root()
}

/// The first field of the first field, and so on.
pub(crate) fn path(answer: promised_answer::Builder, steps: u32) {
    let mut transform = answer.init_transform(steps);
    for step in 0..steps {
        transform.reborrow().get(step).set_get_pointer_field(0);
    }
}

pub(crate) fn finish(id: u32, releases: bool) -> Message {
    let mut message = fresh();
    let mut finish = root(&mut message).init_finish();
    finish.set_question_id(id);
    finish.set_release_result_caps(releases);
    message
}

pub(crate) fn release(id: u32, count: u32) -> Message {
    let mut message = fresh();
    let mut release = root(&mut message).init_release();
    release.set_id(id);
    release.set_reference_count(count);
    message
}

/// About the first field of the answer to a call.
pub(crate) fn disembargo(on: u32, context: impl FnOnce(disembargo::context::Builder)) -> Message {
    let mut message = fresh();
    let mut disembargo = root(&mut message).init_disembargo();
    let mut target = disembargo.reborrow().init_target().init_promised_answer();
    target.set_question_id(on);
    path(target, 1);
    context(disembargo.init_context());
    message
}
