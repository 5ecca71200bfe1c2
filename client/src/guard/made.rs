//! Messages that the guard makes itself, for the peer or for the RPC system.

use capnp::Error;
use capnp::message::{Builder, HeapAllocator};
use capnp_rpc::IncomingMessage;
use capnp_rpc::rpc_capnp::{exception, message, return_};

/// A message that the guard made.
pub(super) struct MadeMessage(pub(super) Builder<HeapAllocator>);

impl IncomingMessage for MadeMessage {
    fn get_body(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.0.get_root_as_reader()
    }
}

fn made(write: impl FnOnce(message::Builder)) -> Builder<HeapAllocator> {
    let mut message = Builder::new_default();
    write(message.init_root());
    message
}

/// Tells the peer that the connection has ended, and why.
pub(crate) fn abort(reason: &str) -> Builder<HeapAllocator> {
    made(|message| {
        let mut abort = message.init_abort();
        abort.set_type(exception::Type::Disconnected);
        abort.set_reason(reason);
    })
}

pub(super) fn release(id: u32, count: u32) -> Builder<HeapAllocator> {
    made(|message| {
        let mut release = message.init_release();
        release.set_id(id);
        release.set_reference_count(count);
    })
}

/// Gives back the receipt of an answer.
pub(super) fn passed_on(receipt: u32) -> Builder<HeapAllocator> {
    made(|message| message.init_accept().set_question_id(receipt))
}

/// Tells that a caller is gone.
pub(super) fn gone(caller: u32) -> Builder<HeapAllocator> {
    made(|message| {
        let mut accept = message.init_accept();
        accept.set_question_id(caller);
        accept.set_embargo(true);
    })
}

pub(super) fn bootstrap(call: u32) -> Builder<HeapAllocator> {
    made(|message| message.init_bootstrap().set_question_id(call))
}

/// A call without parameters on the root of an answer.
pub(super) fn call(call: u32, answer: u32, interface: u64) -> Builder<HeapAllocator> {
    made(|message| {
        let mut made = message.init_call();
        made.set_question_id(call);
        made.set_interface_id(interface);
        made.reborrow().init_target().init_promised_answer().set_question_id(answer);
    })
}

/// Finishes a call, and releases the capabilities in its results.
pub(super) fn finish(call: u32) -> Builder<HeapAllocator> {
    made(|message| {
        let mut finish = message.init_finish();
        finish.set_question_id(call);
        finish.set_release_result_caps(true);
    })
}

/// Finishes a call, and keeps the capabilities in its results.
pub(super) fn finish_and_keep(call: u32) -> Builder<HeapAllocator> {
    made(|message| {
        let mut finish = message.init_finish();
        finish.set_question_id(call);
        finish.set_release_result_caps(false);
    })
}

fn answer(call: u32, write: impl FnOnce(return_::Builder)) -> Builder<HeapAllocator> {
    made(|message| {
        let mut answer = message.init_return();
        answer.set_answer_id(call);
        answer.set_release_param_caps(false);
        write(answer);
    })
}

pub(super) fn canceled(call: u32) -> Builder<HeapAllocator> {
    answer(call, |mut answer| answer.set_canceled(()))
}

/// The answer, in place of `of`, to a call whose caller gave up.
pub(super) fn unwanted(of: return_::Reader) -> Builder<HeapAllocator> {
    answer(of.get_answer_id(), |mut answer| {
        answer.set_release_param_caps(of.get_release_param_caps());
        answer.set_no_finish_needed(of.get_no_finish_needed());
        answer.set_canceled(());
    })
}

pub(super) fn sent_elsewhere(call: u32) -> Builder<HeapAllocator> {
    answer(call, |mut answer| answer.set_results_sent_elsewhere(()))
}

/// The answer to a call that gets no other, because the connection ends.
pub(super) fn disconnected(call: u32, reason: &str) -> Builder<HeapAllocator> {
    answer(call, |answer| {
        let mut exception = answer.init_exception();
        exception.set_reason(reason);
        exception.set_type(exception::Type::Disconnected);
    })
}

/// The error that a call gets in place of the answer `of`.
pub(super) fn failed(of: return_::Reader, error: &Error) -> Builder<HeapAllocator> {
    answer(of.get_answer_id(), |mut answer| {
        answer.set_release_param_caps(of.get_release_param_caps());
        answer.set_no_finish_needed(of.get_no_finish_needed());
        let mut exception = answer.init_exception();
        exception.set_reason(&error.extra);
        exception.set_type(match error.kind {
            capnp::ErrorKind::Overloaded => exception::Type::Overloaded,
            capnp::ErrorKind::Disconnected => exception::Type::Disconnected,
            capnp::ErrorKind::Unimplemented => exception::Type::Unimplemented,
            _ => exception::Type::Failed,
        });
    })
}
