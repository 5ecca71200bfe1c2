//! The end of what is open when the time of a reference is over: WebSockets that were opened by
//! it, and requests of HTTP, whose bodies may go on for as long as they like. All else is refused
//! at the next call.
//!
//! Invariant: there is a timer only for what was opened by a reference whose time has an end, and
//! it goes with that.

use std::rc::Rc;
use std::time::Duration;

use capnp::traits::HasTypeId;
use capstead_client::sturdyref::Method;
use tokio_util::task::AbortOnDropHandle;

use super::cut;
use super::instance::Instance;
use super::right::Right;
use super::vat::Vat;
use crate::error::expired_under_way;
use crate::schema::http_capnp::http_service;

/// The clock may be set meanwhile, and the machine may sleep.
const LOOK_AGAIN: Duration = Duration::from_mins(1);

/// Runs `end` when the time of the right is over, unless the handle is dropped before. None if it
/// has no end.
pub(super) fn at_end(
    vat: &Rc<Vat>,
    right: &Right,
    end: impl FnOnce() + 'static,
) -> Option<AbortOnDropHandle<()>> {
    let until_ms = right.until_ms()?;
    let clock = vat.clock.clone();
    let task = tokio::task::spawn_local(async move {
        while let Some(left_ms) = until_ms.checked_sub(clock.now_ms()) {
            let left = Duration::from_millis(left_ms.saturating_add(1));
            tokio::time::sleep(left.min(LOOK_AGAIN)).await;
        }
        end();
    });
    Some(AbortOnDropHandle::new(task))
}

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
    at_end(&instance.vat, right, move || {
        let Some(instance) = weak.upgrade() else { return };
        if let Some(reply) = instance.take_reply(number) {
            instance.vat.busy(|| cut::tell(&instance.vat, reply, expired_under_way()));
        }
    })
}
