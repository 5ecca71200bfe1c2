//! The handling of a received message whose turn has come.
//!
//! Nothing here waits: [`take_next`](GuardState::take_next) does that.

use super::kept::Which;
use super::made::{self, MadeMessage};
use super::network::Received;
use super::outgoing;
use super::outlet::Outlet;
use super::patch::{Patches, SENDER_HOSTED};
use super::pipelines::{Arrival, check_number};
use super::reflections::{self, Answered};
use super::tables;
use super::{GuardState, Message, Ready, wake};
use crate::limits::{Limit, Rejection};
use crate::wire::{ReceivedMessage, cost};
use capnp::Error;
use capnp::message::{Builder, HeapAllocator};
use capnp_rpc::rpc_capnp::{
    call, cap_descriptor, disembargo, message, message_target, payload, resolve, return_,
};
use std::rc::Rc;
use tokio::io::{AsyncRead, AsyncWrite};

/// A message that was changed.
pub(super) struct Changed {
    message: ReceivedMessage,
    /// Set for a call.
    call: Option<Begins>,
}

/// A call of the peer, as read from its message.
struct Begins {
    number: u32,
    is_reflected: bool,
    hops: u8,
    caller: u32,
}

impl<S: AsyncRead + AsyncWrite + Unpin> GuardState<S> {
    /// Makes a message ready for the RPC system, or holds it back.
    pub(super) fn deliver(&mut self, incoming: ReceivedMessage) -> Result<(), Rejection> {
        self.messages += 1;
        let (mut patches, mut before) = (Patches::default(), Vec::new());
        let mut call = None;
        let body = incoming.get_root::<message::Reader>()?;
        match body.which() {
            Ok(message::Call(made)) => {
                call = Some(self.read_call(made?, &mut patches, &mut before)?);
            }
            Ok(message::Bootstrap(bootstrap)) => check_number(bootstrap?.get_question_id())?,
            Ok(message::Return(answer)) => {
                let answer = answer?;
                let call = answer.get_answer_id();
                if let Some(name) = self.kept.name(call)? {
                    patches.call(answer, name)?;
                    return self.deliver(patches.apply(incoming, self.limits.reader_options()));
                }
                self.take_receipt(answer);
                if let Some(error) = self.replaced.answer(answer)
                    && !self.tables.is_given_up(call)
                {
                    return self.deliver_instead(answer, error);
                }
                match answer.which()? {
                    return_::TakeFromOtherQuestion(from) => return self.take_from(from, call),
                    return_::Results(payload) => {
                        let payload = payload?;
                        if self.tables.waits_for(call)
                            && payload.get_cap_table()?.len() as usize <= self.limits.capabilities
                        {
                            self.kept.receive(call, &incoming, Which::NotTheirs, &mut patches)?;
                        }
                        self.read_caps(payload, &mut patches, &mut before)?;
                    }
                    return_::Exception(exception) => {
                        // Cuts the error before it is copied.
                        if let Some(error) = outgoing::shortened(exception?)? {
                            return self.deliver_instead(answer, made::failed(answer, &error));
                        }
                    }
                    _ => {}
                }
            }
            Ok(message::Finish(finish)) => {
                let finish = finish?;
                let call = finish.get_question_id();
                check_number(call)?;
                if self.tables.is_open(call) {
                    self.tables.hold(call, incoming)?;
                    let ready = &mut self.ready;
                    self.pipelines.finished(call, |told| ready.push_back(Ready::Message(told)));
                    return Ok(());
                }
                // The peer never got the capabilities in these results.
                let released = self.replaced.finishes(call);
                if released || self.reflections.has(call) {
                    patches.releasing(finish);
                    self.reflections.finish(call);
                }
            }
            Ok(message::Disembargo(disembargo)) => check_disembargo(disembargo?)?,
            Ok(message::Resolve(resolve)) => return self.keep(resolve?),
            Ok(message::Accept(accept)) if self.limits.tells_hops => {
                self.hear_of_callers(accept?);
                return Ok(());
            }
            _ => {}
        }
        self.deliver_checked(incoming, patches, before, call)
    }

    fn deliver_checked(
        &mut self,
        incoming: ReceivedMessage,
        patches: Patches,
        before: Vec<Message>,
        call: Option<Begins>,
    ) -> Result<(), Rejection> {
        let body = incoming.get_root::<message::Reader>()?;
        if patches.is_empty() {
            // The common case: an unchanged message needn't be read again.
            self.tables.receive(body, cost(&incoming), &self.limits)?;
            self.pass_checked(incoming, call);
            return Ok(());
        }
        let number = number_of(body)?;
        let message = patches.apply(incoming, self.limits.reader_options());
        if number_of(message.get_root()?)? != number {
            let reason = "the parts of a message overlap";
            return Err(Error::disconnected(reason.into()).into());
        }
        let changed = Changed { message, call };
        if before.is_empty() {
            return self.pass(changed);
        }
        self.ready.extend(before.into_iter().map(Ready::Message));
        self.ready.push_back(Ready::Changed(changed));
        Ok(())
    }

    /// Gives a changed message to the RPC system; its turn has come.
    pub(super) fn pass(&mut self, changed: Changed) -> Result<(), Rejection> {
        let Changed { message, call } = changed;
        if let Ok(message::Return(answer)) = message.get_root::<message::Reader>()?.which() {
            let call = answer?.get_answer_id();
            // Messages before it may have made its caller give up.
            if self.tables.is_given_up(call)
                && let Some(call) = self.kept.give_up(call)
            {
                self.wire.push(&made::finish(call));
                wake(&mut self.driver);
            }
        }
        self.tables.receive(message.get_root()?, cost(&message), &self.limits)?;
        if let Some(Begins { number, is_reflected: true, .. }) = call {
            self.reflections.begin(number);
        }
        self.pass_checked(message, call);
        Ok(())
    }

    /// The outlet of the answer to the call.
    fn outlet_of(&mut self, call: u32, caller: u32) -> Rc<Outlet> {
        match caller {
            0 => self.outlet.clone(),
            _ => self.callers.begin(call, caller, &self.outlet),
        }
    }

    fn pass_checked(&mut self, message: ReceivedMessage, call: Option<Begins>) {
        let call = call.map(|Begins { number, hops, caller, .. }| {
            let (bytes, outlet) = (cost(&message), self.outlet_of(number, caller));
            self.pipelines.call(number, Arrival { hops, bytes, outlet })
        });
        self.ready.push_front(Ready::Message(Box::new(Received { message, call })));
    }

    /// Gives a call of ours that was refused here its error, no matter how the peer answered the
    /// replacement.
    fn deliver_instead(
        &mut self,
        answer: return_::Reader,
        error: Builder<HeapAllocator>,
    ) -> Result<(), Rejection> {
        match answer.which()? {
            return_::TakeFromOtherQuestion(from) => self.reflections.give_nobody(from)?,
            return_::Results(payload) => {
                for cap in payload?.get_cap_table()?.iter().take(self.limits.capabilities) {
                    self.let_go(cap)?;
                }
            }
            _ => {}
        }
        self.tables.receive(error.get_root_as_reader()?, 0, &self.limits)?;
        self.ready.push_front(Ready::Message(Box::new(MadeMessage(error))));
        Ok(())
    }

    /// Notes the changes that a call needs.
    fn read_call(
        &mut self,
        call: call::Reader,
        patches: &mut Patches,
        before: &mut Vec<Message>,
    ) -> Result<Begins, Rejection> {
        let number = call.get_question_id();
        check_number(number)?;
        if let message_target::PromisedAnswer(answer) = call.get_target()?.which()? {
            let answer = answer?;
            tables::check_path(answer, &self.limits)?;
            self.pipelines.route(answer, patches, before)?;
        }
        self.read_caps(call.get_params()?, patches, before)?;
        let is_reflected =
            matches!(call.get_send_results_to().which()?, call::send_results_to::Yourself(()));
        if is_reflected {
            patches.results_to_caller(call)?;
        }
        let (hops, caller) = (self.hops_of(call), self.caller_of(call));
        Ok(Begins { number, is_reflected, hops, caller })
    }

    /// Treats a promise of the peer as any other of its capabilities: the peer keeps passing on
    /// calls to it, as the protocol demands.
    fn read_caps(
        &mut self,
        payload: payload::Reader,
        patches: &mut Patches,
        before: &mut Vec<Message>,
    ) -> Result<(), Rejection> {
        let caps = payload.get_cap_table()?;
        if caps.len() as usize > self.limits.capabilities {
            // Such a message is refused when it is checked.
            return Ok(());
        }
        for cap in caps {
            match cap.which()? {
                cap_descriptor::SenderPromise(_) => patches.kind(cap, SENDER_HOSTED)?,
                cap_descriptor::ReceiverAnswer(answer) => {
                    let answer = answer?;
                    tables::check_path(answer, &self.limits)?;
                    self.pipelines.route(answer, patches, before)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Releases the capability that a promise of the peer became: the peer may keep it.
    fn keep(&mut self, resolve: resolve::Reader) -> Result<(), Rejection> {
        let resolve::Cap(cap) = resolve.which()? else { return Ok(()) };
        self.let_go(cap?)
    }

    /// Releases a capability that isn't used here.
    fn let_go(&mut self, cap: cap_descriptor::Reader) -> Result<(), Rejection> {
        match cap.which()? {
            cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id) => {
                self.wire.push(&made::release(id, 1));
                wake(&mut self.driver);
                Ok(())
            }
            cap_descriptor::ThirdPartyHosted(_) => {
                let reason = "a capability of a third party of a kind that is not in use";
                Rejection::over(Limit::UnknownKind, reason)
            }
            _ => Ok(()),
        }
    }

    /// The answer to our call `call` is our answer to the peer's call `from`.
    fn take_from(&mut self, from: u32, call: u32) -> Result<(), Rejection> {
        if !self.tables.has_question(call) {
            return Rejection::over(Limit::UnknownCapability, tables::NOT_OPEN);
        }
        let answered = self.reflections.take_from(from, call)?;
        answered.map_or(Ok(()), |answered| self.deliver_reflected(answered))
    }

    pub(super) fn deliver_reflected(&mut self, answered: Answered) -> Result<(), Rejection> {
        if self.tables.is_given_up(answered.call) {
            let canceled = made::canceled(answered.call);
            self.tables.receive(canceled.get_root_as_reader()?, 0, &self.limits)?;
            self.ready.push_front(Ready::Message(Box::new(MadeMessage(canceled))));
            return Ok(());
        }
        let call = answered.call;
        let message = reflections::addressed(answered, &self.limits)?;
        let mut patches = Patches::default();
        self.kept.receive(call, &message, Which::All, &mut patches)?;
        let message = patches.apply(message, self.limits.reader_options());
        self.tables.receive(message.get_root()?, 0, &self.limits)?;
        self.reflections.delivers(&message)?;
        self.pass_checked(message, None);
        Ok(())
    }
}

/// The number of the call that a message is about. If other changes to the message altered it, the
/// tables and the RPC system would disagree about the call.
fn number_of(message: message::Reader) -> Result<Option<u32>, Rejection> {
    Ok(match message.which()? {
        message::Call(call) => Some(call?.get_question_id()),
        message::Return(answer) => Some(answer?.get_answer_id()),
        message::Finish(finish) => Some(finish?.get_question_id()),
        _ => None,
    })
}

fn check_disembargo(disembargo: disembargo::Reader) -> Result<(), Rejection> {
    match disembargo.get_target()?.which()? {
        message_target::PromisedAnswer(answer) => check_number(answer?.get_question_id()),
        message_target::ImportedCap(_) => Ok(()),
    }
}
