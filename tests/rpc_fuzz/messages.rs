//! Messages of the protocol, and their common parts.

use capnp::message::{Builder, HeapAllocator};
use capnp_rpc::rpc_capnp::{disembargo, message, promised_answer};

pub(crate) type Message = Builder<HeapAllocator>;

pub(crate) fn fresh() -> Message {
    Builder::new(HeapAllocator::new().first_segment_words(64))
}

pub(crate) fn root(message: &mut Message) -> message::Builder<'_> {
    message.init_root()
}

/// Takes the first field, then the first field of that, and so on.
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

/// A disembargo for the first field of the answer to a call.
pub(crate) fn disembargo(on: u32, context: impl FnOnce(disembargo::context::Builder)) -> Message {
    let mut message = fresh();
    let mut disembargo = root(&mut message).init_disembargo();
    let mut target = disembargo.reborrow().init_target().init_promised_answer();
    target.set_question_id(on);
    path(target, 1);
    context(disembargo.init_context());
    message
}
