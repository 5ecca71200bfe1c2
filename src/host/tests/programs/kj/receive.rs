//! A peer's handling of each message that comes. A message that KJ wouldn't take is named, and ends
//! the connection.

use super::request::{Call, Postponed, Returned, Waits};
use super::{
    Answer, Answered, Asked, Asking, CAPABILITIES_MAX, Caps, End, Import, Incoming, Next, Own,
    Peer, Question, Refused, end, made, note, path, request, wrap,
};

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use capnp::Error;
use capnp::capability::FromClientHook;
use capnp::message::ReaderOptions;
use capnp::private::capability::{PipelineHook, RequestHook};
use capnp::serialize;
use capnp::traits::Imbue;
use capnp_rpc::rpc_capnp::{
    call, cap_descriptor, disembargo, exception, message, message_target, payload, promised_answer,
    return_,
};
use futures::StreamExt;
use futures::channel::mpsc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

impl Peer {
    /// Speaks over a stream, until that ends. The capability is what the server offers.
    pub(in super::super) fn dial<C: FromClientHook>(
        stream: DuplexStream,
        ended: impl FnOnce(String) + 'static,
    ) -> C {
        let (reads, writes) = tokio::io::split(stream);
        let (out, waiting) = mpsc::unbounded();
        let peer = Rc::new(Self { out, state: RefCell::default() });
        // Both end with the stream.
        tokio::task::spawn_local(write(writes, waiting));
        tokio::task::spawn_local(peer.clone().read(reads, ended));
        C::new(peer.bootstrap())
    }

    fn bootstrap(self: &Rc<Self>) -> Next {
        let asked = Rc::new(Asked::default());
        let asking = Asking {
            asked: Rc::downgrade(&asked),
            awaits: true,
            is_tail: false,
            is_finished: false,
            needs_finish: true,
            params: Vec::new(),
        };
        let id = self.state.borrow_mut().questions.insert(asking);
        asked.question.replace(Some(Rc::new(Question { peer: self.clone(), id })));
        self.send(&made(|message| message.init_bootstrap().set_question_id(id)));
        asked.remote().pipeline.as_cap()
    }

    async fn read(self: Rc<Self>, mut from: ReadHalf<DuplexStream>, ended: impl FnOnce(String)) {
        let reason = loop {
            let Some(message) = read(&mut from).await else { break "the stream ended".into() };
            if let Err(reason) = self.receive(message) {
                break reason;
            }
        };
        ended(reason);
        self.end();
    }

    /// The connection is over: all that waits is told.
    fn end(&self) {
        let error = Error::disconnected("the peer's connection is over".into());
        let mut state = self.state.borrow_mut();
        state.over = Some(error.clone());
        self.out.close_channel();
        let questions: Vec<_> = state.questions.take().collect();
        let exports: Vec<_> = state.exports.take().collect();
        let embargoes: Vec<_> = state.embargoes.take().collect();
        let answers = std::mem::take(&mut state.answers);
        state.exported.clear();
        drop(state);
        for asked in questions.iter().filter_map(|asking| asking.asked.upgrade()) {
            asked.settle(Err(error.clone()));
        }
        for back in embargoes {
            back();
        }
        drop((exports, answers));
    }

    fn receive(self: &Rc<Self>, message: Incoming) -> Refused<()> {
        match said(said(message.get_root::<message::Reader>())?.which())? {
            message::Call(_) => self.receive_call(message),
            message::Return(_) => self.receive_return(message),
            message::Finish(finish) => {
                let finish = said(finish)?;
                self.receive_finish(finish.get_question_id(), finish.get_release_result_caps())
            }
            message::Release(release) => {
                let release = said(release)?;
                self.release(release.get_id(), release.get_reference_count())
            }
            message::Disembargo(disembargo) => self.receive_disembargo(said(disembargo)?),
            message::Abort(abort) => {
                Err(format!("Abort: {:?}", said(said(abort)?.get_reason())?.to_string()))
            }
            message::Resolve(_) => Err("a Resolve crosses the connection".into()),
            message::Unimplemented(_) => Err("Unimplemented".into()),
            message::Bootstrap(_) => Err("a Bootstrap from the server".into()),
            _ => Err("a message of a level that is not in use".into()),
        }
    }

    fn receive_call(self: &Rc<Self>, message: Incoming) -> Refused<()> {
        let call = called(&message)?;
        let id = call.get_question_id();
        if !matches!(said(call.get_send_results_to().which())?, call::send_results_to::Caller(())) {
            return Err("the server wants the results elsewhere".into());
        }
        let target = self.target(said(call.get_target())?)?;
        let caps = self.caps(said(call.get_params())?)?;
        let mut state = self.state.borrow_mut();
        if state.answers.insert(id, Answer::default()).is_some() {
            return Err(format!("call {id} is open already"));
        }
        drop(state);
        self.start(id, target, Rc::new((message, caps)));
        Ok(())
    }

    /// Hands a call of the other side to its target.
    fn start(self: &Rc<Self>, id: u32, target: Next, arrived: Rc<(Incoming, Caps)>) {
        let (message, caps) = &*arrived;
        let call = called(message).expect("it was looked at");
        let (interface, method) = (call.get_interface_id(), call.get_method_id());
        let mut content = call.get_params().expect("it was looked at").get_content();
        content.imbue(caps);
        let way = end(&target);
        match &way {
            End::Unknown(later, _) => {
                let postponed = Rc::new(Postponed::default());
                self.pipeline(id, Box::new(Waits(postponed.clone())));
                let (peer, arrived) = (self.clone(), arrived.clone());
                later.push(Box::new(move |known| {
                    peer.start(id, known, arrived);
                    let state = peer.state.borrow();
                    let pipeline = state.answers.get(&id).and_then(|one| one.pipeline.clone());
                    drop(state);
                    if let Some(pipeline) = pipeline {
                        postponed.know(pipeline);
                    }
                }));
            }
            End::Remote(peer, _) if Rc::ptr_eq(peer, self) => {
                let mut call = Call::new(target, interface, method);
                let filled = RequestHook::get(&mut call).set_as(content);
                match filled {
                    Ok(()) => _ = call.send_tail(self, id),
                    Err(error) => self.answer(id, Err(error)),
                }
            }
            _ => {
                let mut request = target.new_call(interface, method, None);
                if let Err(error) = request.get().set_as(content) {
                    return self.answer(id, Err(error));
                }
                let (mut sent, tail) = request::tails(|| request.send());
                if let Some(tail) = tail {
                    note("tail calls");
                    match tail.send_tail(self, id) {
                        Ok(()) => return,
                        Err(tail) => sent = Box::new(tail).send(),
                    }
                }
                let peer = self.clone();
                if let End::Remote(..) = way {
                    self.pipeline(id, sent.pipeline.hook);
                    let answer = async move { peer.answer(id, sent.promise.await.map(Rc::new)) };
                    // Ends with the call.
                    tokio::task::spawn_local(answer);
                    return;
                }
                let postponed = Rc::new(Postponed::default());
                self.pipeline(id, Box::new(Waits(postponed.clone())));
                // Ends with the method.
                tokio::task::spawn_local(async move {
                    let outcome = sent.promise.await.map(Rc::new);
                    postponed.know(Box::new(Returned(outcome.clone())));
                    peer.answer(id, outcome);
                });
            }
        }
    }

    fn pipeline(&self, id: u32, pipeline: Box<dyn PipelineHook>) {
        let mut state = self.state.borrow_mut();
        let answer = state.answers.get_mut(&id).filter(|answer| !answer.is_finished);
        let before = answer.and_then(|answer| answer.pipeline.replace(pipeline));
        drop(state);
        drop(before);
    }

    fn receive_return(self: &Rc<Self>, message: Incoming) -> Refused<()> {
        let answer = answered(&message)?;
        let id = answer.get_answer_id();
        let mut state = self.state.borrow_mut();
        let asking = state.questions.get_mut(id).filter(|asking| asking.awaits);
        let Some(asking) = asking else { return Err(format!("a Return of no call: {id}")) };
        asking.awaits = false;
        asking.needs_finish &= !answer.get_no_finish_needed();
        let params = std::mem::take(&mut asking.params);
        let (is_tail, asked) = (asking.is_tail, asking.asked.upgrade());
        let over = asking.is_finished.then(|| state.questions.remove(id));
        drop(state);
        drop(over);
        if answer.get_release_param_caps() {
            params.into_iter().try_for_each(|export| self.release(export, 1))?;
        }
        let which = said(answer.which())?;
        let is_elsewhere = matches!(which, return_::ResultsSentElsewhere(()));
        if is_tail != is_elsewhere {
            return Err(format!("tail call: {is_tail}, and its results elsewhere: {is_elsewhere}"));
        }
        let Some(asked) = asked else { return Ok(()) };
        let outcome = match which {
            return_::Results(results) => {
                let caps = self.caps(said(results)?)?;
                let question = asked.question.borrow().clone();
                Ok(Some(Rc::new(Answered { message, caps, _question: question })))
            }
            return_::Exception(exception) => Err(error(said(exception)?)?),
            return_::ResultsSentElsewhere(()) => Ok(None),
            return_::Canceled(()) => return Err("a call is canceled that wasn't".into()),
            _ => return Err("results from elsewhere".into()),
        };
        asked.settle(outcome);
        Ok(())
    }

    fn receive_finish(&self, id: u32, releases: bool) -> Refused<()> {
        let mut state = self.state.borrow_mut();
        let Some(answer) = state.answers.get_mut(&id) else {
            return Err(format!("a Finish of no call: {id}"));
        };
        let dropped = (answer.pipeline.take(), answer.tail.take());
        let results = std::mem::take(&mut answer.results);
        answer.is_finished = true;
        if answer.is_returned {
            state.answers.remove(&id);
        }
        drop(state);
        drop(dropped);
        let released = results.into_iter().filter(|_| releases);
        released.into_iter().try_for_each(|export| self.release(export, 1))
    }

    fn release(&self, id: u32, count: u32) -> Refused<()> {
        let mut state = self.state.borrow_mut();
        let left = state.exports.get_mut(id).and_then(|export| export.release(count));
        let Some(left) = left else {
            return Err(format!("a Release of {count} of what it hasn't: {id}"));
        };
        let over = (left == 0).then(|| state.exports.remove(id)).flatten();
        state.exported.retain(|_, of| *of != id || over.is_none());
        drop(state);
        drop(over);
        Ok(())
    }

    fn receive_disembargo(self: &Rc<Self>, message: disembargo::Reader) -> Refused<()> {
        match said(message.get_context().which())? {
            disembargo::context::SenderLoopback(embargo) => {
                let target = self.target(said(message.get_target())?)?;
                let target = match end(&target) {
                    End::Remote(peer, target) if Rc::ptr_eq(&peer, self) => target,
                    _ => return Err("a Disembargo of what doesn't point back".into()),
                };
                note("echoes");
                self.send(&made(|message| {
                    let mut echo = message.init_disembargo();
                    target.put(echo.reborrow().init_target());
                    echo.get_context().set_receiver_loopback(embargo);
                }));
                Ok(())
            }
            disembargo::context::ReceiverLoopback(embargo) => {
                let back = self.state.borrow_mut().embargoes.remove(embargo);
                back.ok_or_else(|| format!("an echo of no Disembargo: {embargo}"))?();
                Ok(())
            }
            _ => Err("a Disembargo of a third party".into()),
        }
    }

    fn target(&self, target: message_target::Reader) -> Refused<Next> {
        match said(target.which())? {
            message_target::ImportedCap(id) => self.exported(id),
            message_target::PromisedAnswer(answer) => self.promised(said(answer)?),
        }
    }

    fn exported(&self, id: u32) -> Refused<Next> {
        let mut state = self.state.borrow_mut();
        let export = state.exports.get_mut(id).map(|export| export.thing.hook.clone());
        export.ok_or_else(|| format!("a capability that isn't exported: {id}"))
    }

    fn promised(&self, of: promised_answer::Reader) -> Refused<Next> {
        let (id, path) = (of.get_question_id(), said(path(of))?);
        let state = self.state.borrow();
        let pipeline = state.answers.get(&id).and_then(|answer| answer.pipeline.clone());
        drop(state);
        let pipeline = pipeline.ok_or_else(|| format!("the result of no open call: {id}"))?;
        Ok(pipeline.get_pipelined_cap(&path))
    }

    fn caps(self: &Rc<Self>, payload: payload::Reader) -> Refused<Caps> {
        let table = said(payload.get_cap_table())?;
        if table.len() as usize > CAPABILITIES_MAX {
            return Err(format!("{} capabilities", table.len()));
        }
        let caps = table.iter().map(|cap| {
            Ok(match said(cap.which())? {
                cap_descriptor::None(()) => None,
                cap_descriptor::SenderHosted(id) => Some(self.import(id)),
                cap_descriptor::ReceiverHosted(id) => Some(self.exported(id)?),
                cap_descriptor::ReceiverAnswer(answer) => Some(self.promised(said(answer)?)?),
                cap_descriptor::SenderPromise(_) => return Err("a promise of the server's".into()),
                cap_descriptor::ThirdPartyHosted(_) => {
                    return Err("a capability of a third party".into());
                }
            })
        });
        caps.collect()
    }

    fn import(self: &Rc<Self>, id: u32) -> Next {
        let mut state = self.state.borrow_mut();
        let import = state.imports.get(&id).and_then(Weak::upgrade).unwrap_or_else(|| {
            let count = Cell::new(0);
            let import = Rc::new(Import { peer: self.clone(), id, count });
            state.imports.insert(id, Rc::downgrade(&import));
            import
        });
        import.count.set(import.count.get() + 1);
        wrap(Own::Import(import))
    }
}

/// The text that was read, or the reason why it can't be.
fn said<T, E: ToString>(read: Result<T, E>) -> Refused<T> {
    read.map_err(|error| error.to_string())
}

fn called(message: &Incoming) -> Refused<call::Reader<'_>> {
    match said(said(message.get_root::<message::Reader>())?.which())? {
        message::Call(call) => said(call),
        _ => Err("it is no Call".into()),
    }
}

fn answered(message: &Incoming) -> Refused<return_::Reader<'_>> {
    match said(said(message.get_root::<message::Reader>())?.which())? {
        message::Return(answer) => said(answer),
        _ => Err("it is no Return".into()),
    }
}

fn error(exception: exception::Reader) -> Refused<Error> {
    let kind = match said(exception.get_type())? {
        exception::Type::Overloaded => capnp::ErrorKind::Overloaded,
        exception::Type::Disconnected => capnp::ErrorKind::Disconnected,
        exception::Type::Unimplemented => capnp::ErrorKind::Unimplemented,
        exception::Type::Failed => capnp::ErrorKind::Failed,
    };
    let extra = said(said(exception.get_reason())?.to_string())?;
    Ok(Error { kind, extra })
}

async fn write(mut to: WriteHalf<DuplexStream>, mut waiting: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(bytes) = waiting.next().await {
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
    // The other side may be gone.
    let _ = to.shutdown().await;
}

/// The next message; none at the end of the stream.
async fn read(from: &mut ReadHalf<DuplexStream>) -> Option<Incoming> {
    let segments = from.read_u32_le().await.ok()? as usize + 1;
    let mut bytes = (segments as u32 - 1).to_le_bytes().to_vec();
    // The table is padded to whole words.
    bytes.resize(4 + 4 * (segments + (segments + 1) % 2), 0);
    from.read_exact(&mut bytes[4..]).await.ok()?;
    let sizes = bytes[4..].chunks(4).take(segments);
    let words: u32 = sizes.map(|size| u32::from_le_bytes(size.try_into().unwrap())).sum();
    let table = bytes.len();
    bytes.resize(table + 8 * words as usize, 0);
    from.read_exact(&mut bytes[table..]).await.ok()?;
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(None);
    serialize::read_message(&bytes[..], options).ok()
}
