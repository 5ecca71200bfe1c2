//! Cutting: what was made from a grant that is revoked ends at once, calls under way included.
//!
//! Invariants:
//! - A call that is cut is answered at once, and with nothing of the object: its handler runs to its end, and
//!   an exclusive object goes on only then.
//! - Nothing is decided here: whoever cuts has revoked before.
//! - Nobody is told of it before that is durable, so that no crash takes back what they were told.

use std::rc::Rc;

use capstead_client::sturdyref::GrantId;

use super::right::revoked_under_way;
use super::slot::{Start, State};
use super::vat::Vat;
use crate::id::ObjectId;
use crate::membrane::Reply;

impl Vat {
    /// Nobody uses these grants, or what depends on them, from now on.
    pub(in crate::host) fn cut(self: &Rc<Self>, target: ObjectId, grants: &[GrantId]) {
        let cut = grants.iter().map(|grant| self.grants.cut((target, *grant)));
        // Whoever uses a grant uses those that it depends on.
        if cut.filter(|was_used| *was_used).count() == 0 {
            return;
        }
        // First taken out: who is answered may call back.
        let mut cut = Vec::new();
        // What was made from an object's grant is that object; from a namespace's, any.
        let own = self.slots.borrow().get(&target).cloned();
        let slots =
            own.map_or_else(|| self.slots.borrow().values().cloned().collect(), |own| vec![own]);
        for slot in slots {
            if let State::Waking(waiting) = &mut *slot.state.borrow_mut() {
                take_cut(waiting, &mut cut);
            }
            let Some((instance, _)) = slot.awake() else { continue };
            for running in instance.running.borrow_mut().values_mut() {
                if running.facet.right.is_cut() {
                    cut.push(running.reply.take());
                }
            }
            if let Some(exclusive) = &instance.exclusive {
                exclusive.take_cut(&mut cut);
            }
            instance.parked.take_cut(&instance, &mut cut);
        }
        self.busy(|| cut.into_iter().for_each(|reply| self.tell_cut(reply, revoked_under_way())));
    }

    /// Tells a caller that the grant was taken back, once that is durable.
    pub(in crate::host) fn tell_cut(self: &Rc<Self>, reply: Reply, error: capnp::Error) {
        if self.is_settled() {
            return reply.send(Err(error));
        }
        let vat = self.clone();
        // Ends when all that was written by now is durable, or the storage has failed.
        tokio::task::spawn_local(async move {
            vat.outside_turns().await;
            let flushed = vat.flush().await;
            vat.busy(|| reply.send(Err(flushed.map_or_else(Into::into, |()| error))));
        });
    }
}

/// Takes the replies of calls that were cut; the calls stay where they are, and end without one.
pub(in crate::host) fn take_cut<'a>(
    waiting: impl IntoIterator<Item = &'a mut Start>,
    cut: &mut Vec<Reply>,
) {
    for start in waiting {
        if start.facet.right.is_cut() {
            cut.push(start.call.reply.take());
        }
    }
}
