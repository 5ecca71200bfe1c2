//! The answer of a call: it waits in the gate for all that the object wrote before.

use std::rc::Rc;

use crate::error::Result;
use crate::host::base::right::revoked_under_way;
use crate::host::state::instance::Instance;
use crate::host::state::queued_call::PendingReply;
use crate::membrane::Body;

/// Answers a call that has run, or isn't to run. Nothing of a call by a grant that was taken back
/// meanwhile is told.
pub(in crate::host) fn answer(
    instance: &Rc<Instance>,
    pending: PendingReply,
    outcome: Result<Body>,
) {
    instance.was_used();
    let PendingReply { reply, under_way, permit, facet, kept } = pending;
    let (grant, vat) = (facet.right.grant.clone(), instance.vat.clone());
    drop((permit, facet, kept));
    let held = reply.hold(&outcome);
    instance.gate.reply(move |on_its_way| {
        reply.keep((under_way, on_its_way));
        if grant.is_some_and(|grant| grant.is_cut()) {
            return vat.tell_when_durable(reply, revoked_under_way());
        }
        reply.send(outcome);
        drop(held);
    });
}
