//! The end of what is open when the time of a reference is over: WebSockets that were opened by
//! it, and requests of HTTP, whose bodies may go on for as long as they like. All else is refused
//! at the next call.
//!
//! Invariant: there is a timer only for what was opened by a reference whose time has an end, and
//! it goes with that.

use std::rc::Rc;

use capnp::traits::HasTypeId;
use capstead_client::sturdyref::Method;
use tokio_util::task::AbortOnDropHandle;

use crate::error::expired_under_way;
use crate::host::base::right::Right;
use crate::host::state::instance::Instance;
use crate::schema::http_capnp::http_service;

/// Answers a request of HTTP when the time of its right is over, as a revocation would: its handler
/// runs to its end, and nobody hears of that.
pub(super) fn of_request(
    instance: &Rc<Instance>,
    number: u64,
    method: Option<Method>,
    right: &Right,
) -> Option<AbortOnDropHandle<()>> {
    let is_request = |method: Method| method.interface == http_service::Client::TYPE_ID;
    method.filter(|method| is_request(*method))?;
    let weak = Rc::downgrade(instance);
    right.at_end(&instance.vat.clock, move || {
        let Some(instance) = weak.upgrade() else { return };
        if let Some(reply) = instance.take_reply(number) {
            instance.vat.busy(|| instance.vat.tell_when_durable(reply, expired_under_way()));
        }
    })
}
